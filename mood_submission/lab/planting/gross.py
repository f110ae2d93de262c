"""Cases that a score must not get wrong: volumes that are odd all over, and one lesion of each size.

All are deterministic: a case depends on the volume, its name and the kind alone. Volumes are float32 (X, Y, Z) in [0, 1],
x to the right, y anterior, z superior, as in `anomalies`. Lengths are in mm.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from ...preprocessing.body import body_mask
from .anomalies import places_of

BALL_RADII = (10.0, 20.0, 30.0, 40.0, 50.0)  # mm, of the dark balls among the gross cases
BALL_ASIDE = 25.0  # mm from the body's centre to a gross ball's, to the right
BLUR_MM = 4.0
NOISE = 0.25
LATTICE = 0.3
LATTICE_MM = 12.0
SIZES = (2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 45.0)  # mm, radii of the lesions of each size
SOFT_EDGE = 0.15  # of the radius: how wide a soft lesion's edge is
LEAST_EDGE = 0.4  # mm
SHIFT = 0.75  # of the tissue's contrast, by which a shift is brighter


@dataclass(frozen=True, eq=False)
class Subject:
    """A healthy volume that gross cases are made of.

    data: (X, Y, Z) float32 in [0, 1]. spacing: mm along x, y and z. seed: of the places of lesions.
    """

    data: np.ndarray
    spacing: tuple[float, float, float]
    seed: int = 0

    @cached_property
    def body(self) -> np.ndarray:
        """The body or brain, bool (X, Y, Z)."""
        return body_mask(self.data)

    @cached_property
    def dark(self) -> float:
        """The grey of what is dark in the body: its 2nd percentile."""
        return float(np.quantile(self.data[self.body], 0.02))

    @cached_property
    def contrast(self) -> float:
        """How far the tissues lie apart: the body's interquartile range. In a brain it is about white less grey matter."""
        low, high = np.quantile(self.data[self.body], (0.25, 0.75))
        return float(high - low)

    def offsets(self, centre: np.ndarray) -> list[np.ndarray]:
        """How far voxels lie from `centre` (3,), voxels, along each axis: three open arrays, mm."""
        axes = np.ogrid[tuple(slice(0, side) for side in self.data.shape)]
        return [(axis - at) * step for axis, at, step in zip(axes, centre, self.spacing)]

    @cached_property
    def centre(self) -> np.ndarray:
        """The body's centre of mass, (3,), voxels."""
        return np.array(ndimage.center_of_mass(self.body))

    def within(self, changed: np.ndarray) -> np.ndarray:
        """The volume with `changed` (X, Y, Z) in the body: float32, clipped to [0, 1]."""
        return np.where(self.body, np.clip(changed, 0, 1), self.data).astype(np.float32)


@dataclass(frozen=True, eq=False)
class GrossCase:
    """A case.

    kind: such as "half_missing", "ball_30mm" or "soft_05mm"; None for the healthy volume.
    data: (X, Y, Z) float32 in [0, 1].
    mask: what is wrong, bool (X, Y, Z).
    radius: of what was put in, mm; None where the whole volume is wrong, and where nothing is.
    """

    kind: str | None
    data: np.ndarray
    mask: np.ndarray
    radius: float | None = None


# --- odd all over: each takes the subject and returns the whole volume, (X, Y, Z) float32 in [0, 1] ------------------------


def _half_missing(subject: Subject) -> np.ndarray:
    return np.where(subject.offsets(subject.centre)[0] > 0, 0, subject.data).astype(np.float32)


def _blurred(subject: Subject) -> np.ndarray:
    return subject.within(ndimage.gaussian_filter(subject.data, [BLUR_MM / step for step in subject.spacing]))


def _one_grey(subject: Subject) -> np.ndarray:
    return subject.within(np.full_like(subject.data, np.median(subject.data[subject.body])))


def _inverted(subject: Subject) -> np.ndarray:
    low, high = np.quantile(subject.data[subject.body], (0.005, 0.995))
    return subject.within(np.clip(low + high - subject.data, low, high))


def _noisy(subject: Subject) -> np.ndarray:
    noise = np.random.default_rng(subject.seed).standard_normal(subject.data.shape, np.float32)
    return subject.within(subject.data + NOISE * noise)


def _lattice(subject: Subject) -> np.ndarray:
    waves = [np.sin(2 * np.pi * offset / LATTICE_MM) for offset in subject.offsets(subject.centre)]
    return subject.within(subject.data + LATTICE * waves[0] * waves[1] * waves[2])


def _upside_down(subject: Subject) -> np.ndarray:
    return np.asfortranarray(subject.data[:, :, ::-1])


def _back_to_front(subject: Subject) -> np.ndarray:
    return np.asfortranarray(subject.data[:, ::-1])


def _turned(subject: Subject) -> np.ndarray:
    """By 90 degrees in the axial plane, on a grid of the same shape."""
    return _rotated(subject, (0, 1))


