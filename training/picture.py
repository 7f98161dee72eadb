"""A before/after picture: `python -m training.picture IN OUT --crop TOP LEFT SIDE [--noise SIGMA]`.

Shows a crop before and after, and what was removed (twice amplified, around mid-grey).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from models.bundle import find_bundle
from models.imaging.codec import decode
from models.imaging.values import to_unit
from training.data.noise import NoiseLaw, Plane, add_noise
from training.restorer import LocalBundle
from training.seeds import sample_generator

GAP = 6  # white pixels between the panels
AMPLIFIED = 2.0


def panels(before: Plane, after: Plane) -> Plane:
    """Before, after and the difference, side by side, each on one common grey scale from 0 to 1."""
    low, high = np.percentile(before, [0.5, 99.5])
    shown = [(x - low) / (high - low) for x in (before, after)]
    shown.append(0.5 + AMPLIFIED * (shown[0] - shown[1]))
    gap = np.ones((before.shape[0], GAP), dtype=np.float32)
    return np.concatenate([shown[0], gap, shown[1], gap, shown[2]], axis=1).clip(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--crop", type=int, nargs=3, metavar=("TOP", "LEFT", "SIDE"), required=True)
    parser.add_argument("--noise", type=float, default=0.0, help="white noise to add, share of the 99.5th percentile")
    parser.add_argument("--enlarge", type=int, default=1, help="shown pixels for one image pixel")
    parser.add_argument("--model", default="denoise")
    parser.add_argument("--repository", type=Path, default=Path(__file__).parents[1] / "models" / "bundles")
    options = parser.parse_args()
    plane = to_unit(decode(options.input.read_bytes()))[0, 0]
    law = NoiseLaw(0.0, float(options.noise * np.percentile(plane, 99.5)) ** 2)
    plane = add_noise(plane, law, sample_generator(0, 0, 0))
    restored = LocalBundle(find_bundle(options.repository, options.model)).restore(plane)
    top, left, side = options.crop
    part = np.s_[top : top + side, left : left + side]
    picture = np.kron(panels(plane[part], restored[part]), np.ones((options.enlarge, options.enlarge)))
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
