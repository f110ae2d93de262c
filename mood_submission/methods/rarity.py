"""How rare what is seen would be in a healthy volume: three kinds of evidence, each on the same scale, and their sum.

Not in the paper. Its pixel score is a difference of intensities and its sample score a sum of NLL; neither can be added
to the other, and both are swamped by what is common in healthy people. Here each kind of evidence is first turned into
how rare it is among healthy voxels: r = -log10(share of healthy voxels with as much or more).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .smoothing import smooth_along

EVIDENCE = ("restoration", "reconstruction", "likelihood")  # the last two need no sampling
EXPONENTS = np.arange(33) / 8  # a table's healthy shares: 1, 10 ** -0.125, ... 10 ** -4
ALONG, IN_PLANE = 0.04, {"restoration": 0.03, "reconstruction": 0.03, "likelihood": 0.05}
HALF_RARITY = 4.0  # rarity that scores 0.5


def smooth_evidence(name: str, maps: Tensor, size: int) -> Tensor:
    """Evidence of a volume's slices in order, (N, H, W), on a (N, size, size) grid and smoothed in 3D.

    Finer maps are averaged (H a multiple of size), coarser ones interpolated. Gaussian, standard deviations ALONG of the
    number of slices and IN_PLANE of the side; beyond the border the nearest value.
    """
    if maps.shape[-1] > size:
        maps = F.avg_pool2d(maps[:, None], maps.shape[-1] // size)[:, 0]
    elif maps.shape[-1] < size:
        maps = F.interpolate(maps[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    for axis, sigma in ((0, ALONG * len(maps)), (1, IN_PLANE[name] * size), (2, IN_PLANE[name] * size)):
        maps = smooth_along(maps, axis, sigma)
    return maps


def rarity_table(healthy: np.ndarray) -> list[float]:
    """The values that shares 10 ** -EXPONENTS of `healthy` (any shape) reach; never falling."""
    return np.quantile(healthy, 1 - 10.0**-EXPONENTS).astype(np.float32).tolist()


def rarity(values: Tensor, table: Sequence[float]) -> Tensor:
    """-log10 of the share of healthy voxels with as much or more: 0 for what all have, rising without end.

    Linear between the table's values; beyond the last, as steep as over its last factor of ten.
    """
    known, first = np.unique(np.asarray(table, np.float32), return_index=True)
    exponents = EXPONENTS[first]  # of equal values the most common
    if len(known) == 1:  # evidence that never varies
        return torch.where(values > float(known[0]), exponents[0] + 1.0, 0.0).to(values)
    decade = max(float(known[-1] - np.interp(exponents[-1] - 1, exponents, known)), 1e-6)
    known, exponents = np.append(known, known[-1] + 1000 * decade), np.append(exponents, exponents[-1] + 1000)
    x, y = torch.from_numpy(known).to(values), torch.from_numpy(exponents).to(values)
    above = torch.bucketize(values.contiguous(), x, right=True).clamp(1, len(x) - 1)
    low, high = x[above - 1], x[above]
    return torch.lerp(y[above - 1], y[above], ((values - low) / (high - low)).clamp(0, 1))


def combined_rarity(evidence: Mapping[str, Tensor], tables: Mapping[str, Sequence[float]]) -> Tensor:
    """Root of the summed squares of each kind's rarity: smoothed evidence (N, H, W) by name -> (N, H, W), at least 0."""
    return torch.stack([rarity(maps, tables[name]).square() for name, maps in evidence.items()]).sum(0).sqrt()


def soften(value: Tensor, half: float = HALF_RARITY) -> Tensor:
    """value / (value + half): 0 .. 1, `half` to 0.5, rising everywhere, never 1."""
    return value / (value + half)
