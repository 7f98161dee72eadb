"""A worker process: holds loaded bundles on one device and runs their graphs.

`WorkerProcess` is the handle on the service's side; `serve` is what the process does. They speak
`Load` and `Run` over a `Channel`, one at a time, each answered by `Loaded`, `Done` or `Failed`. A model
is never unloaded: runtimes do not give back all they took, so a process is replaced by one without it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection as pipes
from pathlib import Path
from typing import Any

from app.backends.base import Array, Backend, batch_invariant, lacked_memory, load, release, self_test, warm_up
from app.channel import Arrays, Channel, split
from app.errors import BackendUnavailable, OutOfMemory, RunFailed
from models.bundle import read_bundle
from models.errors import BundleInvalid, MedRestoreError

STOP_S = 0.5  # a worker that has not ended this long after its pipe was closed is killed


@dataclass(frozen=True)
class Model:
    """What a worker loads: a bundle at one precision."""

    digest: str
    precision: str


@dataclass(frozen=True)
class Load:
    """Load and self-test a bundle, run it once at each of its tile shapes, and try what batches do to its bytes."""

    model: Model
    folder: Path
    backend: str
    batch_items: int = 1  # wanted of one run at most
    batch_pixels: int = 1


@dataclass(frozen=True)
class Run:
    """Run a graph on the arrays that follow, those of its items stacked."""

    model: Model
    graph: str


@dataclass(frozen=True)
class Loaded:
    """The bundle passed its self-test."""

    batch_items: int  # 1 where an item's bytes would depend on its batch mates


@dataclass(frozen=True)
class Done:
    """The outputs follow."""

    run_s: float


@dataclass(frozen=True)
class Failed:
    """The request failed and the worker lives on."""

    kind: str  # name of the error's class
    text: str

    def error(self) -> MedRestoreError:
        """The error as it is raised on the service's side."""
        kinds: dict[str, type[MedRestoreError]] = {
            kind.__name__: kind for kind in (BackendUnavailable, BundleInvalid, OutOfMemory, RunFailed)
        }
        return kinds[self.kind](self.text)


Request = Load | Run
Reply = Loaded | Done


class WorkerDeathError(Exception):
    """The process ended, or was killed because it did not answer; its message says how."""


class WorkerProcess:
    """Handle of one process. All but `kill` belong to one thread at a time; `call` and `stop` block."""

    def __init__(self, device: str, threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, self._theirs = context.Pipe()
        self._channel = Channel(self._ours)
        self._process = context.Process(
            target=serve, args=(self._theirs, device, threads), name=f"worker {device}", daemon=True
        )
        self.pid: int | None = None
        self.sentinel = -1  # file descriptor that becomes readable when the process ends

    def start(self) -> None:
        """Starts the process, which takes calls at once and answers when it is up."""
        self._process.start()
        self.pid, self.sentinel = self._process.pid, self._process.sentinel
        # Held here too, the other end would never report the worker's death.
        self._theirs.close()

    def call(
        self, request: Request, items: Sequence[Arrays] = (), timeout_s: float | None = None
    ) -> tuple[Reply, list[dict[str, Array]]]:
        """Sends a request with its items and waits for the answer, which has as many.

        Raises what `send` and `receive` raise.
        """
        self.send(request, items)
        if not self._ours.poll(timeout_s):
            self.kill()
            raise WorkerDeathError(f"killed after {timeout_s:.0f} s without an answer")
        return self.receive(len(items))

    def send(self, request: Request, items: Sequence[Arrays] = ()) -> None:
        """Sends a request with its items. Raises WorkerDeathError."""
        try:
            self._channel.send(request, items)
        except Exception as exc:
            raise self._death() from exc

    def receive(self, count: int) -> tuple[Reply, list[dict[str, Array]]]:
        """The answer to what was sent, with `count` items; waits for it.

        Raises what the worker reports (BundleInvalid, BackendUnavailable, RunFailed, OutOfMemory), or WorkerDeathError.
        """
        try:
            reply, outputs = self._channel.receive()
        except Exception as exc:
            raise self._death() from exc
        if isinstance(reply, Failed):
            raise reply.error()
        return reply, split(outputs, count)

    def fileno(self) -> int:
        """Readable when an answer is there, or the process has ended."""
        return self._ours.fileno()

    def _death(self) -> WorkerDeathError:
        """How the process ended, or that it was ended here, since it cannot be talked to."""
        self._process.join(STOP_S)
        self.kill()
        self._process.join(STOP_S)
        return WorkerDeathError(f"ended with status {self._process.exitcode}")

    def kill(self) -> None:
        """Ends the process at once, from any thread."""
        if self.pid is not None:
            with suppress(ValueError):  # stopped already
                self._process.kill()

    def stop(self) -> None:
        """Ends the process, politely first, and frees what it held here; a second call does nothing."""
        self._ours.close()
        self._theirs.close()
        if self.pid is not None:
            self.pid = None
            self._process.join(STOP_S)
            self._process.kill()
            self._process.join()
            self._process.close()


def serve(connection: pipes.Connection, device: str, threads: int | None) -> None:
    """What the process does: answers requests until the pipe closes or the service dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    worker, channel = Worker(device, threads), Channel(connection)
    with suppress(EOFError, OSError):
        while True:
            request, arrays = channel.receive()
            reply, outputs = worker.answer(request, arrays)
            channel.send(reply, [outputs] if outputs else [])
    os._exit(0)  # nothing here needs the runtimes' slow exit handlers


def _end_with_parent() -> None:
    """A busy worker must not outlive a service that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        pipes.wait([parent.sentinel])
        os._exit(1)


class Worker:
    """The loaded models of one device, inside the process."""

    def __init__(self, device: str, threads: int | None) -> None:
        self.device = device
        self.threads = threads
        self.models: dict[Model, Backend] = {}

    def answer(self, request: Request, arrays: Arrays) -> tuple[Any, dict[str, Array]]:
        """Never raises: one bad request must not cost the others their worker."""
        try:
            if isinstance(request, Run):
                return self._run(request, arrays)
            return self._load(request), {}
        except (BackendUnavailable, RunFailed) as exc:
            return Failed(type(exc).__name__, str(exc)), {}
        except Exception as exc:  # noqa: BLE001 (a runtime may raise anything)
            kind = BundleInvalid if isinstance(request, Load) else OutOfMemory if lacked_memory(exc) else RunFailed
            text = str(exc) if isinstance(exc, MedRestoreError) else f"{type(exc).__name__}: {exc}"
            return Failed(kind.__name__, text), {}

    def _load(self, request: Load) -> Loaded:
        bundle = read_bundle(request.folder)  # again: the files may have changed since the service read them
        if bundle.digest != request.model.digest:
            raise BundleInvalid(f"{bundle.reference} changed on disk after the service started")
        backend = load(request.backend, bundle, self.device, request.model.precision, self.threads)
        self_test(backend, bundle)
        warm_up(backend, bundle)
        keeps = batch_invariant(backend, bundle, request.batch_items, request.batch_pixels)
        release(backend, bundle)
        self.models[request.model] = backend
        return Loaded(request.batch_items if keeps else 1)

    def _run(self, request: Run, arrays: Arrays) -> tuple[Done, dict[str, Array]]:
        start = time.perf_counter()
        outputs = self.models[request.model].run(request.graph, arrays)
        batch = next(iter(arrays.values())).shape[0]
        for name, output in outputs.items():
            if output.shape[:1] != (batch,):
                raise RunFailed(f"output {name} of graph {request.graph} has shape {output.shape} for {batch} items")
        return Done(time.perf_counter() - start), outputs
