"""Fixtures for all tests: small repositories of real bundles, and the shared data folder."""

from __future__ import annotations

import os

# One thread a process: tests run side by side, and threads that wait for each other cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.orthanc import TestOrthanc, missing
from tests.tiny_bundle import write_tiny


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data that MEDRESTORE_SHARED names; skips the test where it is unset."""
    folder = os.environ.get("MEDRESTORE_SHARED")
    if not folder:
        pytest.skip("set MEDRESTORE_SHARED to the folder of shared data to run this test")
    return Path(folder)


@pytest.fixture(scope="session")
def built_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny/1` (denoise) and `tiny-x2/1` (superresolve), built once. Read only."""
    root = tmp_path_factory.mktemp("bundles")
    write_tiny(root)
    return root


@pytest.fixture
def repository(built_repository: Path, tmp_path: Path) -> Path:
    """A copy of `built_repository` that the test may change."""
    return Path(shutil.copytree(built_repository, tmp_path / "repository"))


@pytest.fixture(scope="session")
def start_orthanc(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., TestOrthanc]]:
    """Starts a real Orthanc of the caller's own, with options of `start-orthanc`; all are ended at the end."""
    if reason := missing():
        pytest.skip(reason)
    servers: list[TestOrthanc] = []

    def call(*options: str) -> TestOrthanc:
        servers.append(TestOrthanc(shared, tmp_path_factory.mktemp("orthanc"), "--stable-age", "1", *options))
        return servers[-1]

    yield call
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def running_orthanc(start_orthanc: Callable[..., TestOrthanc]) -> TestOrthanc:
    """The one that most tests share; ask for `orthanc`."""
    return start_orthanc()


@pytest.fixture
def orthanc(running_orthanc: TestOrthanc) -> TestOrthanc:
    """A real Orthanc without any data. Do not kill it: `start_orthanc` is for that."""
    running_orthanc.delete_everything()
    return running_orthanc
