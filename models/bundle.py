"""The model bundle: the only contract between training and the service.

A repository is a folder of `<name>/<version>/`, each with a `manifest.json`, graphs as `*.onnx` and
`*.ts`, its weights as `*.pt` where training may go on from them, and `golden.npz` (one input and its
output). The manifest lists every file with its SHA-256, so the digest of the manifest identifies the
model to the last bit.

Who asks for a name without a version gets the promoted one, which `<name>/default.json`
({"version": "2"}) names, else the newest. Names that begin with a dot are for bundles on their way
in, and are passed over.

Graphs take and give named float32 arrays:

    estimate  image (B, 1, H, W)                              -> parameters (B, P)
    restore   image (B, 1, H, W), parameters (B, P), strength (B,)
                                                              -> restored (B, 1, H, W), noise (B, 1, H, W)
    restore   image (B, 1, H, W)                              -> restored (B, 1, sH, sW)   (superresolve)

`image` is on the unit scale (`ValueMap`), `noise` the standard deviation per pixel on that scale.
A denoise bundle has both graphs, so that every tile of an image shares one estimate; the P
parameters are named in `Manifest.parameters`: noise variance at signal x is
max(variance_slope * x + variance_offset, variance_floor); where they are there, too,
correlation_down_1, correlation_across_1, correlation_down_2 and correlation_across_2 are the noise's
correlation at lags (1, 0), (0, 1), (2, 0) and (0, 2), rows first. `pedestal` is the mean of the image: a
network that took off the mean of what it is given would differ from tile to tile by rounding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from models.errors import BundleInvalid, BundleNotFound

SCHEMA = 1
READABLE_SCHEMAS = tuple(n for n in (SCHEMA, SCHEMA - 1) if n > 0)  # the current schema and the one before it
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
DEFAULT = "default.json"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
VERSION = re.compile(r"[0-9]+(\.[0-9]+){0,2}")
TASKS = ("denoise", "superresolve")
ADVERSARIAL = "-adversarial"  # how the name of every adversarially trained bundle ends

logger = logging.getLogger("medrestore.bundle")


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a bundle promises; field for field the JSON of `manifest.json`."""

    name: str
    version: str
    task: str  # "denoise" or "superresolve"
    scale: int  # output rows per input row: 1, 2 or 4
    network: str  # registered name of the architecture
    summary: str
    licence: str
    graphs: dict[str, dict[str, str]]  # graph -> format ("onnx", "torchscript") -> file name
    files: dict[str, FileEntry]
    tiles: list[tuple[int, int]]  # (rows, columns) a graph is run at, smallest first
    multiple: int  # tile starts and sides are multiples of this many pixels
    halo: int  # pixels around a tile's kept part that the network can see
    parameters: list[str] = field(default_factory=list)
    precisions: list[str] = field(default_factory=lambda: ["fp32"])
    trained_sigma: tuple[float, float] = (0.0, 0.0)  # unit scale, lowest and highest
    trained_correlation: tuple[float, float] = (0.0, 0.0)  # lag-1 noise correlation
    parity: dict[str, float] = field(default_factory=dict)  # format -> largest difference from eager
    exact_tiling: bool | None = None  # tiles of any listed shape add up to the whole; None: not known, taken for no
    seam: float = 0.0  # largest difference of tiled from whole that was measured, unit scale
    adversarial: bool = False  # trained against a critic: fine texture may be invented; never served unasked
    consistency: float | None = None  # dB that healthy results, reduced again, reach (`app.consistency`)
    bytes_per_pixel: dict[str, float] = field(default_factory=dict)  # graph -> memory of a run beyond the weights
    scores: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)  # data list, config, seed, commit, duration
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise BundleInvalid(f"bundle name {self.name!r}: use lower-case letters, digits and hyphens")
        if not VERSION.fullmatch(self.version):
            raise BundleInvalid(f"bundle version {self.version!r}: use one to three numbers, as in 1 or 1.2.0")
        if self.task not in TASKS:
            raise BundleInvalid(f"task {self.task!r} is none of {', '.join(TASKS)}")
        if self.scale not in (1, 2, 4) or (self.task == "denoise") != (self.scale == 1):
            raise BundleInvalid(f"scale {self.scale} does not fit task {self.task}")
        required = {"estimate", "restore"} if self.task == "denoise" else {"restore"}
        if set(self.graphs) != required:
            raise BundleInvalid(f"a {self.task} bundle holds the graphs {sorted(required)}, not {sorted(self.graphs)}")
        if self.multiple < 1 or self.halo < 0:
            raise BundleInvalid(f"multiple {self.multiple} must be at least 1 and halo {self.halo} at least 0")
        if not self.tiles or any(side < 1 or side % self.multiple for tile in self.tiles for side in tile):
            raise BundleInvalid(f"tiles {self.tiles} must be positive multiples of {self.multiple}")
        if self.adversarial and not self.name.endswith(ADVERSARIAL):
            raise BundleInvalid(f"adversarial bundle {self.name!r}: its name must end in {ADVERSARIAL}")
        if self.consistency is not None and (self.scale == 1 or not 0 <= self.consistency <= 120):
            raise BundleInvalid(f"consistency {self.consistency} must be 0 to 120 dB, of a superresolve bundle")
        if self.exact_tiling is False and len(self.tiles) != 1:
            raise BundleInvalid("tiles that do not add up to the whole are part of the model: name one shape")
        for name in [*self.files, *(f for formats in self.graphs.values() for f in formats.values())]:
            if Path(name).name != name or name.startswith("."):
                raise BundleInvalid(f"file {name!r} is not a plain file name")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose checksums were verified when it was read."""

    folder: Path
    manifest: Manifest
    digest: str  # SHA-256 of manifest.json, hexadecimal

    @property
    def reference(self) -> str:
        """`name@version`, as callers pin it."""
        return f"{self.manifest.name}@{self.manifest.version}"

    def graph(self, name: str, format: str) -> Path:
        """The file of one graph. Raises BundleInvalid where the bundle lacks that format."""
        try:
            return self.folder / self.manifest.graphs[name][format]
        except KeyError:
            raise BundleInvalid(f"{self.reference} has no graph {name!r} as {format}") from None


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def parse_manifest(text: str) -> Manifest:
    """Reads manifest JSON. Unknown fields are ignored; raises BundleInvalid on anything missing."""
    try:
        raw = json.loads(text)
        if raw.get("schema") not in READABLE_SCHEMAS:
            raise BundleInvalid(
                f"manifest schema {raw.get('schema')!r} is not readable here (readable: {READABLE_SCHEMAS}); "
                "upgrade the service or export the bundle again"
            )
        known = {f.name for f in fields(Manifest)}
        values = {key: value for key, value in raw.items() if key in known}
        values["files"] = {name: FileEntry(e["sha256"], e["bytes"]) for name, e in raw["files"].items()}
        values["tiles"] = [(int(rows), int(columns)) for rows, columns in raw["tiles"]]
        for key in ("trained_sigma", "trained_correlation"):
            if key in values:
                low, high = values[key]
                values[key] = (float(low), float(high))
        return Manifest(**values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise BundleInvalid(f"manifest cannot be read: {exc}") from exc


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`, keys sorted, so that equal content gives equal bytes."""
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_bundle(folder: Path) -> Bundle:
    """Reads one `<name>/<version>` folder and verifies every checksum. Raises BundleInvalid."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleInvalid(f"{folder.parent.name}/{folder.name} has no {MANIFEST}")
    content = path.read_bytes()
    manifest = parse_manifest(content.decode("utf-8", errors="replace"))
    if (folder.parent.name, folder.name) != (manifest.name, manifest.version):
        raise BundleInvalid(
            f"folder {folder.parent.name}/{folder.name} holds a manifest of {manifest.name}/{manifest.version}"
        )
    for name, entry in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise BundleInvalid(f"{manifest.name}@{manifest.version} lacks {name}")
        if file.stat().st_size != entry.bytes or sha256_of(file) != entry.sha256:
            raise BundleInvalid(f"{manifest.name}@{manifest.version}: {name} is not the file the manifest names")
    unlisted = {f for formats in manifest.graphs.values() for f in formats.values()} - set(manifest.files)
    if unlisted:
        raise BundleInvalid(f"{manifest.name}@{manifest.version}: graphs without a checksum: {sorted(unlisted)}")
    return Bundle(folder, manifest, hashlib.sha256(content).hexdigest())


def version_key(version: str) -> tuple[int, ...]:
    """Sorts 2 before 10 and 1.9 before 1.10."""
    return tuple(int(part) for part in version.split("."))


def list_bundles(repository: Path) -> list[Path]:
    """Bundle folders of a repository, by name, newest version first; nothing is verified yet."""
    found = [
        path.parent
        for path in repository.glob(f"*/*/{MANIFEST}")
        if VERSION.fullmatch(path.parent.name) and not path.parent.parent.name.startswith(".")
    ]
    newest_first = sorted(found, key=lambda folder: version_key(folder.name), reverse=True)
    return sorted(newest_first, key=lambda folder: folder.parent.name)


def find_bundle(repository: Path, reference: str) -> Bundle:
    """The bundle of `name@version`, or of `name`: the promoted version, else the newest.

    Raises BundleNotFound, or BundleInvalid where that very version does not verify.
    """
    name, _, version = reference.partition("@")
    found = {folder.name: folder for folder in list_bundles(repository) if folder.parent.name == name}
    chosen = version or default_version(repository, name)
    if not version and chosen not in found:
        if chosen is not None:
            logger.warning("%s: version %s is promoted but not there; the newest serves", name, chosen)
        chosen = next(iter(found), None)
    if chosen in found:
        return read_bundle(found[chosen])
    available = ", ".join(f"{f.parent.name}@{f.name}" for f in list_bundles(repository)) or "none"
    raise BundleNotFound(f"no model {reference!r}; available: {available}")


def default_version(repository: Path, name: str) -> str | None:
    """The promoted version of a name, None where none is; warns of a pointer that cannot be read, which counts as none.

    Whether a bundle of that version is there is the caller's to see.
    """
    try:
        return read_pointer(repository, name)
    except BundleInvalid as exc:
        logger.warning("%s; the newest version serves", exc)
        return None


def read_pointer(repository: Path, name: str) -> str | None:
    """As `default_version`; raises BundleInvalid in place of warning."""
    where = f"{name}/{DEFAULT}"
    try:
        version = json.loads((repository / name / DEFAULT).read_bytes())["version"]
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise BundleInvalid(f"{where} cannot be read: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BundleInvalid(f'{where} does not read {{"version": "<number>"}}') from exc
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        raise BundleInvalid(f"{where} names {version!r}, which is no version")
    return version


def promote(repository: Path, name: str, version: str) -> Bundle:
    """Makes a version the one that serves `name`, at once or not at all; rolling back is the same step.

    Raises BundleNotFound where it is not there, BundleInvalid where it does not verify; the pointer then stays.
    """
    bundle = find_bundle(repository, f"{name}@{version}")
    target = repository / name / DEFAULT
    part = target.with_name(f".{DEFAULT}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps({"version": bundle.manifest.version}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    return bundle
