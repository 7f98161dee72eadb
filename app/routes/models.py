"""`GET /models`: what is served, and what was refused."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app.catalogue import Catalogue
from app.routes.documentation import OPTION_PROBLEM
from app.schemas import ModelFacts, ModelList, NoQuery
from models.bundle import Bundle

router = APIRouter(tags=["models"])


@router.get("/models", responses={422: OPTION_PROBLEM})
async def list_models(request: Request, _: Annotated[NoQuery, Query()]) -> ModelList:
    """The models with their digests, licences, scores and the range of noise they were trained on."""
    catalogue: Catalogue = request.app.state.service.catalogue
    models = [_facts(bundle, catalogue) for bundle in catalogue.bundles]
    return ModelList(models=models, refused=catalogue.broken, warnings=catalogue.warnings)


def _facts(bundle: Bundle, catalogue: Catalogue) -> ModelFacts:
    manifest = bundle.manifest
    return ModelFacts(
        name=manifest.name,
        version=manifest.version,
        task=manifest.task,
        scale=manifest.scale,
        default=catalogue.default(manifest.task, manifest.scale) is bundle,
        default_version=catalogue.current(manifest.name) is bundle,
        digest=bundle.digest,
        adversarial=manifest.adversarial,
        consistency=manifest.consistency,
        network=manifest.network,
        summary=manifest.summary,
        licence=manifest.licence,
        precisions=manifest.precisions,
        trained_sigma=manifest.trained_sigma,
        trained_correlation=manifest.trained_correlation,
        scores=manifest.scores,
    )
