"""One running application for all tests that leave its settings alone, and one with a PACS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.child import Child
from tests.fake_pacs import FakePacs, slices
from tests.integration.client import Client, npy, serving
from tests.pacs_service import pacs_service


@pytest.fixture(scope="session")
def client(built_repository: Path) -> Iterator[Client]:
    """The application over the two small bundles, `tiny` and `tiny-x2`."""
    with serving(built_repository) as client:
        yield client


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A noisy 16-bit picture as NPY."""
    return npy(np.random.default_rng(5).normal(3000, 200, (90, 70)).astype(np.uint16))


@pytest.fixture(scope="module")
def pacs() -> FakePacs:
    """A scripted PACS, one for each module of tests."""
    return FakePacs()


@pytest.fixture(scope="module")
def service(pacs: FakePacs, built_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The application over the small bundles and that PACS."""
    with pacs_service(pacs, built_repository, tmp_path_factory.mktemp("state") / "jobs") as client:
        yield client


@pytest.fixture
def series(pacs: FakePacs) -> str:
    """UID of a series of 6 slices that is this test's own."""
    uid = f"1.2.3.{len(pacs.objects) + 1000}"
    for data in slices(6, uid):
        pacs.add(data)
    return uid


@pytest.fixture(autouse=True)
def _no_child_outlives_its_test() -> Iterator[None]:
    yield
    for child in Child.started:
        child.close()
    Child.started.clear()
