"""Identifiers of derived objects: the same input and processing always get the same UIDs."""

from __future__ import annotations

import json
import uuid

from pydicom.uid import UID

from models.imaging.image import Derivation
from models.imaging.policy import DEFAULT, Policy

_NAMESPACE = uuid.UUID("6f7c1f5e-3d0b-5b0e-9a58-7e0d2c1b4a93")
_ROOT = "2.25."  # PS3.5 B.2: a UUID as one decimal component, no registration needed


def derived_uid(source: str, derivation: Derivation, policy: Policy = DEFAULT) -> UID:
    """UID of what `derivation` makes of the series, instance or concatenation `source`.

    A function of everything that changes pixels, so that a retry makes the same object, and another
    model, option, backend, precision or tile plan (where that matters) another one. Neither the
    archive nor the job is part of it.

    `policy` changes no pixel, but it changes the object: an archive that keeps the first of two
    objects with one UID would answer 200 and drop the second, so that a changed setting would never
    show. What differs from the defaults is therefore part of the UID too, for all objects of a
    series alike, whether it makes a difference to this one or not.
    """
    parameters = {
        "operation": derivation.operation,
        "scale": derivation.scale,
        "digest": derivation.digest,
        "options": derivation.options,
        "backend": derivation.backend,
        "precision": derivation.precision,
    }
    more = {"tiles": derivation.tiles, "policy": policy.choices}  # absent where empty: most objects have neither
    parameters |= {name: value for name, value in more.items() if value}
    return _named("derived", source, json.dumps(parameters, sort_keys=True, default=str))


def device_uid(digest: str) -> UID:
    """DeviceUID of the exact model export (IHE AIR wants a new one per version)."""
    return _named("model", digest)


def implementation_uid() -> UID:
    """ImplementationClassUID of files that are written here."""
    return _named("implementation", "medrestore")


def _named(*parts: str) -> UID:
    return UID(_ROOT + str(uuid.uuid5(_NAMESPACE, "\n".join(parts)).int))
