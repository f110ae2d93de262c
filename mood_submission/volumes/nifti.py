"""Reads NIfTI files of any orientation as right-anterior-superior (RAS) arrays, and writes arrays on the file's own grid.

Axes are permuted and flipped, never resampled. So each score belongs to one voxel of the file.
"""

import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import IOBase
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np

# The same .gz as Python's gzip. Reading is twice as fast, writing ten times.
from isal import igzip, isal_zlib

from ..runtime.files import write_whole
from ..runtime.triples import three
from .grid import Grid, Volume, VolumeError, are_axes, axes_of, check_memory, one_line, ras_of
from .source import Source

# How many voxels of a file are held unscaled, or as float64, at a time.
SLAB_VOXELS = 1 << 20
# What nibabel, gzip and numpy raise for broken files. ArithmeticError is for infinite data offsets. isal's stub calls its
# error class an instance.
UNREADABLE: tuple[type[Exception], ...] = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    MemoryError,
    zlib.error,
    cast(type[Exception], isal_zlib.error),
)
# The most bytes that one byte of a .gz file can hold: the limit of deflate.
MOST_PACKED = 1032
# Formats that are often taken for NIfTI: position of a mark in the file, the mark, and the format's name.
OTHER_FORMATS = (
    (128, b"DICM", "a DICOM file; name its folder"),
    (0, b"\x1f\x8b", "a packed file without .gz in its name"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"NRRD", "an NRRD file"),
    (0, b"<", "a page of HTML or XML"),
)
# Millimetres per unit, for NIfTI's codes of metre and micron. All other codes count as millimetre.
MM_PER_UNIT = {1: 1000.0, 3: 0.001}


def read_nifti(source: Source) -> Volume:
    """Read a `.nii` or `.nii.gz` file as float32 in RAS order, with its scaling applied.

    The file's array is (X, Y, Z) or has further axes of length 1, which are dropped. Without an orientation in the header it
    is taken to be in RAS order, which the volume's notes say. NaN and infinite voxels become the lowest value of the others.

    Memory is taken after the file's size and the free memory are checked. It is the float32 array and a small slab of the file.

    Raises VolumeError for a file that is missing, not regular, unreadable, truncated, empty, complex or RGB, or not 3D.
    """
    path = source.path
    with _as_volume_error(path):
        file_size = _size_of(path)
        image = _image_of(path)
        grid, spacing, notes = _grid_of(image, path)
        stored = image.dataobj
        # Every image that is read from a file has a proxy.
        assert isinstance(stored, nib.arrayproxy.ArrayProxy)
        _check_size(stored, path, file_size)
        data, missing = ras_of(_planes(stored, grid.shape), grid)
    return Volume(data, spacing, grid, source, missing=missing, notes=notes)


def read_nifti_grid(source: Source) -> Grid:
    """The grid of a `.nii` or `.nii.gz` file, read from its header. Raises what `read_nifti` raises for headers."""
    with _as_volume_error(source.path):
        _size_of(source.path)
        return _grid_of(_image_of(source.path), source.path)[0]


