"""A scan in memory: its voxels in right-anterior-superior order, and the grid of the file that it came from."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from ..runtime.triples import three


class VolumeError(ValueError):
    """A file or folder that cannot be used as a 3D volume. One line: the file, what was expected, what was found."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A file's own voxel grid.

    shape: (I, J, K) in the file's axis order.
    affine: (4, 4) float64, file indices to world coordinates, as nibabel gives it.
    header: a copy of the file's header (sform and qform codes, units, zooms).
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
