"""Left against right: the plane that a brain is most nearly symmetrical about, and slices mirrored in it.

Not in the paper. What is found on one side of a brain alone is seldom healthy. Places are told in sides of the slices' field of
view: to the right, down and upwards from the volume's centre, -0.5 .. 0.5 each. Relative positions of slices are such places too
where the anatomy tells them (`Preprocessing.places_by_anatomy`).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage, optimize
from torch import Tensor
from torch.nn import functional as F

# The plane is sought in a volume of so many places along each side.
SOUGHT = 32
# The plane lies within these of the volume's middle: sides, and radians.
MOST_OFFSET, MOST_ANGLE = 0.12, 0.5
# The plane is sought in a blurred volume first, then in a sharper one: standard deviations in places, and first steps.
STAGES = ((2.0, 0.08), (0.5, 0.03))
# How much more the outline counts than greys when volumes are compared.
OUTLINE_WEIGHT = 2.0


@dataclass(frozen=True)
class Midline:
    """A plane that halves a brain.

    offset: of the plane from the volume's centre, to the right, in sides.
    yaw: how far the plane is turned within slices, in radians. roll: how far it leans from slice to slice.
    """

    offset: float = 0.0
    yaw: float = 0.0
    roll: float = 0.0

    @property
    def normal(self) -> tuple[float, float, float]:
        """What is perpendicular to the plane: right, down, upwards; of length 1."""
        across = math.cos(self.roll)
        return math.cos(self.yaw) * across, math.sin(self.yaw) * across, math.sin(self.roll)


def find_midline(slices: Tensor, position: Tensor) -> Midline:
    """The plane in which a volume's mirror image is most like the volume itself. It is the middle where there is no anatomy.

    slices: (N, S, S) in the network's intensities; air is exactly 0. position: (N, 1), rising, -0.5 .. 0.5.
    """
    chosen = np.unique(np.linspace(0, len(slices) - 1, SOUGHT).round().astype(np.int64))
    some = slices[torch.from_numpy(chosen).to(slices.device)].float()
    shown = torch.stack([some, (some != 0).float()], 1)
    greys, outline = F.adaptive_avg_pool2d(shown, SOUGHT).cpu().double().numpy().swapaxes(0, 1)
    if not outline.any():
        return Midline()
    heights = position[:, 0].cpu().double().numpy()[chosen]
    places = (np.arange(SOUGHT) + 0.5) / SOUGHT - 0.5
    up, down, right = np.meshgrid(heights, places, places, indexing="ij")

    def unlike(parameters: np.ndarray, volumes: list[tuple[float, np.ndarray]]) -> float:
        """How much volumes differ from their mirror images."""
        limits = (MOST_OFFSET, MOST_ANGLE, MOST_ANGLE)
        if any(abs(value) > limit for value, limit in zip(parameters, limits)):
            return math.inf
        across, along, above = _reflected(right, down, up, Midline(*parameters))
        where = [
            np.interp(above, heights, np.arange(len(heights))),
            *((p + 0.5) * SOUGHT - 0.5 for p in (along, across)),
        ]
        difference = 0.0
        for weight, volume in volumes:
            difference += weight * np.abs(volume - ndimage.map_coordinates(volume, where, order=1)).mean()
        return float(difference)

    best = np.zeros(3)
    for blur, step in STAGES:
        volumes = [
            (weight, ndimage.gaussian_filter(volume, blur))
            for weight, volume in ((1.0, greys), (OUTLINE_WEIGHT, outline))
        ]
        found = optimize.minimize(
            unlike,
            best,
            (volumes,),
            method="Nelder-Mead",
            options={"initial_simplex": [best, *(best + step * np.eye(3))], "xatol": 1e-3, "fatol": 1e-6},
        )
        best = found.x
    return Midline(*(round(float(value), 5) for value in best))


def mirrored_slice(slices: Tensor, rows: Tensor | None, heights: np.ndarray, midline: Midline, number: int) -> Tensor:
    """One slice as it would be if the volume were mirrored in a plane: (S, S) float32, 0 where nothing was seen.

    slices: (M, S, S), on any device. rows: (N,) int64, where each slice of the volume stands in them; None for 0, 1, 2 ...
    heights: (N,), rising, the slices' relative positions. number: of the slice.
    """
    side = slices.shape[-1]
    places = (np.arange(side) + 0.5) / side - 0.5
    down, right = np.meshgrid(places, places, indexing="ij")
    across, along, above = _reflected(right, down, np.full_like(right, heights[number]), midline)
    level = np.interp(above, heights, np.arange(len(heights)))
    first, last = int(level.min()), int(np.ceil(level.max()))
    near = torch.arange(first, last + 1, device=slices.device)
    near = near if rows is None else rows.to(slices.device)[near]
    # For grid_sample: the centres of the first and of the last place are -1 and 1.
    span = max(last - first, 1)
    grid = np.stack(
        [
            *(2 * ((p + 0.5) * side - 0.5) / max(side - 1, 1) - 1 for p in (across, along)),
            2 * (level - first) / span - 1,
        ],
        -1,
    )
    sampled = F.grid_sample(
        slices[near][None, None].float(),
        torch.from_numpy(grid[None, None]).to(slices.device, torch.float32),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )
    return sampled[0, 0, 0]


def _reflected(
    right: np.ndarray, down: np.ndarray, up: np.ndarray, midline: Midline
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places reflected in a plane: right, down, up."""
    a, b, c = midline.normal
    twice = 2 * (a * right + b * down + c * up - midline.offset)
    return right - a * twice, down - b * twice, up - c * twice
