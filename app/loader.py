"""Which bundles the workers load, and which were refused and why."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from app.catalogue import Catalogue
from app.errors import BackendUnavailable
from app.handle import Handle
from app.log import event
from app.supervisor import Supervisor
from app.workers import Model, WorkerDeathError
from models.bundle import Bundle
from models.errors import BundleError, BundleInvalid, BundleNotFound, MedRestoreError, OptionError

EXACT = "fp32"  # in which a bundle must run to be served
STRIKES = 2  # workers that may die loading a bundle before it is refused


class Loader:
    """Loads bundles into workers, at their start and on demand; remembers what failed.

    A bundle that fails its self-test in fp32 leaves the catalogue; one that fails in another
    precision is refused in that precision only. What a device lacks is left to the others: a model
    is refused for want of a runtime where no device has it.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        devices: Sequence[str],
        backends: Mapping[str, str],
        preload: tuple[str, ...],
        batch_items: Mapping[str, int],
        batch_pixels: int,
    ) -> None:
        self._catalogue = catalogue
        self._devices = set(devices)
        self._backends = backends
        self._preload = preload
        self._batch_items = batch_items
        self._batch_pixels = batch_pixels
        self._refused: dict[Model, BundleInvalid] = {}
        self._lacking: dict[Model, dict[str, BackendUnavailable]] = {}  # by device
        self._strikes: Counter[Model] = Counter()

    def objection(self, bundle: Bundle, precision: str, device: str | None = None) -> MedRestoreError | None:
        """Why a bundle does not run in a precision, as far as known: on one device, or (None) on any."""
        if precision not in bundle.manifest.precisions:
            allowed = ", ".join(bundle.manifest.precisions)
            return OptionError(f"model {bundle.reference} runs in {allowed}, not in {precision}")
        if precision not in self._backends:
            return BackendUnavailable(f"no backend is set for precision {precision}")
        model = Model(bundle.digest, precision)
        if refused := self._refused.get(model):
            return BundleInvalid(str(refused))
        lacking = self._lacking.get(model, {})
        if device in lacking or lacking.keys() >= self._devices:
            return BackendUnavailable(str(lacking.get(device or "", next(iter(lacking.values())))))
        return None

    def give_up(self, device: str) -> None:
        """No model is left to this device from now on, unless there is no other."""
        if len(self._devices) > 1:
            self._devices.discard(device)

    def leaves(self, device: str, model: Model) -> bool:
        """Whether a device is to leave a model to others: it lacks what they may have."""
        lacking = self._lacking.get(model, {})
        return device in lacking and not lacking.keys() >= self._devices

    async def examine(self, handle: Handle, bundle: Bundle) -> None:
        """Loads a bundle into a process that serves nobody yet, whatever was found of the bundle before.

        Raises BundleInvalid or BackendUnavailable where it does not run in exact mode; where it runs in
        that alone, it is refused in the others.
        """
        for precision in self._preload:
            model = Model(bundle.digest, precision)
            self._refused.pop(model, None)
            self._lacking.get(model, {}).pop(handle.device, None)
            self._strikes.pop(model, None)
            if isinstance(error := self.objection(bundle, precision), OptionError) and precision != EXACT:
                continue
            try:
                if error:
                    raise error
                await self._load(handle, model, bundle)
            except WorkerDeathError as exc:
                self._reject(handle, bundle, model, BundleInvalid(f"loading it ended the worker: {exc}"))
                return
            except (BundleInvalid, BackendUnavailable) as exc:
                self._reject(handle, bundle, model, exc)

    def _reject(self, handle: Handle, bundle: Bundle, model: Model, error: BundleInvalid | BackendUnavailable) -> None:
        if isinstance(error, BackendUnavailable):
            self._lack(handle, bundle, model, error)
        elif model.precision != EXACT:
            self._refuse(bundle, model, error)
        if model.precision == EXACT:
            raise error

    async def refill(self, handle: Handle, worker: Supervisor) -> bool:
        """Loads into a new process what the worker's present one holds and some request may need.

        False where it cannot take its place, because something does not load any more, as when its files were
        damaged; what is loaded then stays in service.
        """
        for model in [model for model in worker.loaded if model not in handle.loaded]:
            try:
                bundle = self._catalogue.by_digest(model.digest)
            except (BundleNotFound, BundleInvalid):
                continue  # no request can need it any more, or have it
            try:
                await self._load(handle, model, bundle)
            except (BundleError, BackendUnavailable, WorkerDeathError) as exc:
                event("worker not replaced", logging.WARNING, model=bundle.reference, reason=str(exc))
                return False
        return True

    async def warm_up(self, handle: Handle) -> None:
        """Loads what is served; raises BackendUnavailable where nothing of it can run on this device."""
        unavailable = await self.catch_up(handle)
        if unavailable and not handle.loaded:
            raise unavailable

    async def catch_up(self, handle: Handle) -> BackendUnavailable | None:
        """Makes a process hold all that is offered or staged.

        Gives the last reason why a runtime was not to be had. What cannot be loaded is refused, so
        that this ends; where there is nothing to do it does not wait. Raises WorkerDeathError.
        """
        unavailable: BackendUnavailable | None = None
        while self.behind(handle):
            unavailable = await self.load_next(handle) or unavailable
        return unavailable

    async def load_next(self, handle: Handle) -> BackendUnavailable | None:
        """Loads one of the models that a process lacks, or refuses it; gives why a runtime was not to be had."""
        try:
            await self.load(handle, self._missing(handle)[0])
        except BackendUnavailable as exc:
            return exc
        except BundleError:
            pass  # refused and logged in `load`
        return None

    def behind(self, handle: Handle) -> bool:
        """Whether a process lacks a model that it is to hold."""
        return bool(self._missing(handle))

    def stale(self, worker: Supervisor) -> frozenset[Model]:
        """Models that a worker holds and no request can need any more."""
        return frozenset(model for model in worker.loaded if not self._catalogue.knows(model.digest))

    def wanted(self, bundle: Bundle, device: str) -> list[Model]:
        """What a worker on a device holds ready of a bundle."""
        usable = [precision for precision in self._preload if self.objection(bundle, precision, device) is None]
        return [Model(bundle.digest, precision) for precision in usable]

    def _missing(self, handle: Handle) -> list[Model]:
        wanted = (model for bundle in self._catalogue.loadable for model in self.wanted(bundle, handle.device))
        return [model for model in wanted if model not in handle.loaded]

    async def load(self, handle: Handle, model: Model) -> None:
        """Loads a model where it is not loaded. Raises BundleNotFound, BundleInvalid, OptionError,
        BackendUnavailable, WorkerDeathError."""
        if model in handle.loaded:
            return
        bundle = self._catalogue.by_digest(model.digest)
        if error := self.objection(bundle, model.precision, handle.device):
            raise error
        try:
            await self._load(handle, model, bundle)
        except BackendUnavailable as exc:
            self._lack(handle, bundle, model, exc)
            raise
        except BundleInvalid as exc:
            self._refuse(bundle, model, exc)
            raise
        except WorkerDeathError:
            self._strikes[model] += 1
            if self._strikes[model] >= STRIKES:
                self._refuse(bundle, model, BundleInvalid(f"loading it ended the worker {STRIKES} times"))
            raise
        self._strikes.pop(model, None)

    async def _load(self, handle: Handle, model: Model, bundle: Bundle) -> None:
        backend, items = self._backends[model.precision], self._batch_items.get(model.precision, 1)
        await handle.load(model, bundle.folder, backend, items, self._batch_pixels)

    def _lack(self, handle: Handle, bundle: Bundle, model: Model, error: BackendUnavailable) -> None:
        facts = {"model": bundle.reference, "precision": model.precision, "device": handle.device}
        event("model not to be had", logging.ERROR, **facts, reason=str(error))
        self._lacking.setdefault(model, {})[handle.device] = error

    def _refuse(self, bundle: Bundle, model: Model, error: BundleInvalid) -> None:
        event("model refused", logging.ERROR, model=bundle.reference, precision=model.precision, reason=str(error))
        self._refused[model] = error
        if model.precision == EXACT:
            self._catalogue.refuse(model.digest, str(error))
