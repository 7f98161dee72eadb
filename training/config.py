"""Training configurations: one TOML file per bundle, read into small dataclasses.

Unknown keys are errors, and so are contradictions; the message names the key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from training.course import Course
from training.data.noise import NoisePopulation
from training.data.pair import PairConfig
from training.data.source import SourceConfig
from training.degradation.config import DegradationConfig

T = TypeVar("T")
VALUES: dict[Any, tuple[Any, str]] = {  # by annotation: what a value may be, and what that is called
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a text"),
    tuple: ((list, tuple), "a list"),
    dict: (dict, "a table of keys and values"),
}
# What the digest of a denoiser holds in place of a degradation, so that runs of earlier versions can go on.
UNUSED = {"bicubic_share": 0.7, "noise_share": 0.3, "highest_noise": 2.0 / 255}


@dataclass(frozen=True)
class Fit(Course):
    """How one graph is trained."""

    network: str  # a name in models.networks.registry
    options: dict[str, Any] = field(default_factory=dict)  # of the network's constructor
    optimizer: str = "muon"  # or "adamw"
    weight_decay: float = 0.0
    pairs: PairConfig = field(default_factory=PairConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"optimizer: {self.optimizer!r} is neither muon nor adamw")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training run produces."""

    name: str  # of the bundle
    task: str  # "denoise" or "superresolve"
    summary: str
    restore: Fit
    estimate: Fit | None = None
    scale: int = 1
    seed: int = 0
    start: str = ""  # a bundle (its folder, or NAME@VERSION among the shipped ones) to go on from; "": from scratch
    sources: tuple[SourceConfig, ...] = ()
    validation: tuple[SourceConfig, ...] = ()
    noise: NoisePopulation = field(default_factory=NoisePopulation)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    tiles: tuple[int, ...] = (256, 512, 1024)  # sides of the square tiles the export declares
    checkpoint_every: int = 500
    validate_every: int = 2000

    def __post_init__(self) -> None:
        if (self.task == "denoise") != (self.estimate is not None):
            raise ValueError("estimate: a denoise configuration needs this section, another must not have it")
        if not self.sources:
            raise ValueError("sources: at least one is needed")

    @property
    def fits(self) -> dict[str, Fit]:
        """The graphs of the bundle and how each is trained."""
        found = {"estimate": self.estimate, "restore": self.restore}
        return {graph: fit for graph, fit in found.items() if fit is not None}

    def digest(self, graph: str) -> str:
        """SHA-256 of what decides one graph's weights: a checkpoint of another configuration is refused."""
        record = dataclasses.asdict(self)
        if self.task == "denoise":
            record["degradation"] = UNUSED
        other = {name: None for name in ("estimate", "restore") if name != graph}
        text = json.dumps(record | other | {"summary": ""}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def build(kind: type[T], raw: dict[str, Any], where: str) -> T:
    """A dataclass from a TOML table, nested dataclasses and tuples of them included."""
    check_type(dict, raw, where)
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := set(raw) - known:
        raise ValueError(f"{where}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(sorted(known))}")
    return kind(**{key: convert(hints[key], value, f"{where}.{key}") for key, value in raw.items()})


def recorded_config(record: dict[str, Any]) -> TrainConfig:
    """The configuration in a run's record, of an earlier version too. Raises ValueError naming the key at fault."""
    raw = dict(record["config"])
    if UNUSED.keys() <= raw.get("degradation", {}).keys():
        del raw["degradation"]  # the form it had before there was more than one kind
    return build(TrainConfig, raw, "run.json")


def convert(hint: Any, value: Any, where: str) -> Any:
    """One TOML (or, from a run's record, JSON) value as the annotated type."""
    if value is None:
        return None
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    check_type(hint, value, where)
    if typing.get_origin(hint) is tuple:
        arms = typing.get_args(hint)
        inner = arms[0] if len(arms) == 2 and arms[1] is ... else None
        return tuple(convert(inner or arms[i], item, f"{where}[{i}]") for i, item in enumerate(value))
    return value


def check_type(hint: Any, value: Any, where: str) -> None:
    """Raises ValueError where a value is not of a plain type, a list or a table, as the annotation asks."""
    wanted, name = VALUES.get(typing.get_origin(hint) or hint, (object, ""))
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint in (int, float)):
        raise ValueError(f"{where}: {value!r} is not {name}")


def parse_override(text: str) -> tuple[list[str], Any]:
    """`restore.steps=100` -> (["restore", "steps"], 100); the value is read as TOML, else as text."""
    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"override {text!r}: write KEY=VALUE, as in restore.steps=1000")
    try:
        return key.split("."), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.split("."), value


def read_config(path: Path, overrides: tuple[str, ...] = ()) -> TrainConfig:
    """Reads a configuration file. Raises ValueError naming the key that is wrong."""
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    for text in overrides:
        keys, value = parse_override(text)
        table = raw
        for key in keys[:-1]:
            table = table.setdefault(key, {})
        table[keys[-1]] = value
    return build(TrainConfig, raw, path.name)
