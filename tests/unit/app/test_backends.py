"""Every backend over the same bundles: equal answers, equal bytes, honest refusals, no calls home."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from app.backends import base
from app.backends.base import load, read_golden, reasons, self_test
from app.errors import BackendUnavailable
from app.settings import SHIPPED_BUNDLES
from models.bundle import GOLDEN, Bundle, find_bundle, read_bundle
from models.errors import BundleInvalid
from tests.tiny_bundle import seal

COMBINATIONS = [("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("torchscript", "fp32")]
EXACT = ["onnx", "openvino", "torchscript"]


def image(rows: int, columns: int, batch: int = 1, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (batch, 1, rows, columns)).astype(np.float32)


def restore_inputs(x: np.ndarray, strength: float = 1.0) -> dict[str, np.ndarray]:
    batch = x.shape[0]
    parameters = np.tile(np.array([[0.01, 0.002, 0.001]], np.float32), (batch, 1))
    return {"image": x, "parameters": parameters, "strength": np.full(batch, strength, np.float32)}


def load_or_skip(name: str, bundle: Bundle, precision: str):
    try:
        return load(name, bundle, "cpu", precision, threads=2)
    except BackendUnavailable as exc:
        if "bf16" not in str(exc):
            raise
        pytest.skip(str(exc))


@pytest.mark.parametrize(("name", "precision"), COMBINATIONS)
@pytest.mark.parametrize("reference", ["tiny", "tiny-x2"])
def test_every_backend_gives_the_golden_answer(built_repository: Path, name: str, precision: str, reference: str):
    bundle = find_bundle(built_repository, reference)
    backend = load_or_skip(name, bundle, precision)
    self_test(backend, bundle)
    assert (backend.name, backend.device, backend.precision) == (name, "cpu", precision)


@pytest.mark.parametrize(("name", "precision"), COMBINATIONS)
def test_the_same_input_gives_the_same_bytes_every_time(built_repository: Path, name: str, precision: str):
    bundle = find_bundle(built_repository, "tiny")
    backend = load_or_skip(name, bundle, precision)
    inputs, other = restore_inputs(image(40, 33)), restore_inputs(image(64, 64, seed=4))
    first = backend.run("restore", inputs)
    for _ in range(4):
        backend.run("restore", other)
        again = backend.run("restore", inputs)
        assert all(again[key].tobytes() == first[key].tobytes() for key in first)
    fresh = load_or_skip(name, bundle, precision).run("restore", inputs)
    assert all(fresh[key].tobytes() == first[key].tobytes() for key in first)


def test_an_answer_survives_the_next_run(built_repository: Path):
    backend = load("openvino", find_bundle(built_repository, "tiny"), "cpu", "fp32")
    answer = backend.run("restore", restore_inputs(image(32, 32)))["restored"]
    kept = answer.copy()
    backend.run("restore", restore_inputs(image(32, 32, seed=9)))
    np.testing.assert_array_equal(answer, kept)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("side", [16, 64, 50])
def test_a_batch_gives_what_its_items_give_alone(built_repository: Path, name: str, side: int):
    backend = load(name, find_bundle(built_repository, "tiny"), "cpu", "fp32", threads=2)
    batch = restore_inputs(image(side, side, batch=5))
    together = backend.run("restore", batch)
    for i in range(5):
        alone = backend.run("restore", {key: value[i : i + 1] for key, value in batch.items()})
        for key in alone:
            np.testing.assert_allclose(together[key][i : i + 1], alone[key], rtol=0, atol=1e-6)
            if name == "onnx":  # seen, not promised by the runtime: why batches are of one by default
                assert together[key][i : i + 1].tobytes() == alone[key].tobytes()


@pytest.mark.parametrize("name", EXACT)
def test_strength_zero_is_the_identity(built_repository: Path, name: str):
    backend = load(name, find_bundle(built_repository, "tiny"), "cpu", "fp32")
    x = image(48, 40)
    np.testing.assert_array_equal(backend.run("restore", restore_inputs(x, strength=0.0))["restored"], x)


@pytest.mark.parametrize("side", [32, 45])
def test_openvino_fp32_is_fp32_and_bf16_is_not(built_repository: Path, side: int):
    bundle = find_bundle(built_repository, "tiny")
    inputs = restore_inputs(image(side, side))
    reference = load("onnx", bundle, "cpu", "fp32").run("restore", inputs)["restored"]
    exact = load("openvino", bundle, "cpu", "fp32").run("restore", inputs)["restored"]
    fast = load_or_skip("openvino", bundle, "bf16").run("restore", inputs)["restored"]
    assert np.abs(exact - reference).max() < 2e-6
    assert 1e-4 < np.abs(fast - reference).max() < 0.05


def test_openvino_keeps_a_bounded_number_of_compiled_shapes(built_repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.backends.openvino.COMPILED_SHAPES", 2)
    backend = load("openvino", find_bundle(built_repository, "tiny"), "cpu", "fp32")
    for side in (16, 32, 64, 50, 16):
        assert backend.run("restore", restore_inputs(image(side, side)))["noise"].shape == (1, 1, side, side)
    assert len(backend._stages["restore"][0].compiled) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("side", [32, 45])
def test_bf16_never_rounds_the_image_itself(built_repository: Path, side: int):
    x = image(side, side)
    denoiser = load_or_skip("openvino", find_bundle(built_repository, "tiny"), "bf16")
    assert denoiser.run("restore", restore_inputs(x, strength=0.0))["restored"].tobytes() == x.tobytes()
    bundle = find_bundle(built_repository, "tiny-x2")
    interpolation = load_or_skip("openvino", bundle, "bf16").run("restore", {"image": x})["restored"]
    wanted = load("onnx", bundle, "cpu", "fp32").run("restore", {"image": x})["restored"]
    np.testing.assert_allclose(interpolation, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "scale"), [("denoise", 1), ("superresolve-x2", 2), ("superresolve-x4", 4)])
def test_shipped_models_add_to_an_image_in_fp32(name: str, scale: int):
    backend = load_or_skip("openvino", find_bundle(SHIPPED_BUNDLES, name), "bf16")
    flat = np.full((1, 1, 64, 64), 0.70123, np.float32)  # bf16 knows 0.69921875 and 0.703125
    more = {"parameters": np.full((1, 8), 0.01, np.float32), "strength": np.zeros(1, np.float32)} if scale == 1 else {}
    restored = backend.run("restore", {"image": flat, **more})["restored"]
    # Rounded itself, the image would be 0.0019 off. Upscaling's first layer is blind to what is flat but for rounding.
    assert np.abs(restored - flat[0, 0, 0, 0]).mean() < (1e-5 if scale == 1 else 1e-3)


@pytest.mark.parametrize("name", EXACT)
def test_a_missing_runtime_names_the_extra_to_install(
    built_repository: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(f"app.backends.{name}.find_spec", lambda _: None)
    extra = "torch" if name == "torchscript" else "cpu"
    assert f"medrestore[{extra}]" in (reasons()[name] or "")
    with pytest.raises(BackendUnavailable, match="pip install"):
        load(name, find_bundle(built_repository, "tiny"), "cpu", "fp32")


def test_both_onnx_runtime_wheels_at_once_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.backends.onnx._installed", lambda _: True)
    assert "overwrite each other" in (reasons()["onnx"] or "")


def test_every_backend_that_is_installed_is_available():
    assert reasons() == dict.fromkeys(base.MODULES)


@pytest.mark.parametrize(
    ("name", "device", "precision", "message"),
    [
        ("tensorflow", "cpu", "fp32", "no backend"),
        ("onnx", "cpu", "fp16", "none of fp32, bf16"),
        ("onnx", "cpu", "bf16", "fp32 only"),
        ("torchscript", "cpu", "bf16", "fp32 only"),
        ("onnx", "gpu", "fp32", "neither cpu nor cuda"),
        ("openvino", "cuda:0", "fp32", "runs on the CPU"),
        ("torchscript", "cuda:99", "fp32", "CUDA devices"),
    ],
)
def test_what_cannot_be_had_is_refused(built_repository: Path, name: str, device: str, precision: str, message: str):
    with pytest.raises(BackendUnavailable, match=message):
        load(name, find_bundle(built_repository, "tiny"), device, precision)


def test_onnx_without_the_cuda_provider_refuses_a_gpu(built_repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailable, match=r"cuda:0 was required.*medrestore\[gpu\]"):
        load("onnx", find_bundle(built_repository, "tiny"), "cuda:0", "fp32")


def test_onnx_that_falls_back_to_the_cpu_in_silence_is_caught(built_repository: Path, monkeypatch: pytest.MonkeyPatch):
    import onnxruntime

    session = onnxruntime.InferenceSession

    def fall_back(path, options, providers):
        return session(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", fall_back)
    with pytest.raises(BackendUnavailable, match="cuda:0 was required"):
        load("onnx", find_bundle(built_repository, "tiny"), "cuda:0", "fp32")


@pytest.mark.parametrize("name", EXACT)
def test_a_graph_that_does_not_load_makes_the_bundle_invalid(repository: Path, name: str):
    folder = repository / "tiny" / "1"
    (folder / ("restore.ts" if name == "torchscript" else "restore.onnx")).write_bytes(b"no graph")
    seal(folder)
    with pytest.raises(BundleInvalid, match="tiny@1: restore"):
        load(name, read_bundle(folder), "cpu", "fp32")


def test_a_format_that_is_absent_makes_the_bundle_invalid(repository: Path):
    folder = repository / "tiny-x2" / "1"
    (folder / "restore.ts").unlink()
    seal(folder, scale=2)
    with pytest.raises(BundleInvalid, match="no graph 'restore' as torchscript"):
        load("torchscript", read_bundle(folder), "cpu", "fp32")


def test_the_self_test_notices_a_wrong_answer(repository: Path):
    assert "off the golden answer" in spoilt(repository, lambda golden: golden["restore.out.restored"].__iadd__(2e-4))


def test_the_self_test_notices_nan(repository: Path):
    assert "off the golden answer" in spoilt(repository, lambda golden: golden["restore.in.image"].fill(np.nan))


def test_the_self_test_notices_another_shape(repository: Path):
    def crop(golden: dict[str, np.ndarray]) -> None:
        golden["restore.out.noise"] = golden["restore.out.noise"][..., :-1]

    assert "has shape" in spoilt(repository, crop)


def test_the_self_test_notices_a_missing_output(repository: Path):
    def rename(golden: dict[str, np.ndarray]) -> None:
        golden["estimate.out.noise"] = golden.pop("estimate.out.parameters")

    assert "gives no output 'noise'" in spoilt(repository, rename)


def test_the_self_test_needs_an_answer_for_every_graph(repository: Path):
    assert "says nothing about graph 'estimate'" in spoilt(repository, lambda golden: golden.pop("estimate.in.image"))


def test_a_damaged_golden_file_makes_the_bundle_invalid(repository: Path):
    folder = repository / "tiny" / "1"
    (folder / GOLDEN).write_bytes(b"PK\x03\x04 cut short")
    seal(folder)
    with pytest.raises(BundleInvalid, match=r"golden\.npz cannot be read"):
        read_golden(read_bundle(folder))


def spoilt(repository: Path, change) -> str:
    """Changes the golden answers of `tiny`; gives the self-test's complaint."""
    folder = repository / "tiny" / "1"
    golden = read_golden(read_bundle(folder))
    change(golden)
    np.savez(folder / GOLDEN, **golden)
    seal(folder)
    bundle = read_bundle(folder)
    with pytest.raises(BundleInvalid) as caught:
        self_test(load("onnx", bundle, "cpu", "fp32"), bundle)
    return str(caught.value)


