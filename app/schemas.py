"""What callers send as options and get as JSON; names and units are part of the interface."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.pacs.report import FeedStatus
from models.imaging.reduction import BEST_DB

ModelName = Annotated[
    str | None,
    Field(
        default=None,
        max_length=100,
        description="`name` (its promoted version, else its newest) or `name@version`; left out, the service's default "
        "for the task",
        examples=["denoise", "denoise@1"],
    ),
]
Precision = Annotated[
    Literal["exact", "fast"] | None,
    Field(
        default=None,
        description="`exact` is 32-bit floating point. `fast` is what the service's fast mode gives, or `exact` where "
        "there is none; `X-Precision` tells. Left out: `exact` for DICOM and everything above 8 bits, else the "
        "service's setting",
    ),
]


class CallHeaders(BaseModel):
    """Headers of every request with an image."""

    x_deadline_ms: int | None = Field(
        None,
        ge=1,
        le=86_400_000,
        description="milliseconds from now within which the answer is of use: 429 where that cannot be met, 504 where "
        "it was missed after all",
    )
    x_priority: Literal["interactive", "routine", "bulk"] = Field(
        default="interactive", description="which goes first where work waits; the others catch up with age"
    )


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class DenoiseQuery(_Query):
    """Options of `POST /denoise`."""

    model: ModelName
    strength: float = Field(
        default=1.0, ge=0, le=1.5, description="share of the noise that is removed; 0 is the identity"
    )
    sigma: float | None = Field(
        None, gt=0, description="noise level in the image's own units (HU, grey levels, ...), in place of the estimate"
    )
    precision: Precision


class SuperresolveQuery(_Query):
    """Options of `POST /superresolve`."""

    scale: Literal["2", "4"] = Field(description="rows and columns of the answer per row and column of the image")
    model: ModelName
    strict: bool = Field(
        default=False,
        description="refuse an answer that, reduced again, does not agree with the image (422 `inconsistent`): below "
        "what the model promises, else below the service's setting",
    )
    min_consistency: float | None = Field(
        default=None, ge=0, le=BEST_DB, description="dB that strict mode asks for instead; strict with or without it"
    )
    precision: Precision


class AnalyzeQuery(_Query):
    """Options of `POST /analyze`."""

    model: ModelName
    precision: Precision


class NoQuery(_Query):
    """No options at all."""


class NoiseFunction(BaseModel):
    """Noise variance at signal x: max(slope * x + offset, floor), in the report's unit."""

    slope: float = Field(description="unit", examples=[0.31])
    offset: float = Field(description="unit squared", examples=[310.0])
    floor: float = Field(description="unit squared", examples=[12.0])


class Correlation(BaseModel):
    """Correlation of the noise with that of neighbouring pixels, -1 to 1; null where no noise tells it."""

    by: Literal["model", "patches"] | None = Field(
        description="told by the model's estimator, or measured on flat patches where the model does not tell it"
    )

    lag_1_x: float | None = Field(description="one column on", examples=[0.41])
    lag_1_y: float | None = Field(description="one row on", examples=[0.32])
    lag_2_x: float | None = Field(description="two columns on", examples=[0.06])
    lag_2_y: float | None = Field(description="two rows on", examples=[-0.01])


class TrainedRange(BaseModel):
    """Whether the noise is of a kind that the model was trained for; null where nothing could be measured."""

    level: bool
    correlation: bool | None


class FrameNoise(BaseModel):
    """The noise of one frame."""

    level: float = Field(description="root mean square noise, in the report's unit", examples=[18.2])
    function: NoiseFunction
    correlation: Correlation
    in_trained_range: TrainedRange


