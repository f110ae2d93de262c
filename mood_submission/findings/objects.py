"""Outlines objects in a volume of scores, numbers them and describes them.

Smoothed scores spread beyond an object. So each outline lies at a score that is relative to the object's own peak.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy import ndimage

from ..runtime.triples import three
from ..volumes import Grid
from .thresholds import CHALLENGE_VOXELS, CORNERS, HealthyVoxels

# The least volume of an object: a ball of 6 mm.
LEAST_ML = 0.1
# An outline lies this far up from the volume's median score to the object's peak.
OUTLINE = 0.5
# The most findings of a volume, as their numbers have 8 bits.
MOST_FINDINGS = 255
# At how many scores it is tried how far an object may grow before it meets a surer one.
STEPS = 8
# How many voxels beyond a component are looked at first.
MARGIN = 8
# The subfolder of a folder of findings that holds what the model would have expected to see.
EXPECTED = "expected"
# The default threshold is the score at which a healthy volume shows this many objects.
FALSE_BY_DEFAULT = 0.25


@dataclass(frozen=True)
class Finding:
    """One object.

    number: from 1 on, the surest first. In the mask, the object's voxels have this value.
    centre_mm: centre of mass in the file's world coordinates (RAS, mm).
    centre_voxel: centre of mass in the file's own indices.
    first_voxel, last_voxel: corners of the bounding box in the file's own indices, both included.
    volume_ml: size in millilitres.
    voxels: size in voxels.
    highest, mean: of its voxel scores, 0 .. 1.
    false_objects: how many objects as sure as this a healthy volume shows. NaN where that was not measured.
    evidence: by kind, how rare its evidence is among healthy voxels: 2 for one in a hundred, 3 for one in a thousand.
    """

    number: int
    centre_mm: tuple[float, float, float]
    centre_voxel: tuple[float, float, float]
    first_voxel: tuple[int, int, int]
    last_voxel: tuple[int, int, int]
    volume_ml: float
    voxels: int
    highest: float
    mean: float
    false_objects: float
    evidence: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. What was not measured is None."""
        values = asdict(self)
        if math.isnan(self.false_objects):
            values["false_objects"] = None
        return values


def least_voxels(spacing: tuple[float, float, float]) -> int:
    """The fewest voxels of an object: LEAST_ML, and no fewer than the challenge counts. spacing: (x, y, z) in mm."""
    return max(CHALLENGE_VOXELS, math.ceil(LEAST_ML * 1000 / math.prod(spacing)))


def outline_objects(
    scores: np.ndarray,
    spacing: tuple[float, float, float],
    grid: Grid,
    healthy: HealthyVoxels | None,
    threshold: float | None = None,
    *,
    evidence: dict[str, np.ndarray] | None = None,
) -> tuple[list[Finding], np.ndarray]:
    """The findings in a volume of scores, at most the MOST_FINDINGS surest, and a mask of their numbers, (X, Y, Z) uint8.

    scores: (X, Y, Z) float in RAS order, 0 .. 1.
    spacing: (x, y, z) in mm.
    grid: the file's.
    healthy: what scores mean. It is needed where no threshold is given.
    threshold: the voxel score that objects reach. None for the score at which a healthy volume shows FALSE_BY_DEFAULT objects, see
        `HealthyVoxels.threshold_in`.
    evidence: maps like the scores, by kind. A finding holds the 90th percentile of each among its voxels.
    Raises ValueError without `threshold` and `healthy`.
    """
    if threshold is None:
        if healthy is None:
            raise ValueError("expected a threshold, or a model whose healthy scores were measured: found neither")
        threshold = healthy.threshold_in(scores, FALSE_BY_DEFAULT)
    ground = healthy.ground if healthy else 0.0
    mask = np.zeros(scores.shape, np.uint8)
    findings = []
    for number, object_ in enumerate(_outlined(scores, threshold, least_voxels(spacing), ground), 1):
        mask[object_.box][object_.inside] = number
        findings.append(
            _described(number, object_, scores, spacing=spacing, grid=grid, healthy=healthy, evidence=evidence or {})
        )
    return findings, mask


@dataclass(frozen=True, eq=False)
class _Object:
    """An outlined object.

    box: where it lies in the volume.
    inside: its voxels in the box, bool.
    strength: the highest score that `least_voxels` voxels reach of the component above the threshold that it was outlined from. By
        it the calibration counts objects, and findings are numbered.
    """

    box: tuple[slice, ...]
    inside: np.ndarray
    strength: float


