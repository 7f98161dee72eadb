"""Which series are restored, and how: a TOML file of rules.

    [[route]]
    name = "low-dose chest"
    when = {Modality = "CT", BodyPartExamined = ["CHEST", "THORAX"], StationName = "CT2*", min_instances = 20}
    operation = "denoise"
    options = {strength = 0.7}

The first route that matches takes the series. A condition is a text or a list of texts, of which one
must match the whole value; `*` stands for any characters, `?` for one, everything else for itself.
Upper and lower case are the same, and spaces at the ends do not count. A tag that is missing or empty
matches nothing, `*` included. `when = {}` takes every series. `[door]` is for what is sent to the
service: see `Door`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import translate
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from app.errors import RuleError
from app.pacs.candidate import TAGS, Candidate
from models.imaging.reduction import BEST_DB


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _worded(text: str) -> str:
    if not text.strip():
        raise ValueError("an empty text matches nothing")
    return text


Text = Annotated[str, Field(max_length=256), AfterValidator(_worded)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class When(_Table):
    """Conditions of one route; all of them must hold."""

    Modality: Texts | None = None
    BodyPartExamined: Texts | None = None
    StationName: Texts | None = None
    SeriesDescription: Texts | None = None
    min_instances: PositiveInt = 1

    def unmet(self, candidate: Candidate) -> str | None:
        """The first condition that does not hold, as a text without values of the series; None where all hold."""
        for tag, texts in self.conditions():
            value = candidate.tag(tag)
            if not value:
                return f"{tag} is missing"
            if not any(matches(text, value) for text in texts):
                return f"{tag} is not {' or '.join(texts)}"
        if candidate.instances < self.min_instances:
            return f"{candidate.instances} of at least {self.min_instances} instances"
        return None

    def conditions(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Tags that are asked for, with the texts of which one must match."""
        for tag in TAGS:
            if texts := getattr(self, tag):
                yield tag, texts

    def covers(self, other: When) -> bool:
        """Whether all that `other` takes is taken by this one; some that is not obvious is told as False."""
        theirs = dict(other.conditions())
        return self.min_instances <= other.min_instances and all(
            tag in theirs and all(any(_covers(mine, text) for mine in texts) for text in theirs[tag])
            for tag, texts in self.conditions()
        )


class WorkOptions(_Table):
    """Options of the work; left out, the service's own."""

    strength: float | None = Field(default=None, ge=0, le=1.5)
    sigma: float | None = Field(default=None, gt=0)
    strict: bool = False
    min_consistency: float | None = Field(default=None, ge=0, le=BEST_DB)
    precision: Literal["exact", "fast"] | None = None


class Work(_Table):
    """What is done to a series, in the words of `POST /pacs/jobs`."""

    operation: Literal["denoise", "superresolve"]
    scale: Literal[2, 4] | None = None
    model: str | None = Field(default=None, min_length=1)
    options: WorkOptions = WorkOptions()

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.operation == "denoise" and self.scale is not None:
            raise ValueError("scale belongs to superresolve; denoise keeps rows and columns")
        if self.operation == "superresolve" and self.scale is None:
            raise ValueError("superresolve needs scale = 2 or scale = 4")
        if self.operation == "superresolve" and (self.options.strength, self.options.sigma) != (None, None):
            raise ValueError("strength and sigma belong to denoise")
        if self.operation == "denoise" and (self.options.strict or self.options.min_consistency is not None):
            raise ValueError("strict and min_consistency belong to superresolve")
        return self


