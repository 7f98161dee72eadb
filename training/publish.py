"""From a finished pipeline run to a version that a service takes up: `medrestore publish RUN --to REPOSITORY`.

Exports, verifies, adds the report (without its pictures) and places the new version in one step. It becomes the
default only with `--promote` and a passed acceptance table; without them the version that serves now goes on serving.

Exit status: 0 published (and promoted, where that was asked for), 1 failed, or published but not promoted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
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
from training.export import RUNNERS, TOLERANCE, Arrays, Graph, export
from training.pipeline.record import PIPELINE, read_audit, read_json
from training.pipeline.stage import DONE, INPUTS, STAGES, content_digest, public_config, require
from training.report.acceptance import FAIL, PASS
from training.report.build import JSON, PUBLIC, read_report
from training.train import RUN

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
        graph = Graph(name, None, GIVEN[name], MADE[name])  # type: ignore[arg-type] - only its names are used
        given = {key: arrays[f"{name}.in.{key}"] for key in graph.inputs}
        for format in formats:
            found = RUNNERS[format](bundle.graph(name, format), graph, given)
            for key in graph.outputs:
                difference = float(np.abs(found[key] - arrays[f"{name}.out.{key}"]).max())
                if not difference <= TOLERANCE:
                    raise ValueError(f"{name}: {format} differs from the stored output by {difference:.2e}")


def publish(run: Path, repository: Path, name: str, version: str, licence: str = "") -> Bundle:
    """Exports and verifies the run aside, then places `<repository>/<name>/<version>` by one rename.

    The version that serves `name` now is kept serving. Raises ValueError or BundleInvalid; nothing is placed then.
    """
    require(run, STAGES)
    require_current(run)
    report = read_report(run)
    if not (run / "report" / PUBLIC).exists():
        raise ValueError("the report is of an earlier version; make stage report anew with --redo")
    if version in versions(repository, name):
        raise ValueError(f"{name}@{version} exists already; versions are never overwritten")
    repository.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repository, prefix=".publish-") as aside:
        staged = export(
            run / "profound",
            Path(aside),
            version,
            {"acceptance": report["acceptance"]},
            name=name,
            provenance=provenance(run),
            attached=(run / "report" / PUBLIC, run / "report" / JSON),
            licence=licence,
        )
        replay_golden(read_bundle(staged))
        hold_default(repository, name)
        target = repository / name / version
        target.parent.mkdir(exist_ok=True)
        staged.rename(target)
    return read_bundle(target)


def require_current(run: Path) -> None:
    """Raises ValueError where a stage has read what an earlier one has made anew since."""
    for stage in STAGES:
        read = read_json(run / stage / DONE)["fingerprint"]["inputs"]
        if changed := [name for name in INPUTS[stage] if content_digest(run / name) != read[name]]:
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
    parser.add_argument("run", type=Path, help="folder that `medrestore pipeline run` wrote")
    parser.add_argument("--to", type=Path, required=True, metavar="REPOSITORY", help="model repository of the service")
    parser.add_argument("--name", default="denoise", help="of the bundle; default: denoise")
    parser.add_argument("--version", help="default: the number after the newest version")
    parser.add_argument("--licence", default="", help="terms of the weights; default: those of what they started from")
    parser.add_argument("--promote", action="store_true", help="make it the default, if the acceptance table passed")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Entry point of `medrestore publish`; returns the exit status."""
    options = parse(argv)
    version = options.version or next_version(options.to, options.name)
    if not NAME.fullmatch(options.name) or not VERSION.fullmatch(version):
        raise ValueError(f"{options.name}@{version}: lower-case letters, digits and hyphens; one to three numbers")
    bundle = publish(options.run, options.to, options.name, version, options.licence)
    print(f"published {bundle.reference} ({bundle.digest[:12]})")
    acceptance = bundle.manifest.scores["acceptance"]
    for row in acceptance["rows"]:
        if row["verdict"] != PASS:
            print(f"  {row['verdict']}: {row['check']}: {row['asked']}; {row['found'] or row['note']}")
    if options.promote and acceptance["passed"]:
        promote(options.to, options.name, version)
        print(f"promoted: {bundle.reference} is the default now")
    elif options.promote:
        failed = sum(row["verdict"] == FAIL for row in acceptance["rows"])
        print(f"medrestore: not promoted: the acceptance table has not passed ({failed} failed)", file=sys.stderr)
        return 1
    elif len(versions(options.to, options.name)) == 1:
        print(f"it is the only version of {options.name}, so it serves")
    else:
        serving = default_version(options.to, options.name)
        print(f"{options.name}@{serving} remains the default; ask for this one as {bundle.reference}")
    return 0
