"""Reads volumes of every format, and writes arrays on the grids that were read."""

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
    """Read a volume as float32 in RAS order, with its scaling applied.

    Formats are NIfTI (`.nii`, `.nii.gz`), MetaImage (`.mha`, `.mhd`), NRRD (`.nrrd`, `.nhdr`) and series of DICOM files.
    NaN and infinite voxels become the lowest value of the others, as background is. The volume's notes say so, and whatever
    else is odd about the file; each note is also a warning.

    source: what `find_volumes` gives, or a path as `source_at` takes it.
    Raises VolumeError, in one line, for what is no 3D volume of real numbers.

    >>> import nibabel, numpy
    >>> from mood_submission.volumes import read_volume, write_volume
    >>> stored = numpy.zeros((4, 5, 6), numpy.int16)
    >>> stored[0, 0, 0] = 7
    >>> nibabel.save(nibabel.Nifti1Image(stored, numpy.diag([-2, 2, 3, 1])), "scan.nii.gz")
    >>> volume = read_volume("scan.nii.gz")

    The file's x axis runs to the left. In the volume it runs to the right.

    >>> volume.data.shape, volume.spacing, float(volume.data[3, 0, 0])
    ((4, 5, 6), (2.0, 2.0, 3.0), 7.0)
    >>> write_volume("scores.nii.gz", volume.data / 7, volume.grid)
    >>> float(nibabel.load("scores.nii.gz").get_fdata()[0, 0, 0])
    1.0
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
    """The grid of a volume, read from its headers. source: as for `read_volume`. Raises what that raises for headers."""
    source = source if isinstance(source, Source) else source_at(source)
    return GRID_READERS[source.kind](source)


def write_volume(path: str | Path, scores: np.ndarray, grid: Grid) -> None:
    """Write scores on a scan's own grid, as float32 without scaling.

    The file is written under a hidden name beside `path`, then moved to `path`. So `path` is never half written.

    path: ends in .nii, .nii.gz, .mha or .nrrd.
    scores: (X, Y, Z) in RAS order, each in [0, 1].
    grid: the scan's.
    Raises VolumeError for another shape than the grid's or another ending, ValueError for a score that is not finite or not in
    [0, 1], OSError where the folder cannot be written to.
    """
    # One NaN makes both NaN.
    low, high = float(scores.min()), float(scores.max())
    _write(Path(path), scores.astype(np.float32, copy=False), grid, low >= 0 and high <= 1, (low, high))


def write_mask(path: str | Path, mask: np.ndarray, grid: Grid) -> None:
    """Write the mask of numbered objects on a scan's own grid.

    path: as for `write_volume`.
    mask: (X, Y, Z) uint8 in RAS order: an object's number, or 0.
    grid: the scan's.
    Raises what `write_volume` raises.
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
