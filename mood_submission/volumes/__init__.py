"""NIfTI files in and out, in any orientation."""

from .folder import SUFFIXES, find_others, find_volumes, named_volumes, volume_name
from .grid import Grid, Volume, VolumeError
from .nifti import read_grid, read_volume, write_mask, write_volume

__all__ = [
    "SUFFIXES",
    "Grid",
    "Volume",
    "VolumeError",
    "find_others",
    "find_volumes",
    "named_volumes",
    "read_grid",
    "read_volume",
    "volume_name",
    "write_mask",
    "write_volume",
]
