"""Finds Hounsfield units in a CT of unknown scaling: the line from grey values to units that makes its histogram likeliest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import ndtr

from .tone import AIR_HU, Tone

# The components of a CT, in Hounsfield units: PEAKS are Gaussians (mean, deviation), SPREADS uniform distributions (from, to).
# How much of each a scan has is fitted.
PEAKS = {"air": (-990.0, 15.0), "fat": (-103.0, 18.0), "muscle": (50.0, 18.0), "organs": (85.0, 40.0)}
SPREADS = {"lung and gas": (-960.0, -150.0), "between": (-80.0, 30.0), "contrast and bone": (100.0, 1500.0)}
# From Hounsfield units to the share of a component below them.
Cumulative = Callable[[np.ndarray], np.ndarray]
# Numbers of these among the components.
FAT, SOFT_TISSUES = [1], [2, 3]
# Hounsfield units of soft tissue.
SOFT = 50.0
# The least share of soft tissue in fat and soft tissue together.
LEAST_SOFT = 0.25
BINS = 256
# Rounds of fitting the components' shares.
ROUNDS = 12
# Hounsfield units of the value 0 in wide scalings, which begin at air.
WIDE_ZEROS = (-1024.0, -1000.0)
# In a wide scaling, what is brighter than this share of soft tissue's grey is neither air nor lung.
BRIGHTER = 0.45
# Wide scalings show fat and soft tissue at close greys, windows apart. So for some grey g of a wide scaling, 0.85 or more of
# the values above BRIGHTER * g lie between 0.8 * g and 1.13 * g; in windows 0.67 at most. This is the threshold between them.
WIDE_SHARE = 0.76
# Wide scalings in use: Hounsfield units of the value 0, and of the largest value that a file's type holds. One of these is
# taken where it is nearly as likely as the likeliest line, since patients differ more than that.
USUAL_LINES = ((-1000.0, 1000.0), (-1024.0, 3071.0))
LARGEST_VALUES = (1.0, 255.0, 4095.0, 65535.0)
# How much less log-likelihood per value is nearly as likely. Five CTs lost up to 0.08 on their own line, and 0.22 or more on
# another.
NEARLY = 0.09
# Hounsfield units that the band of closest greys may have in wide scalings.
CENTRES = np.linspace(-30.0, 90.0, 33)
# Hounsfield units that the lowest and the highest value may have in clinical windows.
WINDOW_ZEROS = np.arange(-260.0, -20.0, 15.0)
WINDOW_ONES = np.arange(120.0, 420.0, 15.0)
# A window that begins above this shows fat as black as air.
FAT_BLACK = -125.0


@dataclass(frozen=True)
class Scaling:
    """How a CT's values are read.

    tone: from values to [0, 1].
    kind: "hounsfield", "wide" (from air on), "windowed" or "unknown".
    zero, one: Hounsfield units of the lowest and of the highest value. NaN for "unknown".
    """

    tone: Tone
    kind: str
    zero: float
    one: float


def find_scaling(coarse: np.ndarray, window: tuple[float, float]) -> Scaling:
    """How a CT is scaled, and its tone curve to `window`.

    Values below -200 can only be Hounsfield units. Otherwise the distance between the tissues tells wide scalings from clinical
    windows. Of the lines that are possible then, the result is the one under which a mixture of air, fat and soft tissue makes
    the histogram likeliest. Where a window shows fat as black as air, black stays black and soft tissue moves to its place.
    The scaling is "unknown" where the values do not vary.

    coarse: means of blocks of the CT, float, any shape.
    window: the Hounsfield units that become 0 and 1.
    """
    low, high = float(coarse.min()), float(coarse.max())
    if low < AIR_HU:
        return Scaling(Tone(window[0], 1 / (window[1] - window[0])), "hounsfield", low, high)
    if not high > low:
        return Scaling(Tone(low, 1.0), "unknown", np.nan, np.nan)
    counts = np.histogram(coarse, BINS, range=(low, high))[0].astype(np.float64)
    share, middle = _closest(counts)
    # The lowest bin is air, padding, and whatever a window makes black.
    counts[0] = 0
    if share >= WIDE_SHARE:
        lines = [(zero, zero + (units - zero) / middle, "wide") for zero in WIDE_ZEROS for units in CENTRES]
    else:
        lines = [(zero, one, "windowed") for zero in WINDOW_ZEROS for one in WINDOW_ONES]
    zero, one, kind = _likeliest(counts, lines)
    steps = np.linspace(-1, 1, 9)
    near = [
        (
            zero + 12 * a if kind == "windowed" else zero,
            one + (one - zero) * (0.04 if kind == "windowed" else 0.004) * b,
            kind,
        )
        for a in steps
        for b in steps
    ]
    zero, one, kind = _likeliest(counts, near)
    if kind == "wide":
        counts[: round(BRIGHTER * middle * BINS)] = 0
        zero, one = _usual(counts, (zero, one), low, high)
    # Hounsfield units for each unit of the file.
    units = (one - zero) / (high - low)
    if kind == "windowed" and zero > FAT_BLACK:
        return Scaling(Tone(low, 1 / (high - low)), kind, zero, one)
    tone = Tone(float(low + (window[0] - zero) / units), float(units / (window[1] - window[0])))
    if kind == "windowed" and tone.low < low:
        # Black stays black, and soft tissue moves to its place.
        tone = Tone(low, float((SOFT - window[0]) / (window[1] - window[0]) / ((SOFT - zero) / units)))
    if kind == "windowed" and not 0.7 < tone.scale * (high - low) < 1.4:
        # No clinical window is like this.
        tone = Tone(low, 1 / (high - low))
    return Scaling(tone, kind, float(zero), float(one))


def _closest(counts: np.ndarray) -> tuple[float, float]:
    """The largest share of the brighter values that one band of greys holds (see WIDE_SHARE), and that band's grey, 0 .. 1.

    The grey is the mean of all whose bands hold nearly as many.
    """
    below = np.append(0, np.cumsum(counts)) / counts.sum()

    def share_below(grey: np.ndarray | float) -> np.ndarray:
        return np.asarray(np.interp(grey, np.linspace(0, 1, BINS + 1), below))

    greys = np.linspace(0.15, 0.8, 200)
    brighter = 1 - share_below(BRIGHTER * greys)
    enough = brighter > 0.3 * (1 - share_below(0.06))
    shares = np.where(enough, (share_below(1.13 * greys) - share_below(0.8 * greys)) / np.maximum(brighter, 1e-9), 0)
    return float(shares.max()), float(greys[shares >= shares.max() - 0.01].mean())


def _usual(counts: np.ndarray, likeliest: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    """The likeliest of USUAL_LINES where it is nearly as likely as `likeliest`; `likeliest` otherwise.

    A line is the Hounsfield units of the lowest and of the highest value.
    """
    largest = next((value for value in LARGEST_VALUES if high <= value), high)
    lines = [likeliest]
    for zero, one in USUAL_LINES:
        units = (one - zero) / largest
        lines.append((zero + units * low, zero + units * high))
    likelihood = _likelihoods(counts, lines)
    usual = 1 + int(likelihood[1:].argmax())
    return lines[usual if likelihood[usual] > likelihood[0] - NEARLY else 0]


def _likeliest(counts: np.ndarray, lines: list[tuple[float, float, str]]) -> tuple[float, float, str]:
    return lines[int(_likelihoods(counts, [line[:2] for line in lines]).argmax())]


def _likelihoods(counts: np.ndarray, lines: list[tuple[float, float]]) -> np.ndarray:
    """The mean log-likelihood of a value under each line, (lines,). The components' shares are fitted to each line."""
    zeros, ones = (np.array(values)[:, None] for values in zip(*lines))
    # (lines, BINS + 1), in Hounsfield units.
    edges = zeros + (ones - zeros) * np.linspace(0, 1, BINS + 1)
    # (lines, components, BINS).
    components = np.stack([_shares(edges, cumulative) for cumulative in _cumulatives()], 1)
    weight = np.full((len(lines), components.shape[1], 1), 1 / components.shape[1])
    share = counts / max(counts.sum(), 1)
    # Expectation and maximisation of the components' shares.
    for _ in range(ROUNDS):
        of_component = weight * components
        weight = (of_component / of_component.sum(1, keepdims=True) * share).sum(2, keepdims=True)
    likelihood = (share * np.log((weight * components).sum(1))).sum(1)
    fat, soft = weight[:, FAT, 0].sum(1), weight[:, SOFT_TISSUES, 0].sum(1)
    # No abdomen is nearly all fat. Such a line takes soft tissue for fat.
    plausible: np.ndarray = np.where(soft < LEAST_SOFT * (fat + soft), likelihood - 10, likelihood)
    return plausible


def _cumulatives() -> Iterator[Cumulative]:
    """The cumulative distribution of each component."""
    for mean, deviation in PEAKS.values():
        yield partial(_of_gaussian, mean, deviation)
    for start, stop in SPREADS.values():
        yield partial(_of_spread, start, stop)


def _of_gaussian(mean: float, deviation: float, units: np.ndarray) -> np.ndarray:
    share: np.ndarray = ndtr((units - mean) / deviation)
    return share


def _of_spread(start: float, stop: float, units: np.ndarray) -> np.ndarray:
    share: np.ndarray = np.clip((units - start) / (stop - start), 0, 1)
    return share


def _shares(edges: np.ndarray, cumulative: Cumulative) -> np.ndarray:
    """The share of a component in each bin, (lines, BINS). The outer bins hold what lies beyond them too."""
    below = cumulative(edges)
    below[:, 0], below[:, -1] = 0, 1
    return np.diff(below, axis=1) + 1e-7