def write_nifti(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Write an array on a scan's own grid: with its axes, shape, affine, codes and units, and without scaling.

    array: (X, Y, Z) in RAS order, stored in its own dtype.
    """
    _write_image(path, _image_like(grid, array, array.dtype))


def _write_image(path: Path, image: nib.Nifti1Image) -> None:
    with (
        write_whole(path) as file,
        _packed(file) if path.name.lower().endswith(".gz") else nullcontext(file) as inner,
    ):
        image.to_stream(cast(IOBase, inner))


def _packed(file: BinaryIO) -> BinaryIO:
    """A file that packs what is written to it, without time or name. So equal scores make equal content, and nearly always
    equal .gz files: isal was once seen to pack the same content in another way."""
    return cast(BinaryIO, igzip.IGzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0))


def _open_to_read(path: str) -> igzip.IGzipFile | nib.openers.ImageOpener:
    """A file that is unpacked as it is read. Its errors are among UNREADABLE."""
    return igzip.open(path) if path.lower().endswith(".gz") else nib.openers.ImageOpener(path)


@contextmanager
def _as_volume_error(path: Path) -> Iterator[None]:
    try:
        yield
    except VolumeError:
        raise
    except UNREADABLE as error:
        found = _other_format(path) or one_line(error)
        raise VolumeError(f"{path}: expected a readable NIfTI volume, found {found}") from error


def _image_of(path: Path) -> nib.Nifti1Image:
    """The image of a file. Its kind comes from the header: `nib.load` fails for endings in mixed case."""
    kind = _kind_of(_start_of(path, nib.Nifti2Header.sizeof_hdr))
    file_map = kind.make_file_map()
    file_map["image"].filename = str(path)
    image: nib.Nifti1Image = kind.from_file_map(file_map)
    return image


def _kind_of(start: bytes) -> type[nib.Nifti1Image]:
    """NIfTI-1 or NIfTI-2, by the file's first bytes. Raises ValueError for neither."""
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if kind.header_class.may_contain_header(start):
            return kind
    raise ValueError("no NIfTI header")


def _other_format(path: Path) -> str | None:
    """Which of OTHER_FORMATS a file has, by its first bytes. None for any other."""
    try:
        start = _start_of(path)
    except UNREADABLE:
        return None
    return next((name for at, mark, name in OTHER_FORMATS if start[at:].startswith(mark)), None)


def _start_of(path: Path, count: int = 132) -> bytes:
    """The file's first `count` bytes, unpacked for a .gz file."""
    with open(path, "rb") as file:
        start = file.read(count)
    if start.startswith(b"\x1f\x8b") and path.name.lower().endswith(".gz"):
        with igzip.open(path) as file:
            start = file.read(count)
    return start


def _grid_of(image: nib.Nifti1Image, path: Path) -> tuple[Grid, tuple[float, float, float], tuple[str, ...]]:
    """The file's grid, its spacing (x, y, z) in mm, and notes. Raises VolumeError for what is no 3D volume of real numbers."""
    if image.get_data_dtype().kind not in "iuf":
        raise VolumeError(f"{path}: expected real numbers, found data type {image.header.get_value_label('datatype')}")
    if len(image.shape) < 3 or any(size != 1 for size in image.shape[3:]):
        raise VolumeError(f"{path}: expected a 3D volume, found shape {image.shape}")
    shape = three(int(size) for size in image.shape[:3])
    if min(shape) < 1:
        raise VolumeError(f"{path}: expected a volume with voxels, found shape {shape}")

    header, affine = image.header.copy(), np.array(image.affine)
    unit = MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    notes: tuple[str, ...] = ()
    known = _orientation_is_known(header, affine)
    if known:
        ras_axes, flipped = axes_of(affine)
        affine_mm = affine * np.array([[unit], [unit], [unit], [1.0]])
        if not np.isfinite(affine_mm[:3, 3]).all():
            notes = (f"{path}: no usable place in the header; places count from the array's first voxel",)
            affine_mm[:3, 3] = 0
    else:
        notes = (f"{path}: no usable orientation in the header; array taken as it is for RAS",)
        ras_axes, flipped = (0, 1, 2), (False, False, False)
        sizes = np.abs(np.array(header.get_zooms()[:3], dtype=np.float64)) * unit
        affine_mm = np.diag([*np.where(np.isfinite(sizes) & (sizes > 0), sizes, 1.0), 1.0])
    # Without an sform, positions come from the voxels' sizes.
    if not known or header["sform_code"] == 0:
        notes += _unknown_sizes(path)
    sizes = np.linalg.norm(affine_mm[:3, :3], axis=0)
    spacing = three(float(sizes[ras_axes.index(axis)]) for axis in range(3))
    grid = Grid(shape, affine, header, ras_axes=ras_axes, flipped=flipped, affine_mm=affine_mm)
    return grid, spacing, notes


def _unknown_sizes(path: Path) -> tuple[str, ...]:
    """A note where the stored header lacks sizes of voxels. nibabel fills these in when it reads the header."""
    kind = _kind_of(start := _start_of(path, nib.Nifti2Header.sizeof_hdr))
    stored = kind.header_class(start[: kind.header_class.sizeof_hdr], check=False)["pixdim"][1:4]
    unknown = [axis for axis, size in zip("xyz", stored) if size == 0 or not math.isfinite(size)]
    if not unknown:
        return ()
    return (f"{path}: no usable size of voxels along {' and '.join(unknown)} in the header; taken for 1 mm",)


def _orientation_is_known(header: nib.Nifti1Header, affine: np.ndarray) -> bool:
    """Whether the header gives a usable affine. False without sform and qform, where nibabel would flip x."""
    return bool(header["sform_code"] != 0 or header["qform_code"] != 0) and are_axes(affine[:3, :3])


def _size_of(path: Path) -> int:
    """The file's size in bytes. Raises VolumeError for what is no regular file: reading a pipe may never end."""
    # This follows links.
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe, socket or device"
        raise VolumeError(f"{path}: expected a readable NIfTI volume, found a {kind}")
    return status.st_size


def _check_size(proxy: nib.arrayproxy.ArrayProxy, path: Path, file_size: int) -> None:
    """Raises VolumeError where the header gives more voxels than the file, or the free memory, can hold."""
    voxels = math.prod(int(size) for size in proxy.shape)
    needed = int(proxy.offset) + voxels * proxy.dtype.itemsize
    packed = path.name.lower().endswith(".gz")
    if needed > file_size * (MOST_PACKED if packed else 1):
        raise VolumeError(
            f"{path}: expected {needed} bytes for shape {proxy.shape} at {proxy.offset}, found a file of "
            f"{file_size}{' (packed)' if packed else ''}"
        )
    check_memory(path, proxy.shape, 4)


def _planes(proxy: nib.arrayproxy.ArrayProxy, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """The file's planes with its scaling applied, a few at a time: (few, J, I).

    nibabel would make a float64 copy of a whole array that has a scaling.
    """
    slope, inter = np.float64(proxy.slope), np.float64(proxy.inter)
    plane = shape[0] * shape[1]
    step = max(1, SLAB_VOXELS // plane)
    with _open_to_read(str(proxy.file_like)) as file:
        file.seek(proxy.offset)
        for start in range(0, shape[2], step):
            planes = min(step, shape[2] - start)
            raw = file.read(planes * plane * proxy.dtype.itemsize)
            if len(raw) < planes * plane * proxy.dtype.itemsize:
                raise EOFError(f"the end of the file in plane {start} to {start + planes} of {shape[2]}")
            stored = np.frombuffer(raw, dtype=proxy.dtype).reshape(planes, shape[1], shape[0])
            yield stored if (slope, inter) == (1.0, 0.0) else stored * slope + inter
        # The checksum of a gzip file is checked at its end.
        file.read(1)


def _image_like(grid: Grid, array: np.ndarray, dtype: np.dtype) -> nib.Nifti1Image:
    """An image of an array (X, Y, Z) with the grid's header, without what it says of the scan's intensities."""
    header = grid.header.copy()
    data = grid.to_file(array).astype(dtype, copy=False)
    header.set_data_shape(data.shape)
    header.set_data_dtype(dtype)
    header.set_intent("none")
    header.extensions.clear()
    header["cal_min"] = header["cal_max"] = 0
    image_class: type[nib.Nifti1Image] = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # Without an affine, nibabel leaves the header's sform and qform as they are.
    return image_class(data, None, header)