def _outlined(scores: np.ndarray, threshold: float, least: int, ground: float) -> list[_Object]:
    """Connected components above the threshold with at least `least` voxels, the surest first and MOST_FINDINGS at most, each at its own outline.

    An outline lies OUTLINE of the way up from the volume's median score to the object's own strength, or from the threshold where
    the median is above that. Where the outline is above the threshold, the object is the surest part above it of `least` voxels.
    Where it is below, the object grows beyond its component, but not below `ground`: a weaker one that it reaches is a part of
    it, and it stops before a surer one.
    """
    labels, _ = ndimage.label(scores >= threshold, CORNERS)
    components = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        component = labels[box] == number
        if np.count_nonzero(component) >= least:
            components.append(_Object(box, component, _strength(scores[box][component], least)))
    base = min(float(np.median(scores[::2, ::2, ::2])), threshold)
    objects: list[_Object] = []
    taken = np.zeros(scores.shape, bool)
    for component in sorted(components, key=lambda object_: -object_.strength):
        if len(objects) == MOST_FINDINGS:
            break
        if taken[component.box][component.inside].any():
            continue
        level = base + OUTLINE * (component.strength - base)
        if level >= threshold:
            object_ = _shrunk(component, scores, level, least)
        elif max(level, ground) < threshold:
            levels = np.linspace(max(level, ground), threshold, STEPS, endpoint=False)
            object_ = _grown(component, scores, levels, taken)
        else:
            object_ = component
        taken[object_.box] |= object_.inside
        objects.append(object_)
    return objects


def _strength(scores: np.ndarray, least: int) -> float:
    """The highest score that `least` of these voxels reach."""
    return float(np.partition(scores, -least)[-least])


def _shrunk(component: _Object, scores: np.ndarray, level: float, least: int) -> _Object:
    """The surest part of a component of those that reach the level with `least` voxels. The component where there is none."""
    within = scores[component.box]
    pieces, _ = ndimage.label(component.inside & (within >= level), CORNERS)
    large = [number for number, size in enumerate(np.bincount(pieces.ravel())) if number and size >= least]
    if not large:
        return component
    surest = max(large, key=lambda number: _strength(within[pieces == number], least))
    return replace(component, inside=pieces == surest)


def _grown(component: _Object, scores: np.ndarray, levels: np.ndarray, taken: np.ndarray) -> _Object:
    """The component with all that is connected to it and reaches the lowest of the levels (rising) at which it meets nothing taken."""
    best, low, high = component, 0, len(levels)
    # What meets something at a level meets it at every lower one too.
    while low < high:
        middle = (low + high) // 2
        object_ = _connected(component, scores, float(levels[middle]), taken)
        if object_ is None:
            low = middle + 1
        else:
            best, high = object_, middle
    return best


def _connected(component: _Object, scores: np.ndarray, level: float, taken: np.ndarray) -> _Object | None:
    """The component with all voxels that are connected to it and reach the level. It is looked for in ever larger boxes.

    None where it meets something taken.
    """
    margin = MARGIN
    seed = np.argwhere(component.inside)[0] + [side.start for side in component.box]
    while True:
        box = tuple(
            slice(max(0, side.start - margin), min(length, side.stop + margin))
            for side, length in zip(component.box, scores.shape)
        )
        pieces, _ = ndimage.label(scores[box] >= level, CORNERS)
        inside = pieces == pieces[tuple(seed - [side.start for side in box])]
        if (inside & taken[box]).any():
            return None
        (found,) = ndimage.find_objects(inside.astype(np.uint8))
        # Whether it ends within the box, or where the volume does.
        if all(
            (part.start > 0 or side.start == 0) and (side.start + part.stop < side.stop or side.stop == length)
            for part, side, length in zip(found, box, scores.shape)
        ):
            return replace(component, box=box, inside=inside)
        margin *= 2


def _described(
    number: int,
    object_: _Object,
    scores: np.ndarray,
    *,
    spacing: tuple[float, float, float],
    grid: Grid,
    healthy: HealthyVoxels | None,
    evidence: dict[str, np.ndarray],
) -> Finding:
    """The finding of an outlined object. The rest is as in `outline_objects`."""
    # (V, 3) in RAS indices.
    places = np.argwhere(object_.inside) + [side.start for side in object_.box]
    within = scores[object_.box][object_.inside]
    corners = np.stack([places.min(0), places.max(0), places.mean(0)])
    first, last, centre = (grid.file_index(corner) for corner in corners)
    world = grid.affine_mm @ [*centre, 1.0]
    return Finding(
        number=number,
        centre_mm=three(round(float(v), 2) for v in world[:3]),
        centre_voxel=three(round(float(v), 2) for v in centre),
        first_voxel=three(int(min(a, b)) for a, b in zip(first, last)),
        last_voxel=three(int(max(a, b)) for a, b in zip(first, last)),
        volume_ml=round(len(places) * math.prod(spacing) / 1000, 4),
        voxels=len(places),
        highest=float(within.max()),
        mean=float(within.mean()),
        false_objects=healthy.expected(object_.strength) if healthy else math.nan,
        evidence={
            name: round(float(np.quantile(maps[object_.box][object_.inside], 0.9)), 2)
            for name, maps in evidence.items()
        },
    )
