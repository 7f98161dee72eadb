"""Super-resolved DICOM objects stay where they were: a CT series, enhanced multi-frame MRs, radiographs and colour.

    MEDRESTORE_SHARED=path python -m tests.benchmarks.geometry --pictures FOLDER [--side 256] [--model NAME]

Sends each object to a real server at x2 and x4, and judges what comes back from its bytes alone: physical points of
every plane, spacings, functional groups, identity, windows, overlays, what dciodvfy finds new, and by how much the
content moved against bicubic interpolation of the source (phase correlation). A picture of each shows a part before
and after. Exit status 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from scipy.ndimage import uniform_filter

from app.settings import SHIPPED_BUNDLES
from models.imaging.dicom import decode_dicom
from models.imaging.reduction import reduced
from tests.benchmarks.harness import Table, finish, serving
from tests.benchmarks.roundtrip import series_files
from tests.dicom_classes import constructed
from tests.dicom_objects import file_of, packaged, read
from tests.dicom_validator import errors_in, new_errors

Array = np.ndarray[Any, Any]

POINT_MM = 1e-6  # that a point may move: what 16 characters of a decimal string leave
SHIFT = 0.05  # output pixels that the content may move
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "ObjectPixelSpacingInCenterOfBeam")
KEPT = (
    *("SOPClassUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "InstanceNumber", "NumberOfFrames"),
    *("ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices", "SliceLocation", "DetectorElementSpacing"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PatientOrientation"),
    *("ReconstructionDiameter", "AcquisitionMatrix", "FieldOfViewOrigin", "DimensionIndexValues"),
)
PART = 96  # side of what a picture shows, source pixels


def sources(shared: Path, side: int | None = None, slices: int = 3) -> dict[str, list[bytes]]:
    """Objects by name, each no larger than `side` pixels; None: as they are."""
    dicom, made = shared / "data" / "dicom", constructed(shared / "data" / "dicom")
    found = {
        "CT series": series_files(shared, slices),
        "enhanced MR": [made["constructed enhanced-MR"]],  # the pixels are real; so are all 10 frames of the next one
        "MR of 10 frames": [(dicom / "MR_emri_small_jpeg_ls_lossless.dcm").read_bytes()],
        "radiograph CR": [(dicom / "CR_RG3_J2KI.dcm").read_bytes()],
        "radiograph DX": [made["constructed DX"]],
        "ultrasound RGB": [(dicom / "US_US1_J2KR.dcm").read_bytes()],
        "MR with overlay": [packaged("examples_overlay.dcm")],
    }
    odd = {"radiograph CR": 1, "ultrasound RGB": 3}  # pixels less: odd sizes
    return {
        name: [part_of(data, side - odd.get(name, 0)) if side else data for data in files]
        for name, files in found.items()
    }


def part_of(data: bytes, side: int) -> bytes:
    """The middle of an object, which stays where it is in the patient; one with functional groups or overlays as it is.
    Columns are two fewer than rows."""
    image = decode_dicom(data)
    dataset: Dataset = image.source
    if "PerFrameFunctionalGroupsSequence" in dataset or 0x60000010 in dataset or max(image.pixels.shape[1:3]) <= side:
        return data
    rows, columns = min(side, dataset.Rows), min(side - 2, dataset.Columns)
    top, left = (dataset.Rows - rows) // 2, (dataset.Columns - columns) // 2
    if "ImagePositionPatient" in dataset:
        dataset.ImagePositionPatient = [f"{v:.9g}" for v in next(iter(planes(dataset))).at(top, left)]
    for keyword, most in (("ShutterLeftVerticalEdge", columns), ("ShutterUpperHorizontalEdge", rows)):
        if keyword in dataset:
            setattr(dataset, keyword, min(dataset[keyword].value, most))
    for keyword, most in (("ShutterRightVerticalEdge", columns), ("ShutterLowerHorizontalEdge", rows)):
        if keyword in dataset:
            setattr(dataset, keyword, min(dataset[keyword].value, most))
    pixels = np.ascontiguousarray(image.pixels[:, top : top + rows, left : left + columns])
    dataset.Rows, dataset.Columns = rows, columns
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    if image.samples == 3:
        dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    return file_of(dataset)


class Plane:
    """Where one frame lies in the patient (PS3.3 C.7.6.2.1.1), read without the code that is judged."""

    def __init__(self, position: Sequence[float], orientation: Sequence[float], spacing: Sequence[float]) -> None:
        self._start = np.array([float(v) for v in position])
        cosines = np.array([float(v) for v in orientation])
        self._down = cosines[3:] * float(spacing[0])
        self._across = cosines[:3] * float(spacing[1])

    def at(self, row: float, column: float) -> Array:
        """Millimetres of a point, counted from the centre of the first pixel."""
        return np.asarray(self._start + row * self._down + column * self._across)


def planes(dataset: Dataset) -> Iterator[Plane]:
    """Of every frame that has a place in the patient; its own functional groups go before shared ones."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for frame in dataset.get("PerFrameFunctionalGroupsSequence") or [Dataset()]:
        values = [
            _nearest(frame, shared, dataset, macro, keyword)
            for macro, keyword in (
                ("PlanePositionSequence", "ImagePositionPatient"),
                ("PlaneOrientationSequence", "ImageOrientationPatient"),
                ("PixelMeasuresSequence", "PixelSpacing"),
            )
        ]
        if all(value is not None for value in values):
            yield Plane(*values)  # type: ignore[arg-type]


