"""What `--model` and `--specialist` name, each under a name for the tables: bundles, trained runs, stage 1 of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from models.bundle import MANIFEST, Bundle, find_bundle, read_bundle
from training.evaluation.preliminary import WEIGHTS, PreliminaryRestorer
from training.evaluation.upscaler import RunUpscaler
from training.report.model import RunModel
from training.restorer import LocalBundle, Restorer
from training.train import RUN

RESTORED = "restore"
DEFAULT = "MedRestore"  # what a model is called that was given no name


def find_variant(place: str, repository: Path) -> Bundle:
    """The bundle of `name` or `name@version` in the repository, or of a path: REPOSITORY/name[@version] or a folder.

    Raises BundleNotFound, or BundleInvalid for one that is spoilt.
    """
    path = Path(place)
    if (path / MANIFEST).is_file():
        return read_bundle(path)
    return find_bundle(path.parent, path.name) if path.parent.name else find_bundle(repository, place)


def read_variants(texts: Iterable[str], repository: Path, threads: int) -> dict[str, Restorer]:
    """Restorers by name, of texts `NAME=PLACE` or `PLACE`. Raises ValueError where two have one name."""
    found: dict[str, Restorer] = {}
    for text in texts:
        name, separator, place = text.partition("=")
        name, place = (name, place) if separator else (DEFAULT, text)
        if name in found:
            raise ValueError(f"--model {text!r}: {name!r} is given twice; write NAME=PLACE")
        found[name] = read_variant(place, repository, threads)
    return found


def read_variant(place: str, repository: Path, threads: int) -> Restorer:
    """A bundle; or, of a folder, what `medrestore train` left there, or the stage 1 of a pipeline run.

    Of a super-resolver's run it is the network of the stage `restore`; one of another stage has that one's folder.
    """
    path = Path(place)
    if (path / RESTORED / RUN).is_file():
        path = path / RESTORED
    if (path / WEIGHTS).is_file():
        return PreliminaryRestorer(path)
    if (path / RUN).is_file():
        task = json.loads((path / RUN).read_text(encoding="utf-8"))["config"]["task"]
        return RunUpscaler(path) if task == "superresolve" else RunModel(path)
    return LocalBundle(find_variant(place, repository), threads)
