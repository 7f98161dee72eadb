"""Every DICOM file at hand through the writer: `python -m tests.benchmarks.derived` counts what comes of it.

Sources are the shared files, real pixels under constructed headers, the files inside the pydicom
package, and those in every other transfer syntax that can hold them. Each is decoded, filtered
lightly, and encoded as a denoised and as a twice as large object, which is then read by others and
compared with its source. Exit status 1 where anything is wrong with a derived object.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from models.errors import ImageError
from models.imaging.dicom import decode_dicom, derived_uid, encode_dicom, is_ours, kind_of
from models.imaging.dicom.mapping import padding_range
from models.imaging.image import Derivation, Image
from models.imaging.values import from_unit, to_unit
from tests.dicom_classes import constructed
from tests.dicom_objects import DENOISE, PACKAGED, packaged, packaged_in_scope, read, superresolve
from tests.dicom_validator import errors_in, native_bytes_of, new_errors
from tests.dicom_variants import LOSSLESS, recodings

DERIVATIONS = (DENOISE, superresolve(2))
NOT_READ = "not a DICOM object"
LARGEST = 2 * 1024**2  # bytes of a file that is recoded
KEPT = (
    *("SOPClassUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate", "Modality"),
    *("InstanceNumber", "AcquisitionDate", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth", "PixelPaddingValue"),
    *("SamplesPerPixel", "ImageOrientationPatient", "SliceThickness", "NumberOfFrames", "BurnedInAnnotation"),
    *("SyntheticData", "PatientIdentityRemoved", "DeidentificationMethod", "ICCProfile", "Units"),
)


@dataclass(frozen=True)
class Case:
    """A file, where it comes from, and whether its pixels are those of the file that it was made of."""

    name: str
    data: bytes
    origin: str  # "shared", "constructed", "packaged" or "recoded"
    base: str = ""  # of a lossless recoding: the case whose derived objects it must give, to the byte


@dataclass(frozen=True)
class Row:
    """What came of one case under one derivation."""

    case: Case
    sop_class: str
    operation: str
    outcome: str  # "derived", "skipped" or "refused"
    reason: str = ""
    kind: str = ""  # what a route takes it for
    complaints: tuple[str, ...] = ()


def cases(shared: Path | None, recode_bytes: int = 0) -> Iterator[Case]:
    """All files, and those of `recode_bytes` at most in every transfer syntax too."""
    files = {path.name: packaged(path.name) for path in sorted(PACKAGED.glob("*.dcm"))}
    yield from (Case(name, data, "packaged") for name, data in files.items())
    extra: dict[str, bytes] = {}
    if shared is not None:
        folder = shared / "data" / "dicom"
        for path in sorted(folder.glob("*.dcm")):
            yield Case(path.name, path.read_bytes(), "shared")
        extra = constructed(folder)
        yield from (Case(name, data, "constructed") for name, data in extra.items())
    for name, data in [*((n, files[n]) for n in packaged_in_scope()), *extra.items()]:
        if len(data) > recode_bytes:
            continue
        first = ""
        for syntax, recoded in recodings(data):
            called = f"{name} as {uid.UID(syntax).name}"
            yield Case(called, recoded, "recoded", first if syntax in LOSSLESS else "")
            first = first or called


def run(found: Iterable[Case], folder: Path) -> Iterator[Row]:
    """Both derivations of each case; `folder` is for files of the readers that are not ours."""
    made: dict[tuple[str, str], bytes] = {}
    for case in found:
        try:
            image = decode_dicom(case.data)
        except ImageError as error:
            outcome = "skipped" if error.reason == "no_pixel_data" else "refused"
            yield from (Row(case, _class_of(case.data), d.operation, outcome, error.reason) for d in DERIVATIONS)
            continue
        kind = kind_of(image.source).name
        before = errors_in(case.data, folder) if shutil.which("dciodvfy") and not case.base else set()
        for derivation in DERIVATIONS:
            row = Row(case, image.source.SOPClassUID.name, derivation.operation, "derived", kind=kind)
            try:
                restored = filtered(image, derivation.scale)
                data = encode_dicom(restored, derivation)
            except ImageError as error:
                yield replace(row, outcome="refused", reason=error.reason)
                continue
            if case.base:
                same = made.get((case.base, derivation.operation)) == data
                yield replace(row, complaints=() if same else ("differs from that of another transfer syntax",))
                continue
            made[case.name, derivation.operation] = data
            complaints = [*judge(image, restored, derivation, data), *judge_abroad(data, restored, before, folder)]
            yield replace(row, complaints=tuple(complaints))


def filtered(image: Image, scale: int) -> Image:
    """A light filter: a tenth of each pixel comes from its neighbours; repeated where the scale is larger."""
    unit = to_unit(image)
    wide = np.pad(unit, ((0, 0), (0, 0), (1, 1), (1, 1)), "edge")
    around = wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1] + wide[..., 1:-1, :-2] + wide[..., 1:-1, 2:]
    smooth = (0.9 * unit + 0.025 * around).astype(np.float32)
    return from_unit(smooth.repeat(scale, 2).repeat(scale, 3), image, scale)[0]


def judge(image: Image, restored: Image, derivation: Derivation, data: bytes) -> Iterator[str]:
    """What is wrong with a derived object as pydicom and our decoder read it."""
    source, derived = image.source, read(data)
    yield from (f"{name} changed" for name in KEPT if derived.get(name) != source.get(name))
    yield from _judge_identity(source, derived, derivation)
    yield from judge_geometry(source, derived, derivation.scale)
    pixels = derived.pixel_array.reshape(restored.pixels.shape)
    if not np.array_equal(pixels, restored.pixels):
        yield "pixels are not those that were written"
    if pixels.min() < image.minimum or (pixels.max() > image.maximum and image.padding is None):
        yield "pixels beyond BitsStored"
    yield from _judge_padding(image, pixels, derivation.scale)
    again = decode_dicom(data)
    if (again.values, again.lossy) != (image.values, image.lossy):
        yield "units or lossy history changed"
    if image.lossy and derived.get("LossyImageCompression") != "01":
        yield "lossy history lost"
    if not is_ours(derived) or kind_of(derived).name != "ours":
        yield "not known as ours"


def _judge_identity(source: Dataset, derived: Dataset, derivation: Derivation) -> Iterator[str]:
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        if derived[keyword].value != derived_uid(source[keyword].value, derivation):
            yield f"{keyword} is not the one foretold"
    if derived.ImageType[0] != "DERIVED":
        yield "ImageType is not DERIVED"
    frames = derived.get("PerFrameFunctionalGroupsSequence") or []
    steps = [frame.DerivationImageSequence[-1] for frame in frames] or [derived]
    for number, step in enumerate(steps, start=1):
        (reference,) = step.SourceImageSequence
        if reference.ReferencedSOPInstanceUID != source.SOPInstanceUID:
            yield "the source is not referred to"
        if frames and reference.ReferencedFrameNumber != number:
            yield "a frame refers to another one"
        if not step.DerivationCodeSequence:
            yield "no derivation code"
    if any(element.tag.is_private for element in derived.iterall()):
        yield "private attributes"


def _planes(dataset: Dataset) -> Iterator[np.ndarray[Any, Any]]:
    """Outer corners of every plane in the patient, mm; of nothing without a position."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for frame in dataset.get("PerFrameFunctionalGroupsSequence") or [dataset]:
        levels = [dataset, frame, shared]
        macros = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        levels += [item for level in levels[1:] for name in macros for item in level.get(name) or []]
        found = {
            keyword: [float(v) for level in levels for v in level.get(keyword) or []]
            for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        }
        if all(found.values()):
            start, spacing = np.array(found["ImagePositionPatient"][:3]), found["PixelSpacing"][:2]
            along_row, along_column = np.reshape(found["ImageOrientationPatient"][:6], (2, 3))
            for row, column in ((-0.5, -0.5), (dataset.Rows - 0.5, dataset.Columns - 0.5)):
                yield start + along_row * spacing[1] * column + along_column * spacing[0] * row


