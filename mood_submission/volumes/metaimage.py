"""MetaImage and NRRD files in and out, by SimpleITK."""

import errno
import locale
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.files import write_whole_by_name
from ..runtime.triples import three
from .grid import Grid, Volume, VolumeError, check_memory, grid_of_lps, lps_of, one_line, volume_of

MOST_BYTES_EACH = 12  # of a voxel while it is read: as the file has it, and as float32


def itk() -> Any:
    """SimpleITK, which is imported when a file needs it, and says nothing of its own on stderr."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def itk_path(path: str | Path) -> str:
    """A path for SimpleITK, which takes UTF-8 alone: another would end the whole process. Raises OSError for such."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OSError(errno.EILSEQ, "a path that is no UTF-8, which SimpleITK cannot open", text) from None
    return text


@contextmanager
def same_locale() -> Iterator[None]:
    """Undoes what SimpleITK does to the process's locale, and leaves so where a file is broken: with it, Python would take
    every text file for ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        if locale.setlocale(locale.LC_ALL) != before:
            locale.setlocale(locale.LC_ALL, before)


@same_locale()
def read_metaimage(path: Path) -> Volume:
    """Read a `.mha`, `.mhd`, `.nrrd` or `.nhdr` file, (X, Y, Z) or with trailing axes of length 1. Raises VolumeError for what
    is missing, unreadable, truncated, empty, complex, of several numbers a voxel, or not 3D."""
    reader, grid = _reader(path)
    try:
        image = reader.Execute()  # which the view is of
        voxels = itk().GetArrayViewFromImage(image)
        return volume_of(voxels.reshape(grid.shape[::-1]).transpose(2, 1, 0), grid, path)
    except (RuntimeError, MemoryError, ValueError) as error:
        raise _unreadable(path, error) from error


@same_locale()
def read_metaimage_grid(path: Path) -> Grid:
    """The grid of such a file, from its header alone. Raises what `read_metaimage` raises for headers."""
    return _reader(path)[1]


@same_locale()
def write_metaimage(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Write an array (X, Y, Z) in RAS order as a `.mha` or `.nrrd` file, packed, on the grid of the file it belongs to; in
    the array's own dtype. Raises OSError where it cannot be written."""
    axes, spacing, origin = lps_of(grid)
    image = itk().GetImageFromArray(np.ascontiguousarray(grid.to_file(array).transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    image.SetDirection(axes.flatten().tolist())
    try:
        write_whole_by_name(path, lambda name: itk().WriteImage(image, itk_path(name), True))
    except RuntimeError as error:
        raise OSError(f"{path}: {one_line(error)}") from error


def _reader(path: Path) -> tuple[Any, Grid]:
    """A reader that has read the header, and what the header says. Raises VolumeError."""
    try:
        if not os.path.isfile(path):  # follows links; raises nothing
            os.stat(path)
            raise VolumeError(f"{path}: expected a readable volume, found a folder, pipe, socket or device")
        sitk = itk()
        reader = sitk.ImageFileReader()
        if path.suffix != path.suffix.lower():  # SimpleITK knows a format by small letters
            reader.SetImageIO(_io(path))
        reader.SetFileName(itk_path(path))
        reader.ReadImageInformation()
    except (RuntimeError, OSError, MemoryError) as error:
        raise _unreadable(path, error) from error
    size = reader.GetSize()
    if reader.GetNumberOfComponents() != 1 or "complex" in _type_name(reader):
        raise VolumeError(
            f"{path}: expected real numbers, found {reader.GetNumberOfComponents()} a voxel, {_type_name(reader)}"
        )
    if len(size) < 3 or any(side != 1 for side in size[3:]):
        raise VolumeError(f"{path}: expected a 3D volume, found shape {size}")
    if min(size) < 1:
        raise VolumeError(f"{path}: expected a volume with voxels, found shape {size}")
    check_memory(path, size, MOST_BYTES_EACH)
    dimensions = len(size)
    axes = np.array(reader.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    grid_numbers = np.concatenate([axes.ravel(), reader.GetSpacing()[:3], reader.GetOrigin()[:3]])
    if (
        not np.isfinite(grid_numbers).all()
        or abs(np.linalg.det(axes)) < 1e-3
        or min(reader.GetSpacing()) <= 0
    ):
        raise VolumeError(
            f"{path}: expected axes and spacings of a grid, found {axes.round(3).tolist()} and {reader.GetSpacing()}"
        )
    shape = three(int(side) for side in size[:3])
    return reader, grid_of_lps(shape, axes, reader.GetSpacing()[:3], reader.GetOrigin()[:3])


def _type_name(reader: Any) -> str:
    return itk().GetPixelIDValueAsString(reader.GetPixelID())


def _io(path: Path) -> str:
    return "MetaImageIO" if path.suffix.lower() in (".mha", ".mhd") else "NrrdImageIO"


def _unreadable(path: Path, error: Exception) -> VolumeError:
    kind = _io(path).removesuffix("ImageIO").replace("Nrrd", "NRRD").replace("Meta", "MetaImage")
    if isinstance(error, RuntimeError):  # SimpleITK's: many lines, of which one says what is wrong
        said = re.search(r"ERROR:\s*(?:\w+\(0x\w+\):\s*)?(.+)", str(error))
        return VolumeError(
            f"{path}: expected a readable {kind} volume, found: {said[1].strip() if said else one_line(error)}"
        )
    return VolumeError(f"{path}: expected a readable {kind} volume, found {one_line(error)}")