def _lying(subject: Subject) -> np.ndarray:
    """By 90 degrees in the sagittal plane, on a grid of the same shape."""
    return _rotated(subject, (1, 2))


def _rotated(subject: Subject, axes: tuple[int, int]) -> np.ndarray:
    """Turned by 90 degrees about the body's centre: whatever leaves the grid is lost, and what comes in is 0."""
    first, second = axes
    matrix, steps = np.eye(3), subject.spacing
    matrix[first, first] = matrix[second, second] = 0
    matrix[first, second], matrix[second, first] = steps[second] / steps[first], -steps[first] / steps[second]
    offset = subject.centre - matrix @ subject.centre
    return np.asfortranarray(ndimage.affine_transform(subject.data, matrix, offset, order=1).clip(0, 1))


WHOLE: dict[str, Callable[[Subject], np.ndarray]] = {
    "half_missing": _half_missing,
    "blurred": _blurred,
    "one_grey": _one_grey,
    "inverted": _inverted,
    "noisy": _noisy,
    "lattice": _lattice,
    "upside_down": _upside_down,
    "back_to_front": _back_to_front,
    "turned": _turned,
    "lying": _lying,
}


def _healthy(subject: Subject) -> GrossCase:
    return GrossCase(None, subject.data, np.zeros(subject.data.shape, bool))


def gross_cases(subject: Subject) -> Iterator[GrossCase]:
    """The healthy volume, a dark ball of each of BALL_RADII, then every kind of WHOLE.

    The mask of a whole volume is where it differs from the healthy one by more than a hundredth, or the body where it was moved.
    """
    yield _healthy(subject)
    offsets = subject.offsets(subject.centre + np.array([BALL_ASIDE / subject.spacing[0], 0, 0]))
    distance = np.sqrt(sum(offset**2 for offset in offsets))
    for radius in BALL_RADII:
        mask = (distance < radius) & subject.body
        data = np.where(mask, np.float32(subject.dark), subject.data)
        yield GrossCase(f"ball_{radius:02.0f}mm", data, mask, radius)
    for kind, make in WHOLE.items():
        data = make(subject)
        yield GrossCase(kind, data, np.abs(data - subject.data) > 0.01)


# --- one lesion of each size -----------------------------------------------------------------------------------------------


def _lesion_ball(subject: Subject, weight: np.ndarray) -> np.ndarray:
    """One dark grey with a hard edge."""
    return np.where(weight > 0.5, np.float32(subject.dark), subject.data)


def _lesion_soft(subject: Subject, weight: np.ndarray) -> np.ndarray:
    """Darker by the tissue's contrast, with a soft edge."""
    return subject.data - np.float32(subject.contrast) * weight


def _lesion_shift(subject: Subject, weight: np.ndarray) -> np.ndarray:
    """Brighter by SHIFT of the tissue's contrast, with a hard edge."""
    return subject.data + np.float32(SHIFT * subject.contrast) * (weight > 0.5)


LESIONS = {"ball": _lesion_ball, "soft": _lesion_soft, "shift": _lesion_shift}


def cases_of_each_size(subject: Subject, sizes: tuple[float, ...] = SIZES) -> Iterator[GrossCase]:
    """The healthy volume, then a lesion of each kind of LESIONS and of each radius in `sizes`, mm, at a place of its own."""
    yield _healthy(subject)
    for i, kind in enumerate(LESIONS):
        for j, radius in enumerate(sizes):
            rng = np.random.default_rng([subject.seed, i, j])
            distance = np.sqrt(sum(offset**2 for offset in subject.offsets(_place(subject, radius, kind, rng))))
            edge = max(SOFT_EDGE * radius, LEAST_EDGE)
            weight = np.where(subject.body, 1 / (1 + np.exp(((distance - radius) / edge).clip(-30, 30))), 0)
            data = np.clip(LESIONS[kind](subject, weight.astype(np.float32)), 0, 1)
            yield GrossCase(f"{kind}_{radius:02.0f}mm", data, weight > 0.5, radius)


def _place(subject: Subject, radius: float, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A centre (3,) in voxels, as deep as the radius where the body is deep enough. A soft lesion's is in bright tissue."""
    where, depth = places_of(subject.body)
    depth = depth * subject.spacing[0]
    deep = where[depth >= min(radius, 0.8 * float(depth.max()))]
    if kind == "soft":
        values = subject.data[tuple(deep.T)]
        deep = deep[values >= np.quantile(values, 0.6)]
    return deep[rng.integers(len(deep))]


SERIES: dict[str, Callable[[Subject], Iterator[GrossCase]]] = {
    "gross": gross_cases,
    "sizes": cases_of_each_size,
}


def kinds_of(series: str) -> list[str | None]:
    """The kinds of a series' cases; None stands for the healthy volume."""
    if series == "gross":
        return [None, *(f"ball_{radius:02.0f}mm" for radius in BALL_RADII), *WHOLE]
    return [None, *(f"{kind}_{radius:02.0f}mm" for kind in LESIONS for radius in SIZES)]