def _nearest(frame: Dataset, shared: Dataset, dataset: Dataset, macro: str, keyword: str) -> Any:
    for group in (frame, shared):
        if macro in group and keyword in group[macro].value[0]:
            return group[macro].value[0][keyword].value
    return dataset.get(keyword)


def judge(source: Dataset, derived: Dataset, scale: int) -> Iterator[str]:
    """What is wrong with the geometry of a derived object, in words."""
    if (derived.Rows, derived.Columns) != (source.Rows * scale, source.Columns * scale):
        yield "rows and columns are not those of the scale"
    before, after = list(planes(source)), list(planes(derived))
    if len(before) != len(after):
        yield f"{len(after)} planes where there were {len(before)}"
    for number, (old, new) in enumerate(zip(before, after, strict=False), start=1):
        yield from _moved_points(number, old, new, source, scale)
    yield from _groups(source, derived)
    for old_level, new_level in _levels(source, derived):
        yield from _level(old_level, new_level, scale)
    yield from _overlays(source, derived, scale)
    if derived.SOPInstanceUID == source.SOPInstanceUID or derived.SeriesInstanceUID == source.SeriesInstanceUID:
        yield "an identifier is the source's"


def _moved_points(number: int, old: Plane, new: Plane, source: Dataset, scale: int) -> Iterator[str]:
    """Corners, edges' middles, the centre, and centres of pixels: a point (row, column) of the source, counted from
    the centre of its first pixel, is ((row + 1/2) scale - 1/2, ...) of the derived object."""
    rows, columns = (-0.5, 0.0, (source.Rows - 1) / 2, source.Rows - 0.5), (-0.5, 0.0, source.Columns - 0.5)
    for row in rows:
        for column in (*columns, (source.Columns - 1) / 2):
            place = new.at((row + 0.5) * scale - 0.5, (column + 0.5) * scale - 0.5)
            if (moved := float(np.abs(place - old.at(row, column)).max())) > POINT_MM:
                yield f"plane {number}: a point moved by {moved:.3g} mm"
                return


def _groups(source: Dataset, derived: Dataset) -> Iterator[str]:
    """Whether each functional group is where it was, shared or of a frame; ours is what tells of the derivation."""
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        old, new = source.get(name) or [], derived.get(name) or []
        keywords = [[{e.keyword for e in item} - {"DerivationImageSequence"} for item in items] for items in (old, new)]
        if keywords[0] != keywords[1]:
            yield f"{name}: functional groups came, went or changed places"


def _levels(source: Dataset, derived: Dataset) -> Iterator[tuple[Dataset, Dataset]]:
    """A dataset and all its items beside those of another; sequences of the derivation aside."""
    yield source, derived
    for element in source:
        if element.VR == "SQ" and element.keyword in derived and "Derivation" not in element.keyword:
            items = derived[element.keyword].value
            if element.keyword not in ("ContributingEquipmentSequence", "SourceImageSequence"):
                for old, new in zip(element.value, items, strict=True):
                    yield from _levels(old, new)


def _level(old: Dataset, new: Dataset, scale: int) -> Iterator[str]:
    for keyword in SPACINGS:
        if old.get(keyword):
            before = [float(v) for v in old[keyword].value]
            after = [float(v) for v in new[keyword].value] if keyword in new else [0.0, 0.0]
            if not np.allclose(np.multiply(after, scale), before, rtol=1e-12, atol=0):
                yield f"{keyword} times the scale is not what it was"
            if any(len(str(v)) > 16 for v in new[keyword].value):
                yield f"{keyword} is longer than 16 characters"
    for keyword in KEPT:
        if old.get(keyword) != new.get(keyword):
            yield f"{keyword} has changed"


def _overlays(source: Dataset, derived: Dataset, scale: int) -> Iterator[str]:
    for group in range(0x6000, 0x6020, 2):
        if (group, 0x3000) in source:
            expected = source.overlay_array(group).repeat(scale, -2).repeat(scale, -1)
            if not np.array_equal(derived.overlay_array(group), expected):
                yield "an overlay does not lie where it did"


def shift_of(source: bytes, derived: bytes, scale: int) -> float:
    """Output pixels that the content moved, by the result reduced again beside the source; the largest of planes."""
    from training.evaluation.superresolution import shift

    found = [0.0]
    low, high = decode_dicom(source).pixels, decode_dicom(derived).pixels
    for frame in range(len(low)):
        for sample in range(low.shape[3]):
            again = reduced(high[frame, :, :, sample], scale)
            found.append(scale * shift(again, low[frame, :, :, sample]))
    return max(found)


