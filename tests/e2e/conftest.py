"""Everything in this folder is marked e2e; servers are shared by the tests that do not stop them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server, switch_jobs_on


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def start(tmp_path: Path, built_repository: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server on the tests' tiny bundles; ends it after the test where the test did not."""
    servers = []

    def call(*options: str, access: str = "open") -> Server:
        servers.append(Server(tmp_path, "--repository", str(built_repository), *options, access=access))
        return servers[-1]

    yield call
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as `make serve` starts it, on the bundles that are shipped."""
    folder = tmp_path_factory.mktemp("shipped")
    switch_jobs_on(folder)
    server = Server(folder)
    server.wait_ready()
    yield server
    server.close()
