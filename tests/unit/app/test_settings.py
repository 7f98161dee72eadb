"""Settings from arguments, variables and the TOML file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, SecretStr, ValidationError

import medrestore
from app.main import default_models, engine_config
from app.settings import SHIPPED_BUNDLES, Settings, table
from models.imaging.image import Limits
from models.imaging.policy import Policy


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's variables and nobody's file."""
    for name in list(os.environ):
        if name.startswith("MEDRESTORE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults_serve_on_this_machine_alone() -> None:
    settings = Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.repository == SHIPPED_BUNDLES
    assert settings.limits == Limits()


def test_variables_win_over_the_file_and_arguments_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("medrestore.toml").write_text('port = 1\nlog_level = "debug"\nthreads = 3\n')
    monkeypatch.setenv("MEDRESTORE_PORT", "2")
    monkeypatch.setenv("MEDRESTORE_THREADS", "4")
    settings = Settings(threads=5)
    assert (settings.log_level, settings.port, settings.threads) == ("debug", 2, 5)


def test_the_named_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('devices = ["cpu", "cuda:0"]\n')
    monkeypatch.setenv("MEDRESTORE_CONFIG", str(tmp_path / "other.toml"))
    assert Settings().devices == ["cpu", "cuda:0"]


def test_a_named_file_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRESTORE_CONFIG", "nowhere.toml")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Settings()


def test_an_unknown_key_is_an_error() -> None:
    Path("medrestore.toml").write_text("prot = 1\n")
    with pytest.raises(ValidationError, match="prot"):
        Settings()


def test_an_unknown_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRESTORE_PROT", "1")
    with pytest.raises(ValueError, match="MEDRESTORE_PROT"):
        Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEDRESTORE_PORT", "70000"),
        ("MEDRESTORE_BACKEND", "tensorrt"),
        ("MEDRESTORE_THREADS", "0"),
        ("MEDRESTORE_DEVICES", "[]"),
        ("MEDRESTORE_LIMIT_BYTES", str(2**31)),
    ],
)
def test_a_value_out_of_range_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()


def test_settings_reach_the_engine() -> None:
    settings = Settings(
        backend="torchscript", fast_for_8_bit=False, devices=["cpu", "cpu"], queue_items=7, denoise_model="tiny@1"
    )
    config = engine_config(settings)
    assert config.backends == {"fp32": "torchscript", "bf16": "openvino"}
    assert config.preload == ("fp32",)
    assert config.devices == ("cpu", "cpu")
    assert config.limits.items == 7
    assert default_models(settings) == {"denoise": "tiny@1"}


def secrets_of(model: type[BaseModel]) -> Iterator[tuple[str, object]]:
    """Settings that hold a secret by their name, those of nested models too."""
    for name, field in model.model_fields.items():
        if re.search(r"password|token|secret|credential", name):
            yield name, field.annotation
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from secrets_of(part)


def test_a_secret_is_masked_or_in_a_file_of_its_own() -> None:
    found = dict(secrets_of(Settings))
    assert "webhook_token" in found
    for name, annotation in found.items():
        assert annotation == (Path | None if name.endswith("_file") else SecretStr | None), name
        assert name.endswith("_file") or f"{name}_file" in found


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MEDRESTORE_WEBHOOK_TOKEN", "hunter2")
    settings = Settings()
    assert settings.webhook_secret() == "hunter2"
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()} {table()}"
    monkeypatch.setenv("MEDRESTORE_WEBHOOK_TOKEN_FILE", "token")
    with pytest.raises(ValidationError, match="exclude each other") as caught:
        Settings()
    assert medrestore.main(["serve"]) == 2
    assert "hunter2" not in shown + str(caught.value) + "".join(capsys.readouterr())


def test_the_table_names_every_setting_and_no_path_of_this_machine() -> None:
    text = table()
    assert all(f"`{name}`" in text for name in Settings.model_fields)
    assert str(SHIPPED_BUNDLES.parent) not in text


def test_the_policy_is_that_of_the_dicom_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().policy == Policy()
    Path("medrestore.toml").write_text('dicom_image_type = "PRIMARY"\ndicom_qualification = "SERVICE"\n')
    monkeypatch.setenv("MEDRESTORE_DICOM_PRIVATE_CREATORS", '["VENDOR A", "VENDOR B"]')
    assert Settings(dicom_number_offset=5).policy == Policy("PRIMARY", 5, "SERVICE", ("VENDOR A", "VENDOR B"))
    with pytest.raises(ValidationError, match="dicom_private_creators"):
        Settings(dicom_private_creators=[" "])


@pytest.mark.parametrize("name", ["superresolve-x2-adversarial", "superresolve-x2-adversarial@3"])
def test_an_adversarial_default_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(ValidationError, match="never a default: callers ask for it by name"):
        Settings(superresolve_x2_model=name)
