"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Writes the state under a temporary name first, so that a kill leaves the old one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (NAME + ".part")
    torch.save(state, partial)
    os.replace(partial, folder / NAME)


def load_checkpoint(folder: Path, config_digest: str) -> dict[str, Any] | None:
    """The last state, or None. Raises ValueError if it belongs to another configuration."""
    path = folder / NAME
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["config"] != config_digest:
        raise ValueError(f"{path.parent.name}: the checkpoint was made with another configuration; use another --out")
    return state
