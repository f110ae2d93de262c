"""Decides for one volume where slices are cut, how sharp they are, and on which grey scale."""

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

# The root of length x width of an adult brain, in mm.
BRAIN_MM = 154.0
# The range of the same. Spacing that puts a brain outside it is taken to be wrong.
BRAIN_RANGE = (100.0, 190.0)
# The share of the field of view's side that an abdomen's longer side in the plane fills.
BODY_SHARE = 0.86
# The fewest slices of an abdomen that are scored, where it has so many.
FEWEST_SLICES = 24
# How many coarse voxels round the body are scored too.
AROUND_BODY = 2
# Neighbours in the plane only, since slices may be far apart.
PLANE = np.array([[[False, True, False]] * 3] * 3)
# The blur of a voxel, as a standard deviation in voxels. It makes 1 mm scans as sharp as 2 mm ones.
BLUR = 0.3


@dataclass(frozen=True)
class View:
    """How the slices of a volume are cut.

    frame: the field of view in the plane.
    depth: how many slices the volume has.
    tone: the curve to the common grey scale. None where `to_unit_range` brings the values to [0, 1].
    centre, span: of relative positions, in slices: -0.5 at centre - span / 2, 0.5 at centre + span / 2. Span 0 makes positions
        relative to the slices that are scored, from `first` to `last`.
    first, last: the slices that are scored lie from `first` to `last`. A `last` of -1 is the volume's last slice.
    step: distance of the slices that are scored by default, in slices.
    blur_along: standard deviation of the blur along z, in slices of the volume.
    blur_in_plane: standard deviation of the blur in the plane, in pixels of the network's slices.
    body: the part that is scored. The rest, such as a scanner's table, counts as air. None for all.
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
        """The slice after the last one that is scored."""
        return self.depth if self.last < 0 else self.last + 1

    def indices(self, count: int | str | None = None) -> np.ndarray:
        """The slices to score, (N,) int64, rising.

        count: how many, evenly spread; or "all". None for every `step`th, counted from the centre.
        """
        last = self.end - 1
        if isinstance(count, int):
            return self.first + slice_indices(last - self.first + 1, count)
        step = 1 if count == "all" else self.step
        start = self.first + (round(self.centre) - self.first) % step
        return np.arange(min(start, last), last + 1, step, dtype=np.int64)

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """The networks' positions of slices, (N, 1) float32, -0.5 .. 0.5. indices: (N,) along z."""
        if not self.span:
            return relative_positions(np.asarray(indices) - self.first, self.end - self.first)
        place = (np.asarray(indices, np.float64).reshape(-1, 1) - self.centre) / self.span
        return place.clip(-0.5, 0.5).astype(np.float32)


def harmonise(data: np.ndarray, spacing: tuple[float, float, float], prep: Preprocessing) -> tuple[np.ndarray, View]:
    """A volume's data as `volume_to_slices` takes it, and its view.

    Data is returned as it is where the view has a tone curve, which `volume_to_slices` applies slice by slice. Otherwise
    `to_unit_range` brings it to [0, 1].

    data: (X, Y, Z) float32, finite, in RAS order, on any scale.
    spacing: (x, y, z) in mm.
    prep: the settings.
    """
    view = look(data, spacing, prep)
    return (data if view.tone else to_unit_range(data, prep)), view


def look(data: np.ndarray, spacing: tuple[float, float, float], prep: Preprocessing) -> View:
    """The view of a volume. It is the array's own field of view where the volume shows no anatomy.

    data: (X, Y, Z) float32, finite, in RAS order, on any scale.
    spacing: (x, y, z) in mm.
    prep: the settings.
    """
    plain = View(frame_of(data.shape, spacing), data.shape[2])
    if prep.frame == "array" and prep.intensity != "landmarks" and not prep.slice_distance and not prep.resolution:
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
    # A short stack is scored whole.
    step = max(1, min(step, data.shape[2] // FEWEST_SLICES))
    return View(
        frame,
        data.shape[2],
        scaling.tone if prep.intensity == "landmarks" else None,
        step=step,
        centre=data.shape[2] // 2,
        body=Body(around, steps),
    )


def _at_brain(data: np.ndarray, spacing: tuple[float, float, float], prep: Preprocessing, anatomy: Anatomy) -> View:
    length = math.sqrt(anatomy.extent[0] * anatomy.extent[1])
    # How many times too large the brain is by the header.
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
        if last < first:
            # All bright slices lie far from the brain.
            first, last = 0, depth - 1
    tone = None
    if prep.intensity == "landmarks":
        tone = brain_tone(anatomy, min(0.0, float(data.min())), prep.landmarks, size)
    step = max(1, round(prep.slice_distance / spacing[2])) if prep.slice_distance else 1
    along, across = (_blur(prep.resolution, d) for d in (spacing[2], max(spacing[:2])))
    pixel = frame.padded_width * spacing[0] / prep.image_size
    return View(
        frame,
        depth,
        tone,
        centre=centre,
        span=span,
        first=first,
        last=last,
        step=step,
        blur_along=along / spacing[2],
        blur_in_plane=across / pixel,
    )


def _blur(resolution: float, spacing: float) -> float:
    """Standard deviation of the Gaussian that makes voxels of `spacing` as blurred as voxels of `resolution`, all in mm."""
    return BLUR * math.sqrt(max(0.0, resolution**2 - spacing**2))


def _usable(spacing: tuple[float, float, float]) -> tuple[float, float, float]:
    """The spacing in mm where it can be true; 1 mm otherwise."""
    sides = [float(d) for d in spacing]
    usable = all(math.isfinite(d) and d > 0 for d in sides) and max(sides) <= MAX_ANISOTROPY * min(sides)
    return three(sides) if usable else (1.0, 1.0, 1.0)
