"""Which entries of a folder are volumes, and what they are called."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .dicom import has_mark, holds_dicom, scan
from .grid import VolumeError, one_line

NIFTI_SUFFIXES = (".nii", ".nii.gz")
METAIMAGE_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
SUFFIXES = (*NIFTI_SUFFIXES, *METAIMAGE_SUFFIXES)
WRITTEN_SUFFIXES = (*NIFTI_SUFFIXES, ".mha", ".nrrd")
IN_ONE_FILE = {".mhd": ".mha", ".nhdr": ".nrrd"}  # what is written of a format of two files
FORMATS = ".nii, .nii.gz, .mha, .mhd, .nrrd or .nhdr volumes or folders of DICOM files"


@dataclass
class Survey:
    """What is in a folder. volumes: paths for `read_volume`. others: what is no volume. notes: of DICOM files that were
    skipped, each a line."""

    volumes: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def survey(folder: str | Path) -> Survey:
    """What is right in `folder`, sorted: volumes by their names' endings (any case), and each series of DICOM files that lie
    there or in a folder there.

    Hidden and other names are passed over. Whether a file can be read is seen when it is: a folder or a dangling link of
    such a name is an error of that volume. Raises VolumeError where `folder` is no readable folder, and where two volumes'
    predictions would have one name.
    """
    folder, found = Path(folder), Survey()
    loose = [entry for entry in _entries(folder) if not _is_volume_name(entry.name)]
    found.volumes = [entry for entry in _entries(folder) if _is_volume_name(entry.name)]
    parts = [entry for entry in loose if not entry.name.startswith(".") and entry.is_dir()]
    of_dicom = [entry for entry in parts if holds_dicom(entry, deep=True)]
    scans = [scan(entry) for entry in of_dicom]
    if holds_dicom(folder, deep=False):
        scans.append(scan(folder, deep=False))
    for one in scans:
        found.volumes += [series.path for series in one.series]
        found.notes += one.notes
    found.others = [
        entry for entry in loose if entry not in of_dicom and not (entry.is_file() and has_mark(entry))
    ]
    found.volumes.sort()
    names: dict[str, Path] = {}
    for path in found.volumes:
        other = names.setdefault(output_name(path), path)
        if other != path:
            raise VolumeError(
                f"{folder}: expected each prediction's name once, found {output_name(path)} for {other.name} and {path.name}"
            )
    return found


def find_volumes(folder: str | Path) -> list[Path]:
    """The volumes of `survey`. An empty list is no error. Raises what it raises."""
    return survey(folder).volumes


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise VolumeError(f"{folder}: expected a folder of {FORMATS}, found {one_line(error)}") from error


def _is_volume_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def volume_name(path: Path) -> str:
    """A volume's file name without its ending; of a DICOM series, the name of its path."""
    lower = path.name.lower()
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if lower.endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)]


def output_name(path: Path) -> str:
    """What a volume's scores are called, as a file: as the volume is, where that is one file; DICOM series become NIfTI."""
    lower = path.name.lower()
    if not lower.endswith(SUFFIXES):
        return f"{path.name}.nii.gz"
    suffix = next((s for s in IN_ONE_FILE if lower.endswith(s)), None)
    return path.name if suffix is None else path.name[: -len(suffix)] + IN_ONE_FILE[suffix]


def seed_name(path: Path) -> str:
    """What the draws for a volume are made from: its NIfTI file's name, which other formats of the same scan share."""
    name = output_name(path)
    return name if name.lower().endswith(NIFTI_SUFFIXES) else f"{volume_name(path)}.nii.gz"


def named_volumes(
    folders: str | Path | Iterable[Path], names: Iterable[str] | None = None
) -> dict[str, Path]:
    """The volumes of a folder, or of several, by name, sorted; those called `names`, or all.

    Raises VolumeError where a folder has none, a name stands in two folders, or one of `names` is not there.
    """
    folders = [Path(folders)] if isinstance(folders, str | Path) else list(folders)
    where = ", ".join(map(str, folders))
    files: dict[str, Path] = {}
    for folder in folders:
        found = {volume_name(path): path for path in find_volumes(folder)}
        if not found:
            raise VolumeError(f"{folder}: expected {FORMATS}, found none")
        twice = sorted(set(found) & set(files))
        if twice:
            raise VolumeError(f"{where}: expected each volume's name once, found {twice[0]} twice")
        files |= found
    missing = [name for name in names or [] if name not in files]
    if missing:
        raise VolumeError(f"{where}: expected a volume called {missing[0]}, found {len(files)} others")
    return {name: files[name] for name in sorted(files if names is None else set(names))}
