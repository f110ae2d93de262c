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
# Scores are ordinary up to the one that this share of a volume's voxels exceeds, of those that have any.
ORDINARY_SHARE = 0.05
# The number of scores at which objects are counted.
LEVELS = 48


@dataclass(frozen=True)
class HealthyVoxels:
    """What was measured of one method's voxel scores on healthy hold-out volumes.

    volumes: how many volumes were measured.
    exceeded: by share of voxels (VOXEL_SHARES, as text), the score that this share exceeds.
    levels: voxel scores, rising.
    false_objects: how many objects a healthy volume shows at each level. It never rises.
    ordinary: the median of the volumes' ordinary scores (`ordinary_score`). None where it was not measured.
    """

    volumes: int
    exceeded: dict[str, float]
    levels: list[float]
    false_objects: list[float]
    ordinary: float | None = None

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
        levels, false_objects = false_objects_table(scores, least, progress)
        ordinary = float(np.median([ordinary_score(volume) for volume in scores]))
        return cls(len(scores), _exceeded(scores), levels, false_objects, ordinary)

    @property
    def ground(self) -> float:
        """The lowest score at which an object that grows may have its outline: what the least share that was measured exceeds."""
        return max(self.exceeded.values(), default=0.0)

    def threshold(self, false_objects: float) -> float:
        """The lowest level at which a healthy volume shows at most `false_objects` objects, or else the highest level."""
        for level, count in zip(self.levels, self.false_objects):
            if count <= false_objects:
                return level
        return self.levels[-1]

    def threshold_in(self, scores: np.ndarray, false_objects: float) -> float:
        """The score that objects of a volume reach which stand out: `threshold`, or more where the volume's ordinary scores lie
        above those of most healthy volumes that were measured, as on a scanner that the weights do not know.

        Then it is as much higher as they are, in logits, but no higher than any healthy volume's object: what covers a large part
        of a volume is ordinary there, and must not hide itself.
        scores: (X, Y, Z) of the volume, 0 .. 1.
        """
        level = self.threshold(false_objects)
        if self.ordinary is None:
            return level
        above = _logit(ordinary_score(scores)) - _logit(self.ordinary)
        if above <= 0:
            return level
        return max(level, min(float(1 / (1 + np.exp(-_logit(level) - above))), self.threshold(0)))

    def expected(self, score: float) -> float:
        """How many objects of this score or a higher one a healthy volume shows."""
        place = bisect_right(self.levels, score) - 1
        return self.false_objects[max(place, 0)]


def ordinary_score(scores: np.ndarray) -> float:
    """The score that ORDINARY_SHARE of the voxels exceed which have a score above 0. 0 where none has. scores: of any shape."""
    scored = scores[scores > 0]
    if not scored.size:
        return 0.0
    place = int((1 - ORDINARY_SHARE) * (scored.size - 1))
    # In place, since a volume may have a hundred million voxels.
    scored.partition(place)
    return float(scored[place])


def _logit(score: float) -> float:
    """A score's logit. Those of 0 and 1 are the lowest and the highest that float32 tells from them."""
    inside = min(max(score, 1e-7), 1 - 1e-7)
    return math.log(inside) - math.log1p(-inside)


def false_objects_table(
    scores: Sequence[np.ndarray], least: Sequence[int], progress: Callable[[], object] = lambda: None
) -> tuple[list[float], list[float]]:
    """Levels of the voxel score, and how many objects a healthy volume shows at each.

    A count is the largest at its level or any above, so counts never rise. The last level is above all scores, and has none; where scores reach 1, it is 1.

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
