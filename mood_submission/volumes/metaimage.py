"""Reads and writes MetaImage and NRRD files with SimpleITK."""

import errno
import locale
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.files import write_whole_by_name
from ..runtime.triples import three
from .grid import Grid, Volume, VolumeError, are_axes, check_memory, grid_of_lps, lps_of, one_line, volume_of
from .packed import what_is_damaged
from .source import Source

# The most axes that MetaIO has room for.
MOST_AXES = 10
# How many bytes of a header are checked.
MOST_TEXT = 1 << 16
# Fields of a MetaImage header that hold numbers only, and their text.
NUMBERS = (
    rb"(?m)^[ \t]*(TransformMatrix|Rotation|Orientation|Offset|Position|Origin|CenterOfRotation|ElementSpacing|ElementSize|DimSize)"
    rb"[ \t]*[=:]([^\r\n]*)"
)
# No grid has coordinates or steps beyond this.
MOST_MM = 1e30
# What a voxel takes while it is read: in the file's type and in float32.
MOST_BYTES_EACH = 12
# The unit of a header's sizes. SimpleITK ignores it, and takes them for mm.
UNITS = rb"(?mi)^[ \t]*(?:DistanceUnits[ \t]*[=:]|(?:space )?units:)([^\r\n]*)"
OTHER_UNITS = re.compile(
    r"(nano|micro|centi|deci|kilo)?met(er|re)s?|microns?|inch(es)?|m|in|[cdknu\u00b5\u03bc\ufffd]m"
)


def itk() -> Any:
    """SimpleITK, imported when a file needs it, with its own messages on stderr switched off."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def itk_path(path: str | Path) -> str:
    """A path as SimpleITK takes it. Raises OSError for a path that is no UTF-8: SimpleITK would end the process."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OSError(errno.EILSEQ, "a path that is no UTF-8, which SimpleITK cannot open", text) from None
    return text


@contextmanager
def same_locale() -> Iterator[None]:
    """Restores the process's locale afterwards.

    SimpleITK changes the locale, and does not restore it after a broken file. Python would then read text files as ASCII.
    """
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        if locale.setlocale(locale.LC_ALL) != before:
            locale.setlocale(locale.LC_ALL, before)


@same_locale()
def read_metaimage(source: Source) -> Volume:
    """Read a `.mha`, `.mhd`, `.nrrd` or `.nhdr` file, (X, Y, Z) or with trailing axes of length 1.

    Raises VolumeError for a file that is missing, unreadable, truncated, empty, complex, not 3D, or has several numbers a voxel.
    """
    reader, grid = _reader(source.path)
    try:
        _check_packed(source.path, grid, reader)
        # The view holds no reference to the image. So the image must stay until the voxels are copied.
        image = reader.Execute()
        view = itk().GetArrayViewFromImage(image)
        return volume_of([view.reshape(grid.shape[::-1])], grid, source)
    except VolumeError:
        raise
    except (RuntimeError, OSError, MemoryError, ValueError) as error:
        raise _unreadable(source.path, error) from error


@same_locale()
def read_metaimage_grid(source: Source) -> Grid:
    """The grid of such a file, read from its header. Raises what `read_metaimage` raises for headers."""
    return _reader(source.path)[1]


