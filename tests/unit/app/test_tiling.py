"""Which tiles a memory budget and past failures leave, and that the answer does not depend on them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.backends.base import lacked_memory
from app.errors import OutOfMemory
from app.noise import Array
from app.options import Options
from app.pipeline import Restoration, restore
from app.tiling import BUDGET, Tiling
from models.bundle import Bundle
from models.errors import BundleInvalid
from models.imaging.image import Image
from tests.unit.app.smoother import Smoother, bundle_of, image_of, noisy

SHAPES = [(16, 16), (32, 32), (64, 64)]
EXACT = bundle_of(tiles=SHAPES, exact_tiling=True, bytes_per_pixel={"restore": 100.0})
FIXED = bundle_of(tiles=[(32, 32)], exact_tiling=False, bytes_per_pixel={"restore": 100.0})


class Cramped(Smoother):
    """Has no memory for tiles of more than `pixels` pixels."""

    def __init__(self, pixels: int, tiling: Tiling | None = None) -> None:
        super().__init__()
        self.pixels = pixels
        self.tiling = tiling or Tiling()

    async def __call__(self, graph: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        if graph == "restore" and arrays["image"].size > self.pixels:
            raise OutOfMemory("scripted")
        return await super().__call__(graph, arrays)


def run(image: Image, runner: Smoother, bundle: Bundle = EXACT) -> Restoration:
    return asyncio.run(restore(image, bundle, Options(), runner))


def shapes_run(runner: Smoother) -> set[tuple[int, int]]:
    return {arrays["image"].shape[2:] for graph, arrays in runner.calls if graph == "restore"}


@pytest.mark.parametrize(("budget", "side"), [(BUDGET, 64), (64 * 64 * 100, 64), (64 * 64 * 100 - 1, 32), (1, 16)])
def test_the_budget_decides_the_tile(budget: int, side: int) -> None:
    assert Tiling(budget).plan(EXACT, 64, 64).shape == (side, side)


def test_a_tile_that_is_part_of_the_model_is_left_alone() -> None:
    for size in (5, 32, 100):
        assert Tiling(1).plan(FIXED, size, size).shape == (32, 32)
    unknown = bundle_of(tiles=SHAPES)
    assert Tiling(1).plan(unknown, 64, 64).shape == (64, 64)


def test_a_bundle_may_not_list_several_shapes_where_they_differ() -> None:
    with pytest.raises(BundleInvalid, match="name one shape"):
        bundle_of(tiles=SHAPES, exact_tiling=False)


def test_a_tile_without_room_between_halos_is_passed_over() -> None:
    bundle = bundle_of(tiles=SHAPES, exact_tiling=True, halo=8)
    assert Tiling(1).plan(bundle, 64, 64).shape == (32, 32)


@given(rows=st.integers(1, 70), columns=st.integers(1, 70), samples=st.sampled_from([1, 3]))
@settings(max_examples=8, deadline=None)
def test_the_answer_does_not_depend_on_the_budget(rows: int, columns: int, samples: int) -> None:
    image = image_of(noisy(1, rows, columns, samples, sigma=200))
    answers = []
    for budget in (BUDGET, 1):
        runner = Smoother()
        runner.tiling = Tiling(budget)
        answers.append(run(image, runner))
    assert answers[0].image.pixels.tobytes() == answers[1].image.pixels.tobytes()
    assert answers[0].evidence == answers[1].evidence


def test_out_of_memory_takes_smaller_tiles_and_remembers() -> None:
    shrunk: list[str] = []
    tiling = Tiling(shrunk=shrunk.append)
    image = image_of(noisy(1, 100, 90, 1))
    first = Cramped(20 * 20, tiling)
    result = run(image, first)
    assert result.image.pixels.tobytes() == run(image, Smoother()).image.pixels.tobytes()
    assert shrunk == ["smoother@1"] * 2  # 64 -> 32 -> 16
    second = Cramped(20 * 20, tiling)
    run(image, second)
    assert shapes_run(second) == {(16, 16)}
    assert len(shrunk) == 2


def test_what_failed_on_one_model_is_offered_to_others() -> None:
    tiling = Tiling()
    run(image_of(noisy(1, 64, 64, 1)), Cramped(20 * 20, tiling))
    other = Bundle(EXACT.folder, EXACT.manifest, "cd" * 32)
    assert tiling.plan(EXACT, 64, 64).shape == (16, 16)
    assert tiling.plan(EXACT, 64, 64, "bf16").shape == (64, 64)
    assert tiling.plan(other, 64, 64).shape == (64, 64)


@pytest.mark.parametrize("bundle", [EXACT, FIXED])
def test_where_no_smaller_tile_is_left_it_says_so(bundle: Bundle) -> None:
    with pytest.raises(OutOfMemory, match=r"no smaller ones: free memory"):
        run(image_of(noisy(1, 64, 64, 1)), Cramped(1), bundle)


def test_few_large_tiles_are_in_flight() -> None:
    large = bundle_of("superresolve", 4, tiles=[(512, 512)], exact_tiling=True)
    tiling = Tiling(BUDGET)
    assert tiling.window(large, tiling.plan(large, 2000, 2000), 16) == BUDGET // 8 // (4 * 17 * 512**2)
    assert tiling.window(EXACT, tiling.plan(EXACT, 64, 64), 16) == 16
    assert Tiling(1).window(large, tiling.plan(large, 2000, 2000), 16) == 1


@pytest.mark.parametrize(
    ("error", "lacked"),
    [
        (MemoryError(), True),
        (RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer"), True),
        (RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("no"), False),
    ],
)
def test_tells_want_of_memory_from_other_failures(error: Exception, lacked: bool) -> None:
    assert lacked_memory(error) is lacked


def test_only_the_window_of_tiles_is_held() -> None:
    class Counting(Smoother):
        window, open, most = 3, 0, 0

        async def __call__(self, graph: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
            self.open += 1
            self.most = max(self.most, self.open)
            await asyncio.sleep(0.001)
            self.open -= 1
            return await super().__call__(graph, arrays)

    runner = Counting()
    run(image_of(noisy(1, 300, 300, 1)), runner)
    assert runner.most == 3
    assert len(runner.calls) > 10


def test_tiles_are_part_of_a_restoration_only_where_they_change_it() -> None:
    image = image_of(noisy(1, 100, 90, 1))
    roomy, tight = Tiling(BUDGET), Tiling(20 * 20 * 100)
    assert roomy.plan(EXACT, 100, 90) != tight.plan(EXACT, 100, 90)
    assert roomy.mark(EXACT, image, "fp32") == tight.mark(EXACT, image, "fp32") == ""
    assert roomy.mark(EXACT, image, "bf16") != tight.mark(EXACT, image, "bf16")  # rounding differs with the shape
    assert roomy.mark(FIXED, image, "fp32") == tight.mark(FIXED, image, "fp32") != ""  # the tile is the model's own
    assert roomy.mark(FIXED, image_of(noisy(1, 20, 20, 1)), "fp32") != roomy.mark(FIXED, image, "fp32")


@pytest.mark.parametrize("bundle", [EXACT, FIXED])
def test_the_derivation_tells_the_tiles(bundle: Bundle) -> None:
    image, runner = image_of(noisy(1, 70, 70, 1)), Smoother()
    assert run(image, runner, bundle).derivation.tiles == runner.tiling.mark(bundle, image, "fp32")
