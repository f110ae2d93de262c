"""What scores mean: how often healthy hold-out scans reach them. Measured by `calibrate`, kept in the model file."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

VOXEL_SHARES = (0.01, 0.001, 0.0001)  # of healthy voxels
FALSE_ALARMS = (0.05, 0.10)  # of healthy volumes, by their sample scores
CORNERS = np.ones((3, 3, 3), bool)  # voxels that touch at a corner are one object
CHALLENGE_VOXELS = 9  # since 2023 the challenge counts components of more than 8 voxels
LEVELS = 48  # scores at which objects are counted


@dataclass(frozen=True)
class HealthyVoxels:
    """Voxel scores of healthy hold-out volumes by one method.

    volumes: how many were measured. exceeded: the score that each of VOXEL_SHARES (as text) of their voxels exceeds.
    levels, false_objects: at each of these scores, rising, how many objects a healthy volume shows; never rising.
    """

    volumes: int
    exceeded: dict[str, float]
    levels: list[float]
    false_objects: list[float]

    @classmethod
    def of(cls, scores: Sequence[np.ndarray], least: Sequence[int]) -> "HealthyVoxels":
        """Measured on scores (X, Y, Z) of each volume. least: how many voxels an object has at least, in each.

        Raises ValueError for no volumes.
        """
        if not scores:
            raise ValueError("expected scores of healthy volumes, found none")
        exceeded = {str(share): _exceeded(scores, share) for share in VOXEL_SHARES}
        return cls(len(scores), exceeded, *false_objects_table(scores, least))

    def threshold(self, false_objects: float) -> float:
        """The lowest voxel score at which a healthy volume shows at most so many objects, or the highest level measured."""
        for level, count in zip(self.levels, self.false_objects):
            if count <= false_objects:
                return level
        return self.levels[-1]

    def expected(self, score: float) -> float:
        """How many objects of such a score, or of a higher one, a healthy volume shows."""
        place = bisect_right(self.levels, score) - 1
        return self.false_objects[max(place, 0)]


def false_objects_table(
    scores: Sequence[np.ndarray], least: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Levels of the voxel score, and how many objects a healthy volume shows at each.

    scores: (X, Y, Z) in [0, 1] of each healthy volume. least: how many voxels an object has at least, in each. The counts are
    the most at the level or above it, so that they never rise; from the highest score of all on they are 0.
    """
    tops = np.concatenate([np.partition(s.ravel(), -_many(s))[-_many(s) :] for s in scores])
    low, high = float(np.median(tops)), float(tops.max())
    levels = np.linspace(low, high, LEVELS - 1).tolist() + [math.nextafter(high, 1.0)]
    counts = [sum(how_many(s >= level, n) for s, n in zip(scores, least)) / len(scores) for level in levels]
    falling = np.maximum.accumulate(counts[::-1])[::-1]
    return levels, [float(count) for count in falling]


def _many(scores: np.ndarray) -> int:
    """A hundredth of the voxels: objects are looked for among the highest of these."""
    return max(1, scores.size // 100)


def how_many(mask: np.ndarray, least: int) -> int:
    """How many connected parts of at least so many voxels a mask has."""
    if not mask.any():
        return 0
    labels, _ = ndimage.label(mask[ndimage.find_objects(mask.astype(np.uint8))[0]], CORNERS)
    return int(np.count_nonzero(np.bincount(labels.ravel())[1:] >= least))


def false_alarm_score(healthy: Sequence[float], share: float) -> float:
    """The sample score that at most a share of healthy volumes' scores exceed."""
    return float(np.quantile(healthy, 1 - share, method="higher"))


def _exceeded(voxels: Sequence[np.ndarray], share: float) -> float:
    """The score that a share of the voxels exceeds; each volume counts alike, however many voxels it has."""
    return float(np.mean([np.quantile(scores, 1 - share) for scores in voxels]))
