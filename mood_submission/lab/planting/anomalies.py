"""Plant one anomaly of a known kind and shape in a healthy volume, so that there are labels to score against.

Every function works on float32 arrays (X, Y, Z) in [0, 1]. All random numbers come from the numpy Generator that it is given, so
equal input and an equal state of the generator give an equal result. Only the anomaly's bounding box is computed on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...preprocessing.body import body_mask
from ...runtime.triples import three

RADIUS_FRACTION = (0.07, 0.18)
# A person sees such a change. A voxel has changed where it differs by more than CHANGED. An anomaly is taken as soon as its
# voxels differ by VISIBLE on average, and its mask covers COVERED of the shape that was drawn.
CHANGED = 0.03
VISIBLE = 0.08
COVERED = 0.6
ATTEMPTS = 12


@dataclass(frozen=True)
class Site:
    """Where an anomaly goes.

    volume: (X, Y, Z).
    body: (X, Y, Z) bool.
    centre: the voxel (x, y, z).
    radii: the outline's mean radius along x, y, z in voxels.
    box: three slices into the volume. All that follows has the box's shape.
    offset: three float32 arrays that broadcast to the box: voxels from the centre along each axis.
    distance: float32, 0 at the centre, 1 on the outline, which is irregular.
    inside: bool, where the distance is below 1, in the body.
    """

    volume: np.ndarray
    body: np.ndarray
    centre: tuple[int, int, int]
    radii: tuple[float, float, float]
    box: tuple[slice, slice, slice]
    offset: list[np.ndarray]
    distance: np.ndarray
    inside: np.ndarray

    @property
    def patch(self) -> np.ndarray:
        return self.volume[self.box]


@dataclass(frozen=True)
class Planted:
    """A volume with an anomaly.

    volume: (X, Y, Z) float32 in [0, 1].
    mask: (X, Y, Z) bool.
    kind: one of KINDS.
    centre, radii: of the anomaly, in voxels.
    """

    volume: np.ndarray
    mask: np.ndarray
    kind: str
    centre: tuple[int, int, int]
    radii: tuple[float, float, float]


def places_of(body: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places for centres: voxel indices (N, 3) on a grid of 64 to 127 a side, and their in-plane depth in voxels.

    The depth is the distance to the body's edge within the slice, so that it means the same in a stack of 2 slices.
    """
    step = [max(1, side // 64) for side in body.shape]
    if not body[:: step[0], :: step[1], :: step[2]].any():
        # The body is so small that it falls between the grid's points.
        step = [1, 1, 1]
    coarse = body[:: step[0], :: step[1], :: step[2]]
    depth = np.stack(
        [
            ndimage.distance_transform_edt(np.pad(coarse[:, :, z], 1), sampling=step[:2])[1:-1, 1:-1]
            for z in range(coarse.shape[2])
        ],
        axis=2,
    )
    return np.argwhere(coarse) * step, depth[coarse]


def outline(offset: list[np.ndarray], radii: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Distance from the centre, 1 on the outline of an ellipsoid turned in-plane whose surface has a few soft waves."""
    turn = rng.uniform(0, np.pi)
    x = (offset[0] * np.cos(turn) + offset[1] * np.sin(turn)) / radii[0]
    y = (offset[1] * np.cos(turn) - offset[0] * np.sin(turn)) / radii[1]
    z = offset[2] / radii[2]
    wave = np.ones(1, np.float32)
    for _ in range(3):
        along = rng.normal(0, 1.5, 3)
        wave = wave + 0.05 * np.sin(along[0] * x + along[1] * y + along[2] * z + rng.uniform(0, 2 * np.pi))
    return (np.sqrt(x * x + y * y + z * z) / wave).astype(np.float32)


def choose_site(
    volume: np.ndarray,
    body: np.ndarray,
    places: tuple[np.ndarray, np.ndarray],
    radius_fraction: tuple[float, float],
    rng: np.random.Generator,
    *,
    height: float | None = None,
) -> Site:
    """A site whose centre lies in the body, half a radius or more from its edge where the body is wide enough.

    places: see `places_of`.
    radius_fraction: the radius is drawn between these shares of the smaller in-plane side. Along z they are shares of `height`.
    height: in slices. None for the stack's.
    """
    fraction = rng.uniform(*radius_fraction)
    side = min(volume.shape[:2])
    stretch = rng.uniform(0.85, 1.18, 3)
    # In-plane the fraction is of the smaller side; along z of the stack's height. Half a slice holds one slice.
    radii = (
        max(1.0, fraction * side * stretch[0]),
        max(1.0, fraction * side * stretch[1]),
        max(0.5, fraction * (height or volume.shape[2]) * stretch[2]),
    )
    where, depth = places
    deep = where[depth >= min(0.5 * fraction * side, 0.8 * depth.max())]
    centre = three(int(c) for c in deep[rng.integers(len(deep))])
    step = [max(1, n // 64) for n in volume.shape]
    beside = three(min(c + int(rng.integers(s)), n - 1) for c, s, n in zip(centre, step, volume.shape, strict=True))
    # Places stand on a coarse grid. Centres need not.
    centre = beside if body[beside] else centre
    reach = [1.2 * max(radii[:2]), 1.2 * max(radii[:2]), 1.2 * radii[2]]
    box = three(
        slice(max(0, int(c - np.ceil(r))), min(n, int(c + np.ceil(r)) + 1))
        for c, r, n in zip(centre, reach, volume.shape, strict=True)
    )
    offset = [a.astype(np.float32) - c for a, c in zip(np.ogrid[box], centre, strict=True)]
    distance = outline(offset, radii, rng)
    inside = (distance < 1) & body[box]
    return Site(volume, body, centre, radii, box, offset=offset, distance=distance, inside=inside)


def sampled(site: Site, where: Sequence[np.ndarray]) -> np.ndarray:
    """The volume sampled linearly at other places. where: three arrays that broadcast to the box, voxels from the centre."""
    place = np.stack(np.broadcast_arrays(*(w + c for w, c in zip(where, site.centre)))).astype(np.float32)
    starts = [max(0, int(p.min()) - 1) for p in place]
    near = site.volume[tuple(slice(s, int(p.max()) + 2) for s, p in zip(starts, place))]
    return ndimage.map_coordinates(near, [p - s for p, s in zip(place, starts)], order=1, mode="nearest")


def tissue_class(site: Site, rng: np.random.Generator, *, width: float, softness: float) -> tuple[float, np.ndarray]:
    """A tissue of the site, a random range of grey values: its middle, and how far each voxel belongs to it, float32 0 .. 1.

    width: the least of the range. softness: how softly the range ends. Both are on the [0, 1] scale.
    """
    low, high = np.quantile(site.patch[site.inside], sorted(rng.uniform(0, 1, 2)))
    low, high = low - 0.02, max(high, low + width)
    weight = 1 / (1 + np.exp(-np.minimum(site.patch - low, high - site.patch) / softness))
    return float(low + high) / 2, weight.astype(np.float32)


# --- the kinds: each returns the box's new values, float32, not yet clipped and not yet cut to the shape -------------


def _uniform(site: Site, rng: np.random.Generator) -> np.ndarray:
    """One grey value, 0.15 or more away from nearly every voxel that it covers."""
    old = site.patch[site.inside]
    greys = np.linspace(0, 1, 41, dtype=np.float32)
    apart = np.array([(np.abs(old - grey) > 0.15).mean() for grey in greys])
    good = greys[apart >= min(0.85, apart.max())]
    return np.full(site.patch.shape, rng.choice(good), np.float32)


def _best_sign(old: np.ndarray, options: list[np.ndarray], inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of two candidates at random, unless clipping to [0, 1] takes much of its change away."""
    change = [(np.abs(np.clip(new, 0, 1) - old)[inside] > 2 * CHANGED).mean() for new in options]
    pick = int(rng.integers(2))
    return options[pick] if change[pick] >= 0.8 else options[int(np.argmax(change))]


def _add(site: Site, rng: np.random.Generator) -> np.ndarray:
    shift = np.float32(rng.uniform(0.2, 0.45))
    return _best_sign(site.patch, [site.patch + shift, site.patch - shift], site.inside, rng)


def _multiply(site: Site, rng: np.random.Generator) -> np.ndarray:
    low, high = np.float32(rng.uniform(0.3, 0.65)), np.float32(rng.uniform(1.5, 2.2))
    return _best_sign(site.patch, [site.patch * low, site.patch * high], site.inside, rng)


def _noise(site: Site, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, white or correlated over up to a quarter of the radius."""
    noise = rng.standard_normal(site.patch.shape, np.float32)
    width = rng.choice([0.0, 0.06, 0.12, 0.25])
    if width:
        noise = ndimage.gaussian_filter(noise, [width * r for r in site.radii], mode="wrap", truncate=3)
        noise /= max(float(noise.std()), 1e-6)
    return site.patch + np.float32(rng.uniform(0.2, 0.35)) * noise


def _blur(site: Site, rng: np.random.Generator) -> np.ndarray:
    width = rng.uniform(0.25, 0.5)
    sigma = [max(1.5, width * r) for r in site.radii[:2]] + [width * site.radii[2]]
    return ndimage.gaussian_filter(site.patch, sigma, mode="nearest", truncate=2.5)


def _shuffle(site: Site, rng: np.random.Generator) -> np.ndarray:
    """Blocks that are a third of the radius wide and lie wholly inside change places. None stays where it is."""
    size = [max(1, round(r / 3)) for r in site.radii]
    count = [n // s for n, s in zip(site.patch.shape, size, strict=True)]
    crop = tuple(slice(0, c * s) for c, s in zip(count, size, strict=True))

    def blocks(a: np.ndarray) -> np.ndarray:
        """(X, Y, Z) -> (blocks, voxels of a block)."""
        a = a[crop].reshape([side for pair in zip(count, size) for side in pair])
        return a.transpose([0, 2, 4, 1, 3, 5]).reshape(-1, size[0] * size[1] * size[2])

    values = blocks(site.patch).copy()
    movable = np.flatnonzero(blocks(site.inside).all(1))
    order = rng.permutation(movable)
    values[order] = values[np.roll(order, 1)]
    values = values.reshape([*count, *size]).transpose([0, 3, 1, 4, 2, 5]).reshape([s.stop for s in crop])
    new = site.patch.copy()
    new[crop] = values
    return new


def _foreign(site: Site, rng: np.random.Generator) -> np.ndarray:
    """What lies in such a box elsewhere in the same body: of 8 places, the first that looks clearly different."""
    best, most = site.patch, -1.0
    shape = site.patch.shape
    for _ in range(8):
        start = [int(rng.integers(n - s + 1)) for n, s in zip(site.volume.shape, shape, strict=True)]
        there = tuple(slice(a, a + s) for a, s in zip(start, shape, strict=True))
        if site.body[there][site.inside].mean() < 0.9:
            continue
        change = float(np.abs(site.volume[there] - site.patch)[site.inside].mean())
        if change > most:
            best, most = site.volume[there], change
        if most > 0.15:
            break
    return best


def _mirror(site: Site, rng: np.random.Generator) -> np.ndarray:
    """The box turned upside down about its centre along one or both in-plane axes."""
    flips = [(True, False), (False, True), (True, True)][rng.integers(3)]
    index = [
        np.clip((c - o if flip else c + o).astype(np.intp), 0, n - 1)
        for o, c, n, flip in zip(site.offset, site.centre, site.volume.shape, (*flips, False), strict=True)
    ]
    return site.volume[tuple(index)]


def _warp(site: Site, factor: np.ndarray) -> np.ndarray:
    """The volume sampled linearly at centre + factor * offset, in-plane only, since slices may be far apart."""
    where = np.empty((3, *site.patch.shape), np.float32)
    for axis in range(2):
        where[axis] = site.centre[axis] - site.box[axis].start + factor * site.offset[axis]
    where[2] = site.centre[2] - site.box[2].start + site.offset[2]
    return ndimage.map_coordinates(site.patch, where, order=1, mode="nearest")


def _bulge(site: Site, rng: np.random.Generator) -> np.ndarray:
    """What is at the centre grows by up to 3-5 times and pushes the rest to the rim."""
    d = np.minimum(site.distance, 1)
    return _warp(site, 1 - np.float32(rng.uniform(0.65, 0.8)) * (1 - d * d))


def _shrink(site: Site, rng: np.random.Generator) -> np.ndarray:
    """What is inside is pulled together at the centre: radius d shows what was at d ** (0.35 .. 0.5)."""
    d = np.clip(site.distance, 0.05, 1)
    return _warp(site, d ** np.float32(rng.uniform(0.35, 0.5) - 1))


MAKERS: dict[str, Callable[[Site, np.random.Generator], np.ndarray]] = {
    "uniform": _uniform,
    "add": _add,
    "multiply": _multiply,
    "noise": _noise,
    "blur": _blur,
    "shuffle": _shuffle,
    "foreign": _foreign,
    "mirror": _mirror,
    "bulge": _bulge,
    "shrink": _shrink,
}
KINDS = tuple(MAKERS)


# --- planting ------------------------------------------------------------------------------------------------------


def visible_part(site: Site, new: np.ndarray) -> np.ndarray:
    """The part of the shape that really changed, bool of the box's shape.

    A voxel belongs to it where at least 35% of the shape's voxels around it changed. So single voxels that keep their value by
    chance belong to it, and stretches where nothing is to be seen do not.
    """
    changed = np.abs(new - site.patch) > CHANGED
    size = [2 * max(1, round(r / 6)) + 1 for r in site.radii[:2]] + [2 * round(site.radii[2] / 6) + 1]
    near = ndimage.uniform_filter((changed & site.inside).astype(np.float32), size, mode="constant")
    shape = ndimage.uniform_filter(site.inside.astype(np.float32), size, mode="constant")
    return site.inside & (near >= 0.35 * shape) & (shape > 0)


@dataclass(frozen=True)
class Attempt:
    """An anomaly at one place.

    new: the box's new values, float32.
    seen: the part of the box where it is seen, bool.
    worth: how good an anomaly it is. 1 is good enough.
    """

    site: Site
    new: np.ndarray
    seen: np.ndarray
    worth: float

    def put(self, volume: np.ndarray, everywhere: bool) -> tuple[np.ndarray, np.ndarray]:
        """A copy of the volume with the anomaly, and the mask, bool.

        everywhere: whether the new values are put everywhere in the box, and not only where they are seen.
        """
        result, mask = volume.copy(order="K"), np.zeros(volume.shape, bool)
        mask[self.site.box] = self.seen
        result[self.site.box] = self.new if everywhere else np.where(self.seen, self.new, self.site.patch)
        return result, mask


def best_attempt(attempt: Callable[[], Attempt | None], most: int) -> Attempt | None:
    """Of at most `most` attempts, the first that is worth 1, or else the one that is worth most. None where all failed."""
    best: Attempt | None = None
    for _ in range(most):
        found = attempt()
        if found is not None and (best is None or found.worth > best.worth):
            best = found
        if best is not None and best.worth >= 1:
            break
    return best


def _check(volume: np.ndarray, kind: str, radius_fraction: tuple[float, float]) -> None:
    if volume.ndim != 3 or volume.dtype != np.float32:
        raise ValueError(f"volume: expected float32 (X, Y, Z), found {volume.dtype} {volume.shape}")
    if kind not in MAKERS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, found {kind!r}")
    if not 0 < radius_fraction[0] <= radius_fraction[1] <= 0.5:
        raise ValueError(f"radius_fraction: expected 0 < low <= high <= 0.5, found {radius_fraction}")


def plant_with_details(
    volume: np.ndarray,
    kind: str,
    rng: np.random.Generator,
    radius_fraction: tuple[float, float] = RADIUS_FRACTION,
    body: np.ndarray | None = None,
) -> Planted:
    """`plant`, with the place and size of what was planted."""
    _check(volume, kind, radius_fraction)
    body = body_mask(volume) if body is None else body
    if body.shape != volume.shape:
        raise ValueError(f"body: expected the volume's shape {volume.shape}, found {body.shape}")
    if not body.any():
        raise ValueError("nothing to plant in: no body (no voxels above the threshold) in the volume")
    places = places_of(body)

    def attempt() -> Attempt | None:
        site = choose_site(volume, body, places, radius_fraction, rng)
        if not site.inside.any():
            return None
        new = np.clip(MAKERS[kind](site, rng), 0, 1).astype(np.float32)
        seen = visible_part(site, new)
        if not seen.any():
            return None
        covered = seen.sum() / site.inside.sum()
        visible = float(np.abs(new - site.patch)[seen].mean())
        return Attempt(site, new, seen, min(covered / COVERED, 1) * min(visible / VISIBLE, 1))

    best = best_attempt(attempt, ATTEMPTS)
    if best is None:
        raise ValueError(f"no place found where an anomaly of kind {kind!r} would change the volume")
    radii = three(round(float(r), 2) for r in best.site.radii)
    return Planted(*best.put(volume, everywhere=False), kind, best.site.centre, radii)


def plant(
    volume: np.ndarray,
    kind: str,
    rng: np.random.Generator,
    radius_fraction: tuple[float, float] = RADIUS_FRACTION,
    body: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Plant one anomaly in a volume.

    Of 12 places the first with a clearly visible change is taken, or else the one where it is seen best.

    volume: (X, Y, Z) float32 in [0, 1], which stays as it is.
    kind: one of KINDS.
    rng: gives all random numbers.
    radius_fraction: the radius is drawn between these shares of the smaller in-plane side. Along z they are shares of the
        stack's height, and the anomaly is a slice high at least.
    body: (X, Y, Z) bool, where to plant. None for `body_mask(volume)`.
    Returns the new volume, float32 in [0, 1], and the mask, (X, Y, Z) bool. Outside the mask all voxels are as before. Inside
    it, which lies in the body, most voxels changed.
    Raises ValueError for a wrong dtype, shape, kind or radius, for an empty body, and where nothing at all can be changed.
    """
    planted = plant_with_details(volume, kind, rng, radius_fraction, body)
    return planted.volume, planted.mask
