"""Hounsfield units whatever the scaling: the line from grey values to units under which a CT's histogram is likeliest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import ndtr

from .tone import AIR_HU, Tone

# what a CT is made of, in Hounsfield units: (mean, deviation) of a Gaussian or (from, to) of an even spread; how much of each
# there is differs from scan to scan and is fitted
PEAKS = {"air": (-990.0, 15.0), "fat": (-103.0, 18.0), "muscle": (50.0, 18.0), "organs": (85.0, 40.0)}
SPREADS = {"lung and gas": (-960.0, -150.0), "between": (-80.0, 30.0), "contrast and bone": (100.0, 1500.0)}
Cumulative = Callable[[np.ndarray], np.ndarray]  # Hounsfield units -> the share of a part that is below
FAT, SOFT_TISSUES = [1], [2, 3]  # places of these among the parts
SOFT = 50.0  # Hounsfield units of soft tissue
LEAST_SOFT = 0.25  # of fat and soft tissue together
BINS = 256
ROUNDS = 12  # of fitting the shares
WIDE_ZEROS = (-1024.0, -1000.0)  # units of the value 0 in a scaling that begins at air
BRIGHTER = 0.45  # of the grey of soft tissue: what is brighter is neither air nor lung in a wide scaling
# Of the values from BRIGHTER of a grey on, how many lie between 0.8 and 1.13 of it. With a wide scaling that is more, since fat
# and soft tissue lie close together there (0.85 and more); in a window it is less (up to 0.67).
WIDE_SHARE = 0.76
# Hounsfield units of 0 and of the largest value that a file's numbers can have, in wide scalings that are in use: of these
# one is taken where it is nearly as likely as the likeliest line, since patients differ more than that
USUAL_LINES = ((-1000.0, 1000.0), (-1024.0, 3071.0))
LARGEST_VALUES = (1.0, 255.0, 4095.0, 65535.0)
NEARLY = 0.09  # logarithm of the likelihood, a value: five CTs lost up to 0.08 on their own line and from 0.22 on another
CENTRES = np.linspace(-30.0, 90.0, 33)  # Hounsfield units that the middle of these may be
WINDOW_ZEROS = np.arange(-260.0, -20.0, 15.0)  # the same for clinical windows
WINDOW_ONES = np.arange(120.0, 420.0, 15.0)
FAT_BLACK = -125.0  # a window that begins above this shows fat as black as air


@dataclass(frozen=True)
class Scaling:
    """How a CT's values were read. tone: to the window's [0, 1]. kind: "hounsfield", "wide" (from air on), "windowed" or
    "unknown". zero, one: the Hounsfield units of the lowest and of the highest value."""

    tone: Tone
    kind: str
    zero: float
    one: float


def find_scaling(coarse: np.ndarray, window: tuple[float, float]) -> Scaling:
    """How a CT is scaled, from its values on a coarse grid (block means, any shape, float), and the tone to `window`.

    Values below -200 can only be Hounsfield units. Else how close the tissues lie together tells wide scalings from clinical
    windows, and of the lines that are possible the one is taken under which a mixture of air, fat and soft tissue makes the
    histogram likeliest. In a window that shows fat as black as air,
    black stays black, and soft tissue is brought to its place. "unknown": the values do not vary.
    """
    low, high = float(coarse.min()), float(coarse.max())
    if low < AIR_HU:
        return Scaling(Tone(window[0], 1 / (window[1] - window[0])), "hounsfield", low, high)
    if not high > low:
        return Scaling(Tone(low, 1.0), "unknown", np.nan, np.nan)
    counts = np.histogram(coarse, BINS, range=(low, high))[0].astype(np.float64)
    share, middle = _closest(counts)
    counts[0] = 0  # air, padding, and whatever a window makes black
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
    units = (one - zero) / (high - low)  # Hounsfield units for one of the file's
    if kind == "windowed" and zero > FAT_BLACK:
        return Scaling(Tone(low, 1 / (high - low)), kind, zero, one)
    tone = Tone(float(low + (window[0] - zero) / units), float(units / (window[1] - window[0])))
    if kind == "windowed" and tone.low < low:  # black stays black, and soft tissue comes to its place
        tone = Tone(low, float((SOFT - window[0]) / (window[1] - window[0]) / ((SOFT - zero) / units)))
    if (
        kind == "windowed" and not 0.7 < tone.scale * (high - low) < 1.4
    ):  # another window than any that is in use
        tone = Tone(low, 1 / (high - low))
    return Scaling(tone, kind, float(zero), float(one))


def _closest(counts: np.ndarray) -> tuple[float, float]:
    """The largest share of the brighter values that one band holds (see WIDE_SHARE), and the band's grey in 0 .. 1:
    the middle of those that hold nearly as many."""
    below = np.append(0, np.cumsum(counts)) / counts.sum()
    share_below = lambda grey: np.interp(grey, np.linspace(0, 1, BINS + 1), below)  # noqa: E731
    greys = np.linspace(0.15, 0.8, 200)
    brighter = 1 - share_below(BRIGHTER * greys)
    enough = brighter > 0.3 * (1 - share_below(0.06))
    shares = np.where(
        enough, (share_below(1.13 * greys) - share_below(0.8 * greys)) / np.maximum(brighter, 1e-9), 0
    )
    return float(shares.max()), float(greys[shares >= shares.max() - 0.01].mean())


def _usual(
    counts: np.ndarray, likeliest: tuple[float, float], low: float, high: float
) -> tuple[float, float]:
    """Of the usual wide lines the likeliest, where it is nearly as likely as the likeliest of all, else that one: the
    Hounsfield units of the lowest and the highest value."""
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
    """The mean logarithm of the likelihood of a value under each line, with the shares of the parts that fit it best."""
    zeros, ones = (np.array(values)[:, None] for values in zip(*lines))
    edges = zeros + (ones - zeros) * np.linspace(0, 1, BINS + 1)  # (lines, BINS + 1), in Hounsfield units
    components = np.stack(
        [_shares(edges, cumulative) for cumulative in _cumulatives()], 1
    )  # (lines, parts, BINS)
    weight = np.full((len(lines), components.shape[1], 1), 1 / components.shape[1])
    share = counts / max(counts.sum(), 1)
    for _ in range(ROUNDS):  # expectation and maximisation of how much of each part there is
        of_component = weight * components
        weight = (of_component / of_component.sum(1, keepdims=True) * share).sum(2, keepdims=True)
    likelihood = (share * np.log((weight * components).sum(1))).sum(1)
    fat, soft = weight[:, FAT, 0].sum(1), weight[:, SOFT_TISSUES, 0].sum(1)
    # no abdomen is all fat: that is soft tissue taken for it
    return np.where(soft < LEAST_SOFT * (fat + soft), likelihood - 10, likelihood)


def _cumulatives() -> Iterator[Cumulative]:
    """Of each part: Hounsfield units -> the share of it that is below."""
    for mean, deviation in PEAKS.values():
        yield partial(_of_gaussian, mean, deviation)
    for start, stop in SPREADS.values():
        yield partial(_of_spread, start, stop)


def _of_gaussian(mean: float, deviation: float, units: np.ndarray) -> np.ndarray:
    return ndtr((units - mean) / deviation)


def _of_spread(start: float, stop: float, units: np.ndarray) -> np.ndarray:
    return np.clip((units - start) / (stop - start), 0, 1)


def _shares(edges: np.ndarray, cumulative: Cumulative) -> np.ndarray:
    """The share of a part in each bin, (lines, BINS): what is below the first and above the last edge is cut to them."""
    below = cumulative(edges)
    below[:, 0], below[:, -1] = 0, 1
    return np.diff(below, axis=1) + 1e-7
