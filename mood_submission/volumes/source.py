"""What a volume is before it is read: its kind, its files and its names, told once when it is found."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)
WRITTEN_SUFFIXES = (*NIFTI_SUFFIXES, ".mha", ".nrrd")
IN_ONE_FILE = {".mhd": ".mha", ".nhdr": ".nrrd"}  # what is written of a format of two files
FORMATS = ".nii, .nii.gz, .mha, .mhd, .nrrd or .nhdr volumes or folders of DICOM files"

Kind = Literal["nifti", "itk", "dicom"]


@dataclass(frozen=True, eq=False)
class Slice:
    """What one DICOM file's header says.

    axes: (3, 3) directions of columns, rows and slices. spacing, origin: mm. size: (I, J, K).
    measured: whether the header tells the pixels' size; where it does not, they count as 1 mm.
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

    kind: "nifti", "itk" (MetaImage and NRRD) or "dicom" (a series). path: what names it in messages; of a series among
    several no such file is there. files: the file, or the series' files in the order of its slices. slices: what these
    say in their headers, in the same order; empty for other kinds.
    """

    kind: Kind
    path: Path
    files: tuple[Path, ...]
    slices: tuple[Slice, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The file's name without its ending; of a series, the name of its path."""
        return self.path.name.removesuffix(self._suffix) if self._suffix else self.path.name

    @property
    def output_name(self) -> str:
        """What the scores are called, as a file: as the volume is, where that is one file; DICOM series become NIfTI."""
        if self.kind == "dicom":
            return f"{self.name}.nii.gz"
        return f"{self.name}{IN_ONE_FILE.get(self._suffix.lower(), self._suffix or '.nii.gz')}"

    @property
    def seed_name(self) -> str:
        """What the draws are made from: the NIfTI file's name, which other formats of the same scan share."""
        return self.output_name if self.kind == "nifti" else f"{self.name}.nii.gz"

    @property
    def _suffix(self) -> str:
        """The ending as the name has it; none of a series, whose folder may be called anything."""
        return "" if self.kind == "dicom" else suffix_of(self.path.name)


def suffix_of(name: str) -> str:
    """A volume's ending in a file's name, as it is written there; empty where it is no volume's name."""
    known = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]
    return name[-len(max(known, key=len)) :] if known else ""
