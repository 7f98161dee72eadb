"""The console command, in this process."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medrestore
from tests.tiny_bundle import copy_bundle, seal, spoil_golden


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings must come from the test alone: no variables, no medrestore.toml of the working folder."""
    for name in ("MEDRESTORE_CONFIG", "MEDRESTORE_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def noisy() -> np.ndarray:
    """(40, 56) uint16: a ramp with noise of about 600."""
    ramp = np.linspace(10_000, 50_000, 56)[None, :].repeat(40, 0)
    return (ramp + np.random.default_rng(3).normal(0, 600, ramp.shape)).astype(np.uint16)


@pytest.fixture
def run(built_repository: Path, capsys: pytest.CaptureFixture[str]):
    """Runs a command on the test's bundles; gives status, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        status = medrestore.main([*map(str, words), "--repository", str(built_repository)])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def load(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def roughness(pixels: np.ndarray) -> float:
    """Mean absolute difference of horizontal neighbours, in grey levels."""
    return float(np.abs(np.diff(pixels.astype(float), axis=1)).mean())


def test_denoises_a_file_at_its_own_depth(run, noisy, tmp_path) -> None:
    status, out, err = run("denoise", save(tmp_path / "a.png", noisy), tmp_path / "out" / "b.png")
    assert status == 0
    restored = load(tmp_path / "out" / "b.png")
    assert restored.dtype == np.uint16
    assert restored.shape == noisy.shape
    assert roughness(restored) < 0.9 * roughness(noisy)
    assert "tiny@1" in out
    assert "fp32" in out
    assert "grey level" in out
    assert err == "1 of 1 restored, 0 failed\n"


def test_strength_zero_gives_the_pixels_back(run, noisy, tmp_path) -> None:
    source = save(tmp_path / "a.png", noisy)
    assert run("denoise", source, tmp_path / "b.png", "--strength", "0")[0] == 0
    assert np.array_equal(load(tmp_path / "b.png"), noisy)


def test_equal_calls_give_equal_files(run, noisy, tmp_path) -> None:
    source = save(tmp_path / "a.png", noisy)
    for name in ("b.png", "c.png"):
        run("denoise", source, tmp_path / name, "--sigma", "500")
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_superresolves_by_the_scale_asked_for(run, noisy, tmp_path) -> None:
    source = save(tmp_path / "a.png", noisy)
    assert run("superresolve", source, tmp_path / "b.png", "--scale", "2")[0] == 0
    assert load(tmp_path / "b.png").shape == (80, 112)


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torchscript"])
def test_runs_on_the_backend_asked_for(run, noisy, tmp_path, backend) -> None:
    source = save(tmp_path / "a.png", noisy)
    status, out, _ = run("denoise", source, tmp_path / "b.png", "--backend", backend, "--precision", "exact")
    assert status == 0
    assert f"by {backend} fp32" in out


def test_fast_is_exact_where_the_backend_has_no_fast_mode(run, noisy, tmp_path) -> None:
    source = save(tmp_path / "a.png", noisy)
    status, out, _ = run("denoise", source, tmp_path / "b.png", "--backend", "onnx", "--precision", "fast")
    assert status == 0
    assert "by onnx fp32" in out


def test_suffix_of_the_output_names_its_format(run, noisy, tmp_path) -> None:
    source = save(tmp_path / "a.png", noisy)
    assert run("denoise", source, tmp_path / "b.npy")[0] == 0
    assert np.load(tmp_path / "b.npy").dtype == np.uint16
    assert run("denoise", source, tmp_path / "b.tif")[0] == 0
    assert (tmp_path / "b.tif").read_bytes()[:2] in (b"II", b"MM")


def test_jpeg_comes_back_as_png_under_a_name_of_its_own(run, noisy, tmp_path) -> None:
    grey = (noisy >> 8).astype(np.uint8)
    save(tmp_path / "in" / "a.jpg", grey)
    save(tmp_path / "in" / "a.png", grey)
    status, out, _ = run("denoise", tmp_path / "in", tmp_path / "out")
    assert status == 0
    assert ["the input was lossy" in line for line in out.splitlines()] == [True, False]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg.png", "a.png"]
    assert (tmp_path / "out" / "a.jpg.png").read_bytes().startswith(b"\x89PNG")


def test_folder_is_mirrored_and_its_hidden_files_are_left_out(run, noisy, tmp_path) -> None:
    for name in ("a.png", "deep/er/b.png", ".hidden/c.png"):
        save(tmp_path / "in" / name, noisy)
    (tmp_path / "in" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "in" / "deep" / "DICOMDIR").write_bytes(b"an index, no image")
    status, out, err = run("denoise", tmp_path / "in", tmp_path / "out")
    assert status == 0
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")) == [
        "a.png",
        "deep/er/b.png",
    ]
    assert len(out.splitlines()) == 2
    assert "2 of 2 restored, 0 failed" in err


def test_one_bad_file_is_reported_and_stops_no_other(run, noisy, tmp_path) -> None:
    save(tmp_path / "in" / "a.png", noisy)
    save(tmp_path / "in" / "z.png", noisy)
    (tmp_path / "in" / "cut.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:200])
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    status, _, err = run("denoise", tmp_path / "in", tmp_path / "out")
    assert status == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "z.png"]
    failed = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert [line.split(": ")[1].rsplit("/", 1)[1] for line in failed] == ["cut.png", "notes.txt"]
    assert all(len(line.split(": ", 2)[2]) > 10 for line in failed)
    assert "2 of 4 restored, 2 failed" in err
    assert "Traceback" not in err


def test_failed_write_leaves_the_old_result_and_no_fragment(run, noisy, tmp_path, monkeypatch) -> None:
    source = save(tmp_path / "a.png", noisy)
    target = tmp_path / "out" / "b.png"
    target.parent.mkdir()
    target.write_bytes(b"earlier result")

    def full_disk(self: Path, data: bytes) -> int:
        with io.FileIO(self, "w") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    status, _, err = run("denoise", source, target)
    assert status == 1
    assert "No space left on device" in err
    assert [p.name for p in target.parent.iterdir()] == ["b.png"]
    assert target.read_bytes() == b"earlier result"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["denoise", "missing.png", "b.png"], "missing.png does not exist"),
        (["denoise", "a.png", "a.png"], "the same file"),
        (["denoise", "a.png", "b.bmp"], "cannot write .bmp"),
        (["denoise", "a.png", "b.jpg"], "cannot write .jpg"),
        (["denoise", "a.png", "b.png", "--strength", "2"], "strength must lie between"),
        (["denoise", "a.png", "b.png", "--sigma", "-1"], "sigma must be a positive number"),
        (["denoise", "a.png", "b.png", "--model", "tiny-x2"], "does superresolve-x2, not denoise"),
        (["denoise", "a.png", "b.png", "--model", "No Such"], "write name or name@version"),
        (["denoise", "folder", "folder/out"], "OUT must lie outside"),
        (["denoise", "folder", "a.png"], "is a folder"),
        (["denoise", "empty", "out"], "holds no files"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(run, noisy, tmp_path, words, message) -> None:
    save(tmp_path / "a.png", noisy)
    save(tmp_path / "folder" / "a.png", noisy)
    (tmp_path / "empty").mkdir()
    status, out, err = run(*words)
    assert status == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_unknown_model_is_named_with_what_there_is(run, noisy, tmp_path) -> None:
    status, _, err = run("denoise", save(tmp_path / "a.png", noisy), tmp_path / "b.png", "--model", "other@3")
    assert status == 1
    assert "no model 'other@3'; available: tiny@1, tiny-x2@1" in err


def test_no_model_for_the_scale_is_said(run, noisy, tmp_path) -> None:
    status, _, err = run("superresolve", save(tmp_path / "a.png", noisy), tmp_path / "b.png", "--scale", "4")
    assert status == 1
    assert "superresolve-x4" in err


def test_debug_lets_the_error_through(run, tmp_path) -> None:
    with pytest.raises(medrestore.OptionError):
        run("--debug", "denoise", "missing.png", "b.png")


def test_misspelt_setting_is_refused_by_name(run, noisy, tmp_path) -> None:
    (tmp_path / "my.toml").write_text("limit_pixel = 5\n")
    source = save(tmp_path / "a.png", noisy)
    status, _, err = run("denoise", source, tmp_path / "b.png", "--config", tmp_path / "my.toml")
    assert status == 2
    assert "limit_pixel" in err


def test_limits_of_the_settings_hold(run, noisy, tmp_path) -> None:
    (tmp_path / "my.toml").write_text("limit_pixels = 1000\n")
    source = save(tmp_path / "a.png", noisy)
    status, _, err = run("denoise", source, tmp_path / "b.png", "--config", tmp_path / "my.toml")
    assert status == 1
    assert "limit" in err
    assert not (tmp_path / "b.png").exists()
    assert "MEDRESTORE_CONFIG" not in os.environ, "a call must leave nothing behind"


def test_bundles_are_listed(run) -> None:
    status, out, _ = run("bundles", "list")
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["tiny@1", "denoise"], ["tiny-x2@1", "superresolve"]]


def test_the_promoted_version_is_the_one_marked_and_used(repository, noisy, tmp_path, capsys) -> None:
    copy_bundle(repository, "tiny", "tiny", "2")

    def call(*words: object) -> tuple[int, str, str]:
        status = medrestore.main([*map(str, words), "--repository", str(repository)])
        return status, *capsys.readouterr()

    def marked() -> list[str]:
        return [line.split()[0] for line in call("bundles", "list")[1].splitlines() if " default " in line]

    source = save(tmp_path / "a.png", noisy)
    assert marked() == ["tiny@2", "tiny-x2@1"]
    assert call("bundles", "promote", "tiny@1")[0] == 0
    assert marked() == ["tiny@1", "tiny-x2@1"]
    assert "tiny@1 by onnx" in call("denoise", source, tmp_path / "b.png")[1]
    status, out, _ = call("bundles", "promote", "tiny@2")
    assert status == 0
    assert "tiny@1 was promoted before" in out
    assert "tiny@2 by onnx" in call("denoise", source, tmp_path / "b.png")[1]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["promote"], 2, "promote takes NAME@VERSION"),
        (["list", "tiny@1"], 2, "list and verify take nothing"),
        (["promote", "tiny"], 2, "promote one version of tiny"),
        (["promote", "tiny@9"], 1, "no model 'tiny@9'; available: tiny@3, tiny@2, tiny@1"),
        (["promote", "tiny@2"], 1, "off the golden answer"),
        (["promote", "tiny@3"], 1, "restore.onnx is not the file the manifest names"),
    ],
)
def test_what_cannot_serve_is_not_promoted(repository, capsys, words, status, message) -> None:
    spoil_golden(copy_bundle(repository, "tiny", "tiny", "2"))
    (copy_bundle(repository, "tiny", "tiny", "3") / "restore.onnx").write_bytes(b"other bytes")
    assert medrestore.main(["bundles", *words, "--repository", str(repository)]) == status
    assert message in capsys.readouterr().err
    assert not (repository / "tiny" / "default.json").exists()


def test_a_pointer_that_leads_nowhere_is_a_failure(repository, capsys) -> None:
    (repository / "tiny" / "default.json").write_text('{"version": "7"}', encoding="utf-8")
    assert medrestore.main(["bundles", "list", "--repository", str(repository)]) == 1
    out, err = capsys.readouterr()
    assert "failed: tiny: tiny@7 is promoted but not served" in err
    assert " default " in out.splitlines()[0]


def test_bundles_are_verified_on_every_runtime(run) -> None:
    status, out, _ = run("bundles", "verify")
    assert status == 0
    for line in out.splitlines():
        assert all(f"{name} fp32 ok" in line for name in ("onnx", "openvino", "torchscript"))


def test_verification_says_which_runtime_it_left_out(run, monkeypatch) -> None:
    monkeypatch.setattr("app.backends.openvino.unavailable", lambda: "OpenVINO is not installed")
    status, out, err = run("bundles", "verify")
    assert status == 0
    assert "left out: openvino: OpenVINO is not installed\n" in err
    assert "openvino" not in out
    assert "left out" not in run("bundles", "list")[2]


def test_spoilt_bundle_fails_verification_and_others_do_not(repository, capsys) -> None:
    graph = repository / "tiny" / "1" / "restore.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    assert medrestore.main(["bundles", "verify", "--repository", str(repository)]) == 1
    out, err = capsys.readouterr()
    assert "failed: tiny@1: " in err
    assert "restore.onnx" in err
    assert "tiny-x2@1" in out


def test_help_names_every_command(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        medrestore.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for name in ("serve", "denoise", "superresolve", "bundles", "autotune", "train", "evaluate", "export", "pipeline"):
        assert f"\n    {name}" in out


def test_superresolve_tells_how_it_agrees_and_refuses_what_does_not(run, noisy, tmp_path) -> None:
    source = save(tmp_path / "a.png", noisy)
    status, out, _ = run("superresolve", "--scale", 2, source, tmp_path / "b.png")
    assert status == 0
    assert "reduced again" in out
    assert " dB from the input, RMS " in out
    for options in (("--min-consistency", 99), ("--strict", "--min-consistency", 99)):
        status, _, err = run("superresolve", "--scale", 2, *options, source, tmp_path / "c.png")
        assert status == 1
        assert "99 dB are required" in err
        assert not (tmp_path / "c.png").exists()


def test_strict_mode_follows_the_setting(run, noisy, tmp_path, monkeypatch) -> None:
    source = save(tmp_path / "a.png", noisy)
    for decibels, expected in (("5", 0), ("110", 1)):
        monkeypatch.setenv("MEDRESTORE_CONSISTENCY_DB", decibels)
        assert run("superresolve", "--scale", 2, "--strict", source, tmp_path / "b.png")[0] == expected


def test_an_adversarial_model_is_warned_of(noisy, repository, tmp_path, capsys) -> None:
    seal(copy_bundle(repository, "tiny-x2", "tiny-x2-adversarial", "1", scale=2), 2, adversarial=True)
    words = ["superresolve", "--scale", "2", str(save(tmp_path / "a.png", noisy)), str(tmp_path / "b.png")]
    for model, warned in (("tiny-x2", False), ("tiny-x2-adversarial", True)):
        assert medrestore.main([*words, "--model", model, "--repository", str(repository)]) == 0
        assert ("not for measurement" in capsys.readouterr().err) == warned
    assert medrestore.main([*words, "--repository", str(repository)]) == 0  # unasked, it is the other one
    assert "tiny-x2@1" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "networks", "pipeline", "publish"])
def test_training_commands_parse_what_follows_themselves(command, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        medrestore.main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: medrestore {command}" in capsys.readouterr().out


def test_command_starts_without_service_training_or_runtimes() -> None:
    code = (
        "import sys, medrestore; medrestore.build_parser(); "
        "heavy = {'app', 'training', 'torch', 'onnxruntime', 'openvino', 'fastapi', 'pydantic', 'numpy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(medrestore.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("missing", "hint"), [("lightning", "medrestore[cpu]"), ("training.train", "clone of the repository")]
)
def test_missing_package_is_explained(missing, hint, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "training.train", None)
    if missing == "lightning":
        monkeypatch.setattr(
            medrestore, "import_module", lambda _: (_ for _ in ()).throw(ModuleNotFoundError(name="lightning"))
        )
    assert medrestore.main(["train", "denoise"]) == 1
    err = capsys.readouterr().err
    assert hint in err
    assert len(err.splitlines()) == 1