class NoiseReport(BaseModel):
    """Answer of `POST /analyze`: what the estimator of a denoising model says about an image."""

    model: str = Field(description="name@version", examples=["denoise@1"])
    digest: str = Field(description="SHA-256 of the model's manifest")
    precision: str = Field(examples=["fp32"])
    backend: str = Field(examples=["onnx"])
    unit: str = Field(description="real-world unit of level and function", examples=["HU"])
    level: float = Field(description="root mean square noise over all frames", examples=[18.2])
    function: NoiseFunction = Field(description="mean of the frames' functions")
    correlation: Correlation = Field(description="pooled over all frames and planes")
    in_trained_range: TrainedRange
    lossy: bool = Field(description="the image went through lossy compression before it came here")
    frames: list[FrameNoise]


class ModelFacts(BaseModel):
    """One model that is served."""

    name: str = Field(examples=["denoise"])
    version: str = Field(examples=["1"])
    task: str = Field(description="`denoise` or `superresolve`", examples=["denoise"])
    scale: int = Field(description="rows of the answer per row of the image", examples=[1])
    default: bool = Field(description="used where the caller names no model")
    default_version: bool = Field(description="used where the caller names the model without a version")
    digest: str = Field(description="SHA-256 of the manifest, which lists the SHA-256 of every file")
    adversarial: bool = Field(
        description="trained against a critic: may show texture that was not in the image; never a default"
    )
    consistency: float | None = Field(description="dB that strict mode asks of it; null: the service's setting")
    network: str
    summary: str
    licence: str
    precisions: list[str]
    trained_sigma: tuple[float, float] = Field(description="noise levels trained on, on the unit scale")
    trained_correlation: tuple[float, float] = Field(description="lag-1 noise correlations trained on")
    scores: dict[str, Any]


class ModelList(BaseModel):
    """Answer of `GET /models`."""

    models: list[ModelFacts]
    refused: dict[str, str] = Field(
        description="name@version of models that are not served -> why; where one of them is listed above too, that is "
        "what was there before"
    )
    warnings: dict[str, str] = Field(description="name -> why its promoted version is not the one that serves")


class Health(BaseModel):
    """Answer of the health paths."""

    status: Literal["live", "ready"]


