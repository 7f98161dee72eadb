"""What changes in the repository folder is taken up, over scripted workers: good versions, bad ones, pointers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from app.batching import Engine
from app.catalogue import Catalogue
from app.watch import Watch, look
from app.workers import Load, WorkerDeathError
from models.bundle import DEFAULT, MANIFEST, promote
from models.errors import BundleInvalid, BundleNotFound
from tests.scripted_worker import Bench, Script, until
from tests.tiny_bundle import copy_bundle, seal

Work = Callable[[Bench, Watch], Coroutine[None, None, None]]


def watching(repository: Path, work: Work, **config) -> None:
    """Does `work` beside a started engine whose repository is watched, though nobody polls yet."""

    async def main() -> None:
        seen = look(repository)
        async with Bench(repository, **config) as bench:
            await work(bench, Watch(bench.engine, seen))

    asyncio.run(main())


def serving(bench: Bench) -> str:
    return bench.catalogue.lookup("tiny", "denoise").reference


def x2(repository: Path, version: str) -> Path:
    return copy_bundle(repository, "tiny-x2", "tiny-x2", version, scale=2)


def test_nothing_new_costs_no_reading(repository: Path, script: Script, monkeypatch: pytest.MonkeyPatch):
    async def work(bench: Bench, watch: Watch) -> None:
        monkeypatch.setattr("app.watch.read_bundle", lambda folder: pytest.fail(f"{folder} was read"))
        starts = script.starts
        for _ in range(3):
            await watch.poll()
        assert script.starts == starts
        assert bench.recorder.changes == []

    watching(repository, work)


def test_a_new_version_serves_where_it_can(repository: Path, script: Script):
    async def work(bench: Bench, watch: Watch) -> None:
        await until(lambda: all(worker.state == "idle" for worker in bench.engine.workers))
        script.lacking = {("cuda:0", "fp32")}  # for what is loaded from now on
        x2(repository, "2")
        await watch.poll()
        newest = bench.catalogue.lookup("tiny-x2", "superresolve", 2)
        assert newest.reference == "tiny-x2@2"
        answers = await asyncio.gather(*bench.submit(1, 2, 3, 4, digest=newest.digest))
        assert {answer.device for answer in answers} == {"cpu"}
        script.lacking = {("cuda:0", "fp32"), ("cpu", "fp32")}
        x2(repository, "3")
        await watch.poll()
        assert "no fp32 on" in bench.catalogue.broken["tiny-x2@3"]
        assert bench.recorder.changes == ["offered", "default", "refused"]

    watching(repository, work, devices=("cpu", "cuda:0"))


def test_a_new_version_serves_once_every_worker_holds_it(repository: Path, script: Script):
    async def work(bench: Bench, watch: Watch) -> None:
        digest = bench.digest
        await until(lambda: len(script.loads) == 4)  # both workers are up: two bundles each
        x2(repository, "2")
        starts, loads = script.starts, len(script.loads)
        await watch.poll()
        newest = bench.catalogue.lookup("tiny-x2", "superresolve", 2)
        assert newest.reference == "tiny-x2@2"
        assert script.starts == starts + 2  # each worker has a new process
        assert len(script.loads) == loads + 6  # which holds the new one beside the two of before
        await asyncio.gather(*bench.submit(1, digest=newest.digest), *bench.submit(2, digest=digest))
        assert len(script.loads) == loads + 6  # none of these requests waited for loading
        assert bench.recorder.changes == ["offered", "default"]

    watching(repository, work, devices=("cpu", "cpu"))


def test_a_version_that_fails_its_self_test_leaves_the_old_one_serving(repository: Path, script: Script):
    async def work(bench: Bench, watch: Watch) -> None:
        def refuse(request: Load) -> None:
            raise BundleInvalid("0.5 off the golden answer")

        script.on_load = refuse
        copy_bundle(repository, "tiny", "tiny", "2")
        workers = bench.engine.workers
        await watch.poll()
        assert serving(bench) == "tiny@1"
        assert bench.catalogue.broken == {"tiny@2": "0.5 off the golden answer"}
        with pytest.raises(BundleInvalid, match=r"tiny@2 is not served: 0\.5 off"):
            bench.catalogue.lookup("tiny@2", "denoise")
        assert bench.engine.workers == workers
        await watch.poll()
        assert bench.recorder.changes == ["refused"]

    watching(repository, work)


def test_a_version_that_ends_its_process_costs_no_worker_that_serves(repository: Path, script: Script):
    async def work(bench: Bench, watch: Watch) -> None:
        def die(request: Load) -> None:
            raise WorkerDeathError("killed by signal 11")

        script.on_load = die
        copy_bundle(repository, "tiny", "tiny", "2")
        await watch.poll()
        assert serving(bench) == "tiny@1"
        assert "killed by signal 11" in bench.catalogue.broken["tiny@2"]
        assert bench.recorder.restarts == 0
        assert (await bench.submit(1)[0]).attempts == 1

    watching(repository, work)


def test_a_version_that_a_serving_worker_refuses_is_not_offered(repository: Path, script: Script):
    async def work(bench: Bench, watch: Watch) -> None:
        loads = len(script.loads)

        def after_the_trial(request: Load) -> None:
            if len(script.loads) > loads + 1:
                raise BundleInvalid("not on this device")

        script.on_load = after_the_trial
        copy_bundle(repository, "tiny", "tiny", "2")
        await watch.poll()
        assert serving(bench) == "tiny@1"
        assert "not on this device" in bench.catalogue.broken["tiny@2"]

    watching(repository, work)


def test_one_that_runs_in_exact_mode_alone_is_offered_in_that(repository: Path, script: Script):
    async def work(bench: Bench, watch: Watch) -> None:
        def no_fast_mode(request: Load) -> None:
            if request.model.precision == "bf16":
                raise BundleInvalid("too coarse")

        script.on_load = no_fast_mode
        copy_bundle(repository, "tiny", "tiny", "2")
        await watch.poll()
        bundle = bench.catalogue.lookup("tiny@2", "denoise")
        assert [bench.engine.supports(bundle, precision) for precision in ("fp32", "bf16")] == [True, False]

    watching(repository, work, preload=("fp32", "bf16"))


def test_a_half_copied_version_is_no_error_until_it_stays_so(repository: Path, script: Script):
    async def work(bench: Bench, watch: Watch) -> None:
        folder = copy_bundle(repository, "tiny", "tiny", "2")
        whole = (folder / "restore.onnx").read_bytes()
        manifest = (folder / MANIFEST).read_bytes()
        (folder / MANIFEST).unlink()
        shutil.copytree(repository / "tiny" / "1", repository / "tiny" / ".3")
        await watch.poll()
        (folder / MANIFEST).write_bytes(manifest)
        for share in (0.2, 0.6):
            (folder / "restore.onnx").write_bytes(whole[: int(share * len(whole))])
            await watch.poll()
        assert bench.catalogue.broken == {}
        await watch.poll()
        assert "restore.onnx is not the file" in bench.catalogue.broken["tiny@2"]
        assert serving(bench) == "tiny@1"
        (folder / "restore.onnx").write_bytes(whole)
        await watch.poll()
        assert bench.catalogue.broken == {}
        assert serving(bench) == "tiny@2"
        assert bench.recorder.changes == ["refused", "offered", "default"]

    watching(repository, work)


def test_a_repaired_version_is_given_another_chance(repository: Path, script: Script):
    async def work(bench: Bench, watch: Watch) -> None:
        def refuse(request: Load) -> None:
            raise BundleInvalid("no memory today")

        script.on_load = refuse
        folder = copy_bundle(repository, "tiny", "tiny", "2")
        await watch.poll()
        script.on_load = lambda request: None
        (folder / MANIFEST).touch()
        await watch.poll()
        assert serving(bench) == "tiny@2"
        assert bench.catalogue.broken == {}

    watching(repository, work)


def test_promotion_and_roll_back_are_followed(repository: Path, script: Script):
    copy_bundle(repository, "tiny", "tiny", "2")
    promote(repository, "tiny", "1")

    async def work(bench: Bench, watch: Watch) -> None:
        copy_bundle(repository, "tiny", "tiny", "3")
        await watch.poll()
        assert serving(bench) == "tiny@1"  # the newest does not serve by itself where one is promoted
        for version in ("3", "2", "1"):
            promote(repository, "tiny", version)
            await watch.poll()
            assert serving(bench) == f"tiny@{version}"
        assert bench.recorder.changes == ["offered", "default", "default", "default"]

    watching(repository, work)


def test_a_pointer_ahead_of_its_version_waits_for_it(repository: Path, script: Script):
    async def work(bench: Bench, watch: Watch) -> None:
        (repository / "tiny" / DEFAULT).write_text('{"version": "2"}', encoding="utf-8")
        await watch.poll()
        assert serving(bench) == "tiny@1"
        assert "tiny@2 is promoted but not served" in bench.catalogue.warnings["tiny"]
        for version in ("2", "3"):
            copy_bundle(repository, "tiny", "tiny", version)
        await watch.poll()
        assert serving(bench) == "tiny@2"
        assert bench.catalogue.warnings == {}

    watching(repository, work)


def test_a_removed_version_is_not_found_and_its_requests_finish(repository: Path, script: Script):
    x2(repository, "2")

    async def work(bench: Bench, watch: Watch) -> None:
        held = bench.catalogue.lookup("tiny-x2@2", "superresolve", 2)
        digest = held.digest
        script.gate.clear()
        (running,) = bench.submit(1, digest=digest)
        await until(lambda: script.runs == [[1]])
        shutil.rmtree(repository / "tiny-x2" / "2")
        await watch.poll()
        with pytest.raises(BundleNotFound, match=r"no model 'tiny-x2@2'; available: tiny@1, tiny-x2@1"):
            bench.catalogue.lookup("tiny-x2@2", "superresolve", 2)
        (later,) = bench.submit(2, digest=digest)  # the same request's next tile
        script.gate.set()
        await asyncio.gather(running, later)
        starts = script.starts
        await watch.poll()
        assert script.starts == starts  # it is held, so no process may go without it
        del held, running, later
        await watch.poll()
        assert script.starts == starts + 1
        assert digest not in {model.digest for model in bench.engine._workers[0].loaded}
        (again,) = bench.submit(3, digest=bench.catalogue.lookup("tiny-x2", "superresolve", 2).digest)
        assert (await again).attempts == 1
        await watch.poll()
        assert script.starts == starts + 1
        assert bench.recorder.changes == ["withdrawn", "default"]

    watching(repository, work)


def test_another_bundle_under_the_same_version_takes_its_place(repository: Path, script: Script):
    async def work(bench: Bench, watch: Watch) -> None:
        before = bench.catalogue.lookup("tiny", "denoise").digest
        (repository / "tiny" / "1" / "more.txt").write_text("more")
        seal(repository / "tiny" / "1")
        await watch.poll()
        assert bench.catalogue.lookup("tiny", "denoise").digest != before
        assert [bundle.reference for bundle in bench.catalogue.bundles] == ["tiny@1", "tiny-x2@1"]

    watching(repository, work)


def test_damage_to_a_version_that_serves_is_told_and_the_loaded_one_serves_on(repository: Path, script: Script):
    async def work(bench: Bench, watch: Watch) -> None:
        file = repository / "tiny" / "1" / "restore.onnx"
        whole = file.read_bytes()
        file.write_bytes(b"other bytes")
        for _ in range(2):
            await watch.poll()
        assert "restore.onnx is not the file" in bench.catalogue.broken["tiny@1"]
        assert serving(bench) == "tiny@1"
        file.write_bytes(whole)
        await watch.poll()
        assert bench.catalogue.broken == {}

    watching(repository, work)


def test_a_repository_that_cannot_be_looked_at_changes_nothing(
    repository: Path, script: Script, caplog: pytest.LogCaptureFixture
):
    async def work(bench: Bench, watch: Watch) -> None:
        away = repository.rename(repository.with_name("away"))
        following = asyncio.create_task(watch.run(0.001))
        await until(lambda: "repository cannot be looked at" in caplog.text)
        assert serving(bench) == "tiny@1"
        away.rename(repository)
        copy_bundle(repository, "tiny", "tiny", "2")
        await until(lambda: serving(bench) == "tiny@2")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert caplog.text.count("repository cannot be looked at") == 1

    watching(repository, work)


def test_a_service_without_models_becomes_ready_with_the_first(repository: Path, tmp_path: Path, script: Script):
    empty = tmp_path / "empty"
    empty.mkdir()

    async def work() -> None:
        engine = Engine(Catalogue(empty))
        await engine.start()
        try:
            watch = Watch(engine, look(empty))
            assert engine.reason
            shutil.copytree(repository / "tiny", empty / "tiny")
            await watch.poll()
            await engine.wait_ready(10)
        finally:
            await engine.stop()

    asyncio.run(work())
