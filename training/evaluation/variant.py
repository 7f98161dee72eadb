"""What `--model` and `--specialist` name: bundles by reference or by folder, each under a name for the tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from models.bundle import MANIFEST, Bundle, find_bundle, read_bundle
from training.restorer import LocalBundle, Restorer

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
        found[name] = LocalBundle(find_variant(place, repository), threads)
    return found
