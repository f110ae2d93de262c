"""NIfTI files in and out: any orientation to right-anterior-superior (RAS) arrays, and back to the file's own grid.

Axes are only permuted and flipped, never resampled, so that a score belongs to exactly one voxel of the file.
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
from isal import igzip, isal_zlib  # the same .gz as Python's gzip, read twice and written ten times as fast

from ..runtime.files import write_whole
from ..runtime.triples import three
from .grid import Grid, Volume, VolumeError, are_axes, axes_of, check_memory, one_line
from .source import Source

SLAB_VOXELS = 1 << 20  # how much of a file is held unscaled (or as float64) at a time
UNREADABLE: tuple[
    type[Exception], ...
] = (  # what nibabel, gzip and numpy raise for files that are not what they should be
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,  # of an infinite data offset
    MemoryError,
    zlib.error,
    cast(type[Exception], isal_zlib.error),  # its stub calls it an instance
)
MOST_PACKED = 1032  # bytes that one byte of a .gz file can hold: deflate's own limit
OTHER_FORMATS = (  # where in the file, what stands there, what that says
    (128, b"DICM", "a DICOM file"),
    (0, b"\x1f\x8b", "a packed file without .gz in its name"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"NRRD", "an NRRD file"),
    (0, b"<", "a page of HTML or XML"),
)
MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # NIfTI's codes for metre and micron; the others are taken as millimetre


def read_nifti(source: Source) -> Volume:
    """Read a `.nii` or `.nii.gz` file as float32 in RAS order, with its scaling applied.

    Shape (X, Y, Z), or with trailing axes of length 1, which are dropped. Where the header leaves the orientation open
    the array is taken to be in RAS order already; NaN and infinite voxels are missing and read as the lowest of the
    others, as background is: both with a warning.
    Beside the float32 array only a small slab of the file is held in memory, and nothing before the file's size and the
    free memory are seen to fit what the header says.

    Raises VolumeError for what is missing, no regular file, unreadable, truncated, empty, complex or RGB, or not 3D.
    """
    path = source.path
    with _as_volume_error(path):
        file_size = _size_of(path)
        image = _image_of(path)
        grid, spacing, notes = _grid_of(image, path)
        stored = image.dataobj
        assert isinstance(stored, nib.arrayproxy.ArrayProxy)  # an image that was read from a file
        _check_size(stored, path, file_size)
        data, missing = _read_ras(stored, grid)
    return Volume(data, spacing, grid, source, missing, notes)


def read_nifti_grid(source: Source) -> Grid:
    """The grid of a `.nii` or `.nii.gz` file, from its header alone. Raises what `read_nifti` raises for headers."""
    with _as_volume_error(source.path):
        _size_of(source.path)
        return _grid_of(_image_of(source.path), source.path)[0]


def write_nifti(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Write an array (X, Y, Z) in RAS order on the grid of the file it belongs to: its axes, shape, affine, codes and units;
    in the array's own dtype, unscaled."""
    _write_image(path, _image_like(grid, array, array.dtype))


def _write_image(path: Path, image: nib.Nifti1Image) -> None:
    with (
        write_whole(path) as file,
        _packed(file) if path.name.lower().endswith(".gz") else nullcontext(file) as inner,
    ):
        image.to_stream(cast(IOBase, inner))


def _packed(file: BinaryIO) -> BinaryIO:
    """Neither time nor name goes in, so that equal scores make equal files: always what is unpacked, nearly always the bytes of
    the .gz too (isal was once seen to pack the same content otherwise)."""
    return cast(BinaryIO, igzip.IGzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0))


def _open_to_read(path: str) -> igzip.IGzipFile | nib.openers.ImageOpener:
    """The file, unpacked as it is read. What goes wrong is among UNREADABLE."""
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
    """The image by its header, whatever case its name's ending is in (`nib.load` knows lower and upper)."""
    kind = _kind_of(_start_of(path, nib.Nifti2Header.sizeof_hdr))
    file_map = kind.make_file_map()
    file_map["image"].filename = str(path)
    return kind.from_file_map(file_map)


def _kind_of(start: bytes) -> type[nib.Nifti1Image]:
    """NIfTI-1 or 2, by the file's first bytes. Raises ValueError for neither."""
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if kind.header_class.may_contain_header(start):
            return kind
    raise ValueError("no NIfTI header")


def _other_format(path: Path) -> str | None:
    """What a file that cannot be read is, by its first bytes, where it is something that is often taken for NIfTI."""
    try:
        start = _start_of(path)
    except UNREADABLE:
        return None
    return next((name for at, mark, name in OTHER_FORMATS if start[at:].startswith(mark)), None)


def _start_of(path: Path, count: int = 132) -> bytes:
    """The file's first bytes, unpacked where it is a .gz file."""
    with open(path, "rb") as file:
        start = file.read(count)
    if start.startswith(b"\x1f\x8b") and path.name.lower().endswith(".gz"):
        with igzip.open(path) as file:
            start = file.read(count)
    return start


