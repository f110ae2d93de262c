"""The part of a scan that shows as much of the body as the networks have seen: no neck, and no thighs. Not in the paper."""

import numpy as np

# A slice agrees with the others where its level is off by at most so many mm.
WITHIN_MM = 30.0
# A slice is unknown where it lies further beyond what was trained on.
MARGIN_MM = 30.0
# Levels are believed where so many of the known slices agree, and where these reach so far.
AGREEING = 0.6
FEWEST, REACH_MM = 8, 80.0


def offset_of(levels: np.ndarray, heights: np.ndarray) -> float:
    """How far levels lie above heights, in mm, where most of a scan's slices agree: the median of these.

    levels: (N,), of slices, in mm along a body. Those of slices that the network has not seen the like of may be anything.
    heights: (N,), of the same slices, in mm above the scan's lowest.
    """
    offsets = np.sort(np.asarray(levels, np.float64) - heights)
    agreeing = np.searchsorted(offsets, offsets + 2 * WITHIN_MM, side="right") - np.arange(len(offsets))
    first = int(agreeing.argmax())
    return float(np.median(offsets[first : first + agreeing[first]]))


def known_heights(levels: np.ndarray, heights: np.ndarray, low: float, high: float) -> tuple[float, float] | None:
    """The heights between which a scan shows what is known, in mm. None where its levels are not to be believed.

    They are believed where most known slices agree, so neither for a scan of another region or upside down, nor where the distance
    of slices is wrong.

    levels, heights: (N,), see `offset_of`.
    low, high: levels of what is known, in mm.

    >>> import numpy
    >>> heights = numpy.arange(0, 600, 5.0)
    >>> levels = (heights - 350).clip(-320, 120)  # from the thighs to the neck, told as the nearest that is known
    >>> known_heights(levels, heights, -300, 100)
    (20.0, 480.0)
    """
    if len(heights) == 0:
        return None
    offset = offset_of(levels, heights)
    first, last = low - MARGIN_MM - offset, high + MARGIN_MM - offset
    inside = (heights >= first) & (heights <= last)
    agreeing = np.abs(levels - heights - offset) <= WITHIN_MM
    if inside.sum() < FEWEST or np.ptp(heights[inside]) < REACH_MM or agreeing[inside].mean() < AGREEING:
        return None
    return float(first), float(last)
