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
from .grid import Grid, Volume, VolumeError, are_axes, check_memory, grid_of_lps, lps_of, one_line, volume_of
from .source import Source

MOST_AXES = 10  # that MetaIO has room for
MOST_TEXT = 1 << 16  # bytes of a header's text that are looked at
NUMBERS = (  # fields of a MetaImage header that hold nothing else, and what stands there
    rb"(?m)^[ \t]*(TransformMatrix|Rotation|Orientation|Offset|Position|Origin|CenterOfRotation|ElementSpacing|ElementSize|DimSize)"
    rb"[ \t]*[=:]([^\r\n]*)"
)
UNITS = rb"(?mi)^[ \t]*(?:DistanceUnits[ \t]*[=:]|(?:space )?units:)([^\r\n]*)"  # how long 1 is, which SimpleITK takes for 1 mm
OTHER_UNITS = re.compile(
    r"(nano|micro|centi|deci|kilo)?met(er|re)s?|microns?|inch(es)?|m|in|[cdknu\u00b5\u03bc\ufffd]m"
)
MOST_MM = 1e30  # beyond, numbers of a grid are none
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
def read_metaimage(source: Source) -> Volume:
    """Read a `.mha`, `.mhd`, `.nrrd` or `.nhdr` file, (X, Y, Z) or with trailing axes of length 1. Raises VolumeError for what
    is missing, unreadable, truncated, empty, complex, of several numbers a voxel, or not 3D."""
    reader, grid = _reader(source.path)
    try:
        # the view holds no reference to the image, so the image must stay until the voxels are copied
        image = reader.Execute()
        view = itk().GetArrayViewFromImage(image)
        return volume_of([view.reshape(grid.shape[::-1])], grid, source)
    except (RuntimeError, MemoryError, ValueError) as error:
        raise _unreadable(source.path, error) from error


@same_locale()
def read_metaimage_grid(source: Source) -> Grid:
    """The grid of such a file, from its header alone. Raises what `read_metaimage` raises for headers."""
    return _reader(source.path)[1]


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
        _check_text(path)
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
    spacing, origin = np.array(reader.GetSpacing()[:3]), np.array(reader.GetOrigin()[:3])
    furthest = max(np.abs(axes * spacing).max(), np.abs(origin).max())  # of what a NIfTI header holds too
    if not are_axes(axes * spacing) or spacing.min() <= 0 or not furthest < MOST_MM:
        raise VolumeError(
            f"{path}: expected axes and spacings of a grid, found {axes.round(3).tolist()} and {reader.GetSpacing()}"
        )
    shape = three(int(side) for side in size[:3])
    return reader, grid_of_lps(shape, axes, spacing, origin)


def _check_text(path: Path) -> None:
    """Raises VolumeError for a header whose sizes are not in mm, and for a MetaImage header that its library would end the
    process at: one that is no text, whose number of axes it has no room for, or with words where it makes room for numbers."""
    with open(path, "rb") as file:
        start = file.read(MOST_TEXT)
    if _io(path) != "MetaImageIO":
        _check_units(path, re.split(rb"\r?\n\r?\n", start, maxsplit=1)[0])
        return
    text = start.split(b"ElementDataFile", 1)[0]
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


def _check_units(path: Path, text: bytes) -> None:
    """Raises VolumeError for a header's text that names a length other than mm. What is no length is taken for mm."""
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
