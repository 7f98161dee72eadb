"""Where a run's configuration comes from: a preset, the run's own record, and overrides on top of either."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from models.bundle import MANIFEST
from training.config import build, parse_override

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = ("smoke", "cpu", "gpu")
WHOLE = ("options", "shares")  # tables of these names replace the default's as a whole

T = TypeVar("T")
Document = dict[str, Any]


def as_it_is(document: Document) -> Document:
    return document


@dataclass(frozen=True)
class Presets(Generic[T]):
    """The configurations of one kind of run."""

    kind: type[T]  # a dataclass with a section for each stage, and the seed
    prefix: str  # of the preset's files
    start: str  # the stage that goes on from a bundle

    def from_record(self, record: Document, overrides: Iterable[str] = ()) -> T:
        """The configuration of a document that may leave anything out. Raises ValueError naming the key at fault."""
        defaults = json.loads(json.dumps(dataclasses.asdict(self.kind())))  # type: ignore[call-overload]
        return build(self.kind, override(merge(defaults, record), overrides), self.prefix)

    def read(self, path: Path, overrides: Iterable[str] = (), adapt: Callable[[Document], Document] = as_it_is) -> T:
        """A preset, as `adapt` changes its tables, with overrides on top. Raises ValueError naming the key at fault."""
        return self.from_record(adapt(read_document(path)), overrides)

    def choose(
        self, options: Namespace, record: Document, adapt: Callable[[Document], Document] = as_it_is
    ) -> tuple[T, str]:
        """The preset asked for, else the one on record, else `cpu`; with the overrides on top.

        One stage alone takes its own section from there; the others, and the seed, stay as they are on record. Raises
        ValueError for an override that would do nothing there.
        """
        if record and options.stage:
            others = [text for text in options.set if not text.startswith(f"{options.stage}.")]
            others += ["--from"] if options.start and options.stage != self.start else []
            if others:
                raise ValueError(f"{others[0]}: --stage {options.stage} changes the settings of this stage alone")
        config, preset = self.new(options, record, adapt)
        if not record or not options.stage:
            return config, preset
        stage = {options.stage: getattr(config, options.stage)}
        return dataclasses.replace(self.from_record(record["config"]), **stage), record["preset"]  # type: ignore[type-var]

    def new(self, options: Namespace, record: Document, adapt: Callable[[Document], Document]) -> tuple[T, str]:
        """The configuration of a call that runs every stage."""
        overrides = list(options.set)
        if options.start:
            start = Path(options.start)
            place = "" if options.start == "none" else start.resolve() if (start / MANIFEST).is_file() else start
            overrides.append(f"{self.start}.start={place}")
        if record and not options.preset:
            return self.from_record(record["config"], overrides), record["preset"]
        name = options.preset or "cpu"
        path = Path(name) if name.endswith(".toml") else CONFIGS / f"{self.prefix}-{name}.toml"
        if not path.is_file():
            raise ValueError(f"--preset {name}: neither a file nor one of {', '.join(PRESETS)}")
        return self.read(path, overrides, adapt), path.stem.removeprefix(f"{self.prefix}-")


def merge(base: Document, change: Document) -> Document:
    """The base with every key of the change, table by table."""
    merged = dict(base)
    for key, value in change.items():
        before = base.get(key)
        nested = isinstance(value, dict) and isinstance(before, dict) and key not in WHOLE
        merged[key] = merge(before, value) if nested else value
    return merged


def override(raw: Document, overrides: Iterable[str]) -> Document:
    """The document with `KEY=VALUE` texts on top. Raises ValueError for a text that is none."""
    for text in overrides:
        keys, value = parse_override(text)
        for key in reversed(keys):
            value = {key: value}
        raw = merge(raw, value)
    return raw


def read_document(path: Path) -> Document:
    """A preset's tables; `extends = "cpu.toml"`, a file beside it, gives those that it leaves out."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name}: {error}") from error
    base = document.pop("extends", "")
    return merge(read_document(path.parent / base), document) if base else document