class Route(Work):
    """One rule."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^\S(.*\S)?$")
    pacs: str | None = Field(default=None, min_length=1)  # of this PACS alone; None: of any
    when: When


class Door(_Table):
    """What is done to series that are sent here, by STOW or C-STORE: the first route that matches, else `default`.

    What was made goes to `pacs`; so do the originals, first, where `originals` says so. A series that
    nothing takes is refused, unless its originals are passed on.
    """

    pacs: str = Field(min_length=1)
    originals: bool = False
    route: tuple[Route, ...] = ()
    default: Work | None = None

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if not (self.route or self.default or self.originals):
            raise ValueError("the door does nothing: give it routes, a default, or originals = true")
        if any(route.pacs is not None for route in self.route):
            raise ValueError("routes of the door have no pacs of their own; the door's is where all goes")
        return self

    @property
    def takes_small_series(self) -> bool:
        """Whether no series is refused for having few instances alone."""
        any_size = [one.when for one in self.route if one.when.min_instances == 1]
        return (
            self.originals
            or self.default is not None
            or all(any(when.covers(one.when) for when in any_size) for one in self.route)
        )

    def work(self, candidate: Candidate) -> Work | None:
        """What is done to a series, None where nothing is."""
        return next((route for route in self.route if route.when.unmet(candidate) is None), self.default)


class Rules(_Table):
    """A rules file."""

    route: tuple[Route, ...] = ()
    door: Door | None = None

    def first(self, pacs: str, candidate: Candidate) -> Route | None:
        """The route that takes a series of this PACS."""
        return next((route for route, unmet in self.explain(pacs, candidate) if unmet is None), None)

    def explain(self, pacs: str, candidate: Candidate) -> Iterator[tuple[Route, str | None]]:
        """The routes in order, each with why it does not take the series; None where it would."""
        for route in self.route:
            elsewhere = route.pacs is not None and route.pacs != pacs
            yield route, f"only for {route.pacs}" if elsewhere else route.when.unmet(candidate)


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(translate(text.strip().casefold().replace("[", "[[]")))  # only `*` and `?` are special here


def matches(text: str, value: str) -> bool:
    """Whether a condition's text, in which `*` and `?` stand for others, is the whole value; case and spaces at the
    ends do not count."""
    return _pattern(text).fullmatch(value.strip().casefold()) is not None


def _covers(mine: str, other: str) -> bool:
    """Whether `mine` matches all that `other` does; a glob of `other` is covered by its equal and by stars alone."""
    a, b = mine.strip().casefold(), other.strip().casefold()
    return a == b or set(a) == {"*"} or (not set("*?") & set(b) and matches(a, b))


def read_rules(text: str) -> Rules:
    """Rules of a TOML text. Raises RuleError, which names the line and the route."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise RuleError(f"rules: not TOML: {exc}") from exc
    except RecursionError as exc:
        raise RuleError("rules: nested too deeply") from exc
    try:
        rules = Rules.model_validate(tables)
    except ValidationError as exc:
        causes = exc.errors(include_url=False, include_input=False)
        raise RuleError("rules: " + "; ".join(_explained(text, tables, cause) for cause in causes)) from exc
    for path, routes in (("route",), rules.route), (("door", "route"), rules.door.route if rules.door else ()):
        _refuse_contradictions(text, path, routes)
    return rules


def _refuse_contradictions(text: str, path: tuple[str, ...], routes: Sequence[Route]) -> None:
    """Raises RuleError for a name that is used twice, and for a route that can never be reached."""
    for index, route in enumerate(routes):
        where = _place(text, path, index, route.name)
        for before in routes[:index]:
            if before.name == route.name:
                raise RuleError(f"rules: {where}: another route has this name")
            if before.pacs in (None, route.pacs) and before.when.covers(route.when):
                raise RuleError(f"rules: {where}: never reached, because route {before.name!r} takes all that it would")


def _explained(text: str, tables: Mapping[str, Any], cause: Any) -> str:
    """One cause of a refusal, with its place in the file."""
    path = tuple(cause["loc"])
    split = next((i for i, part in enumerate(path) if isinstance(part, int)), len(path))
    names, rest = path[:split], path[split:]
    message = str(cause["msg"]).removeprefix("Value error, ").replace("Extra inputs are not permitted", "unknown key")
    if names[-1:] != ("route",) or not rest:
        return f"{'.'.join(map(str, path))}: {message}"
    table: Any = tables
    for part in path[: split + 1]:
        table = table[part]
    name = table.get("name") if isinstance(table, Mapping) else None
    keys = ".".join(str(part) for part in rest[1:])
    return f"{_place(text, names, rest[0], name)}: {keys}{': ' if keys else ''}{message}"


def _place(text: str, path: Sequence[str], index: int, name: object) -> str:
    """Line, number and name of a route."""
    header = re.compile(rf"\s*\[\[\s*{re.escape('.'.join(path))}\s*\]\]")
    lines = [number for number, line in enumerate(text.splitlines(), start=1) if header.match(line)]
    line = f"line {lines[index]}, " if index < len(lines) else ""
    return f"{line}{'.'.join(path)} {index + 1}{f' {name!r}' if name else ''}"
