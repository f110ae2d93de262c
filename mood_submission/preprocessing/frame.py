"""The square field of view of a volume's axial slices, in mm."""

import math
from dataclasses import dataclass

MAX_ANISOTROPY = 10.0  # in-plane spacing more uneven than this is taken for a broken header


@dataclass(frozen=True)
class Frame:
    """How a slice of `height` x `width` pixels stands, `top` and `left`, in its square field of view of `padded_height` x
    `padded_width` pixels: zero-padded where the square reaches beyond the slice, cut off where the slice reaches beyond the
    square (`top` or `left` below 0, or the slice too long)."""

    height: int
    width: int
    top: int
    left: int
    padded_height: int
    padded_width: int

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the square that lie on the slice."""
        return (
            slice(max(0, self.top), max(0, min(self.padded_height, self.top + self.height))),
            slice(max(0, self.left), max(0, min(self.padded_width, self.left + self.width))),
        )

    @property
    def seen(self) -> tuple[slice, slice]:
        """Rows and columns of the slice that lie in the square: those that `inner` shows."""
        rows, columns = self.inner
        return (
            slice(rows.start - self.top, max(rows.start, rows.stop) - self.top),
            slice(columns.start - self.left, max(columns.start, columns.stop) - self.left),
        )


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


def frame_round(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], centre: tuple[float, float], side: float
) -> Frame:
    """The square field of view of `side` mm round a place of the axial slices of a volume (X, Y, Z).

    spacing in mm, positive; centre: x and y in voxels. What of the slices lies outside the square is cut off, what of the
    square lies outside the slices is zero. Lengths are rounded to whole voxels.
    """
    width, height = int(shape[0]), int(shape[1])
    padded_width, padded_height = (max(1, round(side / d)) for d in spacing[:2])
    left = round(padded_width / 2 - (centre[0] + 0.5))
    top = round(padded_height / 2 - (height - 0.5 - centre[1]))  # rows run from anterior to posterior
    return Frame(height, width, top, left, padded_height, padded_width)
