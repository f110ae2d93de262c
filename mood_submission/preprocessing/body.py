"""The body or brain in a volume of the [0, 1] scale, without the scanner's table."""

import numpy as np
from scipy import ndimage

# --- the body, and a place in it -----------------------------------------------------------------------------------


def _solid_parts(slice_: np.ndarray) -> np.ndarray:
    """What of a thresholded slice, bool (X, Y), is more than a line: closed by 1% of its side, filled, opened by 2%."""
    closing, opening = max(1, round(0.01 * min(slice_.shape))), max(1, round(0.02 * min(slice_.shape)))
    cross = ndimage.generate_binary_structure(2, 1)
    wide = np.pad(slice_, closing)  # closing must not eat the frame's border
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(wide, cross, closing))
    return ndimage.binary_opening(filled, cross, opening)[closing:-closing, closing:-closing]


def _joined(solid: np.ndarray) -> np.ndarray:
    """A slice's solid parts, bool (X, Y), closed by 8% of its side and filled, less wide flat parts: the table."""
    parts, _ = ndimage.label(solid)
    for part, (across, up) in enumerate(ndimage.find_objects(parts), 1):
        if across.stop - across.start > 0.6 * solid.shape[0] and up.stop - up.start < 0.3 * solid.shape[1]:
            solid = solid & (parts != part)
    reach = max(1, round(0.08 * min(solid.shape)))
    wide = np.pad(solid, reach + 1)
    near = ndimage.distance_transform_edt(~wide) <= reach if solid.any() else wide
    closed = ndimage.binary_fill_holes(ndimage.distance_transform_edt(near) > reach)
    return closed[reach + 1 : -reach - 1, reach + 1 : -reach - 1]


def _in_islands(solid: np.ndarray) -> bool:
    """Whether joining would add 5% or more to the middle slices of `solid` (X, Y, Z).

    So it is in CT windows where fat is as black as air; in brains and wider windows the middle slices are one piece.
    """
    depth = solid.shape[2]
    middle = sorted({int(depth * share) for share in (0.42, 0.5, 0.58, 0.66)})
    return sum(_joined(solid[:, :, z]).sum() for z in middle) > 1.05 * solid[:, :, middle].sum()


def body_mask(volume: np.ndarray, threshold: float = 0.05) -> np.ndarray:
    """The body (or brain) in `volume` (X, Y, Z) as bool (X, Y, Z): one solid component, without scanner table.

    The solid parts of each axial slice of `volume` > `threshold`, joined where they are islands in black fat; of these
    the largest component. Grids wider than 256 are worked on at every 2nd (3rd, ...) voxel and repeated back.
    """
    stride = [-(-side // 256) for side in volume.shape]
    coarse = volume[:: stride[0], :: stride[1], :: stride[2]] > threshold
    solid = np.stack([_solid_parts(coarse[:, :, z]) for z in range(coarse.shape[2])], axis=2)
    if _in_islands(solid):
        solid = np.stack([_joined(solid[:, :, z]) for z in range(solid.shape[2])], axis=2)
    parts, count = ndimage.label(solid)
    if count > 1:
        solid = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    for axis, step in enumerate(stride):
        if step > 1:
            solid = np.repeat(solid, step, axis)
    return solid[: volume.shape[0], : volume.shape[1], : volume.shape[2]]
