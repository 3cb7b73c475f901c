"""Random draws of one sample, which depend on nothing but the seed, the pass through the data, and its index.

So they are the same however a batch is split over processes, and after any interruption.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

COLOR, POINTS = 1, 2
"""What draws: each has its own stream."""


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """What the draws of a sample begin from."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generators(seeds: Sequence[int], count: int, stream: int) -> list[torch.Generator]:
    """One generator a sample, in main memory, so that devices of every kind see the same numbers.

    Args:
        seeds: of the samples; empty takes new ones from the default generator.
        count: of samples.
    """
    own = list(seeds) or torch.randint(2**62, (count,)).tolist()
    return [torch.Generator().manual_seed((seed ^ (stream * 0x9E3779B97F4A7C15)) % 2**63) for seed in own]