def _grid_of(image: nib.Nifti1Image, path: Path) -> tuple[Grid, tuple[float, float, float], tuple[str, ...]]:
    """The file's grid, its RAS spacing in mm, and what is odd about it. Raises VolumeError for what is no 3D volume of real numbers."""
    if image.get_data_dtype().kind not in "iuf":
        raise VolumeError(
            f"{path}: expected real numbers, found data type {image.header.get_value_label('datatype')}"
        )
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
    if not known or header["sform_code"] == 0:  # it is voxels' sizes that place them
        notes += _unknown_sizes(path)
    sizes = np.linalg.norm(affine_mm[:3, :3], axis=0)
    spacing = three(float(sizes[ras_axes.index(axis)]) for axis in range(3))
    return Grid(shape, affine, header, ras_axes, flipped, affine_mm), spacing, notes


def _unknown_sizes(path: Path) -> tuple[str, ...]:
    """A note where the header as it is stored, which nibabel mends when it reads it, does not tell voxels' sizes."""
    kind = _kind_of(start := _start_of(path, nib.Nifti2Header.sizeof_hdr))
    stored = kind.header_class(start[: kind.header_class.sizeof_hdr], check=False)["pixdim"][1:4]
    unknown = [axis for axis, size in zip("xyz", stored) if size == 0 or not math.isfinite(size)]
    if not unknown:
        return ()
    return (f"{path}: no usable size of voxels along {' and '.join(unknown)} in the header; taken for 1 mm",)


def _orientation_is_known(header: nib.Nifti1Header, affine: np.ndarray) -> bool:
    """False for NaN or singular affines, and for headers with neither sform nor qform (nibabel would flip x there)."""
    return bool(header["sform_code"] != 0 or header["qform_code"] != 0) and are_axes(affine[:3, :3])


def _size_of(path: Path) -> int:
    """The file's size in bytes. Raises VolumeError for what is no regular file: reading a pipe could wait for ever."""
    status = os.stat(path)  # follows links
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe, socket or device"
        raise VolumeError(f"{path}: expected a readable NIfTI volume, found a {kind}")
    return status.st_size


def _check_size(proxy: nib.arrayproxy.ArrayProxy, path: Path, file_size: int) -> None:
    """Raises VolumeError where the header says more than the file can hold, or than there is memory for."""
    voxels = math.prod(int(size) for size in proxy.shape)
    needed = int(proxy.offset) + voxels * proxy.dtype.itemsize
    packed = path.name.lower().endswith(".gz")
    if needed > file_size * (MOST_PACKED if packed else 1):
        raise VolumeError(
            f"{path}: expected {needed} bytes for shape {proxy.shape} at {proxy.offset}, found a file of "
            f"{file_size}{' (packed)' if packed else ''}"
        )
    check_memory(path, proxy.shape, 4)


def _read_ras(proxy: nib.arrayproxy.ArrayProxy, grid: Grid) -> tuple[np.ndarray, int]:
    """The file's voxels as (X, Y, Z) float32, Fortran order, and how many were not finite.

    Reading by slab keeps nibabel from making a float64 copy of the whole array when there is a scaling.
    """
    data = np.empty(grid.ras_shape, dtype=np.float32, order="F")
    in_file = grid.to_file(data)
    slope, inter = float(proxy.slope), float(proxy.inter)
    lowest, missing, start = np.inf, [], 0
    for slab in _file_slabs(proxy, grid.shape):
        if (slope, inter) != (1.0, 0.0):
            slab = slab * np.float64(slope) + np.float64(inter)
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and replaced like the rest
            slab = slab.astype(np.float32)
        finite = np.isfinite(slab)
        lowest = min(lowest, float(slab.min(where=finite, initial=np.inf)))
        if not finite.all():
            missing.append((start, ~finite))
        in_file[:, :, start : start + slab.shape[2]] = slab
        start += slab.shape[2]
    for start, where in missing:
        in_file[:, :, start : start + where.shape[2]][where] = lowest if np.isfinite(lowest) else 0
    return data, sum(int(where.sum()) for _, where in missing)


def _file_slabs(proxy: nib.arrayproxy.ArrayProxy, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """The file's raw numbers in its own axes and byte order, a few (I, J) planes at a time: (I, J, few)."""
    plane = shape[0] * shape[1]
    step = max(1, SLAB_VOXELS // plane)
    with _open_to_read(str(proxy.file_like)) as file:
        file.seek(proxy.offset)
        for start in range(0, shape[2], step):
            planes = min(step, shape[2] - start)
            raw = file.read(planes * plane * proxy.dtype.itemsize)
            if len(raw) < planes * plane * proxy.dtype.itemsize:
                raise EOFError(f"the end of the file in plane {start} to {start + planes} of {shape[2]}")
            yield np.frombuffer(raw, dtype=proxy.dtype).reshape((*shape[:2], planes), order="F")
        file.read(1)  # at its end a gzip file checks its checksum


def _image_like(grid: Grid, array: np.ndarray, dtype: np.dtype) -> nib.Nifti1Image:
    """An image of an array (X, Y, Z), RAS order, with the grid's header, less what was true of the scan's intensities only."""
    header = grid.header.copy()
    data = grid.to_file(array).astype(dtype, copy=False)
    header.set_data_shape(data.shape)
    header.set_data_dtype(dtype)
    header.set_intent("none")
    header.extensions.clear()
    header["cal_min"] = header["cal_max"] = 0
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # without an affine nibabel leaves the header's sform and qform exactly as they were
    return image_class(data, None, header)
