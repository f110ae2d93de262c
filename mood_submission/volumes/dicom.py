"""Reads folders of DICOM files with SimpleITK. Each series of slices that are stacked straight is a volume.

Files are sorted by the positions of their slices, never by name or number. SimpleITK's own reader of series does that too, but
neither tells which files it leaves out and why, nor refuses a tilted gantry and slices that are missing or there twice.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.triples import three
from .frames import SAME, UNEVEN, what_is_odd
from .grid import Grid, Volume, VolumeError, check_memory, grid_of_lps, one_line, volume_of
from .metaimage import itk, itk_path, same_locale
from .source import Slice, Source

# DICOM tags.
SERIES, NUMBER, CLASS, IMAGE_TYPE, PLACE, SAMPLES, PIXEL_SPACING = (
    "0020|000e",
    "0020|0011",
    "0008|0016",
    "0008|0008",
    "0020|0032",
    "0028|0002",
    "0028|0030",
)
# What is no scan, by the beginning of its SOP class: screenshots and scanned documents; segmentations, as this program writes.
NO_SCANS = {
    "1.2.840.10008.5.1.4.1.1.7": "secondary captures",
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentations",
}
# Characters that are replaced in the name of a file.
NO_NAME = re.compile(r"[^\w.-]", re.ASCII)
# The largest angle in degrees between the slices' normal and the line through their positions.
MOST_TILT = 0.5


@dataclass(frozen=True, eq=False)
class Scanned:
    """The content of a folder of DICOM files.

    series: the volumes.
    notes: a line for each kind of file that was skipped.
    """

    series: list[Source]
    notes: list[str]


def holds_dicom(folder: Path, deep: bool) -> bool:
    """Whether a folder holds a DICOM file. deep: subfolders count too."""
    return next(_files(folder, deep), None) is not None


@same_locale()
def scan(folder: Path, deep: bool = True) -> Scanned:
    """The series in a folder of DICOM files, sorted by name.

    A single series has the folder's name. Of several, each has the folder's name and its own number. A folder given as `.` or
    `..` goes by its own name. Localisers, secondary captures and whatever else is no stack of slices are skipped.

    folder: where to look. It may be one file.
    deep: whether to look in subfolders too.
    """
    if folder.name in ("", ".."):
        folder = Path(os.path.abspath(folder))
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
    series = [_series(names[uid], slices) for uid, slices in groups.items()]
    return Scanned(sorted(series, key=lambda one: one.path), notes)


def _series(path: Path, slices: list[Slice]) -> Source:
    """One series, its files sorted along its normal. path: its name."""
    ordered = sorted(slices, key=lambda one: float(one.origin @ _normal(slices[0])))
    return Source("dicom", path, tuple(one.file for one in ordered), tuple(ordered))


def _normal(one: Slice) -> np.ndarray:
    return np.cross(one.axes[:, 0], one.axes[:, 1])


@same_locale()
def read_dicom(source: Source) -> Volume:
    """Read a series, rescaled as its files say: for CT to Hounsfield units.

    source: a series that `scan` found.
    Raises VolumeError where the slices are no straight, even stack: for a gantry tilt, a slice that is missing or there twice,
    or slices of several sizes.
    """
    grid = read_dicom_grid(source)
    check_memory(source.path, grid.shape, 12)
    notes: tuple[str, ...] = ()
    if not all(one.measured for one in source.slices):
        notes = (f"{source}: no size of the pixels in the headers; taken for 1 mm",)
    try:
        return volume_of(map(_planes, source.files), grid, source, notes)
    except (RuntimeError, MemoryError, ValueError) as error:
        raise VolumeError(f"{source}: expected readable DICOM files, found {one_line(error)[-300:]}") from error


def _planes(file: Path) -> np.ndarray:
    """The planes of a file, (K, J, I), rescaled as it says."""
    planes = itk().GetArrayFromImage(itk().ReadImage(str(file)))
    reshaped: np.ndarray = planes.reshape(-1, *planes.shape[-2:])
    return reshaped


def read_dicom_grid(source: Source) -> Grid:
    """The grid of a series, from the headers that `scan` read. Raises what `read_dicom` raises for headers."""
    path, slices = source.path, source.slices
    first = slices[0]
    for one in slices[1:]:
        if one.size != first.size or not np.allclose(one.spacing[:2], first.spacing[:2], rtol=0, atol=SAME):
            raise VolumeError(
                f"{path}: expected slices of one size, found {first.size[:2]} of {_mm(first.spacing[:2])} in "
                f"{first.file.name} and {one.size[:2]} of {_mm(one.spacing[:2])} in {one.file.name}"
            )
        if not np.allclose(one.axes, first.axes, rtol=0, atol=SAME):
            raise VolumeError(
                f"{path}: expected slices that lie alike, found {first.file.name} and {one.file.name} turned"
            )
    if len(slices) == 1:
        # One file holds all slices.
        return grid_of_lps(three(first.size), first.axes, first.spacing, first.origin)
    step = _step(path, slices)
    axes = np.column_stack([first.axes[:, :2], step / np.linalg.norm(step)])
    spacing = (*first.spacing[:2], float(np.linalg.norm(step)))
    return grid_of_lps((first.size[0], first.size[1], len(slices)), axes, spacing, first.origin)


def _step(path: Path, slices: Sequence[Slice]) -> np.ndarray:
    """The vector from one slice to the next, in mm. Raises VolumeError where slices are not evenly and straight stacked."""
    if slices[0].size[2] != 1:
        raise VolumeError(f"{path}: expected one file of many slices, found {len(slices)}")
    normal = _normal(slices[0])
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
    across: np.ndarray = slices[-1].origin - slices[0].origin
    tilt = float(np.degrees(np.arccos(np.clip(across @ normal / np.linalg.norm(across), -1, 1))))
    if tilt > MOST_TILT:
        raise VolumeError(
            f"{path}: expected slices straight on top of each other, found a gantry tilt of {tilt:.1f} degrees; "
            f"resample the series first"
        )
    step: np.ndarray = across / (len(slices) - 1)
    return step


def _names(folder: Path, numbers: dict[str, str]) -> dict[str, Path]:
    """A path for each series, by its UID."""
    if len(numbers) == 1:
        return {uid: folder for uid in numbers}
    names: dict[str, Path] = {}
    for uid in sorted(numbers):
        number = numbers[uid].strip()
        by_uid = f"{folder.name}_{NO_NAME.sub('_', uid)}"
        name = f"{folder.name}_{int(number):03d}" if number.isdecimal() else by_uid
        names[uid] = folder / (name if folder / name not in names.values() else by_uid)
    return names


def _files(folder: Path, deep: bool) -> Iterator[Path]:
    """The DICOM files in a folder, sorted by name. Hidden ones are skipped. Of a file, itself."""
    if folder.is_file():
        yield folder
        return
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
    """Whether a file begins as DICOM files do. False where it cannot be read."""
    try:
        with open(file, "rb") as stored:
            return stored.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _header(file: Path) -> tuple[str, str, Slice] | str:
    """The series' UID, the series' number, and the slice that a file holds. For another file: why it is no slice."""
    reader = itk().ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.SetFileName(itk_path(file))
        reader.ReadImageInformation()
    except OSError:
        return "of a path that is no UTF-8"
    except RuntimeError:
        return "unreadable, or no images"

    def tag(name: str) -> str:
        return reader.GetMetaData(name).strip() if reader.HasMetaDataKey(name) else ""

    for begin, what in NO_SCANS.items():
        if tag(CLASS).startswith(begin):
            return what
    if "LOCALIZER" in tag(IMAGE_TYPE).upper():
        return "localisers"
    if reader.GetNumberOfComponents() != 1 or tag(SAMPLES) not in ("", "1"):
        return "in colour"
    size = (*reader.GetSize(), 1)[:3]
    if not tag(PLACE) and size[2] < 2:
        return "without a place in the patient"
    axes = np.array(reader.GetDirection()).reshape(reader.GetDimension(), -1)[:3, :3]
    spacing, origin = reader.GetSpacing()[:3], np.array(reader.GetOrigin()[:3])
    # GDCM says so that frames go against the normal.
    if size[2] > 1 and axes.shape == (3, 3) and spacing[2] < 0:
        axes, spacing = axes * [1, 1, -1], (*spacing[:2], -spacing[2])
    if (
        axes.shape != (3, 3)
        or not np.isfinite([*axes.ravel(), *spacing, *origin]).all()
        # The gap between files of one slice comes from their positions.
        or min(spacing[: 2 if size[2] == 1 else 3]) <= 0
        or abs(np.linalg.det(axes)) < 0.5
    ):
        return "without a grid"
    if size[2] > 1 and (odd := what_is_odd(file, size[2], axes, np.array(spacing), origin)):
        return odd
    # GDCM turns a size that is missing or 0 into 1 mm. Files of many slices store it under another tag.
    measured = size[2] > 1 or _are_sizes(tag(PIXEL_SPACING))
    return tag(SERIES), tag(NUMBER), Slice(file, axes, spacing, origin, size=size, measured=measured)


def _are_sizes(text: str) -> bool:
    """Whether a header's text is two positive numbers."""
    try:
        sides = [float(side) for side in text.split("\\")]
    except ValueError:
        return False
    return len(sides) == 2 and min(sides) > 0


def _mm(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{side:.4g}" for side in spacing) + " mm"
