"""One door for volumes of every format: reading, and writing on the grid that was read."""

import warnings
from pathlib import Path

import numpy as np

from .dicom import is_dicom, read_dicom, read_dicom_grid
from .folder import METAIMAGE_SUFFIXES, NIFTI_SUFFIXES, WRITTEN_SUFFIXES
from .grid import Grid, Volume, VolumeError
from .metaimage import read_metaimage, read_metaimage_grid, write_metaimage
from .nifti import read_nifti, read_nifti_grid, write_nifti


def read_volume(path: str | Path) -> Volume:
    """Read a volume as float32 in RAS order, with its scaling applied: NIfTI (`.nii`, `.nii.gz`), MetaImage (`.mha`, `.mhd`),
    NRRD (`.nrrd`, `.nhdr`), or a series of DICOM files by the path that `find_volumes` gave it.

    NaN and infinite voxels are missing and read as the lowest of the others, as background is. That, and whatever else is odd
    about the file, is in the volume's notes and warned of. Raises VolumeError, in one line, for what is no 3D volume of
    real numbers.
    """
    path = Path(path)
    lower = path.name.lower()
    if lower.endswith(METAIMAGE_SUFFIXES):
        volume = read_metaimage(path)
    elif is_dicom(path) and not lower.endswith(NIFTI_SUFFIXES):
        volume = read_dicom(path)
    else:
        volume = read_nifti(path)
    if volume.missing:
        note = f"{path}: {volume.missing} NaN or infinite voxels read as the lowest of the others"
        volume.notes += (note,)
    for note in volume.notes:
        warnings.warn(note, stacklevel=2)
    return volume


def read_grid(path: str | Path) -> Grid:
    """The grid of a volume, from headers alone. Raises what `read_volume` raises for headers."""
    path = Path(path)
    lower = path.name.lower()
    if lower.endswith(METAIMAGE_SUFFIXES):
        return read_metaimage_grid(path)
    if is_dicom(path) and not lower.endswith(NIFTI_SUFFIXES):
        return read_dicom_grid(path)
    return read_nifti_grid(path)


def write_volume(path: str | Path, scores: np.ndarray, grid: Grid) -> None:
    """Write scores on the grid of the file they belong to: its axes, shape and place; float32, unscaled.

    path: ends in .nii, .nii.gz, .mha or .nrrd. scores: (X, Y, Z) in RAS order, every value in [0, 1].
    The file is written under a hidden name beside `path` and moved into place, so `path` is never half written.

    Raises VolumeError where the shape is not the grid's or `path` ends otherwise, ValueError where a score is not finite or
    not in [0, 1], OSError where the folder cannot be written to.
    """
    low, high = float(scores.min()), float(scores.max())  # a NaN makes both NaN
    _write(Path(path), scores.astype(np.float32, copy=False), grid, low >= 0 and high <= 1, (low, high))


def write_mask(path: str | Path, mask: np.ndarray, grid: Grid) -> None:
    """Write numbers of objects on the grid of the file that they were found in; uint8, 0 where nothing is.

    mask: (X, Y, Z) uint8 in RAS order. Raises what `write_volume` raises.
    """
    _write(Path(path), mask.astype(np.uint8, copy=False), grid)


def _write(
    path: Path, array: np.ndarray, grid: Grid, in_range: bool = True, found: tuple[float, float] = (0, 1)
) -> None:
    if not path.name.lower().endswith(WRITTEN_SUFFIXES):
        raise VolumeError(f"{path}: expected a name ending in {', '.join(WRITTEN_SUFFIXES)}")
    if array.shape != grid.ras_shape:
        raise VolumeError(f"{path}: expected an array of shape {grid.ras_shape}, found {array.shape}")
    if not in_range:
        raise ValueError(f"{path}: expected scores in [0, 1], found {found[0]:g} to {found[1]:g}")
    write = write_metaimage if path.name.lower().endswith(METAIMAGE_SUFFIXES) else write_nifti
    write(path, array, grid)
