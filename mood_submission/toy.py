"""Toy data: healthy brains and abdomens, made up or taken from a folder, about half of them with a planted anomaly.

Made-up volumes are float32 (S, S, S) or (S, S, D) in [0, 1], x to the right, y anterior, z superior, framed like the
training data. Coordinates below are -1 .. 1 over the frame; every random field is a sum of smooth bumps on a coarse
grid, so that one seed gives the same anatomy at every size.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from mood_submission.anomalies import KINDS, RADIUS_FRACTION, plant_with_details
from mood_submission.volumes import Grid, Volume, named_volumes, read_volume

REGIONS = ("brain", "abdom")
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
    axes: Sequence[np.ndarray], centre: Sequence[np.ndarray | float], radii: Sequence[np.ndarray | float]
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
    smooth += 0.45 * (smooth - ndimage.gaussian_filter(template, blur + 1.5))  # an average of many brains is soft
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
    round_off = 0.9 + 0.1 * np.cos(4 * np.arctan2(y / high, x / wide))  # a body is a little squarer than an ellipse
    body = _ellipsoid((x, y), (_drift(z, 0.01, rng), 0.02 + _drift(z, 0.01, rng)), (wide, high)) * (
        1.1 - 0.1 * round_off
    )
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


# --- files in the organisers' layout ---------------------------------------------------------------------------------


def file_seed(seed: int, name: str) -> int:
    """The seed of one file, 0 .. 2**63 - 1, from the run's seed and the file's name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def _generator(region: str) -> tuple[str, Callable[[int, np.random.Generator], np.ndarray]]:
    """What makes a healthy volume of `region`, with its name: brains from the template where nilearn is there."""
    if region == "abdom":
        return "abdomen phantom", abdom_phantom
    try:
        _template()
    except ImportError:
        return "brain phantom", brain_phantom
    return "MNI152 template", brain_template_subject


def _generated_grid(region: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, nib.Nifti1Header]:
    voxel = np.array([FRAME_MM[region]] * 3) / shape
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = np.array(CORNER_MM[region]) + voxel / 2
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm")
    return affine, header


def _save(path: Path, data: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header) -> None:
    header = header.copy()
    header.set_data_dtype(data.dtype)
    nib.Nifti1Image(data, affine, header).to_filename(path)


def _pick(source: Path, names: Sequence[str] | None, volumes: int | None, seed: int) -> dict[str, Path]:
    """Name to file: the `names` or all of the volumes in `source`, and of these `volumes` drawn by seed and name."""
    files = named_volumes(source, names)
    chosen = sorted(files, key=lambda name: file_seed(seed, name))
    if volumes is not None and volumes > len(chosen):
        raise ValueError(f"{source}: expected {volumes} volumes or more to choose from, found {len(chosen)}")
    return {name: files[name] for name in chosen[:volumes]}


def _assign(names: Sequence[str], kinds: Sequence[str], healthy_fraction: float, seed: int) -> dict[str, str | None]:
    """Each name's kind, or None for healthy: names in the order of their seeds, the planted ones cycling the kinds."""
    order = sorted(names, key=lambda name: file_seed(seed, name))
    healthy = int(healthy_fraction * len(order))
    planted = {name: kinds[i % len(kinds)] for i, name in enumerate(order[: len(order) - healthy])}
    return {name: planted.get(name) for name in sorted(names)}


def _folders(out: Path, region: str, names: Sequence[str]) -> tuple[Path, Path, Path]:
    """The volumes', pixel labels' and sample labels' folders, made. Raises ValueError where other volumes lie there."""
    base = out / region
    folders = (base / "toy", base / "toy_label" / "pixel", base / "toy_label" / "sample")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.name.split(".nii")[0] not in names:
                raise ValueError(f"{path}: expected no files of an earlier run that this one does not write again")
    return folders