# Watches a fresh interpreter: what is imported, in what environment, and every address asked for.
WATCHED = """
import os, socket, sys
from pathlib import Path

calls, seen = [], set()

def record(name):
    def call(*arguments, **options):
        calls.append(name)
        raise OSError("blocked by the test")
    return call

for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, record(name))
socket.socket.connect = record("connect")
socket.socket.connect_ex = record("connect_ex")
socket.socket.sendto = record("sendto")

os.register_at_fork(before=lambda: calls.append("fork"))  # where openvino_telemetry sends from

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("onnxruntime", "openvino"):
            seen.add((name, os.environ.get("ORT_DISABLE_TELEMETRY")))

sys.meta_path.insert(0, Watch())
from app.backends.base import load, self_test
from models.bundle import find_bundle

bundle = find_bundle(Path(sys.argv[1]), "tiny")
self_test(load(sys.argv[2], bundle, "cpu", "fp32", threads=1), bundle)
"""


def watched(repository: Path, home: Path, backend: str, check: str) -> None:
    """Loads and runs a backend as a first-time user outside CI would, then runs `check` there."""
    home.mkdir()
    hidden = {"CI", "ORT_DISABLE_TELEMETRY"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | {"HOME": str(home)}
    root = str(Path(base.__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    code = WATCHED + textwrap.dedent(check)
    command = [sys.executable, "-c", code, str(repository), backend]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


def test_onnx_runtime_is_imported_with_its_telemetry_off(built_repository: Path, tmp_path: Path):
    check = """
        assert seen == {("onnxruntime", "1")}, seen
        assert not calls, calls
    """
    watched(built_repository, tmp_path / "home", "onnx", check)


def test_openvino_calls_nobody(built_repository: Path, tmp_path: Path):
    check = """
        import time
        time.sleep(0.5)  # its senders are threads
        assert {name for name, _ in seen} == {"openvino"}, seen
        assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
        assert "openvino.tools.ovc.telemetry_stub" in sys.modules
        assert not calls, calls
    """
    watched(built_repository, tmp_path / "home", "openvino", check)
    assert not list((tmp_path / "home").iterdir())  # nor does it leave an identity behind
