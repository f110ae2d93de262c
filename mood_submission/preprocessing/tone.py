"""Intensities: from whatever a file holds to [0, 1], and from there to the network's."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from .anatomy import Anatomy
from .settings import Preprocessing

CHUNK_PIXELS = 1 << 21  # pixels worked on at a time
SAMPLED_VOXELS = 1 << 20  # voxels that a percentile is taken from
RANGE_TOLERANCE = 1e-4  # how far outside [0, 1] still counts as inside
AIR_HU = -200.0  # an abdomen with values below this is in Hounsfield units


PERCENTILES = (25, 50, 75)  # of the inner brain, the landmarks
INNER_MM = (
    10.0  # depth below the brain's surface at which landmarks begin: no rim of dura, sinuses or bad stripping
)
BLOCK_MM = 40.0  # side of the blocks whose percentiles the landmarks are medians of
BLOCK_SHARE = 0.25  # of a block that must be inner brain
EXPONENTS = (0.4, 2.5)  # the least and the largest that a tone curve may have


@dataclass(frozen=True)
class Tone:
    """A tone curve from a file's grey values to the common scale: scale * max(v - low, 0) ** exponent, cut to [0, 1]."""

    low: float
    scale: float
    exponent: float = 1.0

    def __call__(self, data: np.ndarray) -> np.ndarray:
        """data: float32, any shape. Returns a new float32 array."""
        result = np.subtract(data, np.float32(self.low), dtype=np.float32)
        np.maximum(result, 0, out=result)
        if self.exponent != 1:
            np.power(result, np.float32(self.exponent), out=result)
        with np.errstate(over="ignore"):
            np.multiply(result, np.float32(self.scale), out=result)
        return np.clip(result, 0, 1, out=result)


