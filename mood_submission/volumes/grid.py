"""A scan in memory: its voxels in right-anterior-superior (RAS) order, and the grid of its file."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ..runtime.memory import free_memory
from ..runtime.triples import three
from .source import Source


class VolumeError(ValueError):
    """A file or folder is no 3D volume that can be used. One line names it, what was expected, and what was found."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A file's own voxel grid.

    shape: (I, J, K) in the file's axis order.
    affine: (4, 4) float64, from file indices to world coordinates in the header's own unit, as nibabel gives it. It is what
        is written back.
    header: a copy of the file's header: sform and qform codes, units, zooms. For other formats, the header of a NIfTI file
        with this grid.
    ras_axes: for each of the file's axes, the RAS axis it runs along (0 = x, 1 = y, 2 = z).
    flipped: for each of the file's axes, whether it runs against that RAS axis.
    affine_mm: (4, 4) float64, from file indices to RAS coordinates in mm. All positions and sizes are computed with it. It is
        always invertible: without an orientation in the header, the array runs along RAS from 0 on.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    header: nib.Nifti1Header
    ras_axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    affine_mm: np.ndarray

    @property
    def ras_shape(self) -> tuple[int, int, int]:
        """The volume's shape in RAS order, (X, Y, Z)."""
        return three(self.shape[self.ras_axes.index(axis)] for axis in range(3))

    def to_file(self, ras: np.ndarray) -> np.ndarray:
        """A view of an (X, Y, Z) array in the file's axes, (I, J, K). Writing to the view writes to `ras`."""
        flips = tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return ras.transpose(self.ras_axes)[flips]

    def file_index(self, place: np.ndarray) -> np.ndarray:
        """The file's indices (I, J, K) of a place given in RAS indices (X, Y, Z). Places may lie between voxels."""
        along = np.asarray(place, np.float64)[list(self.ras_axes)]
        return np.where(self.flipped, np.array(self.shape) - 1 - along, along)

    def ras_index(self, place: np.ndarray) -> np.ndarray:
        """RAS indices (X, Y, Z) of a place given in the file's indices (I, J, K). The inverse of `file_index`."""
        along = np.where(self.flipped, np.array(self.shape) - 1 - np.asarray(place, np.float64), place)
        return along[np.argsort(self.ras_axes)]


@dataclass
class Volume:
    """One scan.

    data: (X, Y, Z) float32, finite, Fortran-contiguous and writable. x runs to the right, y to anterior, z to superior. It
        shares memory with nothing else.
    spacing: (x, y, z) in mm.
    grid: the file's own grid, for `write_volume`.
    source: what it was read from.
    missing: how many voxels were NaN or infinite in the file.
    notes: what was odd about the file. Each is a line that names it.
    """

    data: np.ndarray
    spacing: tuple[float, float, float]
    grid: Grid
    source: Source
    missing: int = 0
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """What names the volume in messages."""
        return self.source.path


def one_line(error: Exception) -> str:
    """An exception's class and text, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def are_axes(columns: np.ndarray) -> bool:
    """Whether the columns of a (3, 3) matrix span a grid: they are finite and far from lying in one plane."""
    if not np.isfinite(columns).all():
        return False
    sizes = np.linalg.norm(columns, axis=0)
    return bool(sizes.min() > 0) and bool(abs(np.linalg.det(columns / sizes)) > 1e-3)


def axes_of(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """`Grid.ras_axes` and `Grid.flipped` for this affine, (4, 4)."""
    orientation = nib.orientations.io_orientation(affine)
    return (
        three(int(axis) for axis in orientation[:, 0]),
        three(bool(sign < 0) for sign in orientation[:, 1]),
    )


def grid_of_lps(
    shape: tuple[int, int, int],
    axes: np.ndarray,
    spacing: Sequence[float] | np.ndarray,
    origin: Sequence[float] | np.ndarray,
) -> Grid:
    """The grid of a file with left-posterior-superior (LPS) coordinates, as DICOM and MetaImage have.

    shape: (I, J, K) in the file's axis order.
    axes: (3, 3). Its columns are the directions of the file's axes.
    spacing: three sizes in mm, by the file's axes.
    origin: the first voxel's LPS coordinates in mm.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(axes, np.float64) * np.asarray(spacing, np.float64)
    affine[:3, 3] = origin
    affine = np.diag([-1.0, -1, 1, 1]) @ affine
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    ras_axes, flipped = axes_of(affine)
    return Grid(shape, affine, header, ras_axes=ras_axes, flipped=flipped, affine_mm=affine)


