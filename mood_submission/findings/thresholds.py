"""What scores mean: how often healthy hold-out scans reach them. `calibrate` measures it, the model file stores it."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

# Shares of healthy voxels whose scores are measured.
VOXEL_SHARES = (0.01, 0.001, 0.0001)
# Shares of healthy volumes, by their sample scores.
FALSE_ALARMS = (0.05, 0.10)
# Voxels that touch at a corner are connected.
CORNERS = np.ones((3, 3, 3), bool)
# Since 2023 the challenge counts components of more than 8 voxels.
CHALLENGE_VOXELS = 9
# The number of scores at which objects are counted.
LEVELS = 48


@dataclass(frozen=True)
class HealthyVoxels:
    """What was measured of one method's voxel scores on healthy hold-out volumes.

    volumes: how many volumes were measured.
    exceeded: by share of voxels (VOXEL_SHARES, as text), the score that this share exceeds.
    levels: voxel scores, rising.
    false_objects: how many objects a healthy volume shows at each level. It never rises.
    """

    volumes: int
    exceeded: dict[str, float]
    levels: list[float]
    false_objects: list[float]

    @classmethod
    def of(
        cls, scores: Sequence[np.ndarray], least: Sequence[int], progress: Callable[[], object] = lambda: None
    ) -> "HealthyVoxels":
        """Measure volumes.

        scores: (X, Y, Z) of each, in [0, 1].
        least: the fewest voxels of an object, in each.
        progress: called after each volume.
        Raises ValueError without volumes.
        """
        if not scores:
            raise ValueError("expected scores of healthy volumes, found none")
        return cls(len(scores), _exceeded(scores), *false_objects_table(scores, least, progress))

    def threshold(self, false_objects: float) -> float:
        """The lowest level at which a healthy volume shows at most `false_objects` objects, or else the highest level."""
        for level, count in zip(self.levels, self.false_objects):
            if count <= false_objects:
                return level
        return self.levels[-1]

    def expected(self, score: float) -> float:
        """How many objects of this score or a higher one a healthy volume shows."""
        place = bisect_right(self.levels, score) - 1
        return self.false_objects[max(place, 0)]


def false_objects_table(
    scores: Sequence[np.ndarray], least: Sequence[int], progress: Callable[[], object] = lambda: None
) -> tuple[list[float], list[float]]:
    """Levels of the voxel score, and how many objects a healthy volume shows at each.

    A count is the largest at its level or any above, so counts never rise. The last level is above all scores, and has none.

    scores: (X, Y, Z) of each healthy volume, in [0, 1].
    least: the fewest voxels of an object, in each volume.
    progress: called after each volume.
    """
    tops = np.concatenate([np.partition(s.ravel(), -_many(s))[-_many(s) :] for s in scores])
    low, high = float(np.median(tops)), float(tops.max())
    levels = np.linspace(low, high, LEVELS - 1).tolist() + [math.nextafter(high, 1.0)]
    totals = np.zeros(LEVELS)
    for volume, fewest in zip(scores, least):
        totals += object_counts(volume, levels, fewest)
        progress()
    counts = (totals / len(scores)).tolist()
    falling = np.maximum.accumulate(counts[::-1])[::-1]
    return levels, [float(count) for count in falling]


def _many(scores: np.ndarray) -> int:
    """A hundredth of the voxels. Levels are placed among the highest of these."""
    return max(1, scores.size // 100)


def object_counts(scores: np.ndarray, levels: Sequence[float], least: int) -> list[int]:
    """How many objects a volume shows at each of some rising levels.

    An object is a connected component with at least `least` voxels, all of them at the level or above. It lies within an object
    of every lower level. So each level is searched only where the level before has shown objects.

    scores: (X, Y, Z). levels: rising.
    """
    parts, counts = [scores], []
    for level in levels:
        parts = [shown for part in parts for shown in _objects(part, level, least)]
        counts.append(len(parts))
    return counts


def _objects(scores: np.ndarray, level: float, least: int) -> Iterator[np.ndarray]:
    """The objects at a level, each in the box round it, with -inf where the object is not."""
    labels, count = ndimage.label(scores >= _not_below(level, scores.dtype), CORNERS)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        if sizes[number] >= least:
            yield np.where(labels[box] == number, scores[box], -np.inf).astype(scores.dtype)


def _not_below(level: float, dtype: np.dtype) -> np.ndarray:
    """The lowest number of a type that is not below a level: float16 knows few levels, and would round it down."""
    value = np.array(level, dtype)
    return value if float(value) >= level else np.nextafter(value, np.array(np.inf, dtype))


def false_alarm_score(healthy: Sequence[float], share: float) -> float:
    """The sample score that at most a share of the healthy volumes exceed."""
    return float(np.quantile(healthy, 1 - share, method="higher"))


def _exceeded(voxels: Sequence[np.ndarray]) -> dict[str, float]:
    """The score that each of VOXEL_SHARES of the voxels exceeds. All volumes count alike, whatever their size."""
    quantiles = np.mean([np.quantile(scores, [1 - share for share in VOXEL_SHARES]) for scores in voxels], 0)
    return {str(share): float(quantile) for share, quantile in zip(VOXEL_SHARES, quantiles)}
