"""Maps intensities from a file's values to [0, 1], and from there to the network's."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from .anatomy import Anatomy
from .settings import Preprocessing

# How many pixels are worked on at a time.
CHUNK_PIXELS = 1 << 21
# About how many voxels a percentile is taken from.
SAMPLED_VOXELS = 1 << 20
# Values this far outside [0, 1] count as inside.
RANGE_TOLERANCE = 1e-4
# An abdomen with values below this is in Hounsfield units.
AIR_HU = -200.0

# Percentiles of the inner brain that are its landmarks.
PERCENTILES = (25, 50, 75)
# Depth of the inner brain below the surface. Above it there may be dura, sinuses or rims of bad stripping.
INNER_MM = 10.0
# Landmarks are medians over blocks of this side.
BLOCK_MM = 40.0
# The least share of a block that is inner brain.
BLOCK_SHARE = 0.25
# The least and the largest exponent of a tone curve.
EXPONENTS = (0.4, 2.5)


@dataclass(frozen=True)
class Tone:
    """A tone curve from a file's grey values v to the common scale: scale * max(v - low, 0) ** exponent, cut to [0, 1]."""

    low: float
    scale: float
    exponent: float = 1.0

    def __call__(self, data: np.ndarray) -> np.ndarray:
        """A new array on the common scale, float32. data: float32, any shape."""
        result: np.ndarray = np.subtract(data, np.float32(self.low), dtype=np.float32)
        np.maximum(result, 0, out=result)
        if self.exponent != 1:
            np.power(result, np.float32(self.exponent), out=result)
        with np.errstate(over="ignore"):
            np.multiply(result, np.float32(self.scale), out=result)
        np.clip(result, 0, 1, out=result)
        return result


def brain_tone(anatomy: Anatomy, low: float, landmarks: tuple[float, float, float], size: float = 1.0) -> Tone:
    """The tone curve that brings a brain's landmarks as near to `landmarks` as its scale and exponent can.

    A landmark is a percentile of the inner brain: the median of the percentiles of blocks of BLOCK_MM. So neither a bright rim
    nor an anomaly of a tenth of the brain moves it much.

    anatomy: the brain.
    low: the grey value that becomes 0.
    landmarks: three rising values in [0, 1], for PERCENTILES.
    size: how many times too large the brain is by its spacing. Depths and blocks grow with it.
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
    if found[0] <= 0 or found[2] <= found[0] * (1 + 1e-3):
        # The landmarks are too close to fit an exponent.
        return Tone(low, float(landmarks[1] / found[1]) if found[1] > 0 else 1.0)
    exponent, offset = np.polyfit(np.log(found), np.log(landmarks), 1)
    exponent = float(np.clip(exponent, *EXPONENTS))
    scale = math.exp(float(np.mean(np.log(landmarks)) - exponent * np.mean(np.log(found))))
    return Tone(low, scale, exponent)


def to_unit_range(data: np.ndarray, prep: Preprocessing, out: np.ndarray | None = None) -> np.ndarray:
    """Bring intensities to [0, 1], the scale of the challenge's data.

    Data in [0, 1] is returned as it is, not copied. An abdomen with values below -200 is in Hounsfield units, and is windowed.
    All else is scaled linearly and clipped: min(0, least value) becomes 0, the 99.9th percentile of the positive values 1.

    data: float32, any shape, finite.
    prep: the settings.
    out: float32 array of data's shape for the result. It may be `data`. None for a new one.
    """
    least, most = float(data.min()), float(data.max())
    if least >= -RANGE_TOLERANCE and most <= 1 + RANGE_TOLERANCE:
        return data
    if prep.region == "abdom" and least < AIR_HU:
        low, high = prep.hounsfield_window
    else:
        low, high = min(0.0, least), _bright_value(data, most)
    # Constant volumes become 0.
    scale = 1.0 / (high - low) if high > low else 0.0
    out = np.empty_like(data, dtype=np.float32) if out is None else out
    for source, target in zip(_slabs(data), _slabs(out, like=data)):
        # Infinity is clipped, as all that is too bright.
        with np.errstate(over="ignore"):
            np.subtract(source, np.float32(low), out=target)
            np.multiply(target, np.float32(scale), out=target)
        np.clip(target, 0.0, 1.0, out=target)
    return out


def _bright_value(data: np.ndarray, most: float) -> float:
    """The 99.9th percentile of the positive values of a regular subsample. `most` where it has none."""
    step = max(1, math.ceil((data.size / SAMPLED_VOXELS) ** (1 / data.ndim)))
    sample = data[(slice(None, None, step),) * data.ndim]
    positive = sample[sample > 0]
    return float(np.percentile(positive, 99.9)) if positive.size else most


def _slabs(data: np.ndarray, like: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Views that together are `data`, cut across the axis with the longest stride. like: the array whose strides count."""
    like = data if like is None else like
    axis = int(np.argmax([abs(stride) * (size > 1) for stride, size in zip(like.strides, like.shape)]))
    step = max(1, CHUNK_PIXELS * data.shape[axis] // data.size)
    for start in range(0, data.shape[axis], step):
        yield data[(slice(None),) * axis + (slice(start, start + step),)]


def intensity_statistics(data: np.ndarray, prep: Preprocessing) -> tuple[float, float]:
    """Mean and standard deviation of a volume, for `normalise`.

    For "foreground" they are those of the voxels at or above the threshold, summed in float64: (0, 1) without such voxels, and
    1 for a deviation below 1e-6. For "symmetric" they are (0.5, 0.5), for "landmarks" the settings' centre and spread.

    data: float, any shape, in [0, 1].
    prep: the settings.
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
        # Not by BLAS: the number of its threads would change the sum.
        squares += float(np.einsum("i,i", foreground, foreground))
    if count == 0:
        return 0.0, 1.0
    mean = total / count
    std = math.sqrt(max(0.0, squares / count - mean * mean))
    return mean, std if std >= 1e-6 else 1.0


def normalise(
    slices: torch.Tensor, mean: float | torch.Tensor, std: float | torch.Tensor, prep: Preprocessing
) -> torch.Tensor:
    """The network's intensities of slices.

    "foreground" gives (v - mean) / std, and exactly 0 below the threshold. "symmetric" gives v * 2 - 1, in [-1, 1].
    "landmarks" gives (v - mean) / std, and exactly 0 in the air round a brain: dark places that a brain encloses are no air.

    slices: (..., H, W) float in [0, 1].
    mean, std: of each slice's volume, numbers or tensors that broadcast, such as (B, 1, 1).
    prep: the settings.
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
    """The air that is connected to the slice's border, bool (..., H, W). Dark places inside the anatomy are left out."""
    flat = air.reshape(-1, *air.shape[-2:]).cpu().numpy()
    filled = ndimage.binary_fill_holes(~flat, ndimage.generate_binary_structure(2, 1)[None])
    return torch.from_numpy(~filled).to(air.device).reshape(air.shape)
