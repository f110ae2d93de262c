"""Finds the body or brain in a volume on the [0, 1] scale, without the scanner's table."""

import numpy as np
from scipy import ndimage


def _solid_parts(slice_: np.ndarray) -> np.ndarray:
    """A thresholded slice, bool (X, Y), without lines: closed by 1% of its side, filled, and opened by 2%."""
    closing, opening = max(1, round(0.01 * min(slice_.shape))), max(1, round(0.02 * min(slice_.shape)))
    cross = ndimage.generate_binary_structure(2, 1)
    # Without padding, closing would remove what touches the border.
    wide = np.pad(slice_, closing)
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(wide, cross, closing))
    opened: np.ndarray = ndimage.binary_opening(filled, cross, opening)
    return opened[closing:-closing, closing:-closing]


def _joined(solid: np.ndarray) -> np.ndarray:
    """A slice's solid parts, bool (X, Y), closed by 8% of its side and filled. Wide flat parts, the table, are left out."""
    labels, _ = ndimage.label(solid)
    for label, (across, up) in enumerate(ndimage.find_objects(labels), 1):
        if across.stop - across.start > 0.6 * solid.shape[0] and up.stop - up.start < 0.3 * solid.shape[1]:
            solid = solid & (labels != label)
    reach = max(1, round(0.08 * min(solid.shape)))
    wide = np.pad(solid, reach + 1)
    near = ndimage.distance_transform_edt(~wide) <= reach if solid.any() else wide
    closed: np.ndarray = ndimage.binary_fill_holes(ndimage.distance_transform_edt(near) > reach)
    return closed[reach + 1 : -reach - 1, reach + 1 : -reach - 1]


def _in_islands(solid: np.ndarray) -> bool:
    """Whether joining would add 5% or more to the middle slices of `solid` (X, Y, Z).

    It would in CT windows that show fat as black as air. In brains and wider windows the middle slices are one piece.
    """
    depth = solid.shape[2]
    middle = sorted({int(depth * share) for share in (0.42, 0.5, 0.58, 0.66)})
    return bool(sum(_joined(solid[:, :, z]).sum() for z in middle) > 1.05 * solid[:, :, middle].sum())


def body_mask(volume: np.ndarray, threshold: float = 0.05) -> np.ndarray:
    """The body or brain in a volume, without the scanner's table: (X, Y, Z) bool, one solid component.

    The solid parts of each axial slice are joined where they are islands in black fat. The largest component is the body.
    Grids wider than 256 are searched at every 2nd (3rd, ...) voxel.

    volume: (X, Y, Z) float.
    threshold: voxels above it belong to the body.
    """
    stride = [-(-side // 256) for side in volume.shape]
    coarse = volume[:: stride[0], :: stride[1], :: stride[2]] > threshold
    solid = np.stack([_solid_parts(coarse[:, :, z]) for z in range(coarse.shape[2])], axis=2)
    if _in_islands(solid):
        solid = np.stack([_joined(solid[:, :, z]) for z in range(solid.shape[2])], axis=2)
    labels, count = ndimage.label(solid)
    if count > 1:
        solid = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    for axis, step in enumerate(stride):
        if step > 1:
            solid = np.repeat(solid, step, axis)
    return solid[: volume.shape[0], : volume.shape[1], : volume.shape[2]]
