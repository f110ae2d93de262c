"""Anomalies for a detector to learn from: more kinds, shapes and edges than the benchmark plants.

The ten kinds of `anomalies` are among them, so that a share of them can be left out to see how a detector does on kinds that
it was never shown. Works on volumes (X, Y, Z), float32 in [0, 1], on the grid that the networks see.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from . import lesions
from .anomalies import (
    COVERED,
    MAKERS,
    Attempt,
    Site,
    best_attempt,
    choose_site,
    outline,
    places_of,
    sampled,
    tissue_class,
    visible_part,
)

# Radii as shares of the field of view: of most anomalies, and of those that are small or large. One of them in BANDS is drawn.
RADII, SMALL, LARGE = (0.04, 0.2), (0.012, 0.04), (0.2, 0.28)
BANDS = (RADII, RADII, RADII, RADII, RADII, RADII, SMALL, LARGE)
# The fewest voxels of an anomaly.
FEWEST_VOXELS = 6
# The mean change of the labelled voxels, on the [0, 1] scale. Where it is less, another place is tried.
LEAST_CHANGE = 0.06
# The least share of LEAST_CHANGE and of COVERED at the best place. Where it is less, nothing is planted.
LEAST_WORTH = 0.6
ATTEMPTS = 8
# The share of the full change from which on a voxel counts as anomalous.
LABEL = 0.35

Maker = Callable[[Site, np.random.Generator], np.ndarray]


# --- kinds: each returns the box's new values, not yet clipped, blended or cut to the shape ---------------------------------


def _ball(site: Site, rng: np.random.Generator) -> np.ndarray:
    """One grey value, black and white included, 0.1 or more from the mean of what it covers."""
    mean = float(site.patch[site.inside].mean())
    greys = np.array([g for g in np.linspace(0, 1, 51) if abs(g - mean) > 0.1])
    return np.full(site.patch.shape, rng.choice(greys), np.float32)


def _tissue(site: Site, rng: np.random.Generator) -> np.ndarray:
    """One class of tissue, a range of grey values, becomes brighter or darker."""
    _, weight = tissue_class(site, rng, width=0.08, softness=0.015)
    return site.patch + np.float32(rng.choice([-1, 1]) * rng.uniform(0.1, 0.35)) * weight


def _tone(site: Site, rng: np.random.Generator) -> np.ndarray:
    """Another contrast about the mean, even an inverted one."""
    mean = site.patch[site.inside].mean()
    factor = rng.choice([rng.uniform(-1, 0.3), rng.uniform(1.7, 3)])
    return mean + np.float32(factor) * (site.patch - mean)


def _gradient(site: Site, rng: np.random.Generator) -> np.ndarray:
    """A ramp across the shape."""
    along = rng.normal(size=3)
    ramp = sum(a * o / r for a, o, r in zip(along / np.linalg.norm(along), site.offset, site.radii))
    return site.patch + np.float32(rng.uniform(0.15, 0.4)) * ramp.astype(np.float32)


def _texture(site: Site, rng: np.random.Generator) -> np.ndarray:
    """Stripes or a lattice."""
    wave = 1.0
    for _ in range(rng.integers(1, 3)):
        along = rng.normal(size=3)
        along *= 2 * np.pi / rng.uniform(3, 12) / np.linalg.norm(along)
        wave = wave * np.sin(sum(a * o for a, o in zip(along, site.offset)) + rng.uniform(0, 2 * np.pi))
    return site.patch + np.float32(rng.uniform(0.08, 0.3)) * np.asarray(wave, np.float32)


def _missing(site: Site, rng: np.random.Generator) -> np.ndarray:
    """Tissue replaced by fluid or air, with a little noise."""
    return np.float32(rng.uniform(0, 0.2)) + np.float32(0.015) * rng.standard_normal(site.patch.shape, np.float32)


def _lesion(site: Site, rng: np.random.Generator) -> np.ndarray:
    """A core and a rim around it, each of its own grey, mottled."""
    mottled = ndimage.gaussian_filter(rng.standard_normal(site.patch.shape, np.float32), rng.uniform(1, 4))
    mottled *= rng.uniform(0, 0.08) / max(float(mottled.std()), 1e-6)
    core, rim, width = rng.uniform(0.05, 0.95), rng.uniform(-0.25, 0.25), rng.uniform(0.4, 0.85)
    return np.where(site.distance < width, np.float32(core), site.patch + np.float32(rim)) + mottled


def _shift(site: Site, rng: np.random.Generator) -> np.ndarray:
    """The content moved along a direction by up to 8% of the side."""
    step = rng.normal(size=3) * [1, 1, 0.5]
    step *= rng.uniform(0.02, 0.08) * site.volume.shape[0] / np.linalg.norm(step)
    return sampled(site, [o + s for o, s in zip(site.offset, step)])


def _pulled(site: Site, rng: np.random.Generator) -> np.ndarray:
    """A deformation in 3D towards the centre or away from it, none at the outline."""
    d = np.clip(site.distance, 0.05, 1)
    factor = d ** np.float32(rng.choice([rng.uniform(-0.6, -0.25), rng.uniform(0.4, 1.5)]))
    return sampled(site, [o * factor for o in site.offset])


def _swirl(site: Site, rng: np.random.Generator) -> np.ndarray:
    """Turned about the centre in the plane, most in the middle."""
    angle = rng.choice([-1, 1]) * rng.uniform(0.6, 2.5) * (1 - np.clip(site.distance, 0, 1)) ** rng.uniform(0.5, 1.5)
    x, y, z = site.offset
    return sampled(site, [x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle), z])


def _sharp(site: Site, rng: np.random.Generator) -> np.ndarray:
    soft = ndimage.gaussian_filter(site.patch, rng.uniform(0.8, 2.0))
    return site.patch + np.float32(rng.uniform(1.5, 4)) * (site.patch - soft)


FURTHER: dict[str, Maker] = {
    "ball": _ball,
    "tissue": _tissue,
    "tone": _tone,
    "gradient": _gradient,
    "texture": _texture,
    "missing": _missing,
    "lesion": _lesion,
    "shift": _shift,
    "pulled": _pulled,
    "swirl": _swirl,
    "sharp": _sharp,
    "faded": lesions.faded,
    "mass": lesions.mass,
    "composed": lesions.composed,
    "replaced": lesions.replaced,
}
# What another volume has at about the same place: as it is, or with matched greys.
PASTED = ("stranger", "seamless")
# Small lesions, several at once.
SPOTS = "spots"
TRAINING_KINDS = (*MAKERS, *FURTHER, *PASTED, SPOTS)


def _pasted(site: Site, donor: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A patch of `donor` (X, Y, Z'), from a place near, as far as it reaches."""
    shift = (rng.normal(size=3) * rng.choice([0.01, 0.04, 0.1]) * donor.shape[0]).round().astype(int)
    index = [np.clip(np.arange(b.start, b.stop) + s, 0, n - 1) for b, s, n in zip(site.box, shift, donor.shape)]
    if rng.random() < 0.3:
        index[int(rng.integers(2))] = index[0][::-1].copy() if rng.random() < 0.5 else index[0]
        index = [i if len(i) == n else np.resize(i, n) for i, n in zip(index, site.patch.shape)]
    new = donor[np.ix_(*index)]
    # The low frequencies stay those of the place.
    if kind == "seamless":
        wide = [0.5 * r for r in site.radii]
        new = new + ndimage.gaussian_filter(site.patch - new, wide, truncate=2)
    return new


