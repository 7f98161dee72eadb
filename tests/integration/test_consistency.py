"""The guard of super-resolution and adversarial models, through every door of the service."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.imaging.codec import decode
from models.imaging.dicom import decode_dicom
from models.imaging.reduction import reduced
from tests.dicom_objects import dataset_of, file_of, read
from tests.fake_pacs import FakePacs, slices
from tests.integration.client import Client, changed, dicom, npy, problem, serving
from tests.integration.test_door import stow, until
from tests.integration.test_jobs import work
from tests.integration.test_protocol import infer
from tests.pacs_service import order, outcomes, pacs_service, submit, wait
from tests.tiny_bundle import copy_bundle, seal

ADVERSARIAL = "superresolve-x2-adversarial"
PROMISED = 45.0  # dB; more than noise reaches that is interpolated, less than a ramp does
UP = "/superresolve?scale=2"


@pytest.fixture(scope="module")
def models(built_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny-x2`, one that promises much, and an adversarial one; all of them interpolate."""
    root = Path(shutil.copytree(built_repository, tmp_path_factory.mktemp("models"), dirs_exist_ok=True))
    for name, promises in (("proud", {"consistency": PROMISED}), (ADVERSARIAL, {"adversarial": True})):
        seal(copy_bundle(root, "tiny-x2", name, "1", scale=2), 2, **promises)
    return root


