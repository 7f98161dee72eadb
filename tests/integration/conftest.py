"""One running application for all tests that leave its settings alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.client import Client, npy, serving


@pytest.fixture(scope="session")
def client(built_repository: Path) -> Iterator[Client]:
    """The application over the two small bundles, `tiny` and `tiny-x2`."""
    with serving(built_repository) as client:
        yield client


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A noisy 16-bit picture as NPY."""
    return npy(np.random.default_rng(5).normal(3000, 200, (90, 70)).astype(np.uint16))
