"""Anomalies that look like disease: small lesions by the dozen, faded tissue, masses that push tissue aside, foreign texture.

Not in the paper. They are for training, beside the kinds of `varied`. Descriptions come from Liu et al. (2025, "UNA": lesions
darken by one to two times the contrast of what they cover) and from Naval Marimont and Tarroni ("DAG": a shift of one tissue,
composed with foreign texture). Works on volumes (X, Y, Z), float32 in [0, 1], on the grid that the networks see.
"""

import numpy as np
from scipy import ndimage

from .anomalies import Site, choose_site, sampled, tissue_class

# The radii of small lesions, as shares of the field of view: 1 to 8 mm of 200 mm.
SPOT_RADII = (0.005, 0.04)
# How many small lesions are planted together, at most.
MOST_SPOTS = 30
# Small lesions change a voxel by at least this much where they are labelled, on the [0, 1] scale.
SPOT_CHANGE = 0.03
# The share of a small lesion's full change from which a voxel counts as anomalous.
SPOT_LABEL = 0.35


def contrast_of(values: np.ndarray) -> float:
    """How far apart the tissues lie in some values: their interquartile range, at least 0.05."""
    low, high = np.quantile(values, (0.25, 0.75))
    return max(float(high - low), 0.05)


def _mottled(site: Site, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Smooth noise with a standard deviation of `strength`, of the box's shape."""
    noise = ndimage.gaussian_filter(rng.standard_normal(site.patch.shape, np.float32), rng.uniform(1, 4))
    return noise * np.float32(strength / max(float(noise.std()), 1e-6))


def faded(site: Site, rng: np.random.Generator) -> np.ndarray:
    """Tissue that is darker or brighter by 0.5 to 2 times its contrast, and has lost part of its structure."""
    old = site.patch[site.inside]
    mean = np.float32(np.median(old))
    kept = np.float32(rng.uniform(0, 1))
    step = rng.choice([-1, -1, 1]) * rng.uniform(0.5, 2) * contrast_of(old)
    return mean + kept * (site.patch - mean) + np.float32(step) + _mottled(site, rng, rng.uniform(0, 0.03))


def mass(site: Site, rng: np.random.Generator) -> np.ndarray:
    """A core with a rim, which pushes the tissue round it outwards, and a halo of oedema."""
    core = np.float32(rng.uniform(0.35, 0.7))
    d = np.clip(site.distance, 1e-3, 1)
    # What lay between the centre and the outline now lies between the core and the outline.
    factor = np.maximum(d - core, 0) / (1 - core) / d
    pushed = sampled(site, [factor * offset for offset in site.offset])
    old = site.patch[site.inside]
    step = contrast_of(old)
    halo = np.float32(rng.choice([-1, 1]) * rng.uniform(0, 1) * step) * np.clip((1 - d) / (1 - core), 0, 1)
    inner = np.float32(np.median(old) + rng.choice([-1, -1, 1]) * rng.uniform(0.7, 2.5) * step)
    inside = inner + _mottled(site, rng, rng.uniform(0, 0.06))
    rim = np.float32(rng.uniform(-1.5, 1.5) * step)
    width = np.float32(rng.uniform(0.05, 0.2))
    value = np.where(d < core, inside, pushed + halo)
    return np.where(np.abs(d - core) < width / 2, value + rim, value).astype(np.float32)


def composed(site: Site, rng: np.random.Generator) -> np.ndarray:
    """One tissue becomes brighter or darker, with the fine texture of another place."""
    _, weight = tissue_class(site, rng, width=0.08, softness=0.02)
    start = [int(rng.integers(n - s + 1)) for n, s in zip(site.volume.shape, site.patch.shape, strict=True)]
    other = site.volume[tuple(slice(a, a + s) for a, s in zip(start, site.patch.shape, strict=True))]
    texture = other - ndimage.gaussian_filter(other, 2.0)
    step = rng.choice([-1, 1]) * rng.uniform(0.07, 0.3)
    return site.patch + np.float32(step) * weight + np.float32(rng.uniform(0, 1.5)) * texture


def replaced(site: Site, rng: np.random.Generator) -> np.ndarray:
    """One tissue, a range of grey values, gives way to one grey, as fat does to fluid or lung to blood."""
    middle, weight = tissue_class(site, rng, width=0.1, softness=0.015)
    greys = np.array([grey for grey in np.linspace(0, 1, 41) if abs(grey - middle) > 0.1])
    grey = np.float32(rng.choice(greys)) + _mottled(site, rng, rng.uniform(0, 0.04))
    return site.patch + weight * (grey - site.patch)


def plant_spots(
    volume: np.ndarray,
    body: np.ndarray,
    places: tuple[np.ndarray, np.ndarray],
    height: float,
    rng: np.random.Generator,
    *,
    radii: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Plant 1 to MOST_SPOTS small lesions of one look: soft, darker or brighter, most of them in bright tissue.

    volume: float32 (X, Y, Z) in [0, 1]. body: bool, of its shape. places: of `anomalies.places_of(body)`.
    height: of the field of view along z, in slices.
    radii: each is drawn between these shares of the field of view, small ones more often. None for SPOT_RADII, of which the
        larger one is drawn too.
    Returns the new volume and the mask, bool. Raises ValueError where none can be seen.
    """
    where, depth = places
    values = volume[tuple(where.T)]
    bright = values >= np.quantile(values, 0.5) if rng.random() < 0.7 else np.ones(len(values), bool)
    near = tuple(part[bright] for part in (where, depth))
    step = float(rng.choice([-1, -1, -1, 1]) * rng.uniform(0.5, 2)) * contrast_of(values)
    # Half of the bright ones look like calcifications or clips: far brighter than what they cover.
    step = float(rng.uniform(0.3, 0.8)) if step > 0 and rng.random() < 0.5 else step
    smallest, largest = radii or (SPOT_RADII[0], rng.uniform(0.012, SPOT_RADII[1]))
    count = int(np.exp(rng.uniform(0, np.log(MOST_SPOTS + 1))))
    edge = rng.uniform(0.1, 0.8)
    result, mask = volume.copy(order="K"), np.zeros(volume.shape, bool)
    for _ in range(count):
        radius = float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
        site = choose_site(result, body, (near[0], near[1]), (radius, radius), rng, height=height)
        weight = np.clip((1 + edge / 2 - site.distance) / edge, 0, 1) * body[site.box]
        new = np.clip(site.patch + np.float32(step) * weight.astype(np.float32), 0, 1)
        seen = (weight >= SPOT_LABEL) & (np.abs(new - site.patch) >= SPOT_CHANGE)
        result[site.box] = new
        mask[site.box] |= seen
    if not mask.any():
        raise ValueError("no place found where small lesions would be seen")
    return result, mask
