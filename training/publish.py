"""From a finished run of stages to versions that a service takes up: `medrestore publish RUN --to REPOSITORY`.

Exports, verifies, adds the report (without its pictures) and places the new version in one step. It becomes the
default only with `--promote` and a passed acceptance table; without them the version that serves now goes on serving.

Exit status: 0 published (and promoted, where that was asked for), 1 failed, or published but not promoted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import (
    GOLDEN,
    NAME,
    VERSION,
    Bundle,
    default_version,
    list_bundles,
    promote,
    read_bundle,
    version_key,
)
from training.export import RUNNERS, TOLERANCE, Arrays, Graph, export, licence_of
from training.pipeline.plan import DENOISER, Plan
from training.pipeline.record import PIPELINE, read_audit, read_json
from training.pipeline.stage import DONE, STAGES, content_digest, public_config, require
from training.report.acceptance import FAIL, PASS
from training.report.page import JSON, PUBLIC, read_report
from training.superresolution.plan import plan_of
from training.train import RUN

CARD = "card.md"

GIVEN = {"estimate": ("image",), "restore": ("image", "parameters", "strength")}
MADE = {"estimate": ("parameters",), "restore": ("restored", "noise")}


def versions(repository: Path, name: str) -> list[str]:
    """The versions of a name, newest first; folders that are on their way in are left out."""
    return [folder.name for folder in list_bundles(repository) if folder.parent.name == name]


def next_version(repository: Path, name: str) -> str:
    """The whole number after the newest version: "1" in an empty repository."""
    found = versions(repository, name)
    return str(version_key(found[0])[0] + 1) if found else "1"


def provenance(run: Path) -> dict[str, Any]:
    """What the bundle was made from: configuration, seed, code, and hashes; no file or folder is named."""
    record, audit, profound = read_json(run / PIPELINE), read_audit(run), read_json(run / "profound" / RUN)
    marks = {stage: read_json(run / stage / DONE) for stage in STAGES}
    made = {key: record[key] for key in ("preset", "seed", "commit")}
    return {
        "pipeline": {**made, "config": public_config(record["config"])},
        "start": profound.get("start"),
        "seconds": profound["seconds"],
        "stages": {
            stage: {key: mark[key] for key in ("digest", "commit", "versions", "seconds", "processes")}
            for stage, mark in marks.items()
        },
        "data": {
            "noisy": {"folder_sha256": marks["audit"]["fingerprint"]["inputs"]["noisy"],
                      "sha256": sorted({image.sha256 for image in audit.noisy("train")})},
            "clean": {"folder_sha256": marks["audit"]["fingerprint"]["inputs"]["clean"],
                      "sha256": sorted({image.sha256 for image in audit.clean if image.split == "train"})},
        },
    }  # fmt: skip


def replay_golden(bundle: Bundle) -> None:
    """Repeats the stored input on every exported graph. Raises ValueError where an output differs."""
    with np.load(bundle.folder / GOLDEN) as stored:
        arrays: Arrays = {name: stored[name] for name in stored.files}
    for name, formats in bundle.manifest.graphs.items():
        given_names, made = (  # what this bundle's task knows of them
            tuple(key for key in keys if f"{name}.{side}.{key}" in arrays)
            for side, keys in (("in", GIVEN[name]), ("out", MADE[name]))
        )
        graph = Graph(name, None, given_names, made)  # type: ignore[arg-type] - only its names are used
        given = {key: arrays[f"{name}.in.{key}"] for key in graph.inputs}
        for format in formats:
            found = RUNNERS[format](bundle.graph(name, format), graph, given)
            for key in graph.outputs:
                difference = float(np.abs(found[key] - arrays[f"{name}.out.{key}"]).max())
                if not difference <= TOLERANCE:
                    raise ValueError(f"{name}: {format} differs from the stored output by {difference:.2e}")


@dataclass(frozen=True)
class Edition:
    """One bundle that a run makes."""

    name: str
    run: Path  # folder that `training.export.export` takes
    scores: dict[str, Any]  # `acceptance` among them
    provenance: dict[str, Any]
    attached: tuple[Path, ...]
    licence: str = ""
    consistency: float | None = None
    card: Callable[..., Path] | None = None  # writes the model card: (path, name=, version=, licence=)

    def stage(self, aside: Path, version: str) -> Path:
        """Exports and verifies the bundle into a repository that is not served from; returns its folder."""
        attached = self.attached
        if self.card is not None:
            licence = self.licence or licence_of(read_json(self.run / RUN))
            path = aside / f".{self.name}" / CARD
            path.parent.mkdir()
            attached += (self.card(path, name=self.name, version=version, licence=licence),)
        staged = export(
            self.run,
            aside,
            version,
            self.scores,
            name=self.name,
            provenance=self.provenance,
            attached=attached,
            licence=self.licence,
            consistency=self.consistency,
        )
        replay_golden(read_bundle(staged))
        return staged


def editions(run: Path, name: str | None = None, licence: str = "") -> list[Edition]:
    """What a finished run makes: one bundle of a denoiser's; of a super-resolver's its adversarial variant, too.

    Raises ValueError where a stage is not finished, or was made from something else than what is there.
    """
    if not (run / PIPELINE).exists():
        raise ValueError(f"{run} holds no run of stages; `medrestore export` takes that of a network by itself")
    plan = plan_of(read_json(run / PIPELINE))
    require(run, plan.stages)
    require_current(run, plan)
    report = read_report(run)
    if not (run / "report" / PUBLIC).exists():
        raise ValueError("the report is of an earlier version; make stage report anew with --redo")
    if plan is not DENOISER:
        from training.superresolution import edition

        return edition.editions(run, name, licence)
    attached = (run / "report" / PUBLIC, run / "report" / JSON)
    scores = {"acceptance": report["acceptance"]}
    return [Edition(name or "denoise", run / "profound", scores, provenance(run), attached, licence)]


def publish(run: Path, repository: Path, name: str | None, version: str | None, licence: str = "") -> list[Bundle]:
    """Exports and verifies the run aside, then places each `<repository>/<name>/<version>` by one rename.

    Without a version each gets the number after its newest one. The version that serves a name now is kept serving.
    Raises ValueError or BundleInvalid; nothing is placed then.
    """
    wanted = [(one, version or next_version(repository, one.name)) for one in editions(run, name, licence)]
    for one, number in wanted:
        if not NAME.fullmatch(one.name) or not VERSION.fullmatch(number):
            raise ValueError(f"{one.name}@{number}: lower-case letters, digits and hyphens; one to three numbers")
        if number in versions(repository, one.name):
            raise ValueError(f"{one.name}@{number} exists already; versions are never overwritten")
    repository.mkdir(parents=True, exist_ok=True)
    placed = []
    with tempfile.TemporaryDirectory(dir=repository, prefix=".publish-") as aside:
        staged = [one.stage(Path(aside), number) for one, number in wanted]
        for folder in staged:
            hold_default(repository, folder.parent.name)
            target = repository / folder.parent.name / folder.name
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)
            placed.append(target)
    return [read_bundle(target) for target in placed]


def require_current(run: Path, plan: Plan = DENOISER) -> None:
    """Raises ValueError where a stage has read what an earlier one has made anew since."""
    for stage, inputs in plan.inputs.items():
        read = read_json(run / stage / DONE)["fingerprint"]["inputs"]
        if changed := [name for name in inputs if content_digest(run / name) != read[name]]:
            raise ValueError(f"stage {stage} was made from another {changed[0]}; run it again")


def hold_default(repository: Path, name: str) -> None:
    """Points to the version that serves now, where only its being the newest made it serve."""
    found = versions(repository, name)
    if found and default_version(repository, name) not in found:
        promote(repository, name, found[0])


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="medrestore publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of `medrestore pipeline run` or `medrestore train superresolve`")
    parser.add_argument("--to", type=Path, required=True, metavar="REPOSITORY", help="model repository of the service")
    parser.add_argument("--name", help="of the bundle; default: denoise, superresolve-x2 or superresolve-x4")
    parser.add_argument("--version", help="default: the number after the newest version")
    parser.add_argument("--licence", default="", help="terms of the weights; default: those of what they started from")
    parser.add_argument("--promote", action="store_true", help="make it the default, if the acceptance table passed")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Entry point of `medrestore publish`; returns the exit status."""
    options = parse(argv)
    found = publish(options.run, options.to, options.name, options.version, options.licence)
    return max([settle(bundle, options.to, options.promote) for bundle in found])


def settle(bundle: Bundle, repository: Path, wanted: bool) -> int:
    """Says what was published and, where that is wanted and the table passed, promotes it; the exit status."""
    name, version = bundle.manifest.name, bundle.manifest.version
    print(f"published {bundle.reference} ({bundle.digest[:12]})")
    acceptance = bundle.manifest.scores["acceptance"]
    for row in acceptance["rows"]:
        if row["verdict"] != PASS:
            print(f"  {row['verdict']}: {row['check']}: {row['asked']}; {row['found'] or row['note']}")
    if wanted and acceptance["passed"]:
        promote(repository, name, version)
        print(f"promoted: {bundle.reference} is the default now")
    elif wanted:
        failed = sum(row["verdict"] == FAIL for row in acceptance["rows"])
        print(f"medrestore: not promoted: the acceptance table has not passed ({failed} failed)", file=sys.stderr)
        return 1
    elif len(versions(repository, name)) == 1:
        print(f"it is the only version of {name}, so it serves")
    else:
        serving = default_version(repository, name)
        print(f"{name}@{serving} remains the default; ask for this one as {bundle.reference}")
    return 0
