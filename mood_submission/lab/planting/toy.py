"""Toy data: healthy brains and abdomens, made up or taken from a folder, about half of them with a planted anomaly.

Made-up volumes are float32 (S, S, S) or (S, S, D) in [0, 1], x to the right, y anterior, z superior, framed like the
training data. Coordinates below are -1 .. 1 over the frame; every random field is a sum of smooth bumps on a coarse
grid, so that one seed gives the same anatomy at every size.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from ...runtime.contract import REGIONS
from ...runtime.files import write_text
from ...runtime.names import as_text
from ...runtime.triples import three
from ...volumes import Grid, Source, Volume, named_volumes, read_volume
from .anomalies import KINDS, RADIUS_FRACTION, plant_with_details
from .gross import SERIES, Subject, kinds_of
from .phantoms import (
    CORNER_MM,
    FRAME_MM,
    _check_size,
    _template,
    abdom_phantom,
    brain_phantom,
    brain_template_subject,
)

# --- files in the organisers' layout ---------------------------------------------------------------------------------


def file_seed(seed: int, name: str) -> int:
    """The seed of one file, 0 .. 2**63 - 1, from the run's seed and the file's name alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest()[:8], "big") >> 1


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


def _pick(source: Path, names: Sequence[str] | None, volumes: int | None, seed: int) -> dict[str, Source]:
    """Volumes of the folder `source` by name: those of `names`, or all, and of these `volumes`, chosen by seed and name."""
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


def _check_arguments(region: str, kinds: Sequence[str], healthy_fraction: float) -> None:
    """Raises ValueError for what `make_toy` does not know."""
    if region not in REGIONS:
        raise ValueError(f"region: expected one of {', '.join(REGIONS)}, found {region!r}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds: expected some of {', '.join(KINDS)}, found {(unknown or ['none'])[0]}")
    if not 0 <= healthy_fraction <= 1:
        raise ValueError(f"healthy_fraction: expected 0 to 1, found {healthy_fraction}")


def _check_source(
    source: str | Path | None, volumes: int | None, size: int | None, names: Sequence[str] | None
) -> None:
    """Raises ValueError for what does not go with volumes from a folder, or without."""
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
    *,
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
    voxels, volume_ml. Raises ValueError for arguments that cannot be, unusable volumes, and folders with other cases in them.
    """
    out = Path(out)
    _check_arguments(region, kinds, healthy_fraction)
    _check_source(source, volumes, size, names)
    size = 128 if size is None else size
    _check_size(size)
    files = None if source is None else _pick(Path(source), names, volumes, seed)
    cases = [f"toy_{i}" for i in range(4 if volumes is None else volumes)] if files is None else list(files)
    folders = _folders(out, region, cases)
    records: dict[str, dict[str, object]] = {}
    for name, kind in tqdm(_assign(cases, kinds, healthy_fraction, seed).items(), f"{region} toys", disable=None):
        if files is None:
            case = _Case.made_up(name, region, size, file_seed(seed, name))
        else:
            case = _Case.read(name, files[name])
        records[name] = case.write(folders, kind, file_seed(seed, name), radius_fraction)
    _write_records(out / region, records)
    return records


def make_gross_toy(
    region: str,
    out: str | Path,
    series: str,
    *,
    volumes: int | None = None,
    size: int = 128,
    seed: int = 0,
    source: str | Path | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, dict[str, object]]:
    """Write each healthy volume and the gross cases that are made of it, NAME_KIND, in the layout of `make_toy`.

    series: one of `gross.SERIES`. The other arguments are those of `make_toy`; a case depends on its volume, the volume's name
    and `seed` alone. Returns what anomalies.json holds, by case: origin, kind (None: healthy), seed, radius_mm, voxels,
    volume_ml. Raises what `make_toy` raises.
    """
    out = Path(out)
    _check_arguments(region, KINDS, 0.5)
    _check_source(source, volumes, None, names)
    _check_size(size)
    files = None if source is None else _pick(Path(source), names, volumes, seed)
    subjects = [f"toy_{i}" for i in range(1 if volumes is None else volumes)] if files is None else list(files)
    folders = _folders(out, region, [case_name(name, kind) for name in subjects for kind in kinds_of(series)])
    records: dict[str, dict[str, object]] = {}
    for name in tqdm(sorted(subjects), f"{region} toys", disable=None):
        own = file_seed(seed, name)
        made = _Case.made_up(name, region, size, own) if files is None else _Case.read(name, files[name])
        for case in SERIES[series](made.subject(own)):
            record = {"origin": made.origin, "kind": case.kind, "seed": own, "radius_mm": case.radius}
            called = case_name(name, case.kind)
            records[called] = record | made.save(folders, called, case.data, case.mask)
    _write_records(out / region, records)
    return records


def case_name(name: str, kind: str | None) -> str:
    """The name of a volume's gross case. The healthy volume keeps its own."""
    return name if kind is None else f"{name}_{kind}"


