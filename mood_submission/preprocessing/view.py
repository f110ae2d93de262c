"""How one volume is looked at: where its slices are cut, how sharp, and on which grey scale."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..runtime.triples import three
from .anatomy import FEWEST, Anatomy, Body, block_means, coarse_steps, find_anatomy
from .body import body_mask
from .frame import MAX_ANISOTROPY, Frame, frame_of, frame_round
from .hounsfield import find_scaling
from .positions import relative_positions, slice_indices
from .settings import Preprocessing
from .tone import Tone, brain_tone, to_unit_range

BRAIN_MM = 154.0  # root of length x width of an adult brain
BRAIN_RANGE = (
    100.0,
    190.0,
)  # of the same; where the header's spacing says otherwise, it is taken to be wrong
BODY_SHARE = 0.86  # of the field of view that an abdomen's longer side in the plane fills
FEWEST_SLICES = 24  # of an abdomen, before any are left out
AROUND_BODY = 2  # coarse voxels round the body that are looked at too
PLANE = np.array([[[False, True, False]] * 3] * 3)  # only neighbours in the plane: slices may be far apart
BLUR = 0.3  # standard deviation, in voxels, of what a voxel averages: makes 1 mm scans as sharp as 2 mm ones


@dataclass(frozen=True)
class View:
    """How a volume is looked at.

    frame: the field of view in the plane. tone: to the common grey scale; None where the values are in [0, 1] already.
    centre, span: of the relative position, in slices: -0.5 at centre - span / 2, 0.5 at centre + span / 2; span 0 for
        positions relative to the array.
    first, last: slices beyond which there is nothing to look at.
    step: slices from one that is looked at by default to the next.
    blur_along, blur_in_plane: standard deviations that bring the volume to the common sharpness, in slices of the volume
        and in pixels of the network's slices.
    body: what is looked at of the slices: the rest, such as a scanner's table, is taken for air and not scored; None for all.
    """

    frame: Frame
    depth: int
    tone: Tone | None = None
    centre: float = 0.0
    span: float = 0.0
    first: int = 0
    last: int = -1
    step: int = 1
    blur_along: float = 0.0
    blur_in_plane: float = 0.0
    body: Body | None = None

    @property
    def end(self) -> int:
        """The slice after the last that there is something to look at in."""
        return self.depth if self.last < 0 else self.last + 1

    def indices(self, count: int | str | None = None) -> np.ndarray:
        """Which slices to look at, rising, (N,) int64. None: every `step`th, counted from the centre; "all"; or so many,
        evenly spread."""
        last = self.end - 1
        if isinstance(count, int):
            return self.first + slice_indices(last - self.first + 1, count)
        step = 1 if count == "all" else self.step
        start = self.first + (round(self.centre) - self.first) % step
        return np.arange(min(start, last), last + 1, step, dtype=np.int64)

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """The networks' condition, (N, 1) float32 in -0.5 .. 0.5."""
        if not self.span:
            return relative_positions(indices, self.depth)
        place = (np.asarray(indices, np.float64).reshape(-1, 1) - self.centre) / self.span
        return place.clip(-0.5, 0.5).astype(np.float32)


def harmonise(
    data: np.ndarray, spacing: tuple[float, float, float], prep: Preprocessing
) -> tuple[np.ndarray, View]:
    """A volume's data as `volume_to_slices` takes it, and its view. data: (X, Y, Z) float32, finite, RAS order, any scale.

    Where the view has a tone curve, that brings the data to [0, 1] slice by slice, and it is returned as it is; else by
    `to_unit_range`.
    """
    view = look(data, spacing, prep)
    return (data if view.tone else to_unit_range(data, prep)), view


def look(data: np.ndarray, spacing: tuple[float, float, float], prep: Preprocessing) -> View:
    """The view of a volume (X, Y, Z), float32, finite, in RAS order, under these settings. spacing: mm.

    Where nothing stands out in the volume it is the array's own field of view.
    """
    plain = View(frame_of(data.shape, spacing), data.shape[2])
    if (
        prep.frame == "array"
        and prep.intensity != "landmarks"
        and not prep.slice_distance
        and not prep.resolution
    ):
        return plain
    spacing = _usable(spacing)
    if prep.region == "abdom":
        return _at_body(data, spacing, prep, plain)
    anatomy = find_anatomy(data, spacing)
    if anatomy is None:
        return plain
    return _at_brain(data, spacing, prep, anatomy)


