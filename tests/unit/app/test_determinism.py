"""The same image gives the same bytes: alone, in a batch, beside images of other sizes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from app.admission import Usage
from app.backends.base import Array, batch_invariant, load
from app.batching import Engine, EngineConfig
from app.catalogue import Catalogue
from app.options import Options
from app.pipeline import Restoration, demand, restore
from app.runner import EngineRunner
from models.bundle import Bundle, find_bundle
from models.imaging.image import Image
from tests.unit.app.smoother import image_of, noisy

SIZES = [(40, 40), (40, 40), (97, 61), (40, 40), (20, 33), (97, 61)]
IMAGES = [image_of(noisy(1, *size, 1, seed=seed)) for seed, size in enumerate(SIZES)]


async def one(engine: Engine, bundle: Bundle, image: Image) -> Restoration:
    with engine.admit(Usage(*demand(image, bundle, 16))) as admission:
        run = EngineRunner(engine, bundle.digest, "fp32", admission, time.monotonic() + 60, 16)
        return await restore(image, bundle, Options(), run)


async def answers(repository: Path, batch_items: int, together: bool) -> tuple[list[bytes], int]:
    """Bytes of every image's answer, and the most items that shared a run."""
    catalogue = Catalogue(repository)
    bundle = catalogue.lookup("tiny", "denoise", 1)
    sizes = []

    class Watching(Engine):
        async def submit(self, item):
            answer = await super().submit(item)
            sizes.append(answer.batch_items)
            return answer

    engine = Watching(catalogue, EngineConfig(batch_items={"fp32": batch_items}, preload=("fp32",)))
    await engine.start()
    try:
        await engine.wait_ready(120)
        if together:
            results = await asyncio.gather(*(one(engine, bundle, image) for image in IMAGES))
        else:
            results = [await one(engine, bundle, image) for image in IMAGES]
    finally:
        await engine.stop()
    return [result.image.pixels.tobytes() for result in results], max(sizes)


def test_batch_mates_and_other_sizes_change_no_byte(built_repository: Path) -> None:
    alone, _ = asyncio.run(answers(built_repository, 1, together=False))
    batched, largest = asyncio.run(answers(built_repository, 4, together=True))
    assert largest > 1
    assert batched == alone


@pytest.mark.parametrize("name", ["tiny", "tiny-x2"])
def test_a_sound_runtime_passes_the_check_of_batches(built_repository: Path, name: str) -> None:
    bundle = find_bundle(built_repository, name)
    assert batch_invariant(load("onnx", bundle, "cpu", "fp32", 1), bundle, 3, 1 << 20)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_batch_that_changes_the_last_bit_of_one_item_is_found(built_repository: Path, place: int) -> None:
    bundle = find_bundle(built_repository, "tiny")
    sound = load("onnx", bundle, "cpu", "fp32", 1)

    class Fickle:
        name, device, precision = "fickle", "cpu", "fp32"

        def run(self, graph: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
            found = {name: array.copy() for name, array in sound.run(graph, arrays).items()}
            if graph == "restore" and len(arrays["image"]) == 3:
                last = found["restored"][place].reshape(-1)[-1:]
                last[:] = np.nextafter(last, np.float32(9))
            return found

    assert not batch_invariant(Fickle(), bundle, 3, 1 << 20)
    assert batch_invariant(Fickle(), bundle, 1, 1 << 20)
