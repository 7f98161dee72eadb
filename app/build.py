"""Which build this is, as metrics, traces and the Open Inference Protocol tell it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PRODUCT = "medrestore"
RUNTIMES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch")


def version_of(package: str) -> str | None:
    """The installed version; None where it is not installed, as for the product in a bare copy of its files."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def build_facts() -> dict[str, str]:
    """Versions of the product, of Python, and of the packages that decide pixels."""
    runtimes = {name.replace("-", "_"): found for name in RUNTIMES if (found := version_of(name))}
    return {"version": version_of(PRODUCT) or "unknown", "python": platform.python_version(), **runtimes}