def lps_of(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Axes, spacing and origin. The inverse of `grid_of_lps`."""
    lps = np.diag([-1.0, -1, 1, 1]) @ grid.affine_mm
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return lps[:3, :3] / spacing, spacing, lps[:3, 3]


def volume_of(blocks: Iterable[np.ndarray], grid: Grid, source: Source, notes: tuple[str, ...] = ()) -> Volume:
    """A volume from the voxels of a file. NaN and infinite voxels become the lowest value of the others.

    blocks: the file's planes in order, as arrays (few, J, I). They are copied, so they may be views of memory that is freed
        afterwards.
    grid: the file's.
    source: what the blocks were read from.
    notes: what was odd about the file.
    Raises ValueError where the blocks together do not have the grid's shape.
    """
    ras, missing = ras_of(blocks, grid)
    # A NIfTI header holds spacing as float32. With the same rounding here, a scan has the same scores in every format.
    sizes = np.linalg.norm(grid.header.get_best_affine()[:3, :3], axis=0)
    spacing = three(float(sizes[grid.ras_axes.index(axis)]) for axis in range(3))
    return Volume(ras, spacing, grid, source, missing=missing, notes=notes)


def ras_of(blocks: Iterable[np.ndarray], grid: Grid) -> tuple[np.ndarray, int]:
    """The voxels of a file as (X, Y, Z) float32 in Fortran order, and how many were missing. The rest is as in `volume_of`."""
    ras = np.empty(grid.ras_shape, np.float32, order="F")
    in_file, start = grid.to_file(ras), 0
    for block in blocks:
        end = start + len(block)
        if block.shape[:0:-1] != grid.shape[:2] or end > grid.shape[2]:
            raise ValueError(f"expected voxels of shape {grid.shape}, found planes of {block.shape[:0:-1]}")
        # Values beyond float32 become infinite, and are replaced as missing.
        with np.errstate(over="ignore"):
            in_file[:, :, start:end] = block.transpose(2, 1, 0)
        start = end
    if start != grid.shape[2]:
        raise ValueError(f"expected {grid.shape[2]} planes of voxels, found {start}")
    return ras, _fill_missing(ras)


def _fill_missing(ras: np.ndarray) -> int:
    """Set NaN and infinite voxels of an array (X, Y, Z) to the lowest value of the others, or 0. Returns their number."""
    lowest, missing = np.inf, 0
    # Plane by plane, so that no mask of the whole volume takes memory.
    for plane in ras.T:
        finite = np.isfinite(plane)
        missing += plane.size - int(np.count_nonzero(finite))
        lowest = min(lowest, float(plane.min(where=finite, initial=np.inf)))
    for plane in ras.T if missing else ():
        plane[~np.isfinite(plane)] = lowest if np.isfinite(lowest) else 0
    return missing


def check_memory(path: Path, shape: Sequence[int], bytes_each: int) -> None:
    """Raises VolumeError where the free memory holds no volume of this shape. bytes_each: of a voxel."""
    needed, free = bytes_each * math.prod(int(size) for size in shape), free_memory(torch.device("cpu"))
    if needed > free:
        raise VolumeError(
            f"{path}: expected {needed >> 20} MB of free memory for shape {tuple(shape)}, found {free >> 20} MB"
        )
