"""A scan in memory: its voxels in right-anterior-superior order, and the grid of the file that it came from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ..runtime.memory import free_memory
from ..runtime.triples import three


class VolumeError(ValueError):
    """A file or folder that cannot be used as a 3D volume. One line: the file, what was expected, what was found."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A file's own voxel grid.

    shape: (I, J, K) in the file's axis order.
    affine: (4, 4) float64, file indices to world coordinates, as nibabel gives it.
    header: a copy of the file's header (sform and qform codes, units, zooms); of other formats, what a NIfTI file of the same
        grid has.
    ras_axes: for each of the file's axes, the RAS axis it runs along (0 = x, 1 = y, 2 = z).
    flipped: for each of the file's axes, whether it runs against that RAS axis.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    header: nib.Nifti1Header
    ras_axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    @property
    def ras_shape(self) -> tuple[int, int, int]:
        """The shape (X, Y, Z) that the volume has in RAS order."""
        return three(self.shape[self.ras_axes.index(axis)] for axis in range(3))

    def to_file(self, ras: np.ndarray) -> np.ndarray:
        """View an (X, Y, Z) array in the file's axes, (I, J, K). No copy: writing to the view writes to `ras`."""
        return ras.transpose(self.ras_axes)[self._flips()]

    def to_ras(self, data: np.ndarray) -> np.ndarray:
        """View an (I, J, K) array of the file in RAS axes, (X, Y, Z). No copy. The inverse of `to_file`."""
        return data[self._flips()].transpose(np.argsort(self.ras_axes))

    def file_index(self, place: np.ndarray) -> np.ndarray:
        """The file's own indices (I, J, K) of a place (X, Y, Z) in RAS indices; either may lie between voxels."""
        along = np.asarray(place, np.float64)[list(self.ras_axes)]
        return np.where(self.flipped, np.array(self.shape) - 1 - along, along)

    def ras_index(self, place: np.ndarray) -> np.ndarray:
        """The inverse of `file_index`: RAS indices (X, Y, Z) of a place in the file's own indices."""
        along = np.where(self.flipped, np.array(self.shape) - 1 - np.asarray(place, np.float64), place)
        return along[np.argsort(self.ras_axes)]

    def _flips(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)


@dataclass
class Volume:
    """One scan.

    data: (X, Y, Z) float32, finite, Fortran-contiguous; x to the right, y anterior, z superior.
    spacing: (x, y, z) in mm.
    grid: the file's own grid, for `write_volume`.
    path: where it was read from.
    missing: how many of its voxels were NaN or infinite in the file.
    notes: what was odd about the file, each a line that names it.
    """

    data: np.ndarray
    spacing: tuple[float, float, float]
    grid: Grid
    path: Path
    missing: int = 0
    notes: tuple[str, ...] = ()


def one_line(error: Exception) -> str:
    """An exception's class and text, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def axes_of(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """`ras_axes` and `flipped` of a `Grid` with this affine."""
    orientation = nib.orientations.io_orientation(affine)
    return (
        three(int(axis) for axis in orientation[:, 0]),
        three(bool(sign < 0) for sign in orientation[:, 1]),
    )


def grid_of_lps(
    shape: tuple[int, int, int],
    axes: np.ndarray,
    spacing: Sequence[float],
    origin: Sequence[float] | np.ndarray,
) -> Grid:
    """The grid of a file that counts in left-posterior-superior coordinates, as DICOM and MetaImage do.

    axes: (3, 3), the directions of the file's axes in its columns. spacing, origin: in mm.
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
    return Grid(shape, affine, header, *axes_of(affine))


def lps_of(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inverse of `grid_of_lps`: axes, spacing and origin."""
    lps = np.diag([-1.0, -1, 1, 1]) @ grid.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return lps[:3, :3] / spacing, spacing, lps[:3, 3]


def volume_of(data: np.ndarray, grid: Grid, path: Path, notes: tuple[str, ...] = ()) -> Volume:
    """A volume of the voxels of a file, (I, J, K) in its own axes. NaN and infinite ones are read as the lowest of the others."""
    with np.errstate(over="ignore"):
        ras = np.asfortranarray(grid.to_ras(data), dtype=np.float32)
    finite = np.isfinite(ras)
    missing = ras.size - int(np.count_nonzero(finite))
    if missing:
        ras[~finite] = ras.min(where=finite, initial=np.inf) if finite.any() else 0
    # as a NIfTI file would say it, in float32, so that the scores of one scan are the same bits in every format
    sizes = np.linalg.norm(grid.header.get_best_affine()[:3, :3], axis=0)
    spacing = three(float(sizes[grid.ras_axes.index(axis)]) for axis in range(3))
    return Volume(ras, spacing, grid, path, missing, notes)


def check_memory(path: Path, shape: Sequence[int], bytes_each: int) -> None:
    """Raises VolumeError where there is not memory for so many voxels."""
    needed, free = bytes_each * math.prod(int(size) for size in shape), free_memory(torch.device("cpu"))
    if needed > free:
        raise VolumeError(
            f"{path}: expected {needed >> 20} MB of free memory for shape {tuple(shape)}, found {free >> 20} MB"
        )
