"""What an image costs without a server: its network runs alone, its codec alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.backends.base import Array, Backend, load
from app.options import Options
from app.pipeline import restore
from app.runner import LocalRunner
from models.bundle import Bundle
from models.imaging.codec import decode, encode

Call = tuple[str, Mapping[str, Array]]


class _Recorder(LocalRunner):
    """Notes every run of a graph on its way."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.calls: list[Call] = []

    async def __call__(self, graph: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        self.calls.append((graph, arrays))
        return await super().__call__(graph, arrays)


@dataclass(frozen=True)
class Cost:
    """Of one image, seconds."""

    cpu_s: float
    wall_s: float


class Bare:
    """The very graphs and arrays that the service runs for these files, in a loop of this process, one thread."""

    def __init__(self, bundle: Bundle, files: Sequence[bytes]) -> None:
        self._files = files
        self._backend = load("onnx", bundle, "cpu", "fp32", threads=1)
        recorder = _Recorder(self._backend)
        for data in files:
            asyncio.run(restore(decode(data), bundle, Options(), recorder))
        self._calls = recorder.calls
        self.network()  # warm
        self.codec()

    @property
    def pixels(self) -> int:
        """Pixels that `restore` is given for all files, padding included."""
        return sum(arrays["image"].size for graph, arrays in self._calls if graph == "restore")

    def network(self) -> Cost:
        """Mean cost of an image's runs."""

        def run() -> None:
            for graph, arrays in self._calls:
                self._backend.run(graph, arrays)

        return self._cost(run)

    def codec(self) -> Cost:
        """Mean cost of decoding an image and encoding one like it."""

        def run() -> None:
            for data in self._files:
                encode(decode(data))

        return self._cost(run)

    def _cost(self, run: Callable[[], None]) -> Cost:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return Cost(cpu / len(self._files), wall / len(self._files))
