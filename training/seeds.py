"""Random numbers that depend on where they are used, not on when.

Sample i of step t of a run is drawn from (seed, t, i) alone: whatever the number of workers,
processes or restarts, the run sees the same data.
"""

import numpy as np


def sample_generator(seed: int, step: int, index: int) -> np.random.Generator:
    """The generator for sample `index` of step `step`."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, step, index])))
