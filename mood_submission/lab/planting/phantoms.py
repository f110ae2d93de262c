"""Healthy volumes made up: brains deformed from the MNI152 template, or procedural ones, and abdomens."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from scipy import ndimage

FRAME_MM = {"brain": 200.0, "abdom": 384.0}
# World coordinates of the frame's lower corner; the brain's as in the training data, which lies in MNI space.
CORNER_MM = {"brain": (-100.0, -118.0, -92.0), "abdom": (-192.0, -192.0, 0.0)}
SMALLEST = 16


# --- random fields and shapes ----------------------------------------------------------------------------------------


def _axis(size: int, first: int) -> np.ndarray:
    """Voxel centres in -1 .. 1, float32, open along axis `first` (0, 1 or 2)."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1
    return centres.reshape([-1 if axis == first else 1 for axis in range(3)])


def _field(shape: Sequence[int], waves: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth random field, float32 of `shape`, mean 0 and standard deviation 1, about `waves` bumps a side."""
    field = rng.standard_normal((waves + 2,) * 3).astype(np.float32)
    for size in shape:  # each pass interpolates the first axis and moves it to the end
        place = (np.arange(size) + 0.5) / size * waves + 0.5
        weights = np.exp(-2 * (place[:, None] - np.arange(waves + 2)) ** 2).astype(np.float32)
        weights /= np.sqrt((weights**2).sum(1, keepdims=True))
        field = np.tensordot(field, weights, axes=(0, 1))
    return field


def _ellipsoid(
    axes: Sequence[np.ndarray], centre: Iterable[np.ndarray | float], radii: Iterable[np.ndarray | float]
) -> np.ndarray:
    """Distance from `centre`, 1 on the ellipsoid's surface; arguments broadcast, so a centre may move along an axis."""
    return np.sqrt(sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)))


def _check_size(size: int) -> None:
    if size < SMALLEST:
        raise ValueError(f"size: expected {SMALLEST} or more voxels a side, found {size}")


# --- brains ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _template() -> tuple[np.ndarray, np.ndarray]:
    """Skull-stripped MNI152 T1 at 1 mm from nilearn's own files: float32 (X, Y, Z) in [0, 1], affine (4, 4)."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    return np.asarray(image.dataobj, np.float32), image.affine


def _template_places(size: int, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where each voxel of a subject lies in the template: template voxels, float32 (3, S, S, S).

    People's brains are smaller than the template (width 0.93, as in the training data), tilted by up to 4 degrees,
    and differ by smooth shifts of about 2.2 mm that change over 50 mm and 0.8 mm over 20 mm.
    """
    angles = np.deg2rad(rng.uniform(-4, 4, 3))
    turn = np.eye(3)
    for i, (a, b) in enumerate([(1, 2), (0, 2), (0, 1)]):
        step = np.eye(3)
        step[[a, b], [a, b]] = np.cos(angles[i])
        step[a, b], step[b, a] = -np.sin(angles[i]), np.sin(angles[i])
        turn = turn @ step
    matrix = turn / (0.93 * rng.uniform(0.95, 1.05, 3))  # subject mm -> template mm, about the frame's centre
    half = FRAME_MM["brain"] / 2
    centre = np.array(CORNER_MM["brain"]) + half
    to_voxel = np.linalg.inv(affine)
    mm = [_axis(size, axis) * np.float32(half) for axis in range(3)]
    shift = [2.2 * _field((size,) * 3, 4, rng) + 0.8 * _field((size,) * 3, 10, rng) for _ in range(3)]
    places = np.empty((3, size, size, size), np.float32)
    combined = (to_voxel[:3, :3] @ matrix).astype(np.float32)
    offset = to_voxel[:3, :3] @ centre + to_voxel[:3, 3]
    for axis in range(3):  # the shift is added in template voxels, which are 1 mm
        places[axis] = sum(combined[axis, k] * mm[k] for k in range(3)) + np.float32(offset[axis]) + shift[axis]
    return places


def _own_intensities(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, detail: float) -> np.ndarray:
    """A subject's own gamma, contrast, bias field and noise; 0 outside `mask`, at least 0.02 inside. In place."""
    image **= np.float32(rng.uniform(0.85, 1.18))
    image -= 0.55
    image *= np.float32(rng.uniform(0.92, 1.08))
    image += np.float32(0.55 + rng.uniform(-0.03, 0.03))
    image *= 1 + np.float32(rng.uniform(0.02, 0.06)) * _field(image.shape, 2, rng)
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), detail)
    image += np.float32(rng.uniform(0.01, 0.025)) * noise / noise.std()
    np.clip(image, 0.02, 1, out=image)
    image[~mask] = 0
    return image


