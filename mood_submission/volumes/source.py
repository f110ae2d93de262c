"""A volume before it is read: its kind, its files and its names."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)
WRITTEN_SUFFIXES = (*NIFTI_SUFFIXES, ".mha", ".nrrd")
# Formats of two files, and the format of one file that is written in their place.
IN_ONE_FILE = {".mhd": ".mha", ".nhdr": ".nrrd"}
FORMATS = ".nii, .nii.gz, .mha, .mhd, .nrrd or .nhdr volumes or folders of DICOM files"

Kind = Literal["nifti", "itk", "dicom"]


@dataclass(frozen=True, eq=False)
class Slice:
    """The header of one DICOM file.

    file: its path.
    axes: (3, 3). Its columns are the directions of the file's axes.
    spacing: by the file's axes, in mm.
    origin: (3,), the first voxel's position in mm.
    size: (I, J, K).
    measured: whether the header gives the pixels' size. Without it a pixel counts as 1 mm.
    """

    file: Path
    axes: np.ndarray
    spacing: tuple[float, ...]
    origin: np.ndarray
    size: tuple[int, ...]
    measured: bool = True


@dataclass(frozen=True)
class Source:
    """One volume on disk, as it was found.

    kind: "nifti", "itk" (MetaImage and NRRD) or "dicom" (a series).
    path: its name in messages. For one of several series in a folder, no such file exists.
    files: the file, or the series' files in the order of their slices.
    slices: the headers of a series, in the order of `files`. Empty for other kinds.
    """

    kind: Kind
    path: Path
    files: tuple[Path, ...]
    slices: tuple[Slice, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The file's name without its ending. For a series, the name of its path."""
        return self.path.name.removesuffix(self._suffix) if self._suffix else self.path.name

    @property
    def output_name(self) -> str:
        """The name of the file of scores: the volume's own for a format of one file. DICOM series become NIfTI."""
        if self.kind == "dicom":
            return f"{self.name}.nii.gz"
        return f"{self.name}{IN_ONE_FILE.get(self._suffix.lower(), self._suffix or '.nii.gz')}"

    @property
    def seed_name(self) -> str:
        """The name that random numbers are made from. The same scan has the same name in every format."""
        return self.output_name if self.kind == "nifti" else f"{self.name}.nii.gz"

    @property
    def _suffix(self) -> str:
        """The ending as the name has it. A series has none, whatever its folder's name is."""
        return "" if self.kind == "dicom" else suffix_of(self.path.name)


def suffix_of(name: str) -> str:
    """The ending of a volume's file, as its name has it. Empty for a name that is no volume's."""
    known = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]
    return name[-len(max(known, key=len)) :] if known else ""