def picture_of(source: bytes, derived: bytes, scale: int) -> Array:
    """The busiest part of the first frame, before (each pixel repeated) and after, side by side; uint8."""
    before, after = (decode_dicom(data) for data in (source, derived))
    low, high = before.pixels[0].astype(float), after.pixels[0].astype(float)
    top, left = _busiest(low.mean(axis=2))
    shown = low[top : top + PART, left : left + PART]
    black, white = np.quantile(shown, (0.002, 0.998))
    part = high[top * scale : (top + PART) * scale, left * scale : (left + PART) * scale]
    both = np.hstack([shown.repeat(4, 0).repeat(4, 1), part.repeat(4 // scale, 0).repeat(4 // scale, 1)])
    grey = (both - black) / max(white - black, 1e-9)
    if str(before.source.PhotometricInterpretation) == "MONOCHROME1":
        grey = 1 - grey
    return np.asarray(np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8).squeeze())


def _busiest(plane: Array) -> tuple[int, int]:
    """Where the part with the most structure begins: slopes in most places, not one edge, a text or noise."""
    slopes = np.hypot(*np.gradient(uniform_filter(plane, 3)))
    places = [
        (row, column)
        for row in range(0, max(1, plane.shape[0] - PART + 1), PART // 4)
        for column in range(0, max(1, plane.shape[1] - PART + 1), PART // 4)
    ]
    return max(places, key=lambda p: float(np.median(slopes[p[0] : p[0] + PART, p[1] : p[1] + PART])))


def superresolved(url: str, data: bytes, scale: int, model: str | None = None) -> tuple[bytes, dict[str, str]]:
    """The answer of a server, and its headers in small letters."""
    named = f"&model={model}" if model else ""
    headers = {"Accept": "application/dicom", "Content-Type": "application/dicom"}
    request = Request(f"{url}/superresolve?scale={scale}{named}", data, headers)
    with urlopen(request, timeout=1200) as answer:
        return answer.read(), {name.lower(): text for name, text in answer.headers.items()}


def prove(
    url: str, name: str, files: Iterable[bytes], scale: int, pictures: Path | None, model: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """One row of the table, and what is wrong, for all files of one object or series."""
    wrong: set[str] = set()
    shifts, levels, series, shape = [], [], set(), ""
    for number, data in enumerate(files):
        derived, headers = superresolved(url, data, scale, model)
        before, after = read(data), read(derived)
        wrong |= set(judge(before, after, scale))
        shifts.append(shift_of(data, derived, scale))
        levels.append(float(headers["x-consistency-psnr"]))
        series.add(after.SeriesInstanceUID)
        shape = f"{before.get('NumberOfFrames', 1)} x {before.Rows} x {before.Columns}"
        if shutil.which("dciodvfy"):
            with TemporaryDirectory() as folder:
                wrong |= new_errors(errors_in(data, Path(folder)), errors_in(derived, Path(folder)))
        if pictures and not number:
            target = pictures / f"{name.replace(' ', '-')}-x{scale}.png"
            Image.fromarray(picture_of(data, derived, scale)).save(target)
    if len(series) != 1:
        wrong.add(f"{len(series)} derived series of one")
    if max(shifts) > SHIFT:
        wrong.add(f"the content moved by {max(shifts):.2f} pixels")
    row = {"object": name, "scale": scale, "objects": len(shifts), "frames, rows, columns": shape}
    row |= {"planes": len(list(planes(before))), "shift, px": f"{max(shifts):.2f}"}
    return row | {"consistency, dB": f"{min(levels):.1f}", "wrong": len(wrong)}, sorted(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=os.environ.get("MEDRESTORE_SHARED"))
    parser.add_argument("--repository", type=Path, default=SHIPPED_BUNDLES)
    parser.add_argument("--side", type=int, help="take the middle of larger images")
    parser.add_argument("--slices", type=int, default=3)
    parser.add_argument("--model", help="of both scales: what stands before -x2 and -x4, as in superresolve")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each")
    options = parser.parse_args()
    if not options.shared:
        parser.error("images are missing: name their folder with --shared, or in MEDRESTORE_SHARED")
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    validator = "dciodvfy" if shutil.which("dciodvfy") else "no dciodvfy here"
    table = Table(f"Geometry through the service, judged from bytes ({validator})")
    wrong: list[str] = []
    with serving(options.repository, {"limit_pixels": 200_000_000, "timeout_s": 1200}) as server:
        for name, files in sources(Path(options.shared), options.side, options.slices).items():
            for scale in (2, 4):
                model = f"{options.model}-x{scale}" if options.model else None
                row, found = prove(server.url, name, files, scale, options.pictures, model)
                table.rows.append(row)
                wrong += [f"{name} x{scale}: {complaint}" for complaint in found]
    table.notes = [f"wrong: {complaint}" for complaint in wrong] or ["nothing is wrong"]
    finish([table], None)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
