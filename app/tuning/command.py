"""`medrestore autotune`: measures this machine, writes the settings that it found and the table beside them."""

from __future__ import annotations

import os
import platform
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.backends.base import Backend
from app.catalogue import Catalogue
from app.pipeline import EXACT, FAST
from app.supervisor import cores
from app.tuning.choice import Choice, choose
from app.tuning.fidelity import Loss, loss, packaged
from app.tuning.sweep import Sweep, Way, sweep
from models.bundle import Bundle, find_bundle
from models.errors import OptionError

BEGIN, END = "# autotune: measured on this machine", "# autotune: end"


def autotune(bundles: Sequence[Bundle], seconds: float, path: Path) -> str:
    """Measures, writes the settings into the TOML file `path` and gives what was measured, as Markdown.

    Other keys and comments of the file stay. Raises OptionError where it is no TOML.
    """
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    _parsed(before, path)
    sweeps: list[Sweep] = []
    losses: dict[tuple[str, str], Loss] = {}
    for bundle in bundles:
        result, ways = sweep(bundle, _threads(), seconds / len(bundles))
        sweeps.append(result)
        losses |= _losses(bundle, ways)
    choice = choose(sweeps, losses)
    report = describe(sweeps, losses, choice)
    after = merged(before, choice.settings, report)
    _parsed(after, path)
    path.write_text(after, encoding="utf-8")
    return report


def served(catalogue: Catalogue, references: Sequence[str]) -> list[Bundle]:
    """The named bundles, or the current version of every name. Raises BundleNotFound, OptionError for none."""
    names = references or sorted({bundle.manifest.name for bundle in catalogue.bundles})
    if not names:
        raise OptionError(f"{catalogue.repository} holds no model to measure")
    return [find_bundle(catalogue.repository, name) for name in names]


def merged(text: str, settings: Mapping[str, Any], report: str) -> str:
    """A TOML text with these keys set, and the report as the one comment block of an autotune."""
    head, _, rest = text.partition(BEGIN)
    kept = (head + rest.partition(END)[2]).splitlines()
    kept = [line for line in kept if line.partition("=")[0].strip() not in settings]
    comment = [f"# {line}".rstrip() for line in report.splitlines()]
    chosen = [f"{name} = {_written(value)}" for name, value in settings.items()]
    # In front, because a key that follows a table's heading would belong to that table.
    return "\n".join([BEGIN, *comment, *chosen, END, *kept]).rstrip("\n") + "\n"


def describe(sweeps: Sequence[Sweep], losses: Mapping[tuple[str, str], Loss], choice: Choice) -> str:
    """The tables of what was measured, and the choice with its reasons."""
    busy = os.getloadavg()[0]
    lines = [f"{platform.machine()}, {cores()} cores, load {busy:.1f}; medians of the network alone"]
    if busy > cores() + 0.5:  # the measuring itself keeps the cores busy
        lines.append("the machine was busy with other work: measure again when it is quiet")
    for result in sweeps:
        lines += ["", *_timing_table(result)]
        lines += [f"left out: {what}: {why}" for what, why in result.left_out.items()]
    lines += ["", "| fast mode | model | PSNR lost, dB | worst image | largest change of 16 bits | RMS | images |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for (backend, reference), found in losses.items():
        figures = f"{found.mean_db:.4f} | {found.worst_db:.4f} | {found.largest} | {found.typical:.1f} | {found.images}"
        lines.append(f"| {backend} {FAST} | {reference} | {figures} |")
    settings = ", ".join(f"{name} = {value}" for name, value in choice.settings.items())
    return "\n".join([*lines, "", *choice.reasons, f"chosen: {settings}"])


def _timing_table(result: Sweep) -> list[str]:
    lines = [f"| {result.bundle.reference} | threads | tile | batch | ms per item | spread | equal to single runs |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for t in result.timings:
        median, fastest, slowest = (1000 * s / t.load.batch for s in (t.seconds, t.fastest, t.slowest))
        tile = f"{t.load.tile[0]} x {t.load.tile[1]}"
        figures = f"{median:.1f} | {fastest:.1f} to {slowest:.1f} | {'yes' if t.equal else 'no'}"
        lines.append(f"| {t.way.backend} {t.way.precision} | {t.way.threads} | {tile} | {t.load.batch} | {figures} |")
    return lines


def _threads() -> tuple[int, ...]:
    """Powers of two below the number of cores, and that number."""
    count = cores()
    return (*(1 << power for power in range(count.bit_length()) if 1 << power < count), count)


def _losses(bundle: Bundle, ways: Mapping[Way, Backend]) -> dict[tuple[str, str], Loss]:
    """By backend and bundle: each fast runtime against the first exact one."""
    exact = next(backend for way, backend in ways.items() if way.precision == EXACT)
    fast = {way.backend: backend for way, backend in ways.items() if way.precision == FAST}
    planes = packaged() if fast else []
    return {(name, bundle.reference): loss(bundle, exact, backend, planes) for name, backend in fast.items()}


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise OptionError(f"{path} is no TOML: {exc}") from exc


def _written(value: str | int) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