def brain_template_subject(size: int, rng: np.random.Generator) -> np.ndarray:
    """A made-up subject from the MNI152 T1 template, deformed and with its own contrast: float32 (S, S, S) in [0, 1].

    A 200 mm cube round the brain, RAS, skull-stripped; the background is exactly 0, the brain at least 0.02.
    Raises ImportError without nilearn, ValueError for a size below 16.
    """
    _check_size(size)
    template, affine = _template()
    places = _template_places(size, affine, rng)
    blur = 0.35 * FRAME_MM["brain"] / size  # voxels are coarser than the template's: no aliasing
    smooth = ndimage.gaussian_filter(template, blur)
    # an average of many brains is soft
    smooth += 0.45 * (smooth - ndimage.gaussian_filter(template, blur + 1.5))
    image = ndimage.map_coordinates(smooth, places, order=1, mode="constant")
    mask = ndimage.map_coordinates((template > 0).astype(np.float32), places, order=1, mode="constant") > 0.5
    # The template's greys (its 1, 10, 50, 90, 99% points among others) to the training data's.
    image = np.interp(image, (0, 0.28, 0.50, 0.70, 0.87, 1.0), (0.02, 0.11, 0.36, 0.60, 0.83, 0.97))
    return _own_intensities(image.astype(np.float32), mask, rng, 0.5)


def brain_phantom(size: int, rng: np.random.Generator) -> np.ndarray:
    """A procedural brain, float32 (S, S, S) in [0, 1], framed like the training data.

    Fluid 0.2, grey matter 0.55, white 0.85: an ellipsoid with a folded ribbon of cortex, ventricles, deep grey, a
    cerebellum and a stem; background exactly 0.
    Raises ValueError for a size below 16.
    """
    _check_size(size)
    shape = (size,) * 3
    x, y, z = axes = [_axis(size, axis) for axis in range(3)]
    radii = np.array((0.68, 0.87, 0.66)) * rng.uniform(0.94, 1.04, 3)
    outer = _ellipsoid(axes, (0, 0.03, 0.06), radii) + 0.025 * _field(shape, 5, rng)
    depth = np.where(z < -0.42 + 0.1 * y, 0, 1 - outer)  # flat below
    fold = np.abs(_field(shape, 15, rng))  # its zeros are sheets: sulci near the surface, fading with depth
    layer = np.minimum(depth / 0.05, fold / 0.3 + np.maximum(depth - 0.22, 0) / 0.06)
    fissure = np.where((np.abs(x) < 0.012) & (outer > 0.6) & (z > -0.2), 0.1, np.float32(9))
    layer = np.minimum(layer, fissure)
    image = np.select([layer < 0.35, layer < 1.3], [np.float32(0.25), np.float32(0.55)], np.float32(0.85))
    mask = depth > 0
    bend = 0.25 * y * y
    swell = rng.uniform(0.7, 1.5)
    for side in (-1, 1):
        image[_ellipsoid(axes, (0.15 * side, 0.03, -0.03), (0.09, 0.15, 0.1)) < 1] = 0.6
        inner = _ellipsoid(axes, (side * (0.07 + bend), 0.0, 0.14 - bend), (0.05 * swell, 0.3, 0.09 * swell))
        image[(inner < 1) & mask] = 0.2
    for centre, size_of, wave in (
        ((0, -0.42, -0.42), (0.46, 0.32, 0.26), 0.25),
        ((0, -0.12, -0.45), (0.13, 0.13, 0.3), 0),
    ):
        below = (_ellipsoid(axes, centre, size_of) < 1) & ~mask
        leaves = 0.75 - wave * (np.cos(60 * np.sqrt((y + 0.2) ** 2 + (z + 0.4) ** 2)) > 0.3)
        image[below] = np.broadcast_to(leaves, shape)[below]
        mask |= below
    image = ndimage.gaussian_filter(image * mask, 0.005 * size)
    return _own_intensities(image, mask, rng, 0.5)


# --- abdomens --------------------------------------------------------------------------------------------------------