def judge_geometry(source: Dataset, derived: Dataset, scale: int) -> Iterator[str]:
    if (derived.Rows, derived.Columns) != (source.Rows * scale, source.Columns * scale):
        yield "size is not that of the scale"
    before, after = list(_planes(source)), list(_planes(derived))
    if len(before) != len(after) or not np.allclose(before or 0, after or 0, rtol=0, atol=1e-6):
        yield "the image has moved"
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        if source.get(keyword) and not np.allclose(np.multiply(derived[keyword].value, scale), source[keyword].value):
            yield f"{keyword} does not fit the scale"


def _judge_padding(image: Image, pixels: np.ndarray[Any, Any], scale: int) -> Iterator[str]:
    bounds = padding_range(image.source)
    if bounds is None:
        return
    padding = np.zeros(image.pixels.shape[:3], bool) if image.padding is None else image.padding
    before, mask = (array.repeat(scale, 1).repeat(scale, 2) for array in (image.pixels, padding))
    if not np.array_equal(pixels[mask], before[mask]):
        yield "padding changed"
    if ((pixels >= bounds[0]) & (pixels <= bounds[1]))[..., 0][~mask].any():
        yield "a measured pixel became padding"


def judge_abroad(data: bytes, restored: Image, before: set[str], folder: Path) -> Iterator[str]:
    """What DCMTK and dicom3tools find wrong, as far as they are installed."""
    path = folder / "derived.dcm"
    path.write_bytes(data)
    if shutil.which("dcmdump"):
        expected = restored.pixels.astype(restored.pixels.dtype.newbyteorder("<")).tobytes()
        if native_bytes_of(path, folder)[: len(expected)] != expected:
            yield "DCMTK reads other pixels"
    if shutil.which("dciodvfy"):
        yield from sorted(new_errors(before, errors_in(data, folder)))


