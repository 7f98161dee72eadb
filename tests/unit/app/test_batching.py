"""The engine over scripted workers: every item is completed once, on every path, in the right order."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.admission import Usage
from app.batching import Engine, Priority, QueueLimits
from app.catalogue import Catalogue
from app.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    NotReady,
    Quarantined,
    RunFailed,
    ServiceError,
    WorkerLost,
)
from app.quarantine import digest_of
from app.work import WorkItem
from app.workers import Load, WorkerDeathError
from models.errors import BundleInvalid, BundleNotFound, OptionError
from tests.scripted_worker import BAD, DEADLY, GOOD, Bench, Script, until


def test_an_answer_says_how_it_came_about(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository) as bench:
            item = bench.item(5)
            answer = await bench.engine.submit(item)
            np.testing.assert_array_equal(answer.arrays["restored"], item.arrays["image"] + 1)
            assert (answer.backend, answer.device, answer.precision) == ("onnx", "cpu", "fp32")
            assert (answer.batch_items, answer.attempts, answer.run_s) == (1, 1, 0.01)
            assert answer.queue_s >= 0
            assert list(answer.arrays) == ["restored"]
            assert bench.recorder.outcomes == {"ok": 1}

    asyncio.run(main())


def test_a_lone_item_goes_at_once_and_batches_form_while_the_worker_is_busy(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository, batch_items={"fp32": 3}) as bench:
            script.gate.clear()
            tasks = bench.submit(0)
            await until(lambda: script.runs == [[0]])
            tasks += bench.submit(1, 2, 3, 4)
            await until(lambda: bench.engine.queued_items == 4)
            assert bench.engine.queued_pixels == 4 * 256
            assert bench.engine.running_items == 1
            assert bench.engine.backlog_s > 0
            script.gate.set()
            answers = await asyncio.gather(*tasks)
            assert script.runs == [[0], [1, 2, 3], [4]]
            assert [answer.batch_items for answer in answers] == [1, 3, 3, 3, 1]
            assert [answer.arrays["restored"][0, 0, 0, 1] for answer in answers] == [1, 2, 3, 4, 5]
            assert bench.recorder.batches == [1, 3, 1]

    asyncio.run(main())


def test_items_whose_bytes_depend_on_their_batch_run_alone(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository, batch_items={"fp32": 8}) as bench:
            await asyncio.gather(*bench.submit(1, 2, 3))
            assert script.runs == [[1, 2, 3]]
        script.batch_items, script.runs = 1, []
        async with Bench(built_repository, batch_items={"fp32": 8}) as bench:
            await asyncio.gather(*bench.submit(1, 2, 3))
            assert script.runs == [[1], [2], [3]]

    asyncio.run(main())


def test_only_tiles_share_a_run(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository, batch_items={"fp32": 8}) as bench:
            await asyncio.gather(*bench.submit(1, 2), *bench.submit(3, 4, side=15))
            assert script.runs == [[1, 2], [3], [4]]  # a frame of odd size might get other bytes in company

    asyncio.run(main())


def test_a_batch_never_mixes_shapes_and_stays_within_its_pixels(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository, batch_items={"fp32": 8}, batch_pixels=3 * 256) as bench:
            script.gate.clear()
            tasks = bench.submit(0)
            await until(lambda: script.runs == [[0]])
            for tag in (1, 2, 3, 4):
                tasks += bench.submit(tag) + bench.submit(10 + tag, side=32)
            await until(lambda: bench.engine.queued_items == 8)
            script.gate.set()
            await asyncio.gather(*tasks)
            assert script.runs == [[0], [1, 2, 3], [11], [12], [13], [4], [14]]

    asyncio.run(main())


def test_the_urgent_goes_first_and_the_oldest_first_among_equals(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository) as bench:
            script.gate.clear()
            tasks = bench.submit(0)
            await until(lambda: script.runs == [[0]])
            tasks += bench.submit(1, 2, priority=Priority.BULK)
            tasks += bench.submit(3, priority=Priority.ROUTINE)
            tasks += bench.submit(4, 5)
            await until(lambda: bench.engine.queued_items == 5)
            script.gate.set()
            await asyncio.gather(*tasks)
            assert script.runs == [[0], [4], [5], [3], [1], [2]]

    asyncio.run(main())


def test_what_has_waited_long_goes_before_what_is_more_urgent(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository, ageing_s=0.05) as bench:
            script.gate.clear()
            tasks = bench.submit(0)
            await until(lambda: script.runs == [[0]])
            tasks += bench.submit(1, priority=Priority.BULK)
            tasks += bench.submit(2, priority=Priority.ROUTINE)
            await until(lambda: bench.engine.queued_items == 2)
            await asyncio.sleep(0.2)  # four times what a class is worth
            tasks += bench.submit(3)
            await until(lambda: bench.engine.queued_items == 3)
            script.gate.set()
            await asyncio.gather(*tasks)
            assert script.runs == [[0], [2], [1], [3]]

    asyncio.run(main())


def test_an_input_that_ended_two_workers_is_never_run_again(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository) as bench:
            with pytest.raises(WorkerLost):
                await bench.engine.submit(bench.item(1, kind=DEADLY))
            runs = len(script.runs)
            with pytest.raises(Quarantined, match="two workers died"):
                await bench.engine.submit(bench.item(1, kind=DEADLY))
            assert len(script.runs) == runs
            assert bench.recorder.shed_reasons == ["quarantined"]
            await bench.engine.submit(bench.item(2))

    asyncio.run(main())


def test_large_inputs_are_compared_beside_the_event_loop(
    built_repository: Path, script: Script, monkeypatch: pytest.MonkeyPatch
):
    seen: set[int] = set()

    def watched(item: WorkItem) -> str:
        seen.add(threading.get_ident())
        return digest_of(item)

    async def main() -> None:
        monkeypatch.setattr("app.quarantine.digest_of", watched)
        async with Bench(built_repository) as bench:
            for error in (WorkerLost, Quarantined):
                with pytest.raises(error):
                    await bench.engine.submit(bench.item(1, kind=DEADLY, side=512))
            assert seen
            assert threading.get_ident() not in seen

    asyncio.run(main())


def test_a_failed_batch_is_tried_item_by_item(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository, batch_items={"fp32": 8}) as bench:
            script.gate.clear()
            tasks = bench.submit(0)
            await until(lambda: script.runs == [[0]])
            tasks += bench.submit(1, 2) + bench.submit(3, kind=BAD) + bench.submit(4)
            await until(lambda: bench.engine.queued_items == 4)
            script.gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(result, RunFailed) for result in results] == [False, False, False, True, False]
            assert script.runs == [[0], [1, 2, 3, 4], [1], [2], [3], [4]]
            assert results[1].attempts == 2
            assert script.starts == 1

    asyncio.run(main())


def test_a_deadly_item_is_given_up_after_two_workers_and_takes_no_other_along(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository, batch_items={"fp32": 8}) as bench:
            script.gate.clear()
            tasks = bench.submit(0)
            await until(lambda: script.runs == [[0]])
            tasks += bench.submit(1) + bench.submit(2, kind=DEADLY) + bench.submit(3)
            await until(lambda: bench.engine.queued_items == 3)
            script.gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(result, WorkerLost) for result in results] == [False, False, True, False]
            assert script.runs == [[0], [1, 2, 3], [1], [2], [3]]
            assert bench.recorder.restarts == bench.engine.workers[0].restarts == 2
            assert bench.recorder.outcomes == {"ok": 3, "lost": 1}

    asyncio.run(main())


def test_what_is_withdrawn_while_it_waits_never_runs(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository) as bench:
            script.gate.clear()
            first = bench.submit(0)
            await until(lambda: script.runs == [[0]])
            tasks = bench.submit(1, 2)
            last = bench.submit(3)
            await until(lambda: bench.engine.queued_items == 3)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
            assert bench.engine.queued_items == 1
            script.gate.set()
            await asyncio.gather(*first, *last)
            assert script.runs == [[0], [3]]
            assert bench.recorder.outcomes == {"ok": 2, "cancelled": 2}

    asyncio.run(main())


def test_what_is_withdrawn_while_it_runs_is_answered_at_once_and_its_result_dropped(
    built_repository: Path, script: Script
):
    async def main() -> None:
        async with Bench(built_repository) as bench:
            script.gate.clear()
            [task] = bench.submit(0)
            await until(lambda: script.runs == [[0]])
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            assert bench.recorder.outcomes == {"cancelled": 1}
            script.gate.set()
            await asyncio.gather(*bench.submit(1))
            assert script.runs == [[0], [1]]

    asyncio.run(main())


def test_a_deadline_ends_the_wait_whatever_the_worker_does(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository) as bench:
            script.gate.clear()
            soon = time.monotonic() + 0.05
            running = bench.submit(0, deadline=soon)
            await until(lambda: script.runs == [[0]])
            waiting = bench.submit(1, deadline=soon)
            late = bench.submit(2, deadline=time.monotonic() - 1)
            patient = bench.submit(3, deadline=time.monotonic() + 60)
            results = await asyncio.gather(*running, *waiting, *late, return_exceptions=True)
            assert [type(result) for result in results] == 3 * [DeadlineExceeded]
            script.gate.set()
            await asyncio.gather(*patient)
            assert script.runs == [[0], [3]]

    asyncio.run(main())


def test_an_item_past_its_deadline_is_not_run_though_its_timer_is_late(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository) as bench:
            tasks = bench.submit(0, deadline=time.monotonic() + 0.01)
            await asyncio.sleep(0)  # accepted, not yet cut
            time.sleep(0.02)  # holds up the loop, timers included
            with pytest.raises(DeadlineExceeded):
                await tasks[0]
            assert script.runs == []

    asyncio.run(main())


def test_what_cannot_be_run_is_refused_with_its_reason(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository, backends={"fp32": "onnx"}) as bench:
            with pytest.raises(BundleNotFound):
                await bench.engine.submit(bench.item(digest="0" * 64))
            with pytest.raises(OptionError, match="runs in fp32, bf16, not in int8"):
                await bench.engine.submit(bench.item(precision="int8"))
            with pytest.raises(BackendUnavailable, match="no backend is set"):
                await bench.engine.submit(bench.item(precision="bf16"))
            bundle = bench.catalogue.by_digest(bench.digest)
            assert bench.engine.supports(bundle, "fp32")
            assert not bench.engine.supports(bundle, "bf16")

    asyncio.run(main())


def test_another_precision_is_loaded_at_first_use_and_once(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository) as bench:
            assert script.loads == ["fp32", "fp32"]
            for tag in (1, 2):
                answer = await bench.engine.submit(bench.item(tag, precision="bf16"))
                assert (answer.backend, answer.precision) == ("openvino", "bf16")
            assert script.loads == ["fp32", "fp32", "bf16"]

    asyncio.run(main())


def test_a_precision_that_does_not_load_is_refused_and_the_others_serve_on(built_repository: Path, script: Script):
    def no_bf16(request: Load) -> None:
        if request.model.precision == "bf16":
            raise BackendUnavailable("this CPU has no bf16 instructions: use fp32")

    async def main() -> None:
        script.on_load = no_bf16
        async with Bench(built_repository, preload=("fp32", "bf16")) as bench:
            for _ in range(2):
                with pytest.raises(BackendUnavailable, match="no bf16"):
                    await bench.engine.submit(bench.item(precision="bf16"))
            await bench.engine.submit(bench.item())
            assert len(bench.catalogue.bundles) == 2
            assert script.loads.count("bf16") == 2  # once for each bundle

    asyncio.run(main())


def test_a_bundle_that_fails_its_self_test_is_not_served(built_repository: Path, script: Script):
    def refuse(request: Load) -> None:
        if request.folder.parent.name == "tiny-x2":
            raise BundleInvalid("restore.restored is 0.5 off the golden answer")

    async def main() -> None:
        script.on_load = refuse
        async with Bench(built_repository) as bench:
            with pytest.raises(BundleInvalid, match=r"0\.5 off"):
                await bench.engine.submit(bench.item())
            assert [bundle.reference for bundle in bench.catalogue.bundles] == ["tiny@1"]
            assert "0.5 off" in bench.catalogue.broken["tiny-x2@1"]
            assert bench.engine.ready

    asyncio.run(main())


def test_what_one_device_lacks_another_does(built_repository: Path, script: Script):
    async def main() -> None:
        script.lacking = {("cuda:0", "fp32"), ("cpu", "bf16")}
        async with Bench(built_repository, devices=("cpu", "cuda:0"), preload=("bf16", "fp32")) as bench:
            await until(lambda: all(worker.state == "idle" for worker in bench.engine.workers))
            for precision, device in (("fp32", "cpu"), ("bf16", "cuda:0")):
                answers = await asyncio.gather(*bench.submit(1, 2, 3, precision=precision))
                assert {answer.device for answer in answers} == {device}

    asyncio.run(main())


def test_what_a_device_turns_out_to_lack_goes_to_another(built_repository: Path, script: Script):
    async def main() -> None:
        script.lacking = {("cuda:0", "bf16")}
        async with Bench(built_repository, devices=("cpu", "cuda:0")) as bench:
            await until(lambda: all(worker.state == "idle" for worker in bench.engine.workers))
            for _ in range(8):
                answers = await asyncio.gather(*bench.submit(1, 2, 3, 4, precision="bf16"))
                assert {answer.device for answer in answers} == {"cpu"}
            assert bench.engine.supports(bench.catalogue.by_digest(bench.digest), "bf16")

    asyncio.run(main())


@pytest.mark.parametrize("devices", [("cpu", "cuda:0"), ("cuda:0", "cpu")])
def test_a_device_that_is_not_there_costs_the_others_nothing(
    built_repository: Path, script: Script, devices: tuple[str, str]
):
    async def main() -> None:
        script.lacking = {("cuda:0", "fp32")}
        async with Bench(built_repository, devices=devices) as bench:
            await until(lambda: {worker.state for worker in bench.engine.workers} == {"idle", "failed"})
            answers = await asyncio.gather(*bench.submit(1, 2, 3))
            assert {answer.device for answer in answers} == {"cpu"}
            script.lacking = {("cpu", "bf16")}  # nobody has it, now that the other is gone
            with pytest.raises(BackendUnavailable, match="no bf16 on cpu"):
                await bench.engine.submit(bench.item(precision="bf16"))
            assert not bench.engine.supports(bench.catalogue.by_digest(bench.digest), "bf16")

    asyncio.run(main())


def test_what_no_device_has_is_refused(built_repository: Path, script: Script):
    async def main() -> None:
        script.lacking = {("cpu", "bf16"), ("cuda:0", "bf16")}
        async with Bench(built_repository, devices=("cpu", "cuda:0")) as bench:
            await until(lambda: all(worker.state == "idle" for worker in bench.engine.workers))
            results = await asyncio.gather(*bench.submit(1, 2, 3, precision="bf16"), return_exceptions=True)
            assert {type(result) for result in results} == {BackendUnavailable}
            assert not bench.engine.supports(bench.catalogue.by_digest(bench.digest), "bf16")

    asyncio.run(main())


def test_a_bundle_that_ends_its_workers_is_refused_after_the_second(built_repository: Path, script: Script):
    def die(request: Load) -> None:
        if request.folder.parent.name == "tiny-x2":
            raise WorkerDeathError("scripted")

    async def main() -> None:
        script.on_load = die
        async with Bench(built_repository) as bench:
            assert "ended the worker 2 times" in bench.catalogue.broken["tiny-x2@1"]
            assert script.starts == 3

    asyncio.run(main())


def test_without_any_bundle_it_is_not_ready(tmp_path: Path, script: Script):
    async def main() -> None:
        engine = Engine(Catalogue(tmp_path))
        await engine.start()
        with pytest.raises(NotReady, match="no model is served"):
            await engine.wait_ready(0.2)
        await engine.stop()

    asyncio.run(main())


def test_work_before_the_first_worker_is_ready_is_refused(built_repository: Path, script: Script):
    async def main() -> None:
        bench = Bench(built_repository)
        with pytest.raises(NotReady, match="not started"):
            await bench.engine.submit(bench.item())
        assert bench.recorder.shed_reasons == ["not_ready"]
        await bench.engine.start()
        with pytest.raises(NotReady, match="cpu starting"):
            await bench.engine.submit(bench.item())
        await bench.engine.wait_ready(10)
        await bench.engine.submit(bench.item())
        admission = bench.engine.admit(Usage(1, 64, 256))
        await bench.engine.stop()
        for held in (None, admission):
            with pytest.raises(NotReady, match="shutting down"):
                await bench.engine.submit(bench.item(admission=held))

    asyncio.run(main())


def test_a_required_device_that_is_absent_is_an_error_and_is_not_tried_again(built_repository: Path, script: Script):
    def absent(request: Load) -> None:
        raise BackendUnavailable("cuda:0 was required, but ONNX Runtime cannot use it")

    async def main() -> None:
        script.on_load = absent
        bench = Bench(built_repository, devices=("cuda:0",))
        await bench.engine.start()
        with pytest.raises(NotReady, match="cuda:0 was required"):
            await bench.engine.wait_ready(10)
        assert bench.engine.workers[0].state == "failed"
        assert script.starts == 1
        await bench.engine.stop()

    asyncio.run(main())


def test_a_worker_that_never_comes_up_fails_what_waits_and_may_recover(built_repository: Path, script: Script):
    def no_start() -> None:
        raise OSError("no more processes")

    async def main() -> None:
        async with Bench(built_repository) as bench:
            script.gate.clear()
            tasks = bench.submit(0, kind=DEADLY) + bench.submit(1)
            await until(lambda: script.runs == [[0]])
            script.on_start = no_start
            script.gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [NotReady, NotReady]
            assert "no more processes" in (bench.engine.reason or "")
            script.on_start = lambda: None
            await bench.engine.wait_ready(10) if bench.engine.ready else await until(lambda: bench.engine.ready)
            await bench.engine.submit(bench.item(2))

    asyncio.run(main())


def test_stop_completes_what_waits_and_what_runs(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository) as bench:
            script.gate.clear()
            tasks = bench.submit(0, 1, 2)
            await until(lambda: script.runs == [[0]])
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [NotReady] * 3
        assert bench.recorder.outcomes == {"stopped": 3}
        assert [worker.state for worker in bench.engine.workers] == ["stopped"]

    asyncio.run(main())


def test_an_output_that_cannot_be_taken_apart_fails_its_item_alone(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository) as bench:
            broken = bench.item(0)
            broken.arrays["image"].setflags(write=False)
            object.__setattr__(broken, "arrays", {"picture": broken.arrays["image"]})  # the worker knows no such name
            with pytest.raises(RunFailed, match="KeyError"):
                await bench.engine.submit(broken)
            await bench.engine.submit(bench.item(1))

    asyncio.run(main())


def test_two_workers_share_the_queue(built_repository: Path, script: Script):
    async def main() -> None:
        async with Bench(built_repository, devices=("cpu", "cpu")) as bench:
            await until(lambda: all(worker.state == "idle" for worker in bench.engine.workers))
            script.gate.clear()
            tasks = bench.submit(0, 1, 2)
            await until(lambda: len(script.runs) == 2)
            assert bench.engine.queued_items == 1
            script.gate.set()
            await asyncio.gather(*tasks)

    asyncio.run(main())


steps = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "submit", "pause", "cancel", "hold", "release"]),
        st.sampled_from([GOOD, GOOD, GOOD, BAD, DEADLY]),
        st.sampled_from([8, 16]),
        st.sampled_from(Priority),
        st.sampled_from([None, -1.0, 0.0, 0.002, 60.0]),
    ),
    max_size=25,
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=steps, batch=st.integers(1, 4), workers=st.integers(1, 2), stop_early=st.booleans())
def test_whatever_happens_every_item_is_completed_exactly_once(
    built_repository: Path, script: Script, steps, batch: int, workers: int, stop_early: bool
):
    async def main() -> None:
        limits = QueueLimits(items=8)
        config = {"batch_items": {"fp32": batch}, "devices": ("cpu",) * workers, "limits": limits}
        accepted: list[asyncio.Task] = []
        tags: list[int] = []
        async with Bench(built_repository, **config) as bench:
            for tag, (step, kind, side, priority, left) in enumerate(steps):
                if step == "submit":
                    tags.append(tag)
                    deadline = None if left is None else time.monotonic() + left
                    accepted += bench.submit(tag, kind=kind, side=side, priority=priority, deadline=deadline)
                elif step == "cancel" and accepted:
                    accepted[tag % len(accepted)].cancel()
                elif step in ("hold", "release"):
                    (script.gate.clear if step == "hold" else script.gate.set)()
                await asyncio.sleep(0.001 if step == "pause" else 0)
            if not stop_early:
                script.gate.set()
                await asyncio.wait(accepted, timeout=20) if accepted else None
            assert bench.engine.queued_items == 0 or stop_early
        if accepted:
            _, unfinished = await asyncio.wait(accepted, timeout=5)
            assert not unfinished
        assert bench.recorder.outcomes.total() == bench.engine._order  # one outcome for each accepted item
        for tag, task in zip(tags, accepted, strict=True):
            if not task.cancelled() and task.exception() is None:
                assert task.result().arrays["restored"][0, 0, 0, 1] == tag + 1
            elif not task.cancelled():
                assert isinstance(task.exception(), ServiceError)

    script.gate.set()
    asyncio.run(main())


def test_deaths_and_refusals_are_told_by_the_logger_that_the_service_writes(
    built_repository: Path, script: Script, caplog: pytest.LogCaptureFixture
):
    def refuse(request: Load) -> None:
        if request.model.precision == "bf16":
            raise BundleInvalid("too coarse")

    async def main() -> None:
        script.on_load = refuse
        async with Bench(built_repository, preload=("fp32", "bf16")) as bench:
            with pytest.raises(WorkerLost):
                await bench.engine.submit(bench.item(kind=DEADLY))

    asyncio.run(main())
    told = {(r.name, r.getMessage()): r.fields for r in caplog.records if hasattr(r, "fields")}
    assert told["medrestore", "worker died"] == {"device": "cpu", "reason": "scripted"}
    assert told["medrestore", "model refused"]["reason"] == "too coarse"