@pytest.fixture(scope="module")
def guarded(models: Path, pacs: FakePacs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The service with jobs, a PACS, and `tiny-x2` as the default."""
    folder = tmp_path_factory.mktemp("state") / "jobs"
    with pacs_service(pacs, models, folder, superresolve_x2_model="tiny-x2") as client:
        yield client


def noise(side: int = 40) -> bytes:
    return npy(np.random.default_rng(5).normal(3000, 200, (side, side)).astype(np.uint16))


def ramp(side: int = 40) -> np.ndarray:
    return np.add.outer(40 * np.arange(side), 25 * np.arange(side)).astype(np.int16)


def inconsistent(told: dict[str, Any], required: float) -> None:
    """Whether a problem document says what it must."""
    assert (told["type"], told["status"]) == ("urn:medrestore:problem:inconsistent", 422)
    assert (told["reason"], told["required_db"]) == ("inconsistent", required)
    assert told["measured_db"] < required
    assert "reduced again" in told["detail"]
    assert f"{told['measured_db']:.1f} dB" in told["detail"]


def test_the_headers_tell_what_the_answer_s_own_pixels_tell(guarded: Client) -> None:
    low = decode(noise()).pixels[0, :, :, 0].astype(float)
    response = guarded.post(UP, noise())
    off = reduced(decode(response.content).pixels[0, :, :, 0], 2) - low
    found = {name: float(response.headers[f"X-Consistency-{name}"]) for name in ("PSNR", "RMS", "Max")}
    rms = math.sqrt(np.mean(off**2))
    expected = {"PSNR": 20 * math.log10(np.ptp(low) / rms), "RMS": rms, "Max": np.abs(off).max()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert "X-Model-Adversarial" not in response.headers
    assert not [name for name in guarded.post("/denoise", noise()).headers if name.startswith("x-consistency")]


def test_strict_mode_asks_what_the_model_promises_else_the_setting_else_the_caller(guarded: Client) -> None:
    level = float(guarded.post(UP, noise()).headers["X-Consistency-PSNR"])
    assert level < 30.0
    for query, required in (
        ("&strict=true", 30.0),
        ("&strict=true&model=proud", PROMISED),
        ("&min_consistency=99", 99.0),
        ("&strict=true&min_consistency=98&model=proud", 98.0),
    ):
        inconsistent(problem(guarded.post(UP + query, noise())), required)
    plain = guarded.post(UP, noise()).content
    assert guarded.post(f"{UP}&min_consistency={level - 0.01}&strict=true", noise()).content == plain
    assert guarded.post(f"{UP}&strict=true&model=proud", npy(ramp())).status_code == 200


@pytest.mark.parametrize("query", ["&min_consistency=-1", "&min_consistency=121", "&min_consistency=nan", "&strict=2"])
def test_what_nobody_can_ask_is_refused(guarded: Client, query: str) -> None:
    assert problem(guarded.post(UP + query, noise()))["type"].endswith("invalid-option")
    assert problem(guarded.post("/denoise?strict=true", noise()))["type"].endswith("invalid-option")
    assert problem(guarded.post("/jobs?task=denoise&strict=true", noise()))["type"].endswith("invalid-option")
    body = order("1.2.3.9", options={"min_consistency": 3})
    assert problem(guarded.request("POST", "/pacs/jobs", json=body))["type"].endswith("invalid-option")


def test_a_job_tells_the_same_and_is_refused_the_same(guarded: Client) -> None:
    done = work(guarded, "/jobs?task=superresolve&scale=2", noise())
    headers = guarded.get(done["result"]).headers
    assert done["facts"]["consistency_psnr"] == pytest.approx(float(headers["X-Consistency-PSNR"]), rel=1e-5)
    assert headers["X-Consistency-RMS"] == guarded.post(UP, noise()).headers["X-Consistency-RMS"]
    failed = work(guarded, "/jobs?task=superresolve&scale=2&strict=true&model=proud", noise())
    assert failed["state"] == "failed"
    inconsistent(failed["problem"], PROMISED)


def test_the_open_inference_protocol_has_it_too(guarded: Client) -> None:
    low, path = np.load(io.BytesIO(noise())), "/v2/models/tiny-x2/infer"
    answer = infer(guarded, low, "UINT16", binary=False, path=path)
    assert answer.json()["parameters"]["consistency_psnr"] == pytest.approx(
        float(answer.headers["X-Consistency-PSNR"]), rel=1e-5
    )
    refused = infer(guarded, low, "UINT16", binary=False, path=path, strict=True)
    assert refused.status_code == 422
    assert "reduced again" in refused.json()["error"]
    assert infer(guarded, low, "UINT16", path=path, min_consistency=5).status_code == 200
    told = guarded.get(f"/v2/models/{ADVERSARIAL}").json()["parameters"]
    assert told["adversarial"] is True


def test_a_guarded_object_says_what_it_reached_and_is_another_than_an_unguarded_one(guarded: Client) -> None:
    body = dicom("CT_small.dcm")
    plain, asked = (read(guarded.post(UP + query, body).content) for query in ("", "&min_consistency=20"))
    for made in (plain, asked):
        assert "consistency psnr " in made.DerivationDescription
        assert "consistency rms " in made.ContributingEquipmentSequence[-1].ContributionDescription
    assert "min consistency 20 dB" in asked.DerivationDescription
    assert asked.PixelData == plain.PixelData
    assert asked.SOPInstanceUID != plain.SOPInstanceUID


def test_padding_is_left_out(guarded: Client) -> None:
    pixels = ramp(64)
    pixels[:, :20] = -2000
    body = file_of(
        dataset_of(pixels, PixelPaddingValue=-2000, RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    )
    with_padding = guarded.post(UP, body)
    without = guarded.post(UP, changed(body, "PixelPaddingValue"))
    psnr, worse = (float(r.headers["X-Consistency-PSNR"]) for r in (with_padding, without))
    assert psnr > worse + 10
    assert with_padding.headers["X-Noise-Unit"] == "HU"
    np.testing.assert_array_equal(decode_dicom(with_padding.content).pixels[0, :, :40, 0], -2000)


def test_a_refused_instance_is_its_own_outcome_and_the_others_are_stored(guarded: Client, pacs: FakePacs) -> None:
    uid, study = "1.2.77.1", "1.2.77"
    for number, data in enumerate(slices(4, uid, study)):
        pixels = ramp(32).tobytes()
        pacs.add(data if number % 2 else changed(data, PixelData=pixels))
    request = {"study": study, "operation": "superresolve", "scale": 2, "model": "proud"}
    job = wait(guarded, submit(guarded, uid, **request, options={"strict": True})["id"])
    assert job["state"] == "completed_with_gaps"
    assert job["options"] == {"min_consistency": PROMISED, "precision": "exact"}
    assert [outcomes(guarded, job["id"])[f"{uid}.{n}"] for n in (1, 2, 3, 4)] == [
        ("verified", None), ("failed", "inconsistent"), ("verified", None), ("failed", "inconsistent"),
    ]  # fmt: skip
    listed = guarded.get(f"/pacs/jobs/{job['id']}/instances").json()["instances"]
    assert [one["consistency_psnr"] >= PROMISED for one in listed] == [True, False, True, False]
    assert len(pacs.series(job["derived_series"])) == 2
    unguarded = wait(guarded, submit(guarded, uid, **request)["id"])
    assert (unguarded["state"], len(pacs.series(unguarded["derived_series"]))) == ("completed", 4)
    assert unguarded["derived_series"] != job["derived_series"]


RULES = f"""[door]
pacs = "main"
[[door.route]]
name = "strict"
when = {{StationName = "STRICT"}}
operation = "superresolve"
scale = 2
model = "{ADVERSARIAL}"
options = {{min_consistency = 40}}
[door.default]
operation = "superresolve"
scale = 2
"""


def test_rules_guard_what_is_sent_here_and_name_adversarial_models(
    pacs: FakePacs, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "rules.toml").write_text(RULES)
    study = "1.2.78"
    noisy = slices(2, "1.2.78.1", study, StationName="STRICT")
    smooth = changed(noisy[0], PixelData=ramp(32).tobytes())
    with pacs_service(
        pacs, models, tmp_path / "jobs", pacs_rules=tmp_path / "rules.toml", superresolve_x2_model="tiny-x2"
    ) as client:
        assert client.get("/pacs/status").json()["rules_problem"] is None
        for series in ([smooth, noisy[1]], slices(1, "1.2.78.2", study)):
            assert stow(client, series).status_code == 200
        until(client, lambda: all(one["finished"] for one in client.get("/dicomweb/jobs").json()["jobs"]))
        told = {job["series"]: job for job in client.get("/dicomweb/jobs").json()["jobs"]}
    assert [told[f"1.2.78.{n}"]["failed"] for n in (1, 2)] == [1, 0]
    (guarded,) = pacs.series(told["1.2.78.1"]["derived_series"]).values()
    (other,) = pacs.series(told["1.2.78.2"]["derived_series"]).values()
    assert read(guarded.data).SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.78.1.1"
    assert "not for measurement" in read(guarded.data).DerivationDescription
    assert "not for measurement" not in read(other.data).DerivationDescription


def test_metrics_tell_levels_and_refusals_by_model(guarded: Client) -> None:
    def counts() -> tuple[float, float]:
        families = {f.name: f for f in text_string_to_metric_families(guarded.get("/metrics").text)}
        levels = families["medrestore_consistency_decibels"].samples
        refused = families["medrestore_inconsistent"].samples
        mine = {"model": "tiny-x2@1"}
        return (
            next((s.value for s in levels if s.name.endswith("_count") and s.labels == mine), 0.0),
            next((s.value for s in refused if s.name.endswith("_total") and s.labels == mine), 0.0),
        )

    before = counts()
    guarded.post(UP, noise())
    guarded.post(UP + "&strict=true", noise())
    assert np.subtract(counts(), before).tolist() == [2.0, 1.0]


def test_an_adversarial_model_is_had_by_name_alone_and_says_so_wherever_it_was(guarded: Client) -> None:
    body = dicom("CT_small.dcm")
    assert guarded.post(UP, body).headers["X-Model"] == "tiny-x2@1"
    response = guarded.post(f"{UP}&model={ADVERSARIAL}", body)
    assert response.headers["X-Model-Adversarial"] == "true"
    made = read(response.content)
    for text in (made.DerivationDescription, made.ContributingEquipmentSequence[-1].ContributionDescription):
        assert "adversarially trained" in text.lower()
        assert "texture that was not in the source" in text
        assert "not for measurement" in text
    assert made.SeriesDescription.endswith("[superresolve x2 adversarial]")
    job = work(guarded, f"/jobs?task=superresolve&scale=2&model={ADVERSARIAL}", body)
    assert job["facts"]["model_adversarial"] is True
    assert guarded.get(job["result"]).headers["X-Model-Adversarial"] == "true"
    listed = {model["name"]: model for model in guarded.get("/models").json()["models"]}
    assert (listed[ADVERSARIAL]["adversarial"], listed[ADVERSARIAL]["default"]) == (True, False)
    assert (listed["proud"]["adversarial"], listed["proud"]["consistency"]) == (False, PROMISED)


def test_a_repository_of_adversarial_models_alone_has_no_default(guarded: Client, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / ADVERSARIAL, tmp_path / ADVERSARIAL)
    with serving(tmp_path) as alone:
        refused = problem(alone.post(UP, noise()))
        assert (refused["status"], refused["type"]) == (404, "urn:medrestore:problem:model-not-found")
        assert f"name one of {ADVERSARIAL}" in refused["detail"]
        assert alone.post(f"{UP}&model={ADVERSARIAL}", noise()).headers["X-Model-Adversarial"] == "true"
        assert alone.get("/models").json()["models"][0]["default"] is False
