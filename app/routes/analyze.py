"""`POST /analyze`: the noise report of an image."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response

from app import schemas
from app.analysis import FrameReport
from app.routes.documentation import IMAGE_BODY, PROBLEMS
from app.routes.exchange import exchange, server_timing
from app.schemas import AnalyzeQuery
from app.service import Job

router = APIRouter(tags=["images"])


@router.post("/analyze", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
async def analyze(
    request: Request,
    response: Response,
    query: Annotated[AnalyzeQuery, Query()],
    call: Annotated[schemas.CallHeaders, Header()],
) -> schemas.NoiseReport:
    """Measures the noise of one image without changing it: level, noise function, spatial correlation,
    and whether the model was trained for such noise."""
    job = Job("denoise", model=query.model, precision=query.precision)
    report, receive_s = await exchange(request, job, call, request.app.state.service.analyse)
    response.headers["Server-Timing"] = server_timing({"receive": receive_s, **report.making.timings})
    whole = _frame(report.noise.whole)
    return schemas.NoiseReport(
        model=report.making.bundle.reference,
        digest=report.making.bundle.digest,
        precision=report.making.precision,
        backend=report.making.backend,
        unit=report.noise.unit,
        level=whole.level,
        function=whole.function,
        correlation=whole.correlation,
        in_trained_range=whole.in_trained_range,
        lossy=report.making.lossy,
        frames=[_frame(frame) for frame in report.noise.frames],
    )


def _frame(report: FrameReport) -> schemas.FrameNoise:
    found = report.correlation
    lags = (found.x1, found.y1, found.x2, found.y2) if found else (None,) * 4
    by: Literal["model", "patches"] | None = ("patches" if found.patches else "model") if found else None
    names = ("lag_1_x", "lag_1_y", "lag_2_x", "lag_2_y")
    return schemas.FrameNoise(
        level=report.level,
        function=schemas.NoiseFunction(**vars(report.function)),
        correlation=schemas.Correlation(by=by, **dict(zip(names, lags, strict=True))),
        in_trained_range=schemas.TrainedRange(level=report.level_in_range, correlation=report.correlation_in_range),
    )
