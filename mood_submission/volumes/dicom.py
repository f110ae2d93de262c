"""Folders of DICOM files, by SimpleITK: each series of slices that lie straight on top of each other is a volume.

Files are sorted by where their slices lie, never by name or number.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.triples import three
from .grid import Grid, Volume, VolumeError, check_memory, grid_of_lps, one_line, volume_of
from .metaimage import itk, itk_path, same_locale

SERIES, NUMBER, CLASS, IMAGE_TYPE, PLACE, SAMPLES = (  # tags
    "0020|000e",
    "0020|0011",
    "0008|0016",
    "0008|0008",
    "0020|0032",
    "0028|0002",
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and what begins so: screenshots, scanned documents
MOST_TILT = 0.5  # degrees between the slices' normal and the way from one to the next
UNEVEN = 0.05  # share by which a gap may differ from the usual one
SAME = 1e-3  # mm, or of a direction's components: what is closer is the same


@dataclass(frozen=True, eq=False)
class Slice:
    """What one file's header says. axes: (3, 3) directions of columns, rows and slices. spacing, origin: mm. size: (I, J, K)."""

    file: Path
    axes: np.ndarray
    spacing: tuple[float, ...]
    origin: np.ndarray
    size: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Series:
    """Files that belong together. path: what names the volume; no such file need be there."""

    path: Path
    uid: str
    slices: list[Slice]


@dataclass(frozen=True, eq=False)
class Scanned:
    """What is in a folder of DICOM files: its series, and a line for each thing that was passed over."""

    series: list[Series]
    notes: list[str]


def is_dicom(path: Path) -> bool:
    """Whether this is a path such as `scan` gives a series: a folder, or no file at all, but a name without an ending in a folder."""
    return path.is_dir() or (not path.suffix and not os.path.lexists(path) and path.parent.is_dir())


def holds_dicom(folder: Path, deep: bool) -> bool:
    """Whether a DICOM file lies in a folder, or with `deep` below it."""
    return next(_files(folder, deep), None) is not None


@same_locale()
def scan(folder: Path, deep: bool = True) -> Scanned:
    """The series of slices in a folder's DICOM files, with `deep` below it too, in the order of their names.

    A single one is called as the folder is, of several each has its number behind that. Localisers, secondary captures and
    whatever else is no stack of slices is passed over.
    """
    groups: dict[str, list[Slice]] = {}
    numbers: dict[str, str] = {}
    skipped: dict[str, int] = {}
    for file in _files(folder, deep):
        found = _header(file)
        if isinstance(found, str):
            skipped[found] = skipped.get(found, 0) + 1
            continue
        uid, number, one = found
        groups.setdefault(uid, []).append(one)
        numbers.setdefault(uid, number)
    for uid in [uid for uid, slices in groups.items() if sum(one.size[2] for one in slices) < 2]:
        skipped["one slice alone"] = skipped.get("one slice alone", 0) + 1
        del groups[uid]
    notes = [f"{folder}: {count} DICOM files skipped: {why}" for why, count in sorted(skipped.items())]
    names = _names(folder, {uid: numbers[uid] for uid in groups})
    series = [Series(names[uid], uid, slices) for uid, slices in groups.items()]
    return Scanned(sorted(series, key=lambda one: one.path), notes)


@same_locale()
def read_dicom(path: Path) -> Volume:
    """Read the series that `scan` gave this path, rescaled as its files say (Hounsfield units for CT).

    Raises VolumeError for a folder without one, and where its slices are not one straight, even stack: a gantry tilt,
    a slice that is missing, that is there twice, or that is of another size.
    """
    slices, grid = _stack(path)
    check_memory(path, grid.shape, 12)
    try:
        parts = [itk().GetArrayFromImage(itk().ReadImage(str(one.file))) for one in slices]
        voxels = np.concatenate([part.reshape(-1, *part.shape[-2:]) for part in parts]).transpose(2, 1, 0)
        return volume_of(voxels, grid, path)
    except (RuntimeError, MemoryError, ValueError) as error:
        raise VolumeError(f"{path}: expected readable DICOM files, found {one_line(error)[-300:]}") from error


def series_files(path: Path) -> list[Path]:
    """The files of such a series in the order of its slices. Raises what `read_dicom` raises for headers."""
    return [one.file for one in _stack(path)[0]]


def read_dicom_grid(path: Path) -> Grid:
    """The grid of such a series, from its headers alone. Raises what `read_dicom` raises for headers."""
    return _stack(path)[1]


