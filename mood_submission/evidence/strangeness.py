"""How far a volume as a whole lies from healthy ones: in what is usual in it, and in how it looks at a coarse scale.

Not in the paper. A detector of anomalies compares places of a volume with each other. It does not see what is wrong in all of
them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# A value is strange where it lies beyond the range of healthy hold-out volumes by more than MARGIN of that range, and by more
# than LEAST_MARGIN of the range's upper end.
MARGIN, LEAST_MARGIN = 0.5, 0.05
# Limits lie at least twice this apart, even where all healthy volumes have the value 0.
LEAST_WIDTH = 1e-6
# A coarse look at a volume has so many places along z, and so many along each side of a slice.
COARSE = 8
# A place of the coarse look counts where at least this share of the healthy volumes reaches it.
SHARED = 0.5
# No place differs by more than so many standard deviations.
MOST_DEVIATIONS = 8.0


def limits(usual: Sequence[float]) -> tuple[float, float]:
    """The values that are not strange. usual: the lowest and the highest value of healthy hold-out volumes."""
    low, high = usual
    margin = max(MARGIN * (high - low), LEAST_MARGIN * abs(high), LEAST_WIDTH)
    return low - margin, high + margin


def bounded(value: float, usual: Sequence[float] | None) -> float:
    """The value, or the nearest that is not strange. usual: as for `limits`; None for no bounds."""
    if usual is None:
        return value
    low, high = limits(usual)
    return min(max(value, low), high)


def excess(value: float, usual: Sequence[float], one_sided: bool = False) -> float:
    """How far a value is beyond the limits, in widths between them: 0 within.

    usual: as for `limits`. one_sided: whether no value is too low.
    """
    low, high = limits(usual)
    return max(value - high, 0.0 if one_sided else low - value, 0.0) / (high - low)


def coarse_look(slices: Tensor, position: Tensor) -> np.ndarray:
    """What a volume shows in COARSE places along z and along each side of its slices: (2, COARSE, COARSE, COARSE) float32.

    First the mean of each place, then the share of it that shows anatomy. Places without a slice are NaN.
    slices: (N, S, S) in the network's intensities; air is exactly 0. position: (N, 1), -0.5 .. 0.5, the place along z.
    """
    shown = torch.stack([slices.float(), (slices != 0).float()], 1)
    pooled = F.adaptive_avg_pool2d(shown, COARSE).cpu().numpy()
    places = ((position[:, 0].cpu().numpy() + 0.5) * COARSE).astype(np.int64).clip(0, COARSE - 1)
    look = np.full((2, COARSE, COARSE, COARSE), np.nan, np.float32)
    for place in np.unique(places):
        look[:, place] = pooled[places == place].mean(0)
    return look


def typical_of(looks: Sequence[np.ndarray]) -> dict[str, list[float | None]]:
    """How healthy volumes look: the mean and the standard deviation of each place of their coarse looks, in order.

    looks: of each volume, as `coarse_look` gives them. None stands for places that fewer than SHARED of them reach.
    """
    # (volumes, 2, places).
    values = np.stack(looks).reshape(len(looks), 2, -1).astype(np.float64)
    reached = np.isfinite(values)
    shared = reached.mean(0) >= SHARED
    counts = np.maximum(reached.sum(0), 1)
    mean = np.where(reached, values, 0).sum(0) / counts
    variance = np.where(reached, (values - mean) ** 2, 0).sum(0) / counts
    # Places that hardly vary among few volumes, such as air, may vary more among all. So all are given a share of what places
    # vary by on average.
    average = np.where(shared, variance, 0).sum(1, keepdims=True) / np.maximum(shared.sum(1, keepdims=True), 1)
    deviation = np.sqrt((variance + average) / 2 + 1e-6)
    return {
        name: [round(float(value), 4) if kept else None for value, kept in zip(numbers.ravel(), shared.ravel())]
        for name, numbers in (("mean", mean), ("deviation", deviation))
    }


def distance_from(look: np.ndarray, typical: Mapping[str, Sequence[float | None]]) -> float:
    """How far a coarse look is from healthy ones: the root mean square of its deviations, in standard deviations.

    look: as `coarse_look` gives it. typical: as `typical_of` gives it. It is 0 where they share no place.
    """
    mean, deviation = (np.array(typical[name], np.float64) for name in ("mean", "deviation"))
    differences = (look.reshape(-1) - mean) / deviation
    known = differences[np.isfinite(differences)].clip(-MOST_DEVIATIONS, MOST_DEVIATIONS)
    return float(np.sqrt((known**2).mean())) if len(known) else 0.0


def usual_range(values: Sequence[float]) -> list[float]:
    """The lowest and the highest of some values."""
    return [min(values), max(values)]


def distances_among(looks: Sequence[np.ndarray]) -> list[float]:
    """How far each of some healthy looks is from the others. looks: at least two."""
    return [
        distance_from(look, typical_of([*looks[:number], *looks[number + 1 :]])) for number, look in enumerate(looks)
    ]