def _write_records(folder: Path, records: dict[str, dict[str, object]]) -> None:
    printable = {as_text(name): record | {"origin": as_text(str(record["origin"]))} for name, record in records.items()}
    write_text(folder / "toy_label" / "anomalies.json", json.dumps(printable, indent=1) + "\n")


@dataclass(frozen=True, eq=False, kw_only=True)
class _Case:
    """One healthy volume (RAS, float32 in [0, 1]) with the affine and header that its files get.

    origin: what made it, or its file. grid: of the file that it was read from; None of one that was made up.
    """

    name: str
    origin: str
    data: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header
    grid: Grid | None = None

    @classmethod
    def made_up(cls, name: str, region: str, size: int, seed: int) -> "_Case":
        origin, make = _generator(region)
        data = make(size, np.random.default_rng([seed, 1]))
        affine, header = _generated_grid(region, data.shape)
        return cls(name=name, origin=origin, data=data, affine=affine, header=header)

    @classmethod
    def read(cls, name: str, source: Source) -> "_Case":
        volume: Volume = read_volume(source)
        low, high = float(volume.data.min()), float(volume.data.max())
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(f"{source}: expected values in [0, 1], found {low:g} to {high:g}")
        data = np.clip(volume.data, 0, 1)
        grid, origin = volume.grid, source.path.name
        return cls(name=name, origin=origin, data=data, affine=grid.affine, header=grid.header, grid=grid)

    def write(
        self,
        folders: tuple[Path, Path, Path],
        kind: str | None,
        seed: int,
        radius_fraction: tuple[float, float],
    ) -> dict[str, object]:
        """Plant `kind` (None: nothing), write volume and labels, and return the record for anomalies.json."""
        data, mask = self.data, np.zeros(self.data.shape, bool)
        record: dict[str, object] = {
            "origin": self.origin,
            "kind": kind,
            "seed": seed,
            "centre": None,
            "radius": None,
        }
        if kind is not None:
            try:
                planted = plant_with_details(data, kind, np.random.default_rng(seed), radius_fraction)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from error
            data, mask = planted.volume, planted.mask
            record |= {"centre": list(planted.centre), "radius": list(planted.radii)}
        return record | self.save(folders, self.name, data, mask)

    def subject(self, seed: int) -> Subject:
        """What gross cases are made of."""
        affine = self.grid.affine_mm if self.grid else self.affine
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        axes = self.grid.ras_axes if self.grid else (0, 1, 2)
        return Subject(self.data, three(float(sizes[axes.index(axis)]) for axis in range(3)), seed)

    def save(
        self, folders: tuple[Path, Path, Path], name: str, data: np.ndarray, mask: np.ndarray
    ) -> dict[str, object]:
        """Write a volume and its labels as NAME.nii.gz. Returns how large what is wrong is: voxels, volume_ml."""
        affine_mm = self.grid.affine_mm if self.grid else self.affine
        voxel_ml = abs(float(np.linalg.det(affine_mm[:3, :3]))) / 1000
        to_file = self.grid.to_file if self.grid else np.asarray
        toy, pixel, sample = folders
        _save(toy / f"{name}.nii.gz", to_file(data), self.affine, self.header)
        _save(pixel / f"{name}.nii.gz", to_file(mask.astype(np.uint8)), self.affine, self.header)
        (sample / f"{name}.nii.gz.txt").write_text(f"{int(mask.any())}\n")
        return {"voxels": int(mask.sum()), "volume_ml": round(int(mask.sum()) * voxel_ml, 4)}
