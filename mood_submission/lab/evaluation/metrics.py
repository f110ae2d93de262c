"""Average precision and its interval over volumes, from counts by score.

Average precision needs scores only as counts by value. Scores read back as float16 and clipped to [0, 1] have at most
15361 values, so a volume of any size becomes two short rows of counts, exactly, and the bootstrap works on these.
"""

import numpy as np

# The float16 numbers 0 .. 1 are the bit patterns 0 .. 0x3C00, in the same order; above 0x7C00 is NaN, 0x8000 the sign.
ONE, INFINITY = 0x3C00, 0x7C00
VALUES = ONE + 1
CHUNK = 1 << 22


def score_counts(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many voxels have each score: int64 (2, 15361), row 0 the negatives, row 1 the positives, score rising.

    `scores`: float16, any shape; clipped to [0, 1], NaN counts as 0. `labels`: bool, same shape.
    """
    bits, labels = np.ascontiguousarray(scores).view(np.uint16).ravel(), np.ascontiguousarray(labels).ravel()
    counts = np.zeros((2, VALUES), np.int64)
    for start in range(0, bits.size, CHUNK):
        part = bits[start : start + CHUNK]
        # The patterns of NaN, and of all negative numbers, are above that of infinity.
        part = np.where(part > INFINITY, 0, np.minimum(part, ONE))
        positive = part[labels[start : start + CHUNK]]
        in_positive = np.bincount(positive, minlength=VALUES)
        counts[0] += np.bincount(part, minlength=VALUES) - in_positive
        counts[1] += in_positive
    return counts


def average_precision(negatives: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Average precision, (...), from counts (..., K) by score, rising: scikit-learn's sum of recall steps x precision.

    NaN where there are no positives.
    """
    true = np.cumsum(positives[..., ::-1], -1, dtype=np.float64)
    found = true + np.cumsum(negatives[..., ::-1], -1, dtype=np.float64)
    precision = np.divide(true, found, out=np.zeros_like(true), where=found > 0)
    with np.errstate(invalid="ignore"):
        return (precision * positives[..., ::-1]).sum(-1) / true[..., -1]


def bootstrap_interval(counts: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """The 2.5% and 97.5% points of average precision over volumes drawn with replacement.

    `counts`: (volumes, 2, K). Resamples without a positive, which have no average precision, are left out.
    """
    volumes = len(counts)
    # Empty bins only cost time.
    counts = counts[:, :, counts.any((0, 1))].astype(np.float64)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(volumes, np.full(volumes, 1 / volumes), size=resamples).astype(np.float64)
    resampled = []
    for start in range(0, resamples, 50):
        negatives, positives = (times[start : start + 50] @ counts[:, row] for row in (0, 1))
        resampled.append(average_precision(negatives, positives))
    low, high = np.nanpercentile(np.concatenate(resampled), [2.5, 97.5])
    return float(low), float(high)
