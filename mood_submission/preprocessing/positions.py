"""Chooses slices of a volume, and tells where each lies in it."""

import numpy as np


def slice_indices(depth: int, count: int | None = None) -> np.ndarray:
    """Indices of axial slices, evenly spread from 0: (N,) int64, rising. As published, (256, 32) gives 0, 8, ..., 248.

    depth: how many slices the volume has.
    count: how many to choose, or all where it has no more. None for all.
    Raises ValueError for a depth or count below 1.
    """
    count = depth if count is None else count
    if depth < 1 or count < 1:
        raise ValueError(f"expected a positive depth and count of slices, found {depth} and {count}")
    count = min(count, depth)
    return np.arange(count, dtype=np.int64) * depth // count


def relative_positions(indices: np.ndarray, depth: int) -> np.ndarray:
    """The networks' positions of slices, (N, 1) float32: -0.5 for the lowest slice of the volume, 0.5 for the highest.

    indices: (N,) along z.
    depth: how many slices the volume has.
    """
    indices = np.asarray(indices, dtype=np.float64).reshape(-1, 1)
    if depth == 1:
        return np.zeros(indices.shape, dtype=np.float32)
    return (indices / (depth - 1) - 0.5).astype(np.float32)
