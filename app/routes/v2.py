"""`/v2`: the Open Inference Protocol, for the clients of Triton and KServe.

A second door to the same work: what `POST /denoise` and `POST /superresolve` do to an NPY file, done to
a tensor. Errors are the protocol's `{"error": ...}`, with the status that the other door would give.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError

from app import problem
from app.body import Upload
from app.build import PRODUCT, build_facts
from app.errors import InvalidBody
from app.options import Options
from app.routes import health
from app.routes.exchange import exchange
from app.routes.restore import headers_of
from app.schemas import CallHeaders, DenoiseQuery, SuperresolveQuery
from app.service import Job, Product, Service
from app.tensor import (
    AXES,
    DATATYPES,
    EXTENSION,
    HEADER,
    INPUT,
    JSON_VALUES,
    OUTPUT,
    Inference,
    read_inference,
    reasons,
    write_inference,
)
from models.bundle import Bundle
from models.errors import ImageTooLarge, MedRestoreError, OptionError
from models.imaging.codec import MEDIA_TYPES

OF_THE_IMAGE_FILE = ("Content-Digest", "Vary")  # headers of the other door's answers, not true of this one's


class ProtocolRoute(APIRoute):
    """A route whose errors are answered as the protocol has them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except MedRestoreError as error:
                found = problem.of_error(request, error)
            except RequestValidationError as error:
                found = problem.of_validation(request, error)
            return problem.of_protocol(found)

        return answer


router = APIRouter(prefix="/v2", route_class=ProtocolRoute, include_in_schema=False)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _bundle(request: Request) -> Bundle:
    """The model that the path names, with or without a version."""
    name, version = request.path_params["name"], request.path_params.get("version")
    service = await _service(request)
    return service.catalogue.find(name if version is None else f"{name}@{version}")


TheService = Annotated[Service, Depends(_service)]
TheBundle = Annotated[Bundle, Depends(_bundle)]


@router.get("")
async def server() -> dict[str, Any]:
    """Server metadata."""
    return {"name": PRODUCT, "version": build_facts()["version"], "extensions": [EXTENSION, "parameters"]}


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """As `/healthz/live`."""
    return {"live": True}


@router.get("/health/ready")
async def ready(request: Request) -> dict[str, bool]:
    """As `/healthz/ready`."""
    await health.ready(request)
    return {"ready": True}


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}")
async def model(service: TheService, bundle: TheBundle) -> dict[str, Any]:
    """Model metadata. Shapes and datatypes are those of the widest form; `parameters` names the others."""
    manifest = bundle.manifest
    form = {"datatype": "FP32", "shape": [-1, -1, -1, -1]}
    return {
        "name": manifest.name,
        "versions": [b.manifest.version for b in service.catalogue.bundles if b.manifest.name == manifest.name],
        "platform": f"{PRODUCT}_{service.settings.backend}",
        "inputs": [{"name": INPUT, **form}],
        "outputs": [{"name": OUTPUT, **form}],
        "parameters": {
            "axes": AXES,
            "datatypes": ", ".join(DATATYPES),
            "task": manifest.task,
            "scale": manifest.scale,
            "adversarial": manifest.adversarial,
            "version": manifest.version,
            "digest": bundle.digest,
        },
    }


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready")
async def model_ready(request: Request, bundle: TheBundle) -> dict[str, Any]:
    """Whether the model takes work now; otherwise 503 with the reason."""
    await health.ready(request)
    return {"name": bundle.manifest.name, "ready": True}


@router.post("/models/{name}/infer")
@router.post("/models/{name}/versions/{version}/infer")
async def infer(
    request: Request, service: TheService, bundle: TheBundle, call: Annotated[CallHeaders, Header()]
) -> Response:
    """Restores the tensor `image`; parameters are the options of the other door, headers are its headers."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise InvalidBody("compressed bodies are not read; send the body as it is")
    tensors = _Tensors(service, request.headers.get(HEADER))
    product, receive_s = await exchange(request, _job(bundle), call, tensors.work)
    body, json_bytes = await asyncio.to_thread(tensors.answer, product)
    headers = {name: text for name, text in headers_of(product, receive_s).items() if name not in OF_THE_IMAGE_FILE}
    if json_bytes is None:
        return Response(body, headers=headers, media_type="application/json")
    return Response(body, headers=headers | {HEADER: str(json_bytes)}, media_type="application/octet-stream")


class _Tensors:
    """One inference, from the body to the answer's."""

    def __init__(self, service: Service, header: str | None) -> None:
        self._service = service
        self._header = header
        self._inference: Inference | None = None

    async def work(self, job: Job, upload: Upload) -> Product:
        """Restores the NPY file that the tensor amounts to."""
        inference = self._inference = await asyncio.to_thread(read_inference, upload.data, self._header)
        if not inference.binary and inference.values * job.scale**2 > JSON_VALUES:
            raise ImageTooLarge(f"JSON holds {JSON_VALUES} values at most; ask for binary_data_output")
        return await self._service.restore(chosen(job, inference.options), Upload(inference.npy, MEDIA_TYPES["npy"]))

    def answer(self, product: Product) -> tuple[bytes, int | None]:
        """The answer's body and the length of its JSON; see `write_inference`."""
        assert self._inference is not None  # there is no product without it
        name, _, version = product.making.model.partition("@")
        return write_inference(self._inference, product.data, name, version, _told(product))


def chosen(job: Job, parameters: dict[str, Any]) -> Job:
    """The job with the options that the parameters name. Raises OptionError for those that the task does not have."""
    given = {"model": job.model} | ({"scale": str(job.scale)} if job.task == "superresolve" else {})
    if twice := sorted(given.keys() & parameters.keys()):
        raise OptionError(f"given by the path already: {', '.join(twice)}")
    try:
        if job.task == "superresolve":
            wanted = SuperresolveQuery.model_validate(parameters | given)
            options = Options(min_consistency=wanted.min_consistency)
            return replace(job, options=options, strict=wanted.strict, precision=wanted.precision)
        query = DenoiseQuery.model_validate(parameters | given)
    except ValidationError as exc:
        raise OptionError(reasons(exc)) from exc
    return replace(job, options=Options(query.strength, query.sigma), precision=query.precision)


def _job(bundle: Bundle) -> Job:
    return Job(bundle.manifest.task, bundle.manifest.scale, bundle.reference, accept=MEDIA_TYPES["npy"])


def _told(product: Product) -> dict[str, Any]:
    """The answer's parameters: what was measured, in `noise_unit`, and how it was made."""
    evidence, making, consistency = product.evidence, product.making, product.evidence.consistency
    facts = {
        "noise_before": evidence.noise_before,
        "noise_after": evidence.noise_after,
        "removed_rms": evidence.removed_rms,
        "removed_max": evidence.removed_max,
        "consistency_psnr": consistency.psnr if consistency else None,
        "consistency_rms": consistency.rms if consistency else None,
        "consistency_max": consistency.largest if consistency else None,
        "noise_unit": evidence.unit,
        "in_trained_range": evidence.in_trained_range,
        "clipped": evidence.clipped,
        "model_digest": making.digest,
        "model_adversarial": making.adversarial or None,
        "backend": making.backend,
        "precision": making.precision,
    }
    return {name: value for name, value in facts.items() if value is not None}
