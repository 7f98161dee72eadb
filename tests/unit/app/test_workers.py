"""Real worker processes: death, silence, orphans, bad bundles, a quick end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import uvloop

import app.workers
from app.batching import Engine, EngineConfig, Patience, WorkItem
from app.catalogue import Catalogue
from app.errors import RunFailed, WorkerLost
from app.supervisor import cores
from models.bundle import GOLDEN
from models.errors import BundleInvalid
from tests.tiny_bundle import seal, write_picky, write_slow, write_tiny

SECONDS = 0.3  # of the slow bundle's first pixel: about one second here


@pytest.fixture(scope="module")
def slow_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slow")
    write_slow(root)
    write_picky(root)
    return root


def started(repository: Path, work: Callable[[Engine, Catalogue], object], runner=asyncio.run, **config) -> None:
    """Runs `work` with an engine of one real worker, and ends it."""

    async def main() -> None:
        catalogue = Catalogue(repository)
        patience = config.pop("patience", Patience(restart_s=0.01))
        engine = Engine(catalogue, EngineConfig(patience=patience, **config))
        await engine.start()
        try:
            await engine.wait_ready(60)
            await work(engine, catalogue)
        finally:
            await engine.stop()

    runner(main())


def item(catalogue: Catalogue, name: str, value: float, side: int = 8) -> WorkItem:
    digest = catalogue.lookup(name, "superresolve", 2).digest
    return WorkItem(digest, "restore", {"image": np.full((1, 1, side, side), value, np.float32)})


async def until(condition: Callable[[], bool]) -> None:
    """Waits, half a minute at most."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    """True while the process runs; a zombie counts as running."""
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_an_item_gives_the_same_bytes_alone_and_among_others(built_repository: Path, runner):
    rng = np.random.default_rng(5)

    async def work(engine: Engine, catalogue: Catalogue) -> None:
        digest = catalogue.lookup("tiny", "denoise").digest

        def one(seed: int) -> WorkItem:
            x = np.random.default_rng(seed).random((1, 1, 32, 32), np.float32)
            parameters = np.array([[0.01, 0.002, 0.001]], np.float32)
            return WorkItem(
                digest, "restore", {"image": x, "parameters": parameters, "strength": np.ones(1, np.float32)}
            )

        alone = (await engine.submit(one(0))).arrays
        crowd = await asyncio.gather(*(engine.submit(one(seed)) for seed in rng.permutation(12)))
        matching = [a.arrays for a in crowd if a.arrays["restored"].tobytes() == alone["restored"].tobytes()]
        assert len(matching) == 1
        assert matching[0]["noise"].tobytes() == alone["noise"].tobytes()

    started(built_repository, work, runner)


def test_a_worker_killed_while_it_runs_is_replaced_and_the_item_answered(slow_repository: Path):
    async def work(engine: Engine, catalogue: Catalogue) -> None:
        running = asyncio.create_task(engine.submit(item(catalogue, "slow", SECONDS)))
        waiting = asyncio.create_task(engine.submit(item(catalogue, "slow", 0)))
        await until(lambda: engine.workers[0].state == "busy")
        first = engine.workers[0].pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        answer = await running
        assert (answer.attempts, answer.arrays["restored"].shape) == (2, (1, 1, 16, 16))
        assert (await waiting).attempts <= 2  # it may have shared the run
        status = engine.workers[0]
        assert (status.restarts, status.pid != first) == (1, True)
        assert not alive(first)

    started(slow_repository, work)


def test_an_item_whose_worker_is_killed_twice_is_lost_and_the_engine_serves_on(slow_repository: Path):
    async def work(engine: Engine, catalogue: Catalogue) -> None:
        running = asyncio.create_task(engine.submit(item(catalogue, "slow", 10)))
        for _ in range(2):
            await until(lambda: engine.workers[0].state == "busy")
            os.kill(engine.workers[0].pid or 0, signal.SIGKILL)
            await until(lambda: engine.workers[0].state != "busy")
        with pytest.raises(WorkerLost):
            await running
        await engine.submit(item(catalogue, "slow", 0))
        assert engine.workers[0].restarts == 2

    started(slow_repository, work)


def test_an_idle_worker_that_is_killed_is_replaced_before_work_comes(slow_repository: Path):
    async def work(engine: Engine, catalogue: Catalogue) -> None:
        first = engine.workers[0].pid
        os.kill(first or 0, signal.SIGKILL)
        await until(lambda: engine.workers[0].pid not in (first, None) and engine.workers[0].state == "idle")
        assert (await engine.submit(item(catalogue, "slow", 0))).attempts == 1

    started(slow_repository, work)


def test_a_worker_that_does_not_answer_is_killed(slow_repository: Path):
    async def work(engine: Engine, catalogue: Catalogue) -> None:
        with pytest.raises(WorkerLost):
            await engine.submit(item(catalogue, "slow", 1000))

    started(slow_repository, work, patience=Patience(answer_s=1, restart_s=0.01))


def test_an_item_that_the_graph_refuses_fails_and_its_batch_mates_do_not(slow_repository: Path):
    async def work(engine: Engine, catalogue: Catalogue) -> None:
        busy = asyncio.create_task(engine.submit(item(catalogue, "slow", SECONDS)))
        await until(lambda: engine.running_items == 1)
        values = [0.25, 1.5, 0.75]
        results = await asyncio.gather(
            *(engine.submit(item(catalogue, "picky", value)) for value in values), return_exceptions=True
        )
        assert isinstance(results[1], RunFailed)
        for value, result in zip(values, results, strict=True):
            if value < 1:
                assert result.arrays["restored"].max() == np.float32(value)
        await busy
        assert engine.workers[0].restarts == 0

    started(slow_repository, work, batch_items={"fp32": 4})


def test_bad_bundles_are_refused_by_the_worker_and_the_good_one_is_served(repository: Path):
    write_slow(repository)
    wrong = repository / "slow" / "1"
    golden = dict(np.load(wrong / GOLDEN))
    golden["restore.out.restored"] += 0.5
    np.savez(wrong / GOLDEN, **golden)
    seal(wrong, scale=2)
    broken = repository / "tiny-x2" / "1"
    (broken / "restore.onnx").write_bytes(b"no graph")
    seal(broken, scale=2)

    async def work(engine: Engine, catalogue: Catalogue) -> None:
        assert [bundle.reference for bundle in catalogue.bundles] == ["tiny@1"]
        assert "0.5 off the golden answer with onnx fp32 on cpu" in catalogue.broken["slow@1"]
        assert "does not load" in catalogue.broken["tiny-x2@1"]
        x = np.full((1, 1, 8, 8), 0.5, np.float32)
        digest = catalogue.lookup("tiny", "denoise").digest
        answer = (await engine.submit(WorkItem(digest, "estimate", {"image": x}))).arrays
        np.testing.assert_array_equal(answer["parameters"], 0)

    started(repository, work)


def test_files_that_change_under_a_running_service_are_noticed(repository: Path):
    async def work(engine: Engine, catalogue: Catalogue) -> None:
        bundle = catalogue.lookup("tiny", "denoise")
        (bundle.folder / "restore.onnx").write_bytes(b"other bytes")
        x = np.full((1, 1, 8, 8), 0.5, np.float32)
        with pytest.raises(BundleInvalid, match=r"restore\.onnx is not the file the manifest names"):
            await engine.submit(WorkItem(bundle.digest, "estimate", {"image": x}, precision="bf16"))
        await engine.submit(WorkItem(bundle.digest, "estimate", {"image": x}))

    started(repository, work)


def test_stop_ends_a_busy_worker_at_once_and_leaves_no_zombie(slow_repository: Path):
    pids: list[int] = []

    async def work(engine: Engine, catalogue: Catalogue) -> None:
        task = asyncio.create_task(engine.submit(item(catalogue, "slow", 1000)))
        task.add_done_callback(lambda done: done.exception())
        await until(lambda: engine.workers[0].state == "busy")
        pids.append(engine.workers[0].pid or 0)

    started(slow_repository, work)
    assert not alive(pids[0])


def test_stop_right_after_start_leaves_no_process(slow_repository: Path):
    async def main(delay_s: float) -> int | None:
        engine = Engine(Catalogue(slow_repository))
        await engine.start()
        await asyncio.sleep(delay_s)
        pid = engine.workers[0].pid
        await engine.stop()
        assert engine.workers[0].state == "stopped"
        return pid

    for delay_s in (0.0, 0.1):
        pid = asyncio.run(main(delay_s))
        assert pid is None or not alive(pid)


# A service of its own process: prints its worker's pid, then works until something ends it.
SERVICE = """
import asyncio, signal, sys
from pathlib import Path
import numpy as np
from app.batching import Engine, WorkItem
from app.catalogue import Catalogue