def _at_body(data: np.ndarray, spacing: tuple[float, float, float], prep: Preprocessing, plain: View) -> View:
    steps = coarse_steps(data.shape, spacing)
    coarse = block_means(data, steps)
    scaling = find_scaling(coarse, prep.hounsfield_window)
    if scaling.kind == "unknown":
        return plain
    body = body_mask(scaling.tone(coarse))
    if np.count_nonzero(body) < FEWEST:
        return plain
    box = ndimage.find_objects(body.astype(np.uint8))[0]
    frame = plain.frame
    if prep.frame == "anatomy":
        low, high = (
            [end * step for end, step in zip(ends, steps)]
            for ends in ([side.start for side in box], [side.stop for side in box])
        )
        centre = tuple((a + b) / 2 - 0.5 for a, b in zip(low, high))
        longer = max((b - a) * d for a, b, d in zip(low[:2], high[:2], spacing[:2]))
        frame = frame_round(data.shape, spacing, centre[:2], longer / BODY_SHARE)
    around = ndimage.binary_dilation(body, ndimage.generate_binary_structure(3, 1) & PLANE, AROUND_BODY)
    step = max(1, round(prep.slice_distance / spacing[2])) if prep.slice_distance else 1
    step = max(1, min(step, data.shape[2] // FEWEST_SLICES))  # a short stack is looked at whole
    return View(
        frame,
        data.shape[2],
        scaling.tone if prep.intensity == "landmarks" else None,
        step=step,
        centre=data.shape[2] // 2,
        body=Body(around, steps),
    )


def _at_brain(
    data: np.ndarray, spacing: tuple[float, float, float], prep: Preprocessing, anatomy: Anatomy
) -> View:
    length = math.sqrt(anatomy.extent[0] * anatomy.extent[1])
    # how many times too large the brain is by the header
    size = 1.0 if BRAIN_RANGE[0] <= length <= BRAIN_RANGE[1] else length / BRAIN_MM
    spacing, depth = three(d / size for d in spacing), data.shape[2]
    frame, centre, span, first, last = frame_of(data.shape, spacing), 0.0, 0.0, 0, depth - 1
    if prep.frame == "anatomy":
        at = anatomy.centroid
        frame = frame_round(data.shape, spacing, at[:2], prep.field_of_view)
        centre, span = at[2], prep.field_of_view / spacing[2]
        low, high = anatomy.span(2)
        first = max(low - 1, math.ceil(centre - span / 2), 0)
        last = min(high + 1, math.floor(centre + span / 2), depth - 1)
        if last < first:  # what is bright lies in slices far from the brain
            first, last = 0, depth - 1
    tone = None
    if prep.intensity == "landmarks":
        tone = brain_tone(anatomy, min(0.0, float(data.min())), prep.landmarks, size)
    step = max(1, round(prep.slice_distance / spacing[2])) if prep.slice_distance else 1
    along, across = (_blur(prep.resolution, d) for d in (spacing[2], max(spacing[:2])))
    pixel = frame.padded_width * spacing[0] / prep.image_size
    return View(frame, depth, tone, centre, span, first, last, step, along / spacing[2], across / pixel)


def _blur(resolution: float, spacing: float) -> float:
    """Standard deviation, mm, of the Gaussian that makes voxels of `spacing` as blurred as voxels of `resolution`."""
    return BLUR * math.sqrt(max(0.0, resolution**2 - spacing**2))


def _usable(spacing: tuple[float, float, float]) -> tuple[float, float, float]:
    """The spacing where it can be true, else voxels of 1 mm."""
    sides = [float(d) for d in spacing]
    usable = all(math.isfinite(d) and d > 0 for d in sides) and max(sides) <= MAX_ANISOTROPY * min(sides)
    return three(sides) if usable else (1.0, 1.0, 1.0)
