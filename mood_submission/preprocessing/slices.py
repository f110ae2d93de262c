"""Cuts the network's slices from a volume, and puts score maps back on it.

Volumes are numpy arrays (X, Y, Z) in RAS order. Axial slices are torch tensors (N, S, S), with anterior in the top row and x
rising from column to column. Slices are worked on chunk by chunk, so that large volumes take little memory.
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
    *,
    device: torch.device | str = "cpu",
    view: View | None = None,
) -> torch.Tensor:
    """Axial slices for the networks, before `normalise`: (N, S, S) float32 on `device`, S = prep.image_size.

    Each slice is (y, x) with y reversed. It is framed, then resized (linear, anti-aliased) unless it has the size already.

    data: (X, Y, Z) float32 in RAS order, fastest in Fortran order; in [0, 1] where the view has no tone curve.
    spacing: (x, y, z) in mm.
    indices: (N,), z of each slice.
    prep: the settings.
    device: of the result.
    view: the volume's, from `view.look`: frame, sharpness, tone and body. None for the array's own field of view.
    Raises ValueError for an index outside the volume.
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
            # (X, Y) -> (y, x), anterior first.
            place[frame.inner] = shown[:, ::-1].T[frame.seen]
        resized = _resize(torch.from_numpy(padded).to(device), (size, size))
        result[start : start + step] = _blurred(resized, view.blur_in_plane) if view else resized
    return result


def slices_to_volume(
    scores: torch.Tensor,
    indices: np.ndarray,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    *,
    out: np.ndarray | None = None,
    view: View | None = None,
) -> np.ndarray:
    """Score maps on the volume's voxels, (X, Y, Z) float32 in RAS order: `volume_to_slices` backwards.

    Maps are interpolated linearly in the plane (anti-aliased where they shrink) and along z. Beyond the first and the last map
    the nearest counts. Values stay in the maps' range. Voxels outside the frame, the body or the view's slices are 0.

    scores: (N, S, S) float, on any device.
    indices: (N,) rising, z of each map.
    shape: (X, Y, Z).
    spacing: (x, y, z) in mm.
    out: array (X, Y, Z) float32 to fill, fastest in Fortran order. None for a new one.
    view: the one that the slices were cut with. None for the array's own field of view.
    Raises ValueError where the numbers of maps and indices differ, indices do not rise or lie outside the volume, or `out`
    has another shape or dtype.
    """
    indices = _checked_indices(indices, shape[2])
    scores = torch.as_tensor(scores)
    if len(scores) != len(indices) or len(indices) == 0 or (np.diff(indices) <= 0).any():
        raise ValueError(f"expected one score map for each of some rising slice indices, found {len(scores)} maps")
    out = np.empty(shape, dtype=np.float32, order="F") if out is None else out
    if out.shape != tuple(shape) or out.dtype != np.float32:
        raise ValueError(f"expected out of shape {tuple(shape)} float32, found {out.shape} {out.dtype}")
    frame = view.frame if view else frame_of(shape, spacing)
    lower, upper, share = _neighbours(indices, shape[2])
    weight = torch.from_numpy(share).to(scores.device)
    # (z, y, x), anterior first, as slices are.
    target = out.transpose(2, 1, 0)[:, ::-1]
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
    """Slice z of data (X, Y, Z), (X, Y), blurred along z by a Gaussian with a standard deviation of `sigma` slices."""
    reach = int(2.5 * sigma + 0.5)
    if reach == 0:
        return data[:, :, z]
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    result = np.zeros(data.shape[:2], np.float32, order="F")
    for offset, weight in zip(range(-reach, reach + 1), weights / weights.sum()):
        result += np.float32(weight) * data[:, :, min(max(z + offset, 0), data.shape[2] - 1)]
    return result


def _blurred(slices: torch.Tensor, sigma: float) -> torch.Tensor:
    """Slices (N, S, S) blurred by a Gaussian of `sigma` pixels, as two matrix products. The same tensor for 0."""
    if sigma == 0 or len(slices) == 0:
        return slices
    spread = ndimage.gaussian_filter1d(np.eye(slices.shape[-1]), sigma, axis=0, mode="nearest", truncate=3)
    kernel = torch.from_numpy(spread).to(slices)
    return (kernel @ slices @ kernel.T).clamp_(0, 1)


def _checked_indices(indices: np.ndarray, depth: int) -> np.ndarray:
    indices = np.asarray(indices, dtype=np.int64).reshape(-1)
    if indices.size and (indices.min() < 0 or indices.max() >= depth):
        raise ValueError(f"expected slice indices from 0 to {depth - 1}, found {indices.min()} to {indices.max()}")
    return indices


def _neighbours(indices: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each z: the maps below and above it, as int64 places in `indices`, and the float32 weight of the upper one."""
    place = np.interp(np.arange(depth), indices, np.arange(len(indices)))
    lower = np.minimum(place.astype(np.int64), max(0, len(indices) - 1))
    upper = np.minimum(lower + 1, len(indices) - 1)
    return lower, upper, (place - lower).astype(np.float32)


def _chunk_length(frame: Frame, size: int) -> int:
    """How many slices fit in a chunk, by the larger of their sizes before and after resizing."""
    return max(1, CHUNK_PIXELS // max(frame.padded_height * frame.padded_width, size * size))


def _resize(slices: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(N, H, W) resized to (N, *size): linear, anti-aliased where it shrinks. The same tensor where it has that size.

    The result is clamped to the input's range. Rounding in the anti-aliasing weights can leave it by 5e-7.
    """
    if tuple(slices.shape[-2:]) == size:
        return slices
    least, most = torch.aminmax(slices)
    resized = F.interpolate(slices[:, None], size=size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
    return resized.clamp_(least, most)
