"""Settings of the service: one TOML file, then `MEDRESTORE_` variables on top of it.

The file is the one that MEDRESTORE_CONFIG names, else `medrestore.toml` in the working folder
where there is one. Keys are the field names below; variables are the same in capitals after the
prefix, lists as JSON (`MEDRESTORE_DEVICES='["cpu"]'`). A key or variable that no field has is an
error, so that a misspelt limit never passes unnoticed. `python -m app.settings` prints the table.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    StringConstraints,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

import models
from app.pacs.peer import Peer, PeerName
from models.bundle import ADVERSARIAL
from models.errors import OptionError
from models.imaging.image import Limits
from models.imaging.policy import DEFAULT, LARGEST_IS, ImageType, Policy, Qualification
from models.imaging.reduction import BEST_DB

AeTitle = Annotated[str, StringConstraints(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]  # PS3.5 6.2
PREFIX = "MEDRESTORE_"
CONFIG_VARIABLE = PREFIX + "CONFIG"
CONFIG_FILE = "medrestore.toml"
OTHER_VARIABLES = frozenset(  # read elsewhere: the file's path, the tests' data, what `medrestore pacs` talks to
    {CONFIG_VARIABLE, PREFIX + "SHARED", PREFIX + "URL", PREFIX + "KEY"}
)
SHIPPED_BUNDLES = Path(models.__file__).parent / "bundles"


class Settings(BaseSettings):
    """Everything that can be set; each field says its unit."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,  # it may be a password
    )

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 takes a free one")
    access: Literal["keys", "open"] = Field(
        default="keys",
        description="`keys`: callers need an API key (`medrestore key`); `open`: whoever can connect may",
    )
    keys: Path = Field(default=Path("keys.toml"), description="TOML file of API keys; changes are taken up at once")
    key_requests: PositiveInt = Field(
        default=48, description="requests of one key under way at once; one more is answered 429"
    )
    key_failures: PositiveInt = Field(
        default=10, description="requests without a valid key answered per address and minute; more get 429"
    )
    metrics_open: bool = Field(default=False, description="`/metrics` without a key; otherwise it takes scope admin")
    webhook_token: SecretStr | None = Field(
        default=None, description="what a PACS shows at `/pacs/events`; unset, it takes a key of scope pacs"
    )
    webhook_token_file: Path | None = Field(default=None, description="file that holds that token instead")
    audit: Path | None = Field(
        default=None, description="file of audit lines, appended to; unset, they are in the service's log"
    )
    repository: Path = Field(default=SHIPPED_BUNDLES, description="folder of model bundles, `<name>/<version>/`")
    repository_poll: NonNegativeFloat = Field(
        default=5.0, description="looks at that folder for new and changed bundles this often, seconds; 0 never does"
    )
    denoise_model: str | None = Field(default=None, description="default denoiser, `name` or `name@version`")
    superresolve_x2_model: str | None = Field(default=None, description="default model of scale 2")
    superresolve_x4_model: str | None = Field(default=None, description="default model of scale 4")

    consistency_db: float = Field(
        default=30.0,
        ge=0,
        le=BEST_DB,
        description="what strict super-resolution asks of a model that promises nothing itself: PSNR of the result, "
        "reduced again, beside the image, dB",
    )

    backend: Literal["onnx", "torchscript", "openvino"] = Field(default="onnx", description="runtime of the exact mode")
    fast_backend: Literal["onnx", "torchscript", "openvino"] = Field(
        default="openvino", description="runtime of the fast mode"
    )
    fast_for_8_bit: bool = Field(
        default=True, description="fast mode for 8-bit images (never DICOM) where the caller is silent"
    )
    devices: list[str] = Field(
        default=["cpu"], min_length=1, description="one worker process per entry: `cpu`, `cuda:0`, ..."
    )
    threads: PositiveInt | None = Field(
        default=None, description="threads of one worker; unset shares the cores among the workers"
    )
    codec_threads: PositiveInt = Field(default=4, description="threads that decode and encode images")

    limit_bytes: PositiveInt = Field(default=Limits.bytes, description="largest request body, bytes")
    limit_pixels: PositiveInt = Field(default=Limits.pixels, description="largest image, rows x columns x frames")
    limit_frames: PositiveInt = Field(default=Limits.frames, description="most frames of one image")
    requests: PositiveInt = Field(
        default=64, description="requests with an image held at once; one more is answered 429"
    )
    request_bytes: PositiveInt = Field(default=1024**3, description="bodies held at once, bytes")
    queue_items: PositiveInt = Field(default=4096, description="tiles and frames accepted and unfinished at most")
    queue_pixels: PositiveInt = Field(default=64 * 1024**2, description="pixels accepted and unfinished at most")
    queue_bytes: PositiveInt = Field(default=1024**3, description="bytes accepted and unfinished at most")
    batch_items_exact: PositiveInt = Field(
        default=8,
        description="tiles of one run at most in exact mode; one for a model whose answers would depend on it",
    )
    batch_items_fast: PositiveInt = Field(default=8, description="the same in fast mode")
    batch_pixels: PositiveInt = Field(default=2 * 256 * 256, description="pixels of one run at most, or a single tile")
    ageing_s: NonNegativeFloat = Field(
        default=10.0, description="a routine tile goes before an interactive one that came this much later; bulk: twice"
    )
    tiles_in_flight: PositiveInt = Field(default=16, description="tiles of one request in the queue at once")
    memory_budget: PositiveInt = Field(
        default=1024**3, description="memory that one run may take in a worker, bytes; decides the size of tiles"
    )
    timeout_s: PositiveFloat = Field(default=300.0, description="longest work on one request, seconds")
    stall_s: PositiveFloat = Field(
        default=60.0, description="a request of whose body nothing comes for so long is given up, seconds"
    )
    drain_delay_s: NonNegativeFloat = Field(
        default=2.0, description="time after SIGTERM in which all is served, but not ready any more, seconds"
    )
    drain_s: PositiveFloat = Field(default=30.0, description="time to finish open requests at a stop, seconds")
    cache_bytes: NonNegativeInt = Field(
        default=0,
        description="answers of restoring kept for who sends the same again, bytes; 0 keeps none, so that no image "
        "outlives its request. Above 0, equal requests under way are also worked once",
    )
    jobs: Path | None = Field(
        default=None, description="folder of durable jobs, which keeps images on disk; unset, there are no jobs"
    )
    job_bytes: PositiveInt = Field(default=4 * 1024**3, description="largest body of a job, bytes")
    job_pixels: PositiveInt = Field(
        default=2_000_000_000, description="largest image of a job and its result, rows x columns x frames"
    )
    job_frames: PositiveInt = Field(default=20_000, description="most frames of a job's image")
    job_workers: PositiveInt = Field(default=1, description="jobs worked on at one time")
    job_count: PositiveInt = Field(default=1000, description="jobs waiting and running; one more is answered 429")
    job_disk_bytes: PositiveInt = Field(
        default=64 * 1024**3, description="files of all jobs, bytes; more is answered 507"
    )
    job_free_bytes: NonNegativeInt = Field(default=2 * 1024**3, description="left free on the jobs' disk, bytes")
    job_keep_s: PositiveFloat = Field(
        default=86400.0, description="finished jobs and their results are deleted after, seconds"
    )
    pacs: dict[PeerName, Peer] = Field(
        default={}, description="PACS by name, a table `[pacs.NAME]` each (as a variable: JSON); none, no integration"
    )
    pacs_jobs: PositiveInt = Field(default=2, description="PACS jobs worked on at one time")
    pacs_give_up_s: PositiveFloat = Field(
        default=86400.0,
        description="a PACS job fails that has waited this long for its PACS or for disk, seconds; what was sent "
        "here waits for ever",
    )
    pacs_sample: PositiveInt = Field(
        default=20, description="of so many stored instances, one is read back and compared; the first one always"
    )
    pacs_rules: Path | None = Field(
        default=None, description="TOML file of rules: what is restored without a call; read again when it changes"
    )
    pacs_poll_s: PositiveFloat = Field(default=5.0, description="looks for new series in each PACS, seconds")
    pacs_stable_s: PositiveFloat = Field(
        default=60.0, description="a series of a PACS without `orthanc` is whole after so many seconds without change"
    )
    pacs_days: PositiveInt = Field(default=2, description="days back that such a PACS is asked for, by StudyDate")
    door_bytes: PositiveInt = Field(default=4 * 1024**3, description="largest body of `POST /dicomweb/studies`, bytes")
    door_instances: PositiveInt = Field(default=5000, description="most instances of one body, or one association")
    dimse_port: int | None = Field(
        default=None, ge=0, le=65535, description="TCP port that C-STORE is taken on (extra `dimse`); unset, it is not"
    )
    dimse_host: str = Field(default="127.0.0.1", description="address to listen on for it")
    dimse_aet: AeTitle = Field(default="MEDRESTORE", description="application entity title that callers must name")
    dimse_calling: list[AeTitle] = Field(default=[], description="titles of those who may send; nobody else may")
    dimse_associations: PositiveInt = Field(default=4, description="senders at one time")
    dimse_idle_s: PositiveFloat = Field(default=60.0, description="a silent sender is cut off after, seconds")
    dicom_image_type: ImageType = Field(
        default=DEFAULT.image_type, description="ImageType value 2 of derived single-frame DICOM objects"
    )
    dicom_number_offset: NonNegativeInt = Field(
        default=DEFAULT.number_offset, le=LARGEST_IS, description="added to the SeriesNumber of derived series"
    )
    dicom_qualification: Qualification = Field(
        default=DEFAULT.qualification, description="ContentQualification of derived objects"
    )
    dicom_private_creators: list[str] = Field(
        default=[], description="Private Creators whose attributes derived objects keep, letter by letter"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level that is logged"
    )
    tracing: bool = Field(
        default=False, description="OpenTelemetry traces (extra `otel`); the standard `OTEL_` variables say where to"
    )

    @model_validator(mode="after")
    def _fit(self) -> Settings:
        if self.webhook_token is not None and self.webhook_token_file is not None:
            raise ValueError("webhook_token and webhook_token_file exclude each other")
        named = (self.denoise_model, self.superresolve_x2_model, self.superresolve_x4_model)
        if adversarial := [text for text in named if text and text.partition("@")[0].endswith(ADVERSARIAL)]:
            raise ValueError(f"{adversarial[0]} is adversarially trained, never a default: callers ask for it by name")
        if self.limit_bytes > self.request_bytes:
            raise ValueError("limit_bytes must not exceed request_bytes, or the largest request never fits")
        try:
            _ = self.policy
        except OptionError as exc:
            raise ValueError(f"dicom_{exc}") from exc
        return self

    @property
    def policy(self) -> Policy:
        """What the `dicom_` settings ask of derived objects. Another choice gives them other UIDs."""
        creators = tuple(self.dicom_private_creators)
        return Policy(self.dicom_image_type, self.dicom_number_offset, self.dicom_qualification, creators)

    @property
    def limits(self) -> Limits:
        """The limits that decoding checks."""
        return Limits(bytes=self.limit_bytes, pixels=self.limit_pixels, frames=self.limit_frames)

    @property
    def job_limits(self) -> Limits:
        """The limits of a job's file; one frame of it is within `limits`."""
        return Limits(bytes=self.job_bytes, pixels=self.job_pixels, frames=self.job_frames)

    @property
    def has_webhook_token(self) -> bool:
        """Whether a PACS has to show a token."""
        return self.webhook_token is not None or self.webhook_token_file is not None

    def webhook_secret(self) -> str | None:
        """The webhook's token as it is now, None where there is none. Raises OSError."""
        if self.webhook_token_file:
            return self.webhook_token_file.read_text(encoding="utf-8").strip()
        return self.webhook_token.get_secret_value() if self.webhook_token is not None else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence: arguments, variables, the TOML file."""
        refuse_unknown_variables(set(cls.model_fields))
        path = config_path()
        toml = (TomlConfigSettingsSource(settings_cls, path),) if path else ()
        return (init_settings, env_settings, *toml)


def config_path() -> Path | None:
    """The TOML file to read. Raises FileNotFoundError where MEDRESTORE_CONFIG names none."""
    named = os.environ.get(CONFIG_VARIABLE)
    path = Path(named or CONFIG_FILE)
    if path.is_file():
        return path
    if named:
        raise FileNotFoundError(f"{CONFIG_VARIABLE} names {named}, which is no file")
    return None


def refuse_unknown_variables(fields: set[str]) -> None:
    """pydantic-settings skips variables it does not know; a misspelt one is a mistake here."""
    known = OTHER_VARIABLES | {PREFIX + field.upper() for field in fields}
    if unknown := sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known):
        raise ValueError(f"unknown settings in the environment: {', '.join(unknown)}")


def table(model: type[BaseModel] = Settings) -> str:
    """All settings of `model` as a Markdown table."""

    def shown(field: FieldInfo) -> str:
        if field.is_required():
            return "required"
        return "`models/bundles`" if field.default == SHIPPED_BUNDLES else f"`{field.default}`"

    rows = [
        f"| `{name}` | {'' if field.default is None else shown(field)} | {field.description} |"
        for name, field in model.model_fields.items()
    ]
    return "\n".join(["| Setting | Default | Meaning |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(table(), "Each table `[pacs.NAME]`:", table(Peer), sep="\n\n")
