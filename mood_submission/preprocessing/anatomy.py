"""Where the brain or the body is in a volume, on a coarse grid: what frames and landmarks are found by.

Everything here is relative to the volume's own values and to the anatomy, so that crop, padding and scaling of the array
hardly change it.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..runtime.triples import three

COARSE_MM = 2.5  # no voxel of the coarse grid is made longer than this by averaging
MOST_COARSE = 160  # voxels along an axis of the coarse grid; longer ones are averaged more
TISSUE = 0.1  # share of the bright tissue's median below which a voxel is air
FEWEST = 64  # coarse voxels; what is smaller is no anatomy


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The anatomy of a volume.

    coarse: (X', Y', Z') float32, block means of the volume less its lowest value, or less 0 where that is lower.
    mask: bool of the same shape, one component. tissue: bool, all that is brighter than air, other components too.
    steps: voxels of the volume in a coarse one, by axis. spacing: mm of a coarse voxel, by axis.
    """

    coarse: np.ndarray
    mask: np.ndarray
    tissue: np.ndarray
    steps: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @property
    def centroid(self) -> tuple[float, float, float]:
        """The mask's, in voxels of the volume."""
        middle = ndimage.center_of_mass(self.mask)
        return three(float((c + 0.5) * step - 0.5) for c, step in zip(middle, self.steps))

    @property
    def extent(self) -> tuple[float, float, float]:
        """How long the mask is along each axis, in mm."""
        box = ndimage.find_objects(self.mask.astype(np.uint8))[0]
        return tuple((side.stop - side.start) * d for side, d in zip(box, self.spacing))

    def span(self, axis: int) -> tuple[int, int]:
        """First and last voxel of the volume along an axis with any tissue."""
        places = np.flatnonzero(self.tissue.any(tuple(a for a in range(3) if a != axis)))
        step = self.steps[axis]
        return int(places[0]) * step, int(places[-1]) * step + step - 1

    def inner(self, depth: float) -> np.ndarray:
        """The part of the mask that lies more than `depth` mm below its surface; the mask itself where nothing does."""
        deep = (
            ndimage.distance_transform_edt(np.pad(self.mask, 1), sampling=self.spacing)[1:-1, 1:-1, 1:-1]
            > depth
        )
        return deep if np.count_nonzero(deep) >= FEWEST else self.mask


def find_anatomy(data: np.ndarray, spacing: tuple[float, float, float]) -> Anatomy | None:
    """The largest solid thing in a volume (X, Y, Z), float, any scale; None where there is none.

    spacing: mm, positive. Solid: more than TISSUE of the bright tissue's median, opened by two coarse voxels, and filled
    slice by slice.
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
    parts, count = ndimage.label(solid)
    if count == 0:
        return None
    mask = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    if np.count_nonzero(mask) < FEWEST:
        return None
    return Anatomy(coarse, mask, tissue, steps, three(d * step for d, step in zip(spacing, steps)))


@dataclass(frozen=True, eq=False)
class Body:
    """A mask on a coarse grid, bool (X', Y', Z'), of blocks of `steps` voxels."""

    mask: np.ndarray
    steps: tuple[int, int, int]

    def plane(self, z: int, shape: tuple[int, int]) -> np.ndarray:
        """The mask of the volume's slice z, bool (X, Y)."""
        coarse = self.mask[:, :, min(z // self.steps[2], self.mask.shape[2] - 1)]
        return np.repeat(np.repeat(coarse, self.steps[0], 0), self.steps[1], 1)[: shape[0], : shape[1]]


def coarse_steps(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> tuple[int, int, int]:
    """How many voxels along each axis of a volume make one of its coarse grid."""
    return three(max(1, int(COARSE_MM // d), math.ceil(n / MOST_COARSE)) for d, n in zip(spacing, shape))


def block_means(data: np.ndarray, steps: tuple[int, int, int]) -> np.ndarray:
    """Means of blocks of `steps` voxels, float32; at the far border of what is left of a block."""
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
    """The threshold halfway between the means of what is above and below it (Ridler & Calvard, 1978)."""
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
