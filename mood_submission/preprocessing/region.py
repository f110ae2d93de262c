"""Tells which region a volume shows, by the shape of what lies in it."""

from collections.abc import Sequence

import numpy as np

from .anatomy import find_anatomy

# The share of an anatomy's slices that its upper end is measured on.
END = 0.05
# The cross-section of that end, as a share of the largest one. Stripped brains close to a top: up to 0.14 of 224 brains of three
# scanners, up to 0.24 of coarse toys. Trunks are cut through: only one of 91 abdomens has less than 0.4.
MOST_CLOSED, LEAST_CUT = 0.3, 0.4
# The root of length x width in mm. The brains have 136 to 167, whole heads somewhat more. The abdomens have 217 to 420, except
# for three stacks of few slices.
HEAD_RANGE, LEAST_TRUNK = (100.0, 212.0), 205.0


def region_of(data: np.ndarray, spacing: tuple[float, float, float]) -> str | None:
    """The region that a volume shows, "brain" or "abdom". None where that is not sure.

    A brain or a head closes to a top. An abdomen reaches the first and the last slice, and is cut there. The size must
    agree with that. So a file whose voxel size is wrong is nothing for sure.

    data: (X, Y, Z) float, on any scale.
    spacing: (x, y, z) in mm.
    """
    anatomy = find_anatomy(data, spacing)
    if anatomy is None:
        return None
    areas = np.count_nonzero(anatomy.mask, (0, 1))
    filled = np.flatnonzero(areas)
    first, last = int(filled[0]), int(filled[-1])
    count = max(1, round(END * (last - first + 1)))
    top = float(areas[last - count + 1 : last + 1].mean() / areas.max())
    width, length, _ = anatomy.extent
    size = (width * length) ** 0.5
    if top <= MOST_CLOSED and HEAD_RANGE[0] <= size <= HEAD_RANGE[1]:
        return "brain"
    reaches_both_ends = first == 0 and last == len(areas) - 1
    if top >= LEAST_CUT and reaches_both_ends and size >= LEAST_TRUNK:
        return "abdom"
    return None


def another_region(shown: Sequence[str | None], region: str) -> str | None:
    """The other region that volumes show which were meant to show `region`. None where they may be right.

    shown: what `region_of` says of each. Most must show a region for sure, and all of these the one other region.
    """
    sure = [one for one in shown if one is not None]
    if len(sure) * 2 > len(shown) and region not in sure and len(set(sure)) == 1:
        return sure[0]
    return None
