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
            raise VolumeError(f"{folder}: expected .nii.gz or .nii volumes, found none")
        twice = sorted(set(found) & set(files))
        if twice:
            raise VolumeError(f"{where}: expected each volume's name once, found {twice[0]} twice")
        files |= found
    missing = [name for name in names or [] if name not in files]
    if missing:
        raise VolumeError(f"{where}: expected a volume called {missing[0]}, found {len(files)} others")
    return {name: files[name] for name in sorted(files if names is None else set(names))}
