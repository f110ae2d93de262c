"""From a volume to the network's slices, and from score maps back to the volume.

Volumes are numpy arrays (X, Y, Z) in RAS order; slices are torch tensors (N, S, S), one axial slice each, anterior at
the top row and x running from left to right column. Everything works chunk by chunk, so that a 512-cube stays cheap.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F

CHUNK_PIXELS = 1 << 21  # pixels worked on at a time
SAMPLED_VOXELS = 1 << 20  # voxels that a percentile is taken from
RANGE_TOLERANCE = 1e-4  # how far outside [0, 1] still counts as inside
AIR_HU = -200.0  # an abdomen with values below this is in Hounsfield units
MAX_ANISOTROPY = 10.0  # in-plane spacing more uneven than this is taken for a broken header


@dataclass(frozen=True)
class Preprocessing:
    """How volumes become network input; travels as JSON in the weights file.

    region: "brain" or "abdom".
    image_size: side of the square slices, in pixels.
    slices: how many slices of a volume the published method looks at.
    intensity: "foreground" (below the threshold 0, the rest standardised by the volume's own foreground; brain as
        published) or "symmetric" (x * 2 - 1; abdomen as published).
    foreground_threshold: the least foreground value, on the [0, 1] scale.
    hounsfield_window: the Hounsfield units that become 0 and 1; soft tissue at 40 HU lands on 0.5, as in the
        training data.

    Raises ValueError for an unknown region or intensity, and sizes or a window that cannot be.
    """

    region: str
    image_size: int = 160
    slices: int = 32
    intensity: str = "foreground"
    foreground_threshold: float = 0.05
    hounsfield_window: tuple[float, float] = (-160.0, 240.0)

    def __post_init__(self) -> None:
        if self.region not in ("brain", "abdom"):
            raise ValueError(f"preprocessing: expected region brain or abdom, found {self.region!r}")
        if self.intensity not in ("foreground", "symmetric"):
            raise ValueError(f"preprocessing: expected intensity foreground or symmetric, found {self.intensity!r}")
        if self.image_size < 1 or self.slices < 1:
            raise ValueError(f"preprocessing: expected positive sizes, found {self.image_size} and {self.slices}")
        if len(self.hounsfield_window) != 2 or self.hounsfield_window[0] >= self.hounsfield_window[1]:
            raise ValueError(f"preprocessing: expected a rising hounsfield_window, found {self.hounsfield_window}")

    @classmethod
    def published(cls, region: str) -> "Preprocessing":
        """The settings of the published submission for "brain" or "abdom"."""
        return cls(region, intensity="foreground" if region == "brain" else "symmetric")

    def to_dict(self) -> dict:
        """Plain numbers, strings and lists, for JSON."""
        return {**asdict(self), "hounsfield_window": list(self.hounsfield_window)}

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":
        """The inverse of `to_dict`. Raises ValueError naming the keys that are unknown or missing."""
        known = {field.name for field in fields(cls)}
        unknown, missing = sorted(set(values) - known), sorted(known - set(values))
        if unknown or missing:
            raise ValueError(f"preprocessing: unknown keys {unknown}, missing keys {missing}")
        return cls(**{**values, "hounsfield_window": tuple(values["hounsfield_window"])})


@dataclass(frozen=True)
class Frame:
    """How a slice of `height` x `width` pixels stands, `top` and `left`, in its zero-padded square field of view."""

    height: int
    width: int
    top: int
    left: int
    padded_height: int
    padded_width: int

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the padded square that are the slice itself."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


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
    """
    if prep.intensity == "symmetric":
        return 0.5, 0.5
    count, total, squares = 0, 0.0, 0.0
    for slab in _slabs(data):
        foreground = slab[slab >= prep.foreground_threshold].astype(np.float64)
        count += foreground.size
        total += float(foreground.sum())
        squares += float(np.einsum("i,i", foreground, foreground))  # no BLAS, whose threads would be seen in the sum
    if count == 0:
        return 0.0, 1.0
    mean = total / count
    std = math.sqrt(max(0.0, squares / count - mean * mean))
    return mean, std if std >= 1e-6 else 1.0


def normalise(
    slices: torch.Tensor, mean: float | torch.Tensor, std: float | torch.Tensor, prep: Preprocessing
) -> torch.Tensor:
    """The network's intensities, as published.

    slices: (..., H, W) float in [0, 1]; mean and std: of the slice's volume, numbers or tensors that broadcast, such as
    (B, 1, 1). "foreground": below the threshold exactly 0, else (v - mean) / std. "symmetric": v * 2 - 1, in [-1, 1].
    """
    if prep.intensity == "symmetric":
        return slices * 2 - 1
    return ((slices - mean) / std).masked_fill(slices < prep.foreground_threshold, 0.0)


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


