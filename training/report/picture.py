"""Image panels of the report as PNG data URIs: for looking at; nothing is computed from them."""

from __future__ import annotations

import base64
import io

import numpy as np

from training.data.noise import Plane

AMPLIFIED = 3.0  # standard deviations of the residual that span half the grey scale


def png(plane: Plane, low: float, high: float) -> str:
    """A data URI of the plane (H, W), `low` black and `high` white."""
    from PIL import Image

    shown = np.clip((plane - low) / max(high - low, 1e-9), 0, 1)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(shown * 255).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def window(plane: Plane) -> tuple[float, float]:
    """Values shown black and white: the middle 99 % of the plane."""
    low, high = np.percentile(plane, [0.5, 99.5])
    return float(low), float(high)


def residual_window(residual: Plane) -> tuple[float, float]:
    """Symmetric around zero, so that mid-grey is "nothing removed"."""
    reach = AMPLIFIED * float(residual.std(dtype=np.float64)) or 1e-6
    return -reach, reach
