"""Finds the brain or the body in a volume, on a coarse grid. Frames and landmarks are placed by it.

All thresholds are relative to the volume's own values. So cropping, padding and scaling hardly change the result.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..runtime.triples import three

# Averaging makes no voxel of the coarse grid longer than this, except to keep to MOST_COARSE.
COARSE_MM = 2.5
# The most voxels along an axis of the coarse grid.
MOST_COARSE = 160
# The share of the bright tissue's median below which a voxel is air.
TISSUE = 0.1
# The fewest coarse voxels that an anatomy has.
FEWEST = 64


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The anatomy of a volume.

    coarse: (X', Y', Z') float32, means of blocks of the volume, shifted so that none is negative.
    mask: (X', Y', Z') bool, the anatomy, one component.
    tissue: (X', Y', Z') bool, all that is brighter than air, in any component.
    steps: voxels of the volume in a coarse voxel, by axis.
    spacing: size of a coarse voxel in mm, by axis.
    """

    coarse: np.ndarray
    mask: np.ndarray
    tissue: np.ndarray
    steps: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @property
    def centroid(self) -> tuple[float, float, float]:
        """The centre of the mask, in voxels of the volume."""
        middle = ndimage.center_of_mass(self.mask)
        return three(float((c + 0.5) * step - 0.5) for c, step in zip(middle, self.steps))

    @property
    def extent(self) -> tuple[float, float, float]:
        """How long the mask is along each axis, in mm."""
        box = ndimage.find_objects(self.mask.astype(np.uint8))[0]
        return three((side.stop - side.start) * d for side, d in zip(box, self.spacing))

    def span(self, axis: int) -> tuple[int, int]:
        """The first and the last voxel of the volume along an axis that have tissue."""
        places = np.flatnonzero(self.tissue.any(tuple(a for a in range(3) if a != axis)))
        step = self.steps[axis]
        return int(places[0]) * step, int(places[-1]) * step + step - 1

    def inner(self, depth: float) -> np.ndarray:
        """The mask more than `depth` mm below its surface. The whole mask where fewer than FEWEST voxels are so deep."""
        deep = ndimage.distance_transform_edt(np.pad(self.mask, 1), sampling=self.spacing)[1:-1, 1:-1, 1:-1] > depth
        return deep if np.count_nonzero(deep) >= FEWEST else self.mask


def find_anatomy(data: np.ndarray, spacing: tuple[float, float, float]) -> Anatomy | None:
    """The largest solid object in a volume, or None.

    Voxels are solid above TISSUE of the bright tissue's median, after opening by two coarse voxels and filling each slice.

    data: (X, Y, Z) float, on any scale.
    spacing: (x, y, z) in mm, positive.
    """
    steps = coarse_steps(data.shape, spacing)
    coarse = block_means(data, steps)
    coarse -= min(0.0, float(coarse.min()))
    middle = _between(coarse)
    bright = coarse[coarse > middle]
    if bright.size < FEWEST:
        return None
    tissue = coarse > TISSUE * float(np.median(bright))
    cross = ndimage.generate_binary_structure(3, 1)
    solid = ndimage.binary_opening(tissue, cross, 2) if min(tissue.shape) > 8 else tissue
    solid = ndimage.binary_fill_holes(solid, ndimage.generate_binary_structure(2, 1)[:, :, None])
    labels, count = ndimage.label(solid)
    if count == 0:
        return None
    mask = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    if np.count_nonzero(mask) < FEWEST:
        return None
    return Anatomy(coarse, mask, tissue, steps, three(d * step for d, step in zip(spacing, steps)))


@dataclass(frozen=True, eq=False)
class Body:
    """A body on a coarse grid.

    mask: (X', Y', Z') bool.
    steps: voxels of the volume in a coarse voxel, by axis.
    """

    mask: np.ndarray
    steps: tuple[int, int, int]

    def plane(self, z: int, shape: tuple[int, int]) -> np.ndarray:
        """The mask of the volume's slice z, bool (X, Y). shape: (X, Y)."""
        coarse = self.mask[:, :, min(z // self.steps[2], self.mask.shape[2] - 1)]
        return np.repeat(np.repeat(coarse, self.steps[0], 0), self.steps[1], 1)[: shape[0], : shape[1]]


def coarse_steps(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> tuple[int, int, int]:
    """How many voxels along each axis of a volume make one coarse voxel. spacing: (x, y, z) in mm."""
    return three(max(1, int(COARSE_MM // d), math.ceil(n / MOST_COARSE)) for d, n in zip(spacing, shape))


def block_means(data: np.ndarray, steps: tuple[int, int, int]) -> np.ndarray:
    """Means of blocks of `steps` voxels, float32. Blocks at the far border may be smaller."""
    (a, b, c), (X, Y, Z) = steps, data.shape
    if steps == (1, 1, 1):
        return np.array(data, np.float32)
    result = np.empty((-(-X // a), -(-Y // b), -(-Z // c)), np.float32)
    counts = [np.diff(np.append(np.arange(0, n, step), n)) for n, step in zip(data.shape, steps)]
    for z in range(result.shape[2]):
        plane = data[:, :, z * c : (z + 1) * c].mean(2, dtype=np.float32)
        rows = np.add.reduceat(plane, np.arange(0, X, a), axis=0)
        result[:, :, z] = np.add.reduceat(rows, np.arange(0, Y, b), axis=1) / np.outer(counts[0], counts[1])
    return result


def _between(values: np.ndarray) -> float:
    """The threshold that is halfway between the mean above it and the mean below it (Ridler & Calvard, 1978)."""
    threshold = float(values.mean(dtype=np.float64))
    for _ in range(20):
        above, below = values[values > threshold], values[values <= threshold]
        if not above.size or not below.size:
            break
        new = (float(above.mean(dtype=np.float64)) + float(below.mean(dtype=np.float64))) / 2
        if abs(new - threshold) <= 1e-4 * abs(new):
            return new
        threshold = new
    return threshold
