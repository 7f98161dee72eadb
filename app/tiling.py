"""Which tiles a frame is worked in: what a memory budget and past failures leave of a bundle's shapes.

Where the bundle's tiling is exact, tiles of any of its shapes add up to the same bytes, so memory may
choose among them. Where it is not, the tile is part of the model, and memory has no say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from app.errors import OutOfMemory
from app.log import event
from models.bundle import Bundle
from models.imaging.image import Image
from models.imaging.tiles import TilePlan, plan_tiles

BUDGET = 1024**3  # bytes that one run may take in a worker
BYTES_PER_PIXEL = 1024.0  # that a run takes, where a manifest does not say
HELD_SHARE = 8  # of the budget, one part is for the tiles of one image that the service holds
FLOAT_BYTES = 4
FULL_PRECISION = "fp32"


class Tiling:
    """The tiles of one service, or of one command; remembers what was too large, for as long as it lives."""

    def __init__(self, budget: int = BUDGET, shrunk: Callable[[str], None] = lambda reference: None) -> None:
        self.budget = budget
        self._shrunk = shrunk  # called with the bundle's reference when smaller tiles take over
        self._failed: dict[tuple[str, str], int] = {}  # digest and precision -> pixels of the smallest tile that failed

    def plan(self, bundle: Bundle, rows: int, columns: int, precision: str = FULL_PRECISION) -> TilePlan:
        """The tiles of a frame: of the shapes that fit, or of the smallest that can cover it."""
        manifest = bundle.manifest
        shapes = sorted(manifest.tiles, key=_pixels)
        fitting = max(1, sum(self._fits(bundle, shape, precision) for shape in shapes))
        for count in range(fitting, len(shapes)):
            try:
                return plan_tiles(rows, columns, shapes, manifest.multiple, manifest.halo, shapes[:count])
            except ValueError:
                continue  # there is no room between two halos: a larger one has to do
        return plan_tiles(rows, columns, shapes, manifest.multiple, manifest.halo)

    def mark(self, bundle: Bundle, image: Image, precision: str) -> str:
        """What an image's tiles add to the identity of its restoration; empty where any give the same pixels.

        That is where tiling is exact: there a retry on a machine with less memory makes the same object.
        It is measured in full precision alone; in fast mode tiles of another shape differ by rounding.
        """
        if bundle.manifest.exact_tiling and precision == FULL_PRECISION:
            return ""
        rows, columns = image.pixels.shape[1:3]
        plan = self.plan(bundle, rows, columns, precision)
        starts = (",".join(str(span.start) for span in spans) for spans in (plan.row_spans, plan.column_spans))
        return f"{plan.shape[0]}x{plan.shape[1]} at " + " x ".join(starts)

    def window(self, bundle: Bundle, plan: TilePlan, most: int) -> int:
        """Tiles of one image to have in flight, `most` at most: the service holds what goes in and comes out."""
        outputs = 2 if bundle.manifest.task == "denoise" else bundle.manifest.scale**2
        held = FLOAT_BYTES * (1 + outputs) * _pixels(plan.shape)
        return max(1, min(most, self.budget // HELD_SHARE // held))

    def shrink(self, bundle: Bundle, plan: TilePlan, precision: str) -> None:
        """Rules out tiles as large as those of a plan that failed. Raises OutOfMemory where no smaller ones can do."""
        key, failed = (bundle.digest, precision), _pixels(plan.shape)
        known = self._failed.get(key, failed + 1)
        self._failed[key] = min(failed, known)
        if _pixels(self.plan(bundle, plan.rows, plan.columns, precision).shape) >= failed:
            raise OutOfMemory(
                f"{bundle.reference} ran out of memory on tiles of {plan.shape[0]} x {plan.shape[1]}, and has "
                "no smaller ones: free memory on its device, or give the service one with more"
            )
        if failed < known:
            self._shrunk(bundle.reference)
            event("out of memory, smaller tiles take over", logging.WARNING, model=bundle.reference, tile=plan.shape)

    def _fits(self, bundle: Bundle, shape: tuple[int, int], precision: str) -> bool:
        manifest = bundle.manifest
        if not manifest.exact_tiling:
            return True
        needed = _pixels(shape) * manifest.bytes_per_pixel.get("restore", BYTES_PER_PIXEL)
        failed = self._failed.get((bundle.digest, precision))
        return needed <= self.budget and (failed is None or _pixels(shape) < failed)


def _pixels(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]
