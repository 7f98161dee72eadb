"""Training that goes on from the weights of a bundle, shipped or in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.bundle import Bundle, find_bundle

SHIPPED = Path(__file__).parents[1] / "models" / "bundles"


def start_bundle(reference: str) -> Bundle:
    """The verified bundle in a folder, or of NAME@VERSION among the shipped ones. Raises BundleError."""
    folder = Path(reference)
    if (folder / "manifest.json").is_file():
        return find_bundle(folder.resolve().parents[1], f"{folder.resolve().parent.name}@{folder.resolve().name}")
    return find_bundle(SHIPPED, reference)


def start_digest(reference: str) -> str:
    """Digest of the bundle to go on from; empty where there is none."""
    return start_bundle(reference).digest if reference else ""


def start_record(reference: str) -> dict[str, Any] | None:
    """What a run keeps of the bundle that it went on from: name, digest, terms, and the images behind it as hashes."""
    if not reference:
        return None
    bundle = start_bundle(reference)
    facts = {"bundle": bundle.reference, "digest": bundle.digest, "licence": bundle.manifest.licence}
    return facts | {"sha256": sorted(trained_on(bundle.manifest.provenance))}


def trained_on(record: Any) -> set[str]:
    """SHA-256 of every image that a provenance, or a part of it, names; of the bundles before it too."""
    if isinstance(record, dict):
        own = record.get("sha256", [])
        inner = [value for key, value in record.items() if key != "sha256"]
        return set([own] if isinstance(own, str) else own).union(*map(trained_on, inner))
    return set().union(*map(trained_on, record)) if isinstance(record, list) else set()


def begin(network: nn.Module, reference: str, graph: str) -> nn.Module:
    """The network as training starts: as it is, or with the weights of the bundle to go on from.

    Raises ValueError where that bundle holds no weights, or those of another network.
    """
    if not reference:
        return network
    bundle = start_bundle(reference)
    path = bundle.folder / f"{graph}.pt"
    if path.name not in bundle.manifest.files:
        raise ValueError(f"{bundle.reference} holds no weights to go on from; --from none begins from scratch")
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except RuntimeError as error:
        raise ValueError(f"{bundle.reference} is of another network or size than this {graph}") from error
    return network
