"""The part of a scan that shows as much of the body as the networks have seen: no neck, and no thighs. Not in the paper."""

import numpy as np

# A slice agrees with the others where its level is off by at most so many mm.
WITHIN_MM = 30.0
# A slice is unknown where it lies further beyond what was trained on.
MARGIN_MM = 30.0
# Levels are believed where so many of the known slices agree, where these reach so far, and where their levels rise about as heights do.
AGREEING, REACH_MM, SLOPES = 0.6, 150.0, (0.75, 1.33)
# Slices beyond an end are left out where most of them look as those near that end do, or beyond it: up to so many mm within.
NEAR_MM = 60.0


def offset_of(levels: np.ndarray, heights: np.ndarray) -> float:
    """How far levels lie above heights, in mm, where most of a scan's slices agree: the median of these.

    levels: (N,), of slices, in mm along a body. Those of slices that the network has not seen the like of may be anything.
    heights: (N,), of the same slices, in mm above the scan's lowest.
    """
    offsets = np.sort(np.asarray(levels, np.float64) - heights)
    agreeing = np.searchsorted(offsets, offsets + 2 * WITHIN_MM, side="right") - np.arange(len(offsets))
    first = int(agreeing.argmax())
    return float(np.median(offsets[first : first + agreeing[first]]))


def agreement(levels: np.ndarray, heights: np.ndarray) -> float:
    """The share of slices whose levels (N,) agree with their heights (N,), both in mm, for the offset that suits most."""
    return float((np.abs(levels - heights - offset_of(levels, heights)) <= WITHIN_MM).mean())


def believed(levels: np.ndarray, heights: np.ndarray) -> bool:
    """Whether levels (N,) of slices at these heights (N,), both in mm, are those of a body: most agree, and they rise as heights do."""
    if len(heights) < 2 or np.ptp(heights) < REACH_MM:
        return False
    slope = np.polyfit(heights, levels, 1)[0]
    return bool(agreement(levels, heights) >= AGREEING and SLOPES[0] <= slope <= SLOPES[1])


def known_heights(
    levels: np.ndarray, heights: np.ndarray, low: float, high: float
) -> tuple[float | None, float | None]:
    """The heights between which a scan shows what is known, in mm. None for an end at which nothing is unknown.

    Nothing is left out where the levels of the known slices are not `believed`, as in a scan of another region, or one that is upside
    down. At an end nothing is left out either where the slices beyond it look as slices do that lie well within: they are then out
    of place, which is to be seen.

    levels, heights: (N,), see `offset_of`; heights rise.
    low, high: levels of what is known, in mm.

    >>> import numpy
    >>> heights = numpy.arange(0, 600, 5.0)
    >>> levels = (heights - 350).clip(-320, 120)  # from the thighs to the neck, told as the nearest that is known
    >>> known_heights(levels, heights, -300, 100)
    (20.0, 480.0)
    """
    if len(heights) == 0:
        return None, None
    offset = round(offset_of(levels, heights))
    first, last = low - MARGIN_MM - offset, high + MARGIN_MM - offset
    inside = (heights >= first) & (heights <= last)
    if not believed(levels[inside], heights[inside]):
        return None, None
    below, above = levels[heights < first], levels[heights > last]
    return (
        first if len(below) and np.median(below) <= low + NEAR_MM else None,
        last if len(above) and np.median(above) >= high - NEAR_MM else None,
    )
