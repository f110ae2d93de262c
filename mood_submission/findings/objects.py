"""Numbered objects in a volume of scores, each with an outline that follows what is there, not the smoothing."""

import math
from dataclasses import asdict, dataclass, field

import numpy as np
from scipy import ndimage

from ..runtime.triples import three
from ..volumes import Grid
from .thresholds import CHALLENGE_VOXELS, CORNERS, HealthyVoxels

LEAST_ML = 0.1  # a ball of 6 mm
OUTLINE = 0.5  # an object's outline lies so far up from the volume's median score to the object's peak
EXPECTED = "expected"  # folder within a folder of findings: what the model would have expected to see
FALSE_BY_DEFAULT = 0.5  # objects that a healthy volume shows at the threshold that is taken


@dataclass(frozen=True)
class Finding:
    """One object.

    number: from 1 on, the surest first; in the mask, the object's voxels have this value.
    centre_mm: centre of mass in the file's world coordinates (RAS, mm). centre_voxel: the same in the file's own indices.
    first_voxel, last_voxel: corners of the bounding box, in the file's own indices, both within.
    volume_ml: in millilitres. voxels: in voxels. highest, mean: voxel scores within, 0 .. 1.
    false_objects: how many objects as sure as this a healthy volume shows; NaN where that was not measured.
    evidence: by kind, how rare what is seen within is among healthy voxels: 2 for one in a hundred, 3 for one in a thousand.
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

    def to_dict(self) -> dict:
        """Plain values, for JSON; what was not measured is None."""
        values = asdict(self)
        if math.isnan(self.false_objects):
            values["false_objects"] = None
        return values


def least_voxels(spacing: tuple[float, float, float]) -> int:
    """How many voxels an object has at least: LEAST_ML, and as many as the challenge asks for."""
    return max(CHALLENGE_VOXELS, math.ceil(LEAST_ML * 1000 / math.prod(spacing)))


def outline_objects(
    scores: np.ndarray,
    spacing: tuple[float, float, float],
    grid: Grid,
    healthy: HealthyVoxels | None,
    threshold: float | None = None,
    evidence: dict[str, np.ndarray] | None = None,
) -> tuple[list[Finding], np.ndarray]:
    """The findings in a volume of scores (X, Y, Z), RAS order, and their mask, (X, Y, Z) uint8 of their numbers.

    spacing: mm. grid: the file's. healthy: what scores mean; needed where no threshold is given. threshold: the voxel score
    that objects reach; by default that at which a healthy volume shows FALSE_BY_DEFAULT of them. evidence: maps like the
    scores, by kind, of which each finding tells the 90th percentile within. At most 255 are told, the surest.
    Raises ValueError where there is neither a threshold nor what one could be taken from.
    """
    if threshold is None:
        if healthy is None:
            raise ValueError(
                "expected a threshold, or a model whose healthy scores were measured: found neither"
            )
        threshold = healthy.threshold(FALSE_BY_DEFAULT)
    least = least_voxels(spacing)
    objects = _outlined(scores, threshold, least)
    surest = sorted(objects, key=lambda object_: -object_.strength)[:255]
    mask = np.zeros(scores.shape, np.uint8)
    findings = []
    for number, object_ in enumerate(surest, 1):
        mask[object_.box][object_.inside] = number
        findings.append(_described(number, object_, scores, spacing, grid, healthy, evidence or {}))
    return findings, mask


@dataclass(frozen=True, eq=False)
class _Object:
    """box: where in the volume; inside: which of the box's voxels; strength: the score that enough of them reach."""

    box: tuple[slice, ...]
    inside: np.ndarray
    strength: float


def _outlined(scores: np.ndarray, threshold: float, least: int) -> list[_Object]:
    """Connected parts above the threshold with at least so many voxels, each cut to what is near its own peak."""
    labels, _ = ndimage.label(scores >= threshold, CORNERS)
    objects, base = [], float(np.median(scores[::2, ::2, ::2]))
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        component = labels[box] == number
        if np.count_nonzero(component) < least:
            continue
        within = scores[box]
        strength = float(np.partition(within[component], -least)[-least])
        level = base + OUTLINE * (strength - base)
        pieces, count = ndimage.label(component & (within >= level), CORNERS)
        sizes = np.bincount(pieces.ravel())[1:]
        inside = pieces == 1 + int(sizes.argmax())
        objects.append(_Object(box, inside, strength))
    return objects


def _described(
    number: int,
    object_: _Object,
    scores: np.ndarray,
    spacing: tuple[float, float, float],
    grid: Grid,
    healthy: HealthyVoxels | None,
    evidence: dict[str, np.ndarray],
) -> Finding:
    places = np.argwhere(object_.inside) + [side.start for side in object_.box]  # (V, 3), RAS
    within = scores[object_.box][object_.inside]
    corners = np.stack([places.min(0), places.max(0), places.mean(0)])
    first, last, centre = (grid.file_index(corner) for corner in corners)
    world = grid.affine_mm @ [*centre, 1.0]
    return Finding(
        number,
        three(round(float(v), 2) for v in world[:3]),
        three(round(float(v), 2) for v in centre),
        three(int(min(a, b)) for a, b in zip(first, last)),
        three(int(max(a, b)) for a, b in zip(first, last)),
        round(len(places) * math.prod(spacing) / 1000, 4),
        len(places),
        float(within.max()),
        float(within.mean()),
        healthy.expected(object_.strength) if healthy else math.nan,
        {
            name: round(float(np.quantile(maps[object_.box][object_.inside], 0.9)), 2)
            for name, maps in evidence.items()
        },
    )