async def main():
    engine = Engine(Catalogue(Path(sys.argv[1])))
    await engine.start()
    await engine.wait_ready(60)
    digest = engine.catalogue.lookup("slow", "superresolve", 2).digest
    image = np.full((1, 1, 8, 8), float(sys.argv[2]), np.float32)
    task = asyncio.create_task(engine.submit(WorkItem(digest, "restore", {"image": image})))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await asyncio.sleep(0.2)
    print(engine.workers[0].pid, flush=True)
    await stop.wait()
    await engine.stop()
    await asyncio.gather(task, return_exceptions=True)

if __name__ == "__main__":
    asyncio.run(main())
"""


def service(repository: Path, value: float) -> tuple[subprocess.Popen[str], int]:
    """Starts SERVICE; gives it and its worker's pid."""
    root = str(Path(app.workers.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(SERVICE), str(repository), str(value)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return process, int(line)


def gone(pid: int, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.parametrize("value", [0.0, 1000.0])
def test_a_worker_does_not_outlive_a_service_that_is_killed(slow_repository: Path, value: float):
    process, worker = service(slow_repository, value)
    process.kill()
    process.communicate(timeout=30)
    assert gone(worker, within_s=30)


@pytest.mark.parametrize("value", [0.0, 1000.0])
def test_a_service_told_to_end_ends_clean_and_silent(slow_repository: Path, value: float):
    process, worker = service(slow_repository, value)
    process.terminate()
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    assert gone(worker, within_s=30)


def test_cores_are_at_least_one_and_at_most_those_of_the_machine():
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_a_container_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for text, expected in [("300000 100000", 3), ("50000 100000", 1), ("max 100000", 16), ("", 16)]:
        monkeypatch.setattr(Path, "read_text", lambda self, encoding, text=text: text)
        assert cores() == expected


def test_the_service_side_of_the_engine_imports_no_runtime():
    code = (
        "import sys, app.batching; "
        "print([name for name in ('onnxruntime', 'openvino', 'torch', 'pydicom') if name in sys.modules])"
    )
    root = str(Path(app.workers.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_bundle_of_each_backend_is_served_by_a_real_worker(tmp_path: Path):
    write_tiny(tmp_path)

    async def work(engine: Engine, catalogue: Catalogue) -> None:
        x = np.random.default_rng(0).random((1, 1, 16, 16), np.float32)
        answer = await engine.submit(
            WorkItem(catalogue.lookup("tiny-x2", "superresolve", 2).digest, "restore", {"image": x})
        )
        assert (answer.backend, answer.arrays["restored"].shape) == ("torchscript", (1, 1, 32, 32))

    started(tmp_path, work, backends={"fp32": "torchscript"})
