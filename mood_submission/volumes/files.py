"""One door for volumes of every format: reading, and writing on the grid that was read."""

import warnings
from pathlib import Path

import numpy as np

from .dicom import read_dicom, read_dicom_grid
from .discover import source_at
from .grid import Grid, Volume, VolumeError
from .metaimage import read_metaimage, read_metaimage_grid, write_metaimage
from .nifti import read_nifti, read_nifti_grid, write_nifti
from .source import ITK_SUFFIXES, WRITTEN_SUFFIXES, Source

READERS = {"nifti": read_nifti, "itk": read_metaimage, "dicom": read_dicom}
GRID_READERS = {"nifti": read_nifti_grid, "itk": read_metaimage_grid, "dicom": read_dicom_grid}


def read_volume(source: Source | str | Path) -> Volume:
    """Read a volume as float32 in RAS order, with its scaling applied: NIfTI (`.nii`, `.nii.gz`), MetaImage (`.mha`, `.mhd`),
    NRRD (`.nrrd`, `.nhdr`), or a series of DICOM files.

    source: as `find_volumes` gives it, or a path, of which `source_at` makes one.

    NaN and infinite voxels are missing and read as the lowest of the others, as background is. That, and whatever else is odd
    about the file, is in the volume's notes and warned of. Raises VolumeError, in one line, for what is no 3D volume of
    real numbers.
    """
    source = source if isinstance(source, Source) else source_at(source)
    volume = READERS[source.kind](source)
    if volume.missing:
        note = f"{source}: {volume.missing} NaN or infinite voxels read as the lowest of the others"
        volume.notes += (note,)
    for note in volume.notes:
        warnings.warn(note, stacklevel=2)
    return volume


def read_grid(source: Source | str | Path) -> Grid:
    """The grid of a volume, from headers alone. Raises what `read_volume` raises for headers."""
    source = source if isinstance(source, Source) else source_at(source)
    return GRID_READERS[source.kind](source)


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
    write = write_metaimage if path.name.lower().endswith(ITK_SUFFIXES) else write_nifti
    write(path, array, grid)
