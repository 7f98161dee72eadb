"""What callers send as options and get as JSON; names and units are part of the interface."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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
