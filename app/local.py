"""Restores files in this process, without a server: what `medrestore denoise` and `superresolve` do."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from app.backends.base import load, self_test
from app.errors import BackendUnavailable
from app.noise import Runner
from app.options import Options
from app.pipeline import EXACT, FAST, Restoration, choose_precision, restore
from app.runner import LocalRunner
from app.settings import Settings
from app.tiling import Tiling
from models.bundle import Bundle
from models.errors import ImageTooLarge, MedRestoreError, OptionError
from models.imaging.codec import EXTENSIONS, decode, encode
from models.imaging.image import Image
from models.imaging.raster import source_of

SYNONYMS = {".tif": ".tiff", ".dicom": ".dcm"}
WRITABLE = {extension: format for format, extension in EXTENSIONS.items() if format != "jpeg"}


@dataclass(frozen=True)
class Job:
    """One file to restore; `format` is None where the output keeps the input's format."""

    source: Path
    target: Path
    format: str | None = None


def plan_jobs(source: Path, target: Path) -> list[Job]:
    """Which file becomes which: a file, or a folder mirrored without hidden files and DICOM directories.

    Raises OptionError where the two do not go together.
    """
    if not source.exists():
        raise OptionError(f"{source} does not exist")
    if source.is_dir():
        return _plan_folder(source, target)
    if target.is_dir():
        job = Job(source, target / source.name)
    else:
        job = Job(source, target, _format_of(target.suffix, source.suffix))
    if job.target.exists() and job.target.samefile(source):
        raise OptionError("IN and OUT are the same file")
    return [job]


def _plan_folder(source: Path, target: Path) -> list[Job]:
    if target.exists() and not target.is_dir():
        raise OptionError(f"{source} is a folder, {target} is not")
    if target.resolve().is_relative_to(source.resolve()):
        raise OptionError("OUT must lie outside of the folder IN")
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    shown = [name for name in shown if name.name != "DICOMDIR"]  # an index of the originals (PS3.10 section 8)
    if not shown:
        raise OptionError(f"{source} holds no files")
    return [Job(source / name, target / name) for name in shown]


def _format_of(suffix: str, source_suffix: str) -> str | None:
    """The format that a file name asks for; None where it says nothing more than the source's name does."""
    extension = SYNONYMS.get(suffix.lower(), suffix.lower())
    if extension in WRITABLE:
        return WRITABLE[extension]
    if suffix == "" or (suffix == source_suffix and extension not in (".jpg", ".jpeg")):
        return None
    raise OptionError(f"cannot write {suffix}; there are {', '.join(sorted(WRITABLE))}")


@dataclass
class Restorer:
    """One model with its options, and the runtimes loaded for it so far.

    `precision` is "exact" or "fast"; None takes fast for 8-bit images other than DICOM where the
    settings say so. Fast is exact where there is no fast mode, as in the service.
    """

    settings: Settings
    bundle: Bundle
    options: Options
    precision: str | None = None
    backend: str | None = None  # None: the settings' choice for the precision
    _runners: dict[str, Runner] = field(init=False, default_factory=dict)

    async def __call__(self, job: Job) -> str:
        """Restores one file and writes the result; gives a line for the user."""
        limits = self.settings.limits
        if job.source.stat().st_size > limits.bytes:
            raise ImageTooLarge(f"the file has more than {limits.bytes} bytes")
        image = decode(job.source.read_bytes(), limits, job.source.name)
        result = await restore(image, self.bundle, self.options, self._runner(image), limits)
        target = job.target
        if image.format == "jpeg" and job.format is None:  # JPEG is not written: it would lose what was restored
            target = target.with_name(f"{target.name}.png")
        write_whole(target, encode(result.image, job.format, result.derivation, policy=self.settings.policy))
        return f"{job.source} -> {target}: {describe(result)}"

    def _runner(self, image: Image) -> Runner:
        precision = choose_precision(image, self.precision, self.settings.fast_for_8_bit)
        if precision not in self._runners:
            self._runners[precision] = self._load(precision)
        return self._runners[precision]

    def _load(self, precision: str) -> Runner:
        name = self.backend or (self.settings.fast_backend if precision == FAST else self.settings.backend)
        try:
            if precision not in self.bundle.manifest.precisions:
                raise BackendUnavailable(f"model {self.bundle.reference} does not run in {precision}")
            backend = load(name, self.bundle, self.settings.devices[0], precision, self.settings.threads)
        except BackendUnavailable:
            if precision == FAST:
                return self._load(EXACT)
            raise
        self_test(backend, self.bundle)
        return LocalRunner(backend, Tiling(self.settings.memory_budget))


async def restore_all(jobs: Sequence[Job], restorer: Restorer, stop_at_failure: bool = False) -> dict[Path, str]:
    """Restores every job with a progress bar and gives path -> reason of those that failed.

    One failure stops no other job unless `stop_at_failure` raises it; finished results stay on disk.
    """
    failures: dict[Path, str] = {}
    done = 0
    try:
        with tqdm(jobs, unit="file", disable=None if len(jobs) > 1 else True) as bar:
            for job in bar:
                try:
                    line = await restorer(job)
                except Exception as error:
                    if stop_at_failure:
                        raise
                    failures[job.source] = reason_of(error)
                else:
                    done += 1
                    bar.write(line, file=sys.stdout)
    finally:
        for path, reason in failures.items():
            print(f"failed: {path}: {reason}", file=sys.stderr)
        print(f"{done} of {len(jobs)} restored, {len(failures)} failed", file=sys.stderr)
    return failures


def reason_of(error: Exception) -> str:
    """One line; an error that nobody foresaw is named by its class."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, MedRestoreError) else f"{type(error).__name__}: {text}"


def describe(result: Restoration) -> str:
    """Model, runtime, the noise before and after, and what else is worth knowing about the input."""
    how, evidence = result.derivation, result.evidence
    parts = [f"{how.model}@{how.version} by {how.backend} {how.precision}"]
    if evidence.noise_before is not None and evidence.noise_after is not None:
        parts.append(f"noise {evidence.noise_before:.3g} -> {evidence.noise_after:.3g} {evidence.unit}")
    if evidence.noise_correlation is not None:
        parts.append(f"correlated {evidence.noise_correlation.x1:.2f} across {evidence.noise_correlation.y1:.2f} down")
    if evidence.removed_rms is not None:
        parts.append(f"removed {evidence.removed_rms:.3g} {evidence.unit}")
    if evidence.consistency is not None and evidence.consistency.psnr is not None:
        found = evidence.consistency
        parts.append(f"reduced again {found.psnr:.1f} dB from the input, RMS {found.rms:.3g} {evidence.unit}")
    if evidence.in_trained_range is False:
        parts.append("unlike the noise that the model was trained on")
    if evidence.clipped:
        parts.append(f"{evidence.clipped} samples clipped")
    if result.image.lossy:
        parts.append("the input was lossy")
    parts += source_of(result.image).notes
    return ", ".join(parts)


def write_whole(target: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and makes the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(target)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
