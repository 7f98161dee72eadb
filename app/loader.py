"""Which bundles the workers load, and which were refused and why."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from app.catalogue import Catalogue
from app.errors import BackendUnavailable
from app.supervisor import Supervisor
from app.workers import Model, WorkerDeathError
from models.bundle import Bundle
from models.errors import BundleError, BundleInvalid, MedRestoreError, OptionError

logger = logging.getLogger(__name__)

STRIKES = 2  # workers that may die loading a bundle before it is refused


class Loader:
    """Loads bundles into workers, at their start and on demand; remembers what failed.

    A bundle that fails its self-test in fp32 leaves the catalogue; one that fails in another
    precision is refused in that precision only.
    """

    def __init__(self, catalogue: Catalogue, backends: Mapping[str, str], preload: tuple[str, ...]) -> None:
        self._catalogue = catalogue
        self._backends = backends
        self._preload = preload
        self._refused: dict[Model, BundleInvalid | BackendUnavailable] = {}
        self._strikes: Counter[Model] = Counter()

    def objection(self, bundle: Bundle, precision: str) -> MedRestoreError | None:
        """Why a bundle does not run in a precision, as far as known."""
        if precision not in bundle.manifest.precisions:
            allowed = ", ".join(bundle.manifest.precisions)
            return OptionError(f"model {bundle.reference} runs in {allowed}, not in {precision}")
        if precision not in self._backends:
            return BackendUnavailable(f"no backend is set for precision {precision}")
        refused = self._refused.get(Model(bundle.digest, precision))
        return type(refused)(str(refused)) if refused else None

    async def warm_up(self, worker: Supervisor) -> None:
        """Loads what is served; raises BackendUnavailable where nothing of it can run on this device."""
        unavailable: BackendUnavailable | None = None
        for bundle in self._catalogue.bundles:
            for precision in self._preload:
                if self.objection(bundle, precision) is None:
                    try:
                        await self.load(worker, Model(bundle.digest, precision))
                    except BackendUnavailable as exc:
                        unavailable = exc
                    except BundleError:
                        continue  # refused and logged in `load`
        if unavailable and not worker.loaded:
            raise unavailable

    async def load(self, worker: Supervisor, model: Model) -> None:
        """Loads a model where it is not loaded. Raises BundleNotFound, BundleInvalid, OptionError,
        BackendUnavailable, WorkerDeathError."""
        if model in worker.loaded:
            return
        bundle = self._catalogue.by_digest(model.digest)
        if error := self.objection(bundle, model.precision):
            raise error
        try:
            await worker.load(model, bundle.folder, self._backends[model.precision])
        except (BundleInvalid, BackendUnavailable) as exc:
            self._refuse(bundle, model, exc)
            raise
        except WorkerDeathError:
            self._strikes[model] += 1
            if self._strikes[model] >= STRIKES:
                self._refuse(bundle, model, BundleInvalid(f"loading it ended the worker {STRIKES} times"))
            raise

    def _refuse(self, bundle: Bundle, model: Model, error: BundleInvalid | BackendUnavailable) -> None:
        logger.error("model %s is not served in %s: %s", bundle.reference, model.precision, error)
        self._refused[model] = error
        if model.precision == "fp32" and isinstance(error, BundleInvalid):
            self._catalogue.refuse(model.digest, str(error))