def _class_of(data: bytes) -> str:
    """The SOP class of what cannot be decoded, as far as it can be told."""
    try:
        return uid.UID(read(data).SOPClassUID).name
    except Exception:  # noqa: BLE001  (damaged files raise anything)
        return NOT_READ


def table(rows: Iterable[Row]) -> str:
    """Counts of objects by SOP class, operation and outcome."""
    counts = Counter((row.sop_class, row.operation, _told(row)) for row in rows)
    outcomes = sorted({outcome for *_, outcome in counts}, key=lambda o: (o != "derived", not o.startswith("sk"), o))
    lines = [f"| SOP class | operation | {' | '.join(outcomes)} |", "| --- " * (2 + len(outcomes)) + "|"]
    for sop_class, operation in sorted({key[:2] for key in counts}):
        numbers = " | ".join(str(counts[sop_class, operation, outcome] or "") for outcome in outcomes)
        lines.append(f"| {sop_class} | {operation} | {numbers} |")
    totals = " | ".join(str(sum(n for key, n in counts.items() if key[2] == outcome)) for outcome in outcomes)
    return "\n".join([*lines, f"| all | both | {totals} |"])


def _told(row: Row) -> str:
    return row.outcome if row.outcome == "derived" else f"{row.outcome}: {row.reason}"


def main() -> int:
    """Prints the tables; exit status 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=os.environ.get("MEDRESTORE_SHARED"))
    parser.add_argument("--files-only", action="store_true", help="leave out the files in other transfer syntaxes")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        shared = Path(options.shared) if options.shared else None
        rows = list(run(cases(shared, 0 if options.files_only else LARGEST), Path(folder)))
    for origin in ("shared", "constructed", "packaged", "recoded"):
        some = [row for row in rows if row.case.origin == origin]
        print(f"\n{origin}: {len({row.case.name for row in some})} files\n\n{table(some)}")
    kinds = Counter(row.kind for row in rows if row.operation == "denoise" and row.kind)
    print(f"\nof those derived, a route sees: {', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}")
    wrong = [row for row in rows if row.complaints]
    for row in wrong:
        print(f"wrong: {row.case.name}, {row.operation}: {'; '.join(row.complaints)}", file=sys.stderr)
    absent = [name for name in ("dciodvfy", "dcmdump") if shutil.which(name) is None]
    print(f"{len(rows)} objects, {len(wrong)} wrong" + (f"; not installed: {', '.join(absent)}" if absent else ""))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
