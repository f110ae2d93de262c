"""The measures that the field reports beside the challenge's average precision, from counts of scores.

Counts are as in `metrics`: how many negatives and positives have each score, scores rising. Everything here works on these.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...findings.thresholds import CHALLENGE_VOXELS, CORNERS

# How many times as large as an object a component may be that finds it: at least, and at most.
SIZE_RATIO = (0.5, 2.0)
# The false positive rate up to which regions' overlap is integrated.
PRO_LIMIT = 0.3
# The false positive rates at which Dice is reported.
HEALTHY_RATES = (0.01, 0.05)
# Objects are counted at the scores that have these false positive rates of voxels.
OBJECT_RATES = np.geomspace(1e-5, 3e-2, 20)


def rates(negatives: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate at each threshold "score >= value", from the highest value down, each beginning at 0."""
    false = np.append(0, np.cumsum(negatives[::-1], dtype=np.float64))
    true = np.append(0, np.cumsum(positives[::-1], dtype=np.float64))
    return false / max(false[-1], 1), true / max(true[-1], 1)


def auroc(negatives: np.ndarray, positives: np.ndarray) -> float:
    """Area under the ROC curve; ties count half. NaN without positives or negatives."""
    if not negatives.sum() or not positives.sum():
        return float("nan")
    false, true = rates(negatives, positives)
    return float(np.trapezoid(true, false))


def dice_curve(negatives: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Dice of all voxels together at each threshold, from the highest value down (without the one that nothing reaches)."""
    true = np.cumsum(positives[::-1], dtype=np.float64)
    found = true + np.cumsum(negatives[::-1], dtype=np.float64)
    return 2 * true / np.maximum(found + true[-1], 1)


def best_dice(negatives: np.ndarray, positives: np.ndarray) -> float:
    """The highest Dice that any one threshold gives."""
    return float(dice_curve(negatives, positives).max())


def dice_at(negatives: np.ndarray, positives: np.ndarray, healthy: np.ndarray, rate: float) -> float:
    """Dice at the lowest threshold that at most a share `rate` of the `healthy` voxels (counts by score) reach."""
    reached = np.cumsum(healthy[::-1], dtype=np.float64) / max(healthy.sum(), 1)
    allowed = np.flatnonzero(reached <= rate)
    return float(dice_curve(negatives, positives)[allowed[-1]]) if len(allowed) else 0.0


def sensitivity_at(negatives: np.ndarray, positives: np.ndarray, rate: float) -> float:
    """The share of positives above the lowest threshold that at most a share `rate` of the negatives reach."""
    false, true = rates(negatives, positives)
    return float(true[np.flatnonzero(false <= rate)[-1]])


def aupro(regions: np.ndarray, negatives: np.ndarray, limit: float = PRO_LIMIT) -> float:
    """Area under the mean overlap of regions over the false positive rate up to `limit`, divided by it: 0 .. 1.

    regions: (R, K), for each connected anomaly how many of its voxels have each score. NaN without regions.
    """
    if not len(regions):
        return float("nan")
    false, _ = rates(negatives, negatives)
    share = np.cumsum(regions[:, ::-1], 1, dtype=np.float64) / regions.sum(1, keepdims=True)
    overlap = np.append(0, share.mean(0))
    inside = false <= limit
    at_limit = np.interp(limit, false, overlap)
    x, y = np.append(false[inside], limit), np.append(overlap[inside], at_limit)
    return float(np.trapezoid(y, x) / limit)


@dataclass(frozen=True)
class ObjectCounts:
    """Objects of one case at one threshold: how many there are, how many of these were found, and how many were made up."""

    true: int = 0
    found: int = 0
    false: int = 0

    def __add__(self, other: "ObjectCounts") -> "ObjectCounts":
        return ObjectCounts(self.true + other.true, self.found + other.found, self.false + other.false)

    @property
    def f1(self) -> float:
        """2 x found / (2 x found + missed + made up). NaN where there was nothing to find, and nothing was found."""
        total = self.found + self.false + self.true
        return 2 * self.found / total if total else float("nan")


def count_objects(predicted: np.ndarray, label: np.ndarray) -> ObjectCounts:
    """Objects as the challenge has counted them since 2023, as far as participants' published code shows it.

    Voxels that touch at a corner are one component. Components of at least CHALLENGE_VOXELS voxels count. A component finds the
    object that its centre of mass lies in, where its size is between half and double the object's. An object is found once.

    predicted: (X, Y, Z) bool, or numbers of objects as `predict --findings` writes them.
    label: (X, Y, Z) bool.
    """
    objects, sizes = components_of(label)
    if predicted.dtype == bool:
        components, found_sizes = components_of(predicted)
    else:
        components, found_sizes = predicted, np.bincount(predicted.ravel())[1:]
    found: set[int] = set()
    false = 0
    numbers = [number for number in range(1, len(found_sizes) + 1) if found_sizes[number - 1] >= CHALLENGE_VOXELS]
    centres = centres_of(components)
    for number in numbers:
        object_ = int(objects[tuple(np.round(centres[number]).astype(int))])
        size = found_sizes[number - 1]
        # What lies in an object that is too small to count is neither right nor wrong.
        if object_ and sizes[object_ - 1] < CHALLENGE_VOXELS:
            continue
        fits = object_ and SIZE_RATIO[0] <= size / sizes[object_ - 1] <= SIZE_RATIO[1]
        if fits and object_ not in found:
            found.add(object_)
        else:
            false += 1
    return ObjectCounts(int((sizes >= CHALLENGE_VOXELS).sum()), len(found), false)


def centres_of(components: np.ndarray) -> np.ndarray:
    """The centre of mass of each number, as indices: (1 + the highest number, 3). NaN for numbers that no voxel has, and for 0.

    components: (X, Y, Z) of integers, 0 where there is none. Only the other voxels take time.
    """
    places = np.nonzero(components)
    number = components[places]
    with np.errstate(invalid="ignore"):
        sums = [np.bincount(number, weights=axis, minlength=1) for axis in places]
        return np.stack(sums, 1) / np.bincount(number, minlength=1)[:, None]


def components_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the connected parts, and how many voxels each has."""
    labels, _ = ndimage.label(mask, CORNERS)
    return labels, np.bincount(labels.ravel())[1:]
