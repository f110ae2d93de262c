"""From a volume to the network's slices, and from score maps back to the volume.

Volumes are numpy arrays (X, Y, Z) in RAS order; slices are torch tensors (N, S, S), one axial slice each, anterior at
the top row and x running from left to right column. Everything works chunk by chunk, so that a 512-cube stays cheap.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from .frame import Frame, frame_of
from .settings import Preprocessing
from .tone import CHUNK_PIXELS
from .view import View


def volume_to_slices(
    data: np.ndarray,
    spacing: tuple[float, float, float],
    indices: np.ndarray,
    prep: Preprocessing,
    device: torch.device | str = "cpu",
    view: View | None = None,
) -> torch.Tensor:
    """Axial slices for the networks, before `normalise`: (N, S, S) float32 on `device`, S = prep.image_size.

    data: (X, Y, Z) in RAS order; fastest in Fortran order. spacing in mm. indices: (N,), z of each slice.
    view: of this volume, see `view.look`: its frame, sharpness and tone are taken; None for the array's own field of view,
    data in [0, 1] as it is.
    Each slice is (y, x) with y reversed, framed and resized (linear, anti-aliased), which is left out where it has that size
    already. Raises ValueError for an index outside the volume.
    """
    indices = _checked_indices(indices, data.shape[2])
    frame, size = view.frame if view else frame_of(data.shape, spacing), prep.image_size
    result = torch.empty(len(indices), size, size, device=device)
    step = _chunk_length(frame, size)
    for start in range(0, len(indices), step):
        chosen = indices[start : start + step]
        padded = np.zeros((len(chosen), frame.padded_height, frame.padded_width), dtype=np.float32)
        for place, z in zip(padded, chosen):
            plane = _plane(data, int(z), view.blur_along) if view else data[:, :, z]
            shown = view.tone(plane) if view and view.tone else plane
            if view and view.body:
                shown = np.where(view.body.plane(int(z), plane.shape), shown, np.float32(0))
            place[frame.inner] = shown[:, ::-1].T[frame.seen]  # (X, Y) -> (y, x), anterior first
        resized = _resize(torch.from_numpy(padded).to(device), (size, size))
        result[start : start + step] = _blurred(resized, view.blur_in_plane) if view else resized
    return result


def slices_to_volume(
    scores: torch.Tensor,
    indices: np.ndarray,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    out: np.ndarray | None = None,
    view: View | None = None,
) -> np.ndarray:
    """Score maps back on the volume's voxels: (X, Y, Z) float32 in RAS order; the way back of `volume_to_slices`.

    scores: (N, S, S) float, any device; indices: (N,) rising, the z of each. Linear in the plane (anti-aliased where it
    shrinks) and along z between the given slices; beyond the first and last the nearest. Values stay in scores' range, but
    for voxels outside the frame or the body, or in slices where the view sees nothing to look at, which are 0.
    out: float32 array (X, Y, Z) to fill, fastest in Fortran order; by default a new one.
    view: that the slices were cut with; None for the array's own field of view.
    Raises ValueError where the numbers of scores and indices differ, or indices do not rise or lie outside the volume.
    """
    indices = _checked_indices(indices, shape[2])
    scores = torch.as_tensor(scores)
    if len(scores) != len(indices) or len(indices) == 0 or (np.diff(indices) <= 0).any():
        raise ValueError(
            f"expected one score map for each of some rising slice indices, found {len(scores)} maps"
        )
    out = np.empty(shape, dtype=np.float32, order="F") if out is None else out
    if out.shape != tuple(shape) or out.dtype != np.float32:
        raise ValueError(f"expected out of shape {tuple(shape)} float32, found {out.shape} {out.dtype}")
    frame = view.frame if view else frame_of(shape, spacing)
    lower, upper, share = _neighbours(indices, shape[2])
    weight = torch.from_numpy(share).to(scores.device)
    target = out.transpose(2, 1, 0)[:, ::-1]  # (z, y, x), anterior first, as the slices are
    whole = frame.seen == (slice(0, frame.height), slice(0, frame.width))
    step = _chunk_length(frame, scores.shape[-1])
    for start in range(0, shape[2], step):
        chunk = slice(start, start + step)
        below, above = scores[lower[chunk]].float(), scores[upper[chunk]].float()
        maps = torch.lerp(below, above, weight[chunk, None, None])
        maps = _resize(maps, (frame.padded_height, frame.padded_width))
        if not whole:
            target[chunk] = 0
        target[chunk, *frame.seen] = maps[:, *frame.inner].cpu().numpy()
        if view and view.body:
            for z in range(start, min(start + step, shape[2])):
                out[:, :, z][~view.body.plane(z, shape[:2])] = 0
    if view:
        out[:, :, : view.first] = 0
        out[:, :, view.end :] = 0
    return out


def _plane(data: np.ndarray, z: int, sigma: float) -> np.ndarray:
    """The slice z of data (X, Y, Z), (X, Y), blurred across slices by a Gaussian of `sigma` slices."""
    reach = int(2.5 * sigma + 0.5)
    if reach == 0:
        return data[:, :, z]
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    result = np.zeros(data.shape[:2], np.float32, order="F")
    for offset, weight in zip(range(-reach, reach + 1), weights / weights.sum()):
        result += np.float32(weight) * data[:, :, min(max(z + offset, 0), data.shape[2] - 1)]
    return result


def _blurred(slices: torch.Tensor, sigma: float) -> torch.Tensor:
    """Slices (N, S, S) after a Gaussian of `sigma` pixels, as two matrix products; themselves for 0."""
    if sigma == 0 or len(slices) == 0:
        return slices
    spread = ndimage.gaussian_filter1d(np.eye(slices.shape[-1]), sigma, axis=0, mode="nearest", truncate=3)
    kernel = torch.from_numpy(spread).to(slices)
    return (kernel @ slices @ kernel.T).clamp_(0, 1)


def _checked_indices(indices: np.ndarray, depth: int) -> np.ndarray:
    indices = np.asarray(indices, dtype=np.int64).reshape(-1)
    if indices.size and (indices.min() < 0 or indices.max() >= depth):
        raise ValueError(
            f"expected slice indices from 0 to {depth - 1}, found {indices.min()} to {indices.max()}"
        )
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
    resized = F.interpolate(slices[:, None], size=size, mode="bilinear", antialias=True, align_corners=False)[
        :, 0
    ]
    return resized.clamp_(least, most)