def _drift(z: np.ndarray, much: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random course along z, within about `much` of 0."""
    return np.float32(much) * (np.sin(rng.uniform(1, 2.5) * z + rng.uniform(0, 6.3))).astype(np.float32)


def _organs(axes: Sequence[np.ndarray], image: np.ndarray, ripple: np.ndarray, rng: np.random.Generator) -> None:
    """Paints liver, spleen, stomach, kidneys and great vessels into `image` (S, S, D). Patient's right is at x > 0."""
    z = axes[2]

    def paint(
        value: float, centre: tuple[float, float, float], radii: tuple[float, float, float], rough: float
    ) -> None:
        where = (centre[0] + _drift(z, 0.02, rng), centre[1] + _drift(z, 0.02, rng), centre[2])
        scaled = [r * rng.uniform(0.9, 1.1) for r in radii]
        image[_ellipsoid(axes, where, scaled) + rough * ripple < 1] = value

    paint(0.56, (0.38, 0.16, 0.55), (0.33, 0.37, 0.85), 0.06)  # liver
    paint(0.57, (-0.55, -0.06, 0.5), (0.13, 0.24, 0.5), 0.06)  # spleen
    paint(0.45, (-0.25, 0.3, 0.6), (0.24, 0.15, 0.4), 0.08)  # stomach, with air above
    paint(0.0, (-0.22, 0.38, 0.62), (0.12, 0.05, 0.25), 0.08)
    paint(0.52, (0.0, 0.12, 0.2), (0.25, 0.06, 0.25), 0.15)  # pancreas
    contrast = rng.uniform(0.65, 0.85)
    for side in (-1, 1):
        kidney = (0.38 * side, -0.2, -0.05 - 0.08 * side)
        paint(contrast, kidney, (0.14, 0.15, 0.42), 0.04)
        paint(contrast - 0.12, kidney, (0.09, 0.1, 0.34), 0.04)
        paint(0.25, (kidney[0] - 0.04 * side, -0.18, kidney[2]), (0.06, 0.05, 0.2), 0.04)
    paint(contrast, (-0.06, -0.08, 0), (0.06, 0.06, 9), 0)  # aorta
    paint(0.6, (0.1, -0.06, 0), (0.065, 0.05, 9), 0)  # vena cava


def _bones(axes: Sequence[np.ndarray], body: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> None:
    """Paints the spine, repeating along z, and ribs that slope through the wall, into `image` (S, S, D)."""
    x, y, z = axes
    phase = rng.uniform(0, 6.3)
    disc = np.cos(18 * z + phase) > 0.75
    spine = _ellipsoid((x, y), (0, -0.28), (0.15, 0.12))
    image[np.broadcast_to(spine < 1, image.shape)] = 0.92
    image[np.broadcast_to(spine < 0.85, image.shape)] = 0.75
    image[(spine < 0.95) & disc] = 0.55
    image[np.broadcast_to(_ellipsoid((x, y), (0, -0.43), (0.06, 0.045)) < 1, image.shape)] = 0.45  # canal
    image[(_ellipsoid((x, y), (0, -0.5), (0.035, 0.06)) < 1) & ~disc] = 0.92
    angle = np.arctan2(y, x)
    rib = (np.cos(20 * z + 5 * np.abs(angle) + phase) > 0.7) & (np.abs(body - 0.84) < 0.025) & (z > -0.2)
    image[rib & (y > -0.5)] = 0.9


def abdom_phantom(size: int, rng: np.random.Generator, depth: int | None = None) -> np.ndarray:
    """A procedural abdominal CT, float32 (S, S, D) in [0, 1], D = `depth` or S.

    Air 0, fat 0.12 to 0.3, soft tissue 0.5, bone 0.9. Skin, fat, muscle wall, organs, bowel with gas, spine, ribs and
    the scanner's table, all smooth along z.
    Raises ValueError for a size below 16 or a depth below 1.
    """
    _check_size(size)
    depth = size if depth is None else depth
    if depth < 1:
        raise ValueError(f"depth: expected 1 or more slices, found {depth}")
    shape = (size, size, depth)
    x, y, z = axes = [_axis(n, axis) for axis, n in enumerate(shape)]
    wide, high, fat = rng.uniform(0.82, 0.88), rng.uniform(0.56, 0.64), rng.uniform(0.12, 0.3)
    # a body is a little squarer than an ellipse
    round_off = 0.9 + 0.1 * np.cos(4 * np.arctan2(y / high, x / wide))
    body = _ellipsoid((x, y), (_drift(z, 0.01, rng), 0.02 + _drift(z, 0.01, rng)), (wide, high))
    body = body * (1.1 - 0.1 * round_off)
    ripple = _field(shape, 6, rng)
    body = body + 0.008 * ripple
    bowel = _field(shape, 11, rng)
    image = np.full(shape, fat, np.float32)
    front = (y > -0.1) & (body < 0.76)
    image[front & (np.abs(bowel) > 0.75)] = 0.47
    image[front & (bowel > 1.7)] = 0.0  # gas
    _organs(axes, image, ripple, rng)
    wall = (body > 0.79) & (body < 0.88)
    back = (_ellipsoid((np.abs(x), y), (0.22, -0.42), (0.2, 0.13)) < 1) & (body < 0.88)
    psoas = np.broadcast_to(_ellipsoid((np.abs(x), y), (0.2, -0.26), (0.07, 0.09)) < 1, shape)
    image[wall | back | psoas] = 0.5
    image[(body >= 0.88) | ((body > 0.76) & (body <= 0.79))] = fat
    _bones(axes, body, image, rng)
    image[body > 1 - max(0.015, 1.5 / size)] = 0.42  # skin, a voxel thick at least
    image[body > 1] = 0
    table = np.abs(y + 0.78 - 0.12 * x * x) < max(0.008, 1 / size)  # an arc below the back
    image[np.broadcast_to(table, shape) & (body > 1)] = 0.35
    image *= 1 + 0.03 * ripple
    image = ndimage.gaussian_filter(image, (0.004 * size, 0.004 * size, 0.003 * depth))
    image += np.float32(0.015) * rng.standard_normal(shape, np.float32) * (image > 0.02)
    return np.clip(image, 0, 1, out=image)
