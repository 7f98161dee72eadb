"""The report: numbers that are right, one file that needs nothing else, and nothing in it that names a patient."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.tiny_run import LEVEL, SECRET, SETS, scene, write_stages
from training.data.noise import NoiseLaw, Plane, add_noise, kernel_correlation
from training.pipeline.record import NoisyImage, read_audit, read_table
from training.report import acceptance, build
from training.report.acceptance import ABSENT, FAIL, PASS, blind_row, bm3d_row, passed, streams_row, untouched_row
from training.report.config import ReportConfig
from training.report.measure import Restored, bias, level_points, measure_set, structure
from training.report.picture import png, residual_window

SMALL = ReportConfig(images=1, side=64, levels=(25.0,), draws=1)


def smooth(noisy: Plane, sigma: float, kernel: Any = None) -> Plane:
    """Stands in for BM3D, which takes seconds for each image."""
    return np.asarray(gaussian_filter(noisy, 1.0), dtype=np.float32)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with its report."""
    folder = write_stages(tmp_path_factory.mktemp("report") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(acceptance.Comparisons.scores.__globals__["COMPARATORS"], "BM3D", smooth)
        build.run(folder, SMALL, seed=0)
    return folder


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    return build.read_report(out)


@pytest.fixture(scope="module")
def page(out: Path) -> str:
    return (out / "report" / build.HTML).read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every tag of a page with its attributes; fails on one that is closed before those inside it."""

    EMPTY = frozenset({"meta", "img", "link", "br", "path", "use", "image", "rect", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def elements(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(page)
    assert parser.open == []
    return parser.found


def test_page_needs_nothing_else(page: str, elements: list[tuple[str, dict[str, str | None]]]) -> None:
    assert not {"script", "link", "iframe"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_page_has_a_unique_id_for_everything_it_refers_to(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = {a.get("xlink:href") or a.get("href") or "" for _, a in elements}
    assert {name[1:] for name in referred if name.startswith("#")} <= set(ids)


def test_page_shows_every_set_before_and_after(page: str, report: dict[str, Any]) -> None:
    assert set(report["sets"]) == {"CT 1", "OCT 1"}
    for name, row in report["sets"].items():
        assert f"<h3>{name}</h3>" in page
        for title in ("before", "after stage 1", "after", "removed, amplified"):
            assert f'alt="{row["images"][0]}, {title}"' in page
    assert page.count("<svg ") >= 7


def test_nothing_names_a_patient_or_a_folder(out: Path, page: str) -> None:
    for text in (page, (out / "report" / build.JSON).read_text()):
        assert SECRET not in text
        assert str(out) not in text
        assert not any(name in text for name in SETS)
    assert json.loads((out / "report" / build.NAMES).read_text()) == {"CT 1": "ct/abdomen", "OCT 1": "oct/retina"}


def test_sets_keep_their_names_where_that_was_asked_for(out: Path) -> None:
    audit, table, _ = build.nameless(read_audit(out), read_table(out), name_sets=True)
    assert set(audit.sets) == {row.set for row in table} == set(SETS)


def test_reasons_and_warnings_lose_the_names_in_them(out: Path) -> None:
    audit = read_audit(out)
    refused = dataclasses.replace(audit.refused[0], reason=f"the same file as {SECRET}/a.dcm")
    spoilt = dataclasses.replace(audit, refused=(refused,), warnings=("ct/abdomen: one patient only",))
    found, _, _ = build.nameless(spoilt, [])
    assert found.warnings == ("CT 1: one patient only",)
    assert found.refused[0].reason == "the same file as another"


def test_data_section_counts(report: dict[str, Any]) -> None:
    data = report["data"]
    assert (data["noisy"], data["clean"], data["clean_test"]) == (12, 4, 2)
    assert data["sets"]["CT 1"] | {"correlation": 0} == data["sets"]["CT 1"] | {"correlation": 0, "train": 4, "test": 2}
    assert {"reason": "constant", "files": 1} in data["refused"]


def test_level_and_colour_of_the_noise_are_found(report: dict[str, Any]) -> None:
    for name, (_, kernel) in zip(("CT 1", "OCT 1"), SETS.values(), strict=True):
        row = report["sets"][name]
        assert row["held_back"]
        assert row["level_before"] == pytest.approx(LEVEL, rel=0.12)
        truth = 0.0 if kernel is None else kernel_correlation(kernel, 1, 0)
        assert row["lag1"]["noise"][0] == pytest.approx(truth, abs=0.12)
        assert report["noise"][name]["level"][1] == pytest.approx(LEVEL)


def test_curves_are_those_of_the_logs(report: dict[str, Any]) -> None:
    assert report["curves"]["profound"]["loss"]["restore"] == [[100, 0.5], [200, 0.25]]
    assert set(report["curves"]["profound"]) == {"loss"}


def test_untrained_model_is_not_accepted(report: dict[str, Any], page: str) -> None:
    verdicts = {row["check"]: row["verdict"] for row in report["acceptance"]["rows"]}
    assert verdicts["BM3D"] == FAIL
    assert verdicts["S1+S2"] == ABSENT
    assert report["acceptance"]["passed"] is False
    assert "Not accepted" in page


def test_a_bundle_s_report_holds_no_picture(out: Path, page: str) -> None:
    public = (out / "report" / build.PUBLIC).read_text(encoding="utf-8")
    assert "<img" in page
    assert "<img" not in public
    assert "stay with the run" in public
    assert "Autocorrelation" in public


def test_held_back_images_that_the_start_was_trained_on_are_told(out: Path) -> None:
    audit = read_audit(out)
    known = {"bundle": "denoise@2", "digest": "d", "licence": "", "sha256": ["1" * 64, "2" * 64]}
    assert build.start_warnings(audit, known) == [
        "1 of 1 held-back clean images had a part in the training of denoise@2"
    ]
    assert build.start_warnings(audit, known | {"sha256": ["2" * 64]}) == []
    assert build.start_warnings(audit, None) == []


def test_equal_runs_give_equal_reports(out: Path, page: str, report: dict[str, Any], tmp_path: Path) -> None:
    restored = {
        name: build.restore_set(out, build.shown_images(audit, name, 1), 128, build.RunModel(out / "profound"))
        for audit in [build.nameless(read_audit(out), [])[0]]
        for name in audit.sets
    }
    build.write_html(tmp_path / "again.html", report, build.panels(restored, SMALL))
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


SCORES = [
    {"noise": "white 15", "BM3D": 30.0, "model": 30.5, "model, told": 30.6, "S1": 30.0, "S2": 30.4},
    {"noise": "learned", "BM3D": 31.0, "model": 31.1, "model, told": 31.4, "S1": 31.0, "S2": 31.05},
]


def test_rows_compare_what_they_say() -> None:
    assert bm3d_row(SCORES, "model")["verdict"] == PASS
    assert bm3d_row([*SCORES, {"noise": "white 50", "BM3D": 27.0, "model": 26.9}], "model")["verdict"] == FAIL
    assert blind_row(SCORES[:1], "model")["verdict"] == PASS
    assert blind_row(SCORES, "model")["verdict"] == FAIL
    assert streams_row(SCORES, "model")["verdict"] == PASS
    assert streams_row([SCORES[1] | {"S2": 31.2}], "model")["verdict"] == FAIL
    assert untouched_row([50.0, 45.0])["verdict"] == PASS
    assert untouched_row([50.0, 44.9])["verdict"] == FAIL
    assert untouched_row([])["verdict"] == bm3d_row([], "model")["verdict"] == ABSENT


def test_a_run_passes_only_with_the_decisive_checks() -> None:
    rows = [{"check": c, "verdict": PASS} for c in ("BM3D", "blind", "noise-free")]
    assert passed(rows)
    assert passed([*rows, {"check": "S1+S2", "verdict": ABSENT}])
    assert not passed([*rows, {"check": "residual", "verdict": FAIL}])
    assert not passed([*rows[:2], {"check": "noise-free", "verdict": ABSENT}])


@pytest.fixture
def restored(out: Path) -> Restored:
    """A CT slice of which nothing but its noise was taken."""
    clean = scene(5, 128, 128)
    record: NoisyImage = read_audit(out).images[0]
    return Restored(record, add_noise(clean, NoiseLaw(0.0, LEVEL**2), np.random.default_rng(0)), None, clean)


def test_measures_tell_noise_from_structure(restored: Restored) -> None:
    found = measure_set([restored])
    assert found["level_before"] == pytest.approx(LEVEL, rel=0.1)
    assert found["level_after"] < 0.1 * LEVEL
    assert abs(structure(restored)) < 0.05
    blurred = dataclasses.replace(restored, noisy=restored.restored + 0.5 * (scene(5, 128, 128) - 0.5))
    assert structure(blurred) > 0.5


def test_bias_is_in_the_units_of_the_set(restored: Restored) -> None:
    shifted = dataclasses.replace(restored, restored=restored.restored + np.float32(0.01))
    assert bias(shifted) - bias(restored) == pytest.approx(0.01 * 400, rel=1e-3)


def test_level_points_follow_the_signal(restored: Restored) -> None:
    law = NoiseLaw(0.01, 0.0)
    noisy = add_noise(restored.restored, law, np.random.default_rng(1))
    points = np.array(level_points(dataclasses.replace(restored, noisy=noisy), 400))
    assert np.median(points[:, 1] ** 2 / points[:, 0]) == pytest.approx(0.01, rel=0.1)


def test_pictures_are_png_and_mid_grey_where_nothing_was_removed() -> None:
    assert png(np.zeros((4, 5), np.float32), 0, 1).startswith("data:image/png;base64,")
    low, high = residual_window(np.random.default_rng(0).normal(0, 0.1, (50, 50)).astype(np.float32))
    assert low == -high


@pytest.mark.parametrize("options", [{"images": 0}, {"side": 8}, {"alone": {"S3": "x"}}])
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="report"):
        ReportConfig(**options)


def test_missing_report_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no report"):
        build.read_report(tmp_path)
