"""Which slices of a volume are looked at, and where each lies in it."""

import numpy as np


def slice_indices(depth: int, count: int | None = None) -> np.ndarray:
    """Which of a volume's `depth` axial slices to look at: (N,) int64, rising, evenly spread from 0.

    count None, or not below depth: all. (256, 32) gives 0, 8, ..., 248, as published.
    Raises ValueError for a depth or count below 1.
    """
    count = depth if count is None else count
    if depth < 1 or count < 1:
        raise ValueError(f"expected a positive depth and count of slices, found {depth} and {count}")
    count = min(count, depth)
    return np.arange(count, dtype=np.int64) * depth // count


def relative_positions(indices: np.ndarray, depth: int) -> np.ndarray:
    """The networks' condition: (N, 1) float32, from -0.5 at the lowest slice of the volume to 0.5 at the highest."""
    indices = np.asarray(indices, dtype=np.float64).reshape(-1, 1)
    if depth == 1:
        return np.zeros(indices.shape, dtype=np.float32)
    return (indices / (depth - 1) - 0.5).astype(np.float32)
