"""Reads and writes volumes in any orientation: NIfTI, MetaImage, NRRD and DICOM."""

from .discover import Survey, find_volumes, named_volumes, source_at, survey
from .files import read_grid, read_volume, write_mask, write_volume
from .grid import Grid, Volume, VolumeError
from .source import FORMATS, SUFFIXES, Source

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "Grid",
    "Source",
    "Survey",
    "Volume",
    "VolumeError",
    "find_volumes",
    "named_volumes",
    "read_grid",
    "read_volume",
    "source_at",
    "survey",
    "write_mask",
    "write_volume",
]
