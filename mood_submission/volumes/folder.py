"""Which files of a folder are volumes, and what they are called."""

from collections.abc import Iterable
from pathlib import Path

from .grid import VolumeError, one_line

SUFFIXES = (".nii", ".nii.gz")


def find_volumes(folder: str | Path) -> list[Path]:
    """What is called `.nii` or `.nii.gz` right in `folder` (any case), sorted. Hidden and other names are passed over.

    Whether it can be read is seen when it is: a folder or a dangling link of such a name is an error of that volume.
    Raises VolumeError where `folder` is no readable folder. An empty list is no error.
    """
    return [entry for entry in _entries(folder) if _is_volume_name(entry.name)]


def find_others(folder: str | Path) -> list[Path]:
    """What `find_volumes` passes over, sorted. Raises what it raises."""
    return [entry for entry in _entries(folder) if not _is_volume_name(entry.name)]


def _entries(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise VolumeError(
            f"{folder}: expected a folder of .nii or .nii.gz files, found {one_line(error)}"
        ) from error


def _is_volume_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def volume_name(path: Path) -> str:
    """A volume's file name without .nii or .nii.gz."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return name[:-4]


def named_volumes(folder: str | Path, names: Iterable[str] | None = None) -> dict[str, Path]:
    """The volumes of a folder by name, sorted; those called `names`, or all.

    Raises VolumeError where there are none, or one of `names` is not there.
    """
    files = {volume_name(path): path for path in find_volumes(folder)}
    if not files:
        raise VolumeError(f"{folder}: expected .nii.gz or .nii volumes, found none")
    missing = [name for name in names or [] if name not in files]
    if missing:
        raise VolumeError(f"{folder}: expected a volume called {missing[0]}, found {len(files)} others")
    return files if names is None else {name: files[name] for name in sorted(set(names))}