# --- shapes ----------------------------------------------------------------------------------------------------------------


def _ellipsoid(site: Site, rng: np.random.Generator) -> np.ndarray:
    return outline(site.offset, site.radii, rng)


def _sphere(site: Site, rng: np.random.Generator) -> np.ndarray:
    return np.sqrt(sum((o / r) ** 2 for o, r in zip(site.offset, site.radii))).astype(np.float32)


def _cuboid(site: Site, rng: np.random.Generator) -> np.ndarray:
    turn = rng.uniform(0, np.pi)
    x, y = site.offset[0] / site.radii[0], site.offset[1] / site.radii[1]
    sides = (
        x * np.cos(turn) + y * np.sin(turn),
        y * np.cos(turn) - x * np.sin(turn),
        site.offset[2] / site.radii[2],
    )
    power = rng.uniform(3, 12)
    return (sum(np.abs(1.15 * s) ** power for s in sides) ** (1 / power)).astype(np.float32)


def _lobes(site: Site, rng: np.random.Generator) -> np.ndarray:
    """Two to four balls that overlap."""
    parts = []
    for _ in range(rng.integers(2, 5)):
        at, size = rng.uniform(-0.5, 0.5, 3), rng.uniform(0.35, 0.6)
        parts.append(np.sqrt(sum((o / r - a) ** 2 for o, r, a in zip(site.offset, site.radii, at))) / size)
    return np.minimum.reduce(parts).astype(np.float32)


