"""The square field of view of a volume's axial slices, in mm."""

import math
from dataclasses import dataclass

# Spacing that is more uneven than this comes from a broken header.
MAX_ANISOTROPY = 10.0


@dataclass(frozen=True)
class Frame:
    """A slice in its square field of view. The square is zero outside the slice; the slice is cut off outside the square.

    height, width: of the slice, in pixels.
    top, left: where in the square the slice begins, in pixels; below 0 where it begins before the square.
    padded_height, padded_width: of the square, in pixels.
    """

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
        """Rows and columns of the slice that lie in the square."""
        rows, columns = self.inner
        return (
            slice(rows.start - self.top, max(rows.start, rows.stop) - self.top),
            slice(columns.start - self.left, max(columns.start, columns.stop) - self.left),
        )


def frame_of(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Frame:
    """The square field of view of a volume's axial slices, as large in mm as their longer side.

    The published code resizes each slice to a square. That keeps the anatomy's proportions only where the field of view is
    square. So other slices are padded alike on both sides; an odd row goes below, an odd column to the right.

    shape: (X, Y, Z).
    spacing: (x, y, z) in mm. One that cannot be true counts as isotropic.
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
    return Frame(height=height, width=width, top=top, left=left, padded_height=padded_height, padded_width=padded_width)


def frame_round(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], centre: tuple[float, float], side: float
) -> Frame:
    """A square field of view round a place in a volume's axial slices. Lengths are rounded to whole voxels.

    shape: (X, Y, Z).
    spacing: (x, y, z) in mm, positive.
    centre: x and y in voxels.
    side: of the square, in mm.
    """
    width, height = int(shape[0]), int(shape[1])
    padded_width, padded_height = (max(1, round(side / d)) for d in spacing[:2])
    left = round(padded_width / 2 - (centre[0] + 0.5))
    # Rows run from anterior to posterior.
    top = round(padded_height / 2 - (height - 0.5 - centre[1]))
    return Frame(height=height, width=width, top=top, left=left, padded_height=padded_height, padded_width=padded_width)