def _check_arguments(
    region: str,
    volumes: int | None,
    size: int | None,
    source: str | Path | None,
    kinds: Sequence[str],
    healthy_fraction: float,
    names: Sequence[str] | None,
) -> None:
    """Raises ValueError for what `make_toy` cannot do."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if region not in REGIONS:
        raise ValueError(f"region: expected one of {', '.join(REGIONS)}, found {region!r}")
    if unknown or not kinds:
        raise ValueError(f"kinds: expected some of {', '.join(KINDS)}, found {unknown[0] if unknown else 'none'}")
    if not 0 <= healthy_fraction <= 1:
        raise ValueError(f"healthy_fraction: expected 0 to 1, found {healthy_fraction}")
    if volumes is not None and volumes < 1:
        raise ValueError(f"volumes: expected 1 or more, found {volumes}")
    if source is None and names:
        raise ValueError("names: expected a folder of volumes to choose them from, found none")
    if source is not None and size is not None:
        raise ValueError("size: expected none with volumes from a folder, which keep their own grid")


def make_toy(
    region: str,
    out: str | Path,
    volumes: int | None = None,
    size: int | None = None,
    seed: int = 0,
    source: str | Path | None = None,
    kinds: Sequence[str] = KINDS,
    healthy_fraction: float = 0.5,
    names: Sequence[str] | None = None,
    radius_fraction: tuple[float, float] = RADIUS_FRACTION,
) -> dict[str, dict[str, object]]:
    """Write toy cases with labels in the organisers' layout under `out`/`region`, and `toy_label/anomalies.json`.

    With `source` (a folder of healthy volumes with values in [0, 1]) the cases are its volumes called `names` (default:
    all), or `volumes` of them, on their own grids; else `volumes` (default 4) made-up ones of `size` (default 128)
    voxels a side. `healthy_fraction` of the cases (rounded down) stay healthy; the others get one anomaly,
    cycling through `kinds`. Which case gets which kind depends on the set of names; a case's anatomy and its
    anomaly of a given kind depend on `seed` and its name only.
    toy_label/pixel holds uint8 0/1, toy_label/sample a line 0 or 1.
    Returns what anomalies.json holds, by case: origin, kind (None: healthy), seed, centre and radius (voxels, RAS),
    voxels. Raises ValueError for arguments that cannot be, unusable volumes, and folders with other cases in them.
    """
    out = Path(out)
    _check_arguments(region, volumes, size, source, kinds, healthy_fraction, names)
    size = 128 if size is None else size
    _check_size(size)
    files = None if source is None else _pick(Path(source), names, volumes, seed)
    cases = [f"toy_{i}" for i in range(4 if volumes is None else volumes)] if files is None else list(files)
    folders = _folders(out, region, cases)
    records: dict[str, dict[str, object]] = {}
    for name, kind in tqdm(_assign(cases, kinds, healthy_fraction, seed).items(), f"{region} toys", disable=None):
        if files is None:
            origin, make = _generator(region)
            data = make(size, np.random.default_rng([file_seed(seed, name), 1]))
            case = _Case(name, origin, data, *_generated_grid(region, data.shape), None)
        else:
            case = _Case.read(name, files[name])
        records[name] = case.write(folders, kind, file_seed(seed, name), radius_fraction)
    text = json.dumps(records, indent=1) + "\n"
    (out / region / "toy_label" / "anomalies.json").write_text(text)
    return records


class _Case:
    """One healthy volume (RAS, float32 in [0, 1]) with the grid that its files are written on."""

    def __init__(
        self, name: str, origin: str, data: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header, grid: Grid | None
    ) -> None:
        self.name, self.origin, self.data, self.affine, self.header, self.grid = (
            name,
            origin,
            data,
            affine,
            header,
            grid,
        )

    @classmethod
    def read(cls, name: str, path: Path) -> "_Case":
        volume: Volume = read_volume(path)
        low, high = float(volume.data.min()), float(volume.data.max())
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(f"{path}: expected values in [0, 1], found {low:g} to {high:g}")
        data = np.clip(volume.data, 0, 1)
        return cls(name, path.name, data, volume.grid.affine, volume.grid.header, volume.grid)

    def write(
        self, folders: tuple[Path, Path, Path], kind: str | None, seed: int, radius_fraction: tuple[float, float]
    ) -> dict[str, object]:
        """Plant `kind` (None: nothing), write volume and labels, and return the record for anomalies.json."""
        data, mask = self.data, np.zeros(self.data.shape, bool)
        record: dict[str, object] = {"origin": self.origin, "kind": kind, "seed": seed, "centre": None, "radius": None}
        if kind is not None:
            try:
                planted = plant_with_details(data, kind, np.random.default_rng(seed), radius_fraction)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from error
            data, mask = planted.volume, planted.mask
            record |= {"centre": list(planted.centre), "radius": list(planted.radii)}
        record["voxels"] = int(mask.sum())
        to_file = self.grid.to_file if self.grid else np.asarray
        toy, pixel, sample = folders
        _save(toy / f"{self.name}.nii.gz", to_file(data), self.affine, self.header)
        _save(pixel / f"{self.name}.nii.gz", to_file(mask.astype(np.uint8)), self.affine, self.header)
        (sample / f"{self.name}.nii.gz.txt").write_text(f"{int(mask.any())}\n")
        return record