def _stack(path: Path) -> tuple[list[Slice], Grid]:
    """The slices of a series from one end to the other, and their grid. Raises VolumeError."""
    found = _series_at(path)
    first = found.slices[0]
    for one in found.slices[1:]:
        if one.size != first.size or not np.allclose(one.spacing[:2], first.spacing[:2], rtol=0, atol=SAME):
            raise VolumeError(
                f"{path}: expected slices of one size, found {first.size[:2]} of {_mm(first.spacing[:2])} in "
                f"{first.file.name} and {one.size[:2]} of {_mm(one.spacing[:2])} in {one.file.name}"
            )
        if not np.allclose(one.axes, first.axes, rtol=0, atol=SAME):
            raise VolumeError(
                f"{path}: expected slices that lie alike, found {first.file.name} and {one.file.name} turned"
            )
    normal = np.cross(first.axes[:, 0], first.axes[:, 1])
    slices = sorted(found.slices, key=lambda one: float(one.origin @ normal))
    if len(slices) == 1:  # one file that holds them all
        return slices, grid_of_lps(three(first.size), first.axes, first.spacing, first.origin)
    step = _step(path, slices, normal)
    axes = np.column_stack([first.axes[:, :2], step / np.linalg.norm(step)])
    spacing = (*first.spacing[:2], float(np.linalg.norm(step)))
    return slices, grid_of_lps((first.size[0], first.size[1], len(slices)), axes, spacing, slices[0].origin)


def _step(path: Path, slices: list[Slice], normal: np.ndarray) -> np.ndarray:
    """The way from one slice to the next, mm. Raises VolumeError where that is not the same all along, or not straight."""
    if slices[0].size[2] != 1:
        raise VolumeError(f"{path}: expected one file of many slices, found {len(slices)}")
    gaps = np.diff([float(one.origin @ normal) for one in slices])
    usual = float(np.median(gaps))
    closest = int(gaps.argmin())
    if gaps[closest] < SAME or usual < SAME:
        raise VolumeError(
            f"{path}: expected each slice once, found {slices[closest].file.name} and "
            f"{slices[closest + 1].file.name} at one place"
        )
    odd = np.flatnonzero(np.abs(gaps - usual) > UNEVEN * usual)
    if len(odd):
        raise VolumeError(
            f"{path}: expected slices {usual:.4g} mm apart, found {gaps[odd[0]]:.4g} mm between "
            f"{slices[odd[0]].file.name} and {slices[odd[0] + 1].file.name}: slices are missing"
        )
    way = slices[-1].origin - slices[0].origin
    tilt = float(np.degrees(np.arccos(np.clip(way @ normal / np.linalg.norm(way), -1, 1))))
    if tilt > MOST_TILT:
        raise VolumeError(
            f"{path}: expected slices straight on top of each other, found a gantry tilt of {tilt:.1f} degrees; "
            f"resample the series first"
        )
    return way / (len(slices) - 1)


def _series_at(path: Path) -> Series:
    folder, deep = path, True
    if not path.is_dir():
        folder = path.parent
    found = scan(folder, deep).series
    if path.is_dir() and len(found) == 1:
        return found[0]
    named = [one for one in found if one.path == path]
    if not named:
        raise VolumeError(f"{path}: expected a volume or a DICOM series, found no such file")
    return named[0]


def _names(folder: Path, numbers: dict[str, str]) -> dict[str, Path]:
    """A path for each series, by its UID."""
    if len(numbers) == 1:
        return {uid: folder for uid in numbers}
    names: dict[str, Path] = {}
    for uid in sorted(numbers):
        number = numbers[uid].strip()
        name = f"{folder.name}_{int(number):03d}" if number.isdigit() else f"{folder.name}_{uid}"
        names[uid] = folder / (name if folder / name not in names.values() else f"{folder.name}_{uid}")
    return names


def _files(folder: Path, deep: bool) -> Iterator[Path]:
    """The DICOM files in a folder, sorted."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            if deep:
                yield from _files(entry, deep)
        elif entry.is_file() and has_mark(entry):
            yield entry


def has_mark(file: Path) -> bool:
    """Whether a file begins as DICOM files do; False for what cannot be read."""
    try:
        with open(file, "rb") as stored:
            return stored.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _header(file: Path) -> tuple[str, str, Slice] | str:
    """The series' UID and number and what its header says of one file, or why it is no slice of a volume."""
    reader = itk().ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.SetFileName(itk_path(file))
        reader.ReadImageInformation()
    except OSError:
        return "of a path that is no UTF-8"
    except RuntimeError:
        return "unreadable, or no images"
    tag = lambda name: reader.GetMetaData(name).strip() if reader.HasMetaDataKey(name) else ""  # noqa: E731
    if tag(CLASS).startswith(SECONDARY_CAPTURE):
        return "secondary captures"
    if "LOCALIZER" in tag(IMAGE_TYPE).upper():
        return "localisers"
    if reader.GetNumberOfComponents() != 1 or tag(SAMPLES) not in ("", "1"):
        return "in colour"
    size = (*reader.GetSize(), 1)[:3]
    if not tag(PLACE) and size[2] < 2:
        return "without a place in the patient"
    axes = np.array(reader.GetDirection()).reshape(reader.GetDimension(), -1)[:3, :3]
    spacing, origin = reader.GetSpacing()[:3], np.array(reader.GetOrigin()[:3])
    if (
        axes.shape != (3, 3)
        or not np.isfinite([*axes.ravel(), *spacing, *origin]).all()
        or min(spacing) <= 0
        or abs(np.linalg.det(axes)) < 0.5
    ):
        return "without a grid"
    return tag(SERIES), tag(NUMBER), Slice(file, axes, spacing, origin, size)


def _mm(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{side:.4g}" for side in spacing) + " mm"
