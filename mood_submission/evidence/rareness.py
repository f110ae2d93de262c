"""Turns three kinds of evidence into one scale: how rare a value is among healthy voxels.

Differences of intensities and likelihoods cannot be added. So each value becomes its rarity,
-log10(share of healthy voxels with this value or a higher one).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# The kinds of evidence. The last two need no restorations.
EVIDENCE = ("restoration", "reconstruction", "likelihood")
# A table holds the values that shares 10 ** -EXPONENTS of healthy voxels reach: shares from 1 to 10 ** -4.
EXPONENTS = np.arange(33) / 8


def rarity_table(healthy: np.ndarray) -> list[float]:
    """The values that shares 10 ** -EXPONENTS of healthy voxels reach. They never fall.

    healthy: smoothed evidence of healthy voxels, any shape.
    """
    table: list[float] = np.quantile(healthy, 1 - 10.0**-EXPONENTS).astype(np.float32).tolist()
    return table


def rarity(values: Tensor, table: Sequence[float]) -> Tensor:
    """How rare values are among healthy voxels: 0 for values that all reach, 1 for one in ten, without an upper limit.

    Rarity is linear between the table's values. Beyond the last it rises as steeply as over the last factor of ten.

    values: smoothed evidence, any shape.
    table: what `rarity_table` measured.
    Returns a tensor of the same shape, at least 0.
    """
    # Where the table holds a value several times, its most common share counts.
    known, first = np.unique(np.asarray(table, np.float32), return_index=True)
    exponents = EXPONENTS[first]
    if len(known) == 1:
        # This evidence never varied.
        return torch.where(values > float(known[0]), exponents[0] + 1.0, 0.0).to(values)
    decade = max(float(known[-1] - np.interp(exponents[-1] - 1, exponents, known)), 1e-6)
    known, exponents = np.append(known, known[-1] + 1000 * decade), np.append(exponents, exponents[-1] + 1000)
    x, y = torch.from_numpy(known).to(values), torch.from_numpy(exponents).to(values)
    above = torch.bucketize(values.contiguous(), x, right=True).clamp(1, len(x) - 1)
    low, high = x[above - 1], x[above]
    return torch.lerp(y[above - 1], y[above], ((values - low) / (high - low)).clamp(0, 1))