class Problem(BaseModel):
    """Every error (RFC 9457, `application/problem+json`)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:medrestore:problem:corrupt-image"])
    title: str = Field(examples=["Damaged or truncated image"])
    status: int = Field(examples=[422])
    detail: str = Field(description="what was wrong and what to do; never image content")
    instance: str = Field(examples=["urn:medrestore:request:6d1f5c0e"])
    request_id: str = Field(description="also in the header X-Request-Id and in the service's log")


class JobQuery(_Query):
    """Options of `POST /jobs`: those of the route of the same name as the task."""

    task: Literal["denoise", "superresolve"]
    scale: Literal["2", "4"] | None = Field(default=None, description="superresolve only, which needs it")
    model: ModelName
    strength: float | None = Field(default=None, ge=0, le=1.5, description="denoise only; 1 where left out")
    sigma: float | None = Field(default=None, gt=0, description="denoise only; as for `POST /denoise`")
    strict: bool = Field(
        default=False,
        description="superresolve only; as for `POST /superresolve`",
    )
    min_consistency: float | None = Field(
        default=None, ge=0, le=BEST_DB, description="superresolve only; as for `POST /superresolve`, dB"
    )
    precision: Precision


class JobsQuery(_Query):
    """Options of `GET /jobs`."""

    limit: int = Field(default=20, ge=1, le=100, description="how many, newest first")


class RestorationFacts(BaseModel):
    """What the headers of `POST /denoise` and `POST /superresolve` tell."""

    model: str = Field(examples=["denoise@1"])
    model_digest: str
    model_adversarial: bool = Field(default=False, description="may show texture that was not in the image")
    backend: str
    precision: str
    noise_before: float | None = Field(description="RMS, in `noise_unit`; null for superresolve, as the next six")
    noise_after: float | None
    noise_correlation: list[float] | None = Field(description="one pixel across, one down, two across, two down")
    removed_rms: float | None
    removed_max: float | None
    removed_correlation: list[float] | None
    in_trained_range: bool | None
    consistency_psnr: float | None = Field(
        default=None, description="dB, of the result reduced again beside the image; superresolve only, as the next two"
    )
    consistency_rms: float | None = Field(default=None, description="in `noise_unit`")
    consistency_max: float | None = Field(default=None, description="in `noise_unit`")
    noise_unit: str
    clip_count: int
    input_lossy: bool
    input_notes: list[str]


class JobProblem(BaseModel):
    """Why a job failed (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str = Field(examples=["urn:medrestore:job:6d1f5c0e"])


class JobStatus(BaseModel):
    """How a job is."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    task: str = Field(examples=["denoise"])
    scale: int
    model: str = Field(description="name@version, as it was when the job was accepted")
    frames_done: int
    frames: int | None
    progress: float = Field(description="share of the frames that are done, 0 to 1")
    attempts: int = Field(description="runs begun; more than 1 where something went wrong on the way")
    created: datetime
    started: datetime | None = Field(description="of the first run")
    finished: datetime | None
    facts: RestorationFacts | None = Field(description="where the job is done")
    problem: JobProblem | None = Field(description="where the job failed: what `POST /denoise` would have answered")
    result: str | None = Field(description="path of the restored image, where the job is done")
    events: str = Field(description="path of the stream of this document's changes")


class JobList(BaseModel):
    """Answer of `GET /jobs`."""

    jobs: list[JobStatus]


Uid = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64, examples=["1.2.840.113619.2.1"])]
PacsState = Literal[
    "queued",
    "listing",
    "running",
    "verifying",
    "completed",
    "completed_with_gaps",
    "waiting",
    "blocked",
    "failed",
    "cancelled",
]
InstanceState = Literal["pending", "stored", "verified", "skipped", "failed", "gone"]


class PacsOptions(_Query):
    """Options of a PACS job: those of the route of the operation's name."""

    strength: float | None = Field(default=None, ge=0, le=1.5, description="denoise only; 1 where left out")
    sigma: float | None = Field(default=None, gt=0, description="denoise only; as for `POST /denoise`")
    strict: bool = Field(
        default=False,
        description="superresolve only; as for `POST /superresolve`",
    )
    min_consistency: float | None = Field(
        default=None, ge=0, le=BEST_DB, description="superresolve only; as for `POST /superresolve`, dB"
    )
    precision: Precision


class PacsRequest(_Query):
    """Body of `POST /pacs/jobs`: one series, and what is to be made of it."""

    pacs: str | None = Field(
        default=None, max_length=32, description="name of a PACS in the settings; left out where there is one alone"
    )
    study: Uid = Field(description="StudyInstanceUID")
    series: Uid = Field(description="SeriesInstanceUID of the source")
    operation: Literal["denoise", "superresolve"]
    scale: Literal[2, 4] | None = Field(default=None, description="superresolve only, which needs it")
    model: ModelName
    options: PacsOptions = Field(default_factory=lambda: PacsOptions.model_validate({}))


class PacsJobsQuery(_Query):
    """Options of `GET /pacs/jobs`."""

    state: PacsState | None = None
    study: Uid | None = Field(default=None, description="StudyInstanceUID")
    limit: int = Field(default=20, ge=1, le=100, description="how many, newest first")
    cursor: str | None = Field(default=None, max_length=100, description="`next` of the page before")


class PacsInstancesQuery(_Query):
    """Options of `GET /pacs/jobs/{id}/instances`."""

    state: InstanceState | None = None
    limit: int = Field(default=100, ge=1, le=1000)
    cursor: int = Field(default=-1, ge=-1, description="`next` of the page before")


class PacsCounts(BaseModel):
    """Instances of the source series, by what became of them."""

    total: int
    pending: int = Field(description="not done yet")
    stored: int = Field(description="the PACS has confirmed that it took the derived instance")
    verified: int = Field(description="the PACS lists it, and a sample was read back and compared")
    skipped: int = Field(description="no image of the series: a report, a screen, a localizer, or made by MedRestore")
    failed: int = Field(description="see the instance's reason")
    gone: int = Field(description="deleted from the PACS since it was listed")


class PacsJobStatus(BaseModel):
    """How a PACS job is."""

    id: str
    state: PacsState
    pacs: str = Field(description="name in the settings")
    study: str = Field(description="StudyInstanceUID")
    series: str = Field(description="SeriesInstanceUID of the source")
    operation: str = Field(examples=["denoise"])
    scale: int
    model: str = Field(description="name@version, as it was when the job was accepted")
    model_digest: str
    options: dict[str, Any]
    derived_series: str | None = Field(description="SeriesInstanceUID of what is stored, once it is known")
    instances: PacsCounts
    progress: float = Field(description="share of the instances that are done, 0 to 1")
    attempts: int = Field(description="runs begun, but for those that had to wait")
    created: datetime
    started: datetime | None = Field(description="of the first run")
    finished: datetime | None
    next_try: datetime | None = Field(description="where the job waits: when it goes on")
    waiting_since: datetime | None
    problem: JobProblem | None = Field(description="why it failed, waits or is blocked; the last one while it goes on")
    events: str = Field(description="path of the stream of this document's changes")


class PacsJobList(BaseModel):
    """Answer of `GET /pacs/jobs`."""

    jobs: list[PacsJobStatus]
    next: str | None = Field(description="`cursor` of the next page; null at the end")


class PacsInstance(BaseModel):
    """What became of one instance."""

    source: str = Field(description="SOPInstanceUID")
    derived: str | None = Field(description="SOPInstanceUID of what is made of it, once it is known")
    state: InstanceState
    reason: str | None = Field(description="why it was skipped or failed", examples=["localizer"])
    consistency_psnr: float | None = Field(
        description="dB, of a super-resolved one reduced again beside its source, where this job measured it"
    )


class PacsInstanceList(BaseModel):
    """Answer of `GET /pacs/jobs/{id}/instances`, in the order of listing."""

    instances: list[PacsInstance]
    next: int | None = Field(description="`cursor` of the next page; null at the end")


class DeliveryStatus(BaseModel):
    """How a job of a series that was sent here is."""

    id: str
    state: str = Field(examples=["queued", "running", "waiting", "blocked", "completed", "failed"])
    pacs: str = Field(description="where what is made goes to: name in the settings")
    study: str = Field(description="StudyInstanceUID")
    series: str = Field(description="SeriesInstanceUID of the source")
    derived_series: str | None = Field(description="SeriesInstanceUID of what is stored, once the job has ended")
    instances: int
    settled: int = Field(description="of them, those that the PACS has confirmed or that were refused")
    failed: int | None = Field(description="of them, those that were refused; known when the job has ended")
    created: datetime
    finished: datetime | None
    problem: JobProblem | None = Field(description="why it failed, waits or is blocked")


class DeliveryList(BaseModel):
    """Answer of `GET /dicomweb/jobs`."""

    jobs: list[DeliveryStatus]


class PacsPeerStatus(BaseModel):
    """How one PACS is."""

    reachable: bool
    authorised: bool | None = Field(description="null where it cannot be reached")
    reason: str | None = Field(description="why it cannot be used", examples=["connect"])
    jobs: dict[str, int] = Field(description="jobs that are kept, by state")
    oldest_waiting_s: float | None = Field(description="how long the job waits that waits the longest")
    feed: FeedStatus | None = Field(default=None, description="null where nothing is routed")


class PacsStatus(BaseModel):
    """Answer of `GET /pacs/status`."""

    pacs: dict[str, PacsPeerStatus]
    jobs_problem: str | None = Field(description="why there are no jobs")
    rules_problem: str | None = Field(description="why the rules file is not in force as it is now")
    dimse_problem: str | None = Field(description="why C-STORE is not listened for, though a port is set")