@same_locale()
def write_metaimage(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Write a packed `.mha` or `.nrrd` file on a scan's own grid.

    path: by its ending MetaImage or NRRD.
    array: (X, Y, Z) in RAS order, stored in its own dtype.
    grid: the scan's.
    Raises OSError where the file cannot be written.
    """
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
    """A reader that has read the header, and the file's grid. Raises VolumeError."""
    try:
        # This follows links and raises nothing.
        if not os.path.isfile(path):
            os.stat(path)
            raise VolumeError(f"{path}: expected a readable volume, found a folder, pipe, socket or device")
        _check_text(path)
        sitk = itk()
        reader = sitk.ImageFileReader()
        # SimpleITK recognises endings in lower case only.
        if path.suffix != path.suffix.lower():
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
    spacing, origin = np.array(reader.GetSpacing()[:3]), np.array(reader.GetOrigin()[:3])
    # The largest number that a NIfTI header of this grid holds.
    furthest = max(np.abs(axes * spacing).max(), np.abs(origin).max())
    if not are_axes(axes * spacing) or spacing.min() <= 0 or not furthest < MOST_MM:
        raise VolumeError(
            f"{path}: expected axes and spacings of a grid, found {axes.round(3).tolist()} and {reader.GetSpacing()}"
        )
    shape = three(int(side) for side in size[:3])
    return reader, grid_of_lps(shape, axes, spacing, origin)


def _check_text(path: Path) -> None:
    """Raises VolumeError for headers whose sizes are not in mm, and for MetaImage headers that make its library end the process.

    Headers of the second kind are no text, give more axes than the library has room for, have words in place of numbers, or name
    a data file by what the library takes for a format of its own.
    """
    with open(path, "rb") as file:
        start = file.read(MOST_TEXT)
    if _io(path) != "MetaImageIO":
        _check_units(path, re.split(rb"\r?\n\r?\n", start, maxsplit=1)[0])
        return
    text, _, rest = start.partition(b"ElementDataFile")
    data_file = rest.splitlines()[0].lstrip(b" \t=:") if rest else b""
    if not re.fullmatch(rb"[^%\x00-\x1f\x7f]*(%0?\d{0,2}d[^%\x00-\x1f\x7f]*)?", data_file):
        raise VolumeError(
            f"{path}: expected the name of a data file, found {data_file[:60].decode('ascii', 'replace')!r}"
        )
    if re.search(rb"[\x00-\x08\x0e-\x1f]", text):
        raise VolumeError(f"{path}: expected a readable MetaImage volume, found a header that is no text")
    for said in re.findall(rb"NDims[ \t]*[=:]?([^\r\n]*)", text):
        count = re.fullmatch(rb"\s*\+?(\d{1,3})\s*", said)
        if count is None or not 1 <= int(count[1]) <= MOST_AXES:
            raise VolumeError(f"{path}: expected a 3D volume, found{said.decode('ascii', 'replace')} axes")
    for name, said in re.findall(NUMBERS, text):
        if not all(_is_number(word) for word in said.split()):
            raise VolumeError(
                f"{path}: expected numbers for {name.decode()}, found {said.decode('ascii', 'replace').strip()}"
            )
    _check_units(path, text)


def _check_packed(path: Path, grid: Grid, reader: Any) -> None:
    """Raises VolumeError for packed voxels of a MetaImage file that are damaged, OSError where they cannot be read."""
    if _io(path) != "MetaImageIO":
        return
    bytes_each = itk().Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    with open(path, "rb") as file:
        start = file.read(MOST_TEXT)
    if found := what_is_damaged(path, start, math.prod(grid.shape) * bytes_each):
        raise VolumeError(f"{path}: expected a readable MetaImage volume, found {found}")


def _check_units(path: Path, text: bytes) -> None:
    """Raises VolumeError for a header that names a unit of length other than mm. Words that are no such unit count as mm."""
    for said in re.findall(UNITS, text):
        for word in said.decode("utf-8", "replace").replace('"', " ").split():
            if OTHER_UNITS.fullmatch(word.lower()):
                raise VolumeError(f"{path}: expected sizes in mm, found {word}")


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _type_name(reader: Any) -> str:
    return str(itk().GetPixelIDValueAsString(reader.GetPixelID()))


def _io(path: Path) -> str:
    return "MetaImageIO" if path.suffix.lower() in (".mha", ".mhd") else "NrrdImageIO"


def _unreadable(path: Path, error: Exception) -> VolumeError:
    kind = _io(path).removesuffix("ImageIO").replace("Nrrd", "NRRD").replace("Meta", "MetaImage")
    # SimpleITK's errors have many lines. One of them says what is wrong.
    if isinstance(error, RuntimeError):
        said = re.search(r"ERROR:\s*(?:\w+\(0x\w+\):\s*)?(.+)", str(error))
        return VolumeError(
            f"{path}: expected a readable {kind} volume, found: {said[1].strip() if said else one_line(error)}"
        )
    return VolumeError(f"{path}: expected a readable {kind} volume, found {one_line(error)}")
