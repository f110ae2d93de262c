"""Files in and out, in any orientation: NIfTI, MetaImage, NRRD and DICOM."""

from .dicom import is_dicom, series_files
from .files import read_grid, read_volume, write_mask, write_volume
from .folder import (
    FORMATS,
    SUFFIXES,
    Survey,
    find_volumes,
    named_volumes,
    output_name,
    seed_name,
    survey,
    volume_name,
)
from .grid import Grid, Volume, VolumeError

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "Grid",
    "Survey",
    "Volume",
    "VolumeError",
    "find_volumes",
    "is_dicom",
    "named_volumes",
    "output_name",
    "read_grid",
    "read_volume",
    "seed_name",
    "series_files",
    "survey",
    "volume_name",
    "write_mask",
    "write_volume",
]