def frame_of(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Frame:
    """The square field of view, in mm, for the axial slices of a volume (X, Y, Z) with this spacing in mm.

    The published code resizes the (y, x) slice to a square, which keeps the anatomy's proportions only where the field
    of view is square: others are first padded alike on both sides, an odd row or column going below or to the right.
    Square isotropic slices are not padded. Spacing that cannot be true is taken as isotropic.
    """
    width, height = int(shape[0]), int(shape[1])
    dx, dy = float(spacing[0]), float(spacing[1])
    usable = math.isfinite(dx) and math.isfinite(dy) and min(dx, dy) > 0
    if not usable or max(dx, dy) > MAX_ANISOTROPY * min(dx, dy):
        dx = dy = 1.0
    side = max(width * dx, height * dy)
    padded_width = max(width, round(side / dx))
    padded_height = max(height, round(side / dy))
    top, left = (padded_height - height) // 2, (padded_width - width) // 2
    return Frame(height, width, top, left, padded_height, padded_width)


def volume_to_slices(
    data: np.ndarray,
    spacing: tuple[float, float, float],
    indices: np.ndarray,
    prep: Preprocessing,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Axial slices for the networks, before `normalise`: (N, S, S) float32 on `device`, S = prep.image_size.

    data: (X, Y, Z) in RAS order, in [0, 1]; fastest in Fortran order. spacing in mm. indices: (N,), z of each slice.
    Each slice is (y, x) with y reversed, padded by `frame_of` and resized (linear, anti-aliased), which is left out
    where it has that size already. Raises ValueError for an index outside the volume.
    """
    indices = _checked_indices(indices, data.shape[2])
    frame, size = frame_of(data.shape, spacing), prep.image_size
    result = torch.empty(len(indices), size, size, device=device)
    step = _chunk_length(frame, size)
    for start in range(0, len(indices), step):
        chosen = indices[start : start + step]
        padded = np.zeros((len(chosen), frame.padded_height, frame.padded_width), dtype=np.float32)
        for place, z in zip(padded, chosen):
            place[frame.inner] = data[:, ::-1, z].T  # (X, Y) -> (y, x), anterior first
        result[start : start + step] = _resize(torch.from_numpy(padded).to(device), (size, size))
    return result


def slices_to_volume(
    scores: torch.Tensor,
    indices: np.ndarray,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Score maps back on the volume's voxels: (X, Y, Z) float32 in RAS order; the way back of `volume_to_slices`.

    scores: (N, S, S) float, any device; indices: (N,) rising, the z of each. Linear in the plane (anti-aliased where it
    shrinks) and along z between the given slices; beyond the first and last the nearest. Values stay in scores' range.
    out: float32 array (X, Y, Z) to fill, fastest in Fortran order; by default a new one.
    Raises ValueError where the numbers of scores and indices differ, or indices do not rise or lie outside the volume.
    """
    indices = _checked_indices(indices, shape[2])
    scores = torch.as_tensor(scores)
    if len(scores) != len(indices) or len(indices) == 0 or (np.diff(indices) <= 0).any():
        raise ValueError(f"expected one score map for each of some rising slice indices, found {len(scores)} maps")
    out = np.empty(shape, dtype=np.float32, order="F") if out is None else out
    if out.shape != tuple(shape) or out.dtype != np.float32:
        raise ValueError(f"expected out of shape {tuple(shape)} float32, found {out.shape} {out.dtype}")
    frame = frame_of(shape, spacing)
    lower, upper, weight = _neighbours(indices, shape[2])
    weight = torch.from_numpy(weight).to(scores.device)
    target = out.transpose(2, 1, 0)[:, ::-1]  # (z, y, x), anterior first, as the slices are
    step = _chunk_length(frame, scores.shape[-1])
    for start in range(0, shape[2], step):
        chunk = slice(start, start + step)
        below, above = scores[lower[chunk]].float(), scores[upper[chunk]].float()
        maps = torch.lerp(below, above, weight[chunk, None, None])
        maps = _resize(maps, (frame.padded_height, frame.padded_width))
        target[chunk] = maps[:, *frame.inner].cpu().numpy()
    return out


def _checked_indices(indices: np.ndarray, depth: int) -> np.ndarray:
    indices = np.asarray(indices, dtype=np.int64).reshape(-1)
    if indices.size and (indices.min() < 0 or indices.max() >= depth):
        raise ValueError(f"expected slice indices from 0 to {depth - 1}, found {indices.min()} to {indices.max()}")
    return indices


def _neighbours(indices: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each z the given slices below and above it (int64 places in `indices`), and the upper one's float32 weight."""
    place = np.interp(np.arange(depth), indices, np.arange(len(indices)))
    lower = np.minimum(place.astype(np.int64), max(0, len(indices) - 1))
    upper = np.minimum(lower + 1, len(indices) - 1)
    return lower, upper, (place - lower).astype(np.float32)


def _chunk_length(frame: Frame, size: int) -> int:
    """How many slices fit in a chunk, by the larger of their two sizes."""
    return max(1, CHUNK_PIXELS // max(frame.padded_height * frame.padded_width, size * size))


def _resize(slices: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(N, H, W) to (N, *size), linear, anti-aliased where it shrinks; itself where it has that size.

    Clamped to the range that it had: rounding in the anti-aliasing weights can lead 5e-7 out of it.
    """
    if tuple(slices.shape[-2:]) == size:
        return slices
    least, most = torch.aminmax(slices)
    resized = F.interpolate(slices[:, None], size=size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
    return resized.clamp_(least, most)