def brain_tone(
    anatomy: Anatomy, low: float, landmarks: tuple[float, float, float], size: float = 1.0
) -> Tone:
    """The tone curve that brings a brain's landmarks to `landmarks`, as nearly as scale and exponent can.

    The landmarks are percentiles of the inner brain: each the median, over blocks of BLOCK_MM, of the block's own, so that
    neither a bright rim nor an anomaly of a tenth of the brain moves them much. low: what the coarse grid is above.
    size: how much larger than life the spacing makes the brain; depths and blocks grow with it.
    """
    inner = anatomy.inner(INNER_MM * size)
    values = anatomy.coarse[inner]
    sides = [max(1, round(BLOCK_MM * size / d)) for d in anatomy.spacing]
    centre = ndimage.center_of_mass(anatomy.mask)
    places = [(np.flatnonzero(np.ones(n)) - c) // side for n, c, side in zip(inner.shape, centre, sides)]
    block = sum(
        (place - place.min()).astype(np.int64).reshape([-1 if a == axis else 1 for a in range(3)]) * 64**axis
        for axis, place in enumerate(places)
    )
    block = np.broadcast_to(block, inner.shape)[inner]
    order = np.argsort(block, kind="stable")
    starts = np.flatnonzero(np.diff(block[order], prepend=-1))
    groups = np.split(values[order], starts[1:])
    full = [group for group in groups if group.size >= BLOCK_SHARE * math.prod(sides)] or [values]
    found = np.median([np.percentile(group, PERCENTILES) for group in full], axis=0).astype(np.float64)
    if found[0] <= 0 or found[2] <= found[0] * (1 + 1e-3):  # nothing to tell apart
        return Tone(low, float(landmarks[1] / found[1]) if found[1] > 0 else 1.0)
    exponent, offset = np.polyfit(np.log(found), np.log(landmarks), 1)
    exponent = float(np.clip(exponent, *EXPONENTS))
    scale = math.exp(float(np.mean(np.log(landmarks)) - exponent * np.mean(np.log(found))))
    return Tone(low, scale, exponent)


def to_unit_range(data: np.ndarray, prep: Preprocessing, out: np.ndarray | None = None) -> np.ndarray:
    """Bring intensities to [0, 1], the scale of the challenge's data.

    data: any shape, float32, finite. Already in [0, 1]: returned as it is, not copied. An abdomen in Hounsfield units
    (anything below -200) is windowed. All else is scaled linearly, min(0, least value) to 0 and the 99.9th percentile
    of the positive values to 1, and clipped.
    out: float32 array of data's shape for the result, which may be `data` itself; by default a new one.
    """
    least, most = float(data.min()), float(data.max())
    if least >= -RANGE_TOLERANCE and most <= 1 + RANGE_TOLERANCE:
        return data
    if prep.region == "abdom" and least < AIR_HU:
        low, high = prep.hounsfield_window
    else:
        low, high = min(0.0, least), _bright_value(data, most)
    scale = 1.0 / (high - low) if high > low else 0.0  # constant volumes become 0
    out = np.empty_like(data, dtype=np.float32) if out is None else out
    for source, target in zip(_slabs(data), _slabs(out, like=data)):
        with np.errstate(over="ignore"):  # infinite is clipped like all that is too bright
            np.subtract(source, np.float32(low), out=target)
            np.multiply(target, np.float32(scale), out=target)
        np.clip(target, 0.0, 1.0, out=target)
    return out


def _bright_value(data: np.ndarray, most: float) -> float:
    """The 99.9th percentile of the positive values on a regular subsample; `most` where it has no positive value."""
    step = max(1, math.ceil((data.size / SAMPLED_VOXELS) ** (1 / data.ndim)))
    sample = data[(slice(None, None, step),) * data.ndim]
    positive = sample[sample > 0]
    return float(np.percentile(positive, 99.9)) if positive.size else most


def _slabs(data: np.ndarray, like: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Views that together are `data`, cut across the axis with the longest stride (of `like` where given)."""
    like = data if like is None else like
    axis = int(np.argmax([abs(stride) * (size > 1) for stride, size in zip(like.strides, like.shape)]))
    step = max(1, CHUNK_PIXELS * data.shape[axis] // data.size)
    for start in range(0, data.shape[axis], step):
        yield data[(slice(None),) * axis + (slice(start, start + step),)]


def intensity_statistics(data: np.ndarray, prep: Preprocessing) -> tuple[float, float]:
    """Mean and standard deviation that `normalise` takes for this volume.

    data: any shape, float, in [0, 1]. "foreground": of the voxels at or above the threshold, summed in float64;
    (0, 1) where there are none, and a deviation below 1e-6 counts as 1. "symmetric": always (0.5, 0.5).
    "landmarks": always the settings' centre and spread.
    """
    if prep.intensity == "symmetric":
        return 0.5, 0.5
    if prep.intensity == "landmarks":
        return prep.centre, prep.spread
    count, total, squares = 0, 0.0, 0.0
    for slab in _slabs(data):
        foreground = slab[slab >= prep.foreground_threshold].astype(np.float64)
        count += foreground.size
        total += float(foreground.sum())
        squares += float(
            np.einsum("i,i", foreground, foreground)
        )  # no BLAS, whose threads would be seen in the sum
    if count == 0:
        return 0.0, 1.0
    mean = total / count
    std = math.sqrt(max(0.0, squares / count - mean * mean))
    return mean, std if std >= 1e-6 else 1.0


def normalise(
    slices: torch.Tensor, mean: float | torch.Tensor, std: float | torch.Tensor, prep: Preprocessing
) -> torch.Tensor:
    """The network's intensities.

    slices: (..., H, W) float in [0, 1]; mean and std: of the slice's volume, numbers or tensors that broadcast, such as
    (B, 1, 1). "foreground": below the threshold exactly 0, else (v - mean) / std. "symmetric": v * 2 - 1, in [-1, 1].
    "landmarks": (v - mean) / std; round a brain, but not in what it encloses, all that is below the threshold is exactly 0.
    """
    if prep.intensity == "symmetric":
        return slices * 2 - 1
    if prep.intensity == "landmarks" and prep.region == "abdom":
        return (slices - mean) / std
    air = slices < prep.foreground_threshold
    if prep.intensity == "landmarks":
        air = open_air(air)
    return ((slices - mean) / std).masked_fill(air, 0.0)


def open_air(air: torch.Tensor) -> torch.Tensor:
    """What of `air`, bool (..., H, W), can be reached from the slice's border: dark places inside the anatomy are none."""
    flat = air.reshape(-1, *air.shape[-2:]).cpu().numpy()
    filled = ndimage.binary_fill_holes(~flat, ndimage.generate_binary_structure(2, 1)[None])
    return torch.from_numpy(~filled).to(air.device).reshape(air.shape)