def _ragged(site: Site, rng: np.random.Generator) -> np.ndarray:
    """An ellipsoid whose surface smooth noise has eaten at."""
    noise = ndimage.gaussian_filter(
        rng.standard_normal(site.patch.shape, np.float32), [max(1.0, 0.25 * r) for r in site.radii]
    )
    return _sphere(site, rng) * (1.1 + 0.3 * noise / max(float(noise.std()), 1e-6)).clip(0.6, 3)


SHAPES = (_ellipsoid, _ellipsoid, _sphere, _cuboid, _lobes, _ragged)


# --- planting --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Host:
    """A volume to plant in.

    volume: (X, Y, Z) float32 in [0, 1].
    body: (X, Y, Z) bool.
    places: for centres, see `anomalies.places_of`.
    height: of the field of view along z, in slices. Radii along z are shares of it.
    """

    volume: np.ndarray
    body: np.ndarray
    places: tuple[np.ndarray, np.ndarray]
    height: float

    @classmethod
    def of(cls, volume: np.ndarray, body: np.ndarray, height: float) -> "Host":
        return cls(volume, body, places_of(body), height)


def plant_varied(
    host: Host,
    kind: str,
    rng: np.random.Generator,
    donor: np.ndarray | None = None,
    *,
    radii: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Plant one anomaly with a random shape, edge and strength.

    kind: one of TRAINING_KINDS.
    donor: another volume on the same grid, for the kinds PASTED. Without one they are "foreign".
    radii: the radius is drawn between these shares of the field of view. None for those of one of BANDS.
    Returns the new volume and the mask, bool. The mask is where the anomaly has at least LABEL of its strength, without the
    stretches where nothing is seen of it.
    Raises ValueError for an unknown kind, and where nothing would be seen at any place that was tried.
    """
    if kind not in TRAINING_KINDS:
        raise ValueError(f"kind: expected one of {', '.join(TRAINING_KINDS)}, found {kind!r}")
    if not host.body.any():
        raise ValueError("nothing to plant in: no body in the volume")
    if kind == SPOTS:
        return lesions.plant_spots(host.volume, host.body, host.places, host.height, rng, radii=radii)

    def attempt() -> Attempt | None:
        band = radii or BANDS[rng.integers(len(BANDS))]
        site = choose_site(host.volume, host.body, host.places, band, rng, height=host.height)
        shape = _sphere if kind == "ball" and rng.random() < 0.7 else SHAPES[rng.integers(len(SHAPES))]
        distance = shape(site, rng)
        site = replace(site, distance=distance, inside=(distance < 1) & host.body[site.box])
        if np.count_nonzero(site.inside) < FEWEST_VOXELS:
            return None
        new = np.clip(_make(site, kind, rng, donor), 0, 1)
        weight = _weight(site, kind, rng)
        new = site.patch + weight * (new - site.patch)
        meant = site.inside & (weight >= LABEL * weight.max())
        seen = visible_part(replace(site, inside=meant), new)
        if not seen.any():
            return None
        change = float(np.abs(new - site.patch)[seen].mean())
        covered = np.count_nonzero(seen) / np.count_nonzero(meant)
        return Attempt(site, new, seen, min(change / LEAST_CHANGE, covered / COVERED))

    best = best_attempt(attempt, ATTEMPTS)
    if best is None or best.worth < LEAST_WORTH:
        raise ValueError(f"no place found where an anomaly of kind {kind!r} would be seen")
    return best.put(host.volume, everywhere=True)


def _make(site: Site, kind: str, rng: np.random.Generator, donor: np.ndarray | None) -> np.ndarray:
    if kind in PASTED:
        return MAKERS["foreign"](site, rng) if donor is None else _pasted(site, donor, kind, rng)
    return (FURTHER.get(kind) or MAKERS[kind])(site, rng)


def _weight(site: Site, kind: str, rng: np.random.Generator) -> np.ndarray:
    """How much of the new values each voxel of the box takes: 0 in the air. The edge is hard or soft. Some anomalies are weaker."""
    edge = rng.choice([0.05, rng.uniform(0.05, 0.6)])
    weight = np.clip((1 - site.distance) / edge, 0, 1).astype(np.float32) * site.body[site.box].astype(np.float32)
    strength = 1.0 if rng.random() < 0.6 else rng.uniform(0.35, 1)
    return weight * np.float32(strength)
