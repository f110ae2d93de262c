"""Finds the volumes of a folder, and the volume that a path names. Nothing else decides what kind a volume is."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .dicom import has_mark, holds_dicom, scan
from .grid import VolumeError, one_line
from .source import FORMATS, ITK_SUFFIXES, Source, suffix_of


@dataclass
class Survey:
    """The content of a folder.

    volumes: for `read_volume`, sorted by path.
    others: entries that are no volumes.
    notes: a line for each kind of DICOM file that was skipped.
    """

    volumes: list[Source] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def survey(folder: str | Path) -> Survey:
    """The volumes of a folder.

    Files are volumes by the endings of their names, in any case. Each series of DICOM files in the folder or below it is a
    volume too. Hidden names are skipped. Headers of DICOM files are read here, once. Other files are not opened: whether they
    can be read is seen when they are.

    folder: where to look. It may be one file, which is then looked at alone.
    Raises VolumeError where `folder` is no readable folder or file, or a DICOM file of one slice, or where two volumes'
    predictions would have one name.
    """
    folder, found, scans = Path(folder), Survey(), []
    if folder.is_file():
        return _survey_file(folder)
    for entry in _entries(folder):
        if not entry.name.startswith(".") and entry.is_dir() and holds_dicom(entry, deep=True):
            scans.append(scan(entry))
        elif suffix_of(entry.name) and not entry.name.startswith("."):
            found.volumes.append(_by_name(entry))
        elif not (entry.is_file() and has_mark(entry)):
            found.others.append(entry)
    if holds_dicom(folder, deep=False):
        scans.append(scan(folder, deep=False))
    for one in scans:
        found.volumes += one.series
        found.notes += one.notes
    found.volumes.sort(key=lambda source: source.path)
    _check_names(folder, found.volumes)
    return found


def _survey_file(file: Path) -> Survey:
    """The volume in one file, which may be a DICOM file of many slices."""
    if suffix_of(file.name):
        return Survey([_by_name(file)])
    if has_mark(file):
        one = scan(file)
        if not one.series:
            raise VolumeError(f"{file}: expected a volume, found a DICOM file that is none by itself; name its folder")
        return Survey(one.series, notes=one.notes)
    return Survey(others=[file])


def find_volumes(folder: str | Path) -> list[Source]:
    """The volumes of a folder, sorted by path. The list may be empty. Raises what `survey` raises.

    >>> import nibabel, numpy, pathlib
    >>> from mood_submission.volumes import find_volumes
    >>> pathlib.Path("scans").mkdir()
    >>> image = nibabel.Nifti1Image(numpy.zeros((4, 5, 6), numpy.uint8), numpy.eye(4))
    >>> nibabel.save(image, "scans/first.nii.gz")
    >>> [(source.kind, source.name) for source in find_volumes("scans")]
    [('nifti', 'first')]
    """
    return survey(folder).volumes


def source_at(path: str | Path) -> Source:
    """The volume that a path names. A file is not opened here.

    path: of a file, of a folder with one series of DICOM files, or the path that `survey` gave to one of several series.
    Raises VolumeError for a folder with no series or several, and for a path that names no volume.
    """
    path = Path(path)
    if path.is_dir():
        if suffix_of(path.name) and not holds_dicom(path, deep=True):
            return _by_name(path)
        scanned = scan(path)
        series = scanned.series
        if len(series) == 1:
            return series[0]
        found = f"{len(series)} series: {', '.join(one.path.name for one in series)}"
        if series:
            raise VolumeError(f"{path}: expected one DICOM series, found {found}")
        if scanned.notes:
            why = ", ".join(note.removeprefix(f"{path}: ") for note in scanned.notes)
            raise VolumeError(f"{path}: expected one DICOM series, found none: {why}")
        raise VolumeError(
            f"{path}: expected a volume or a DICOM series, found a folder without such a series; name a file in it"
        )
    elif suffix_of(path.name) or path.exists() or path.is_symlink():
        return _by_name(path)
    # One of several series has its folder's name and a number. Of other names the folder, which may be large, is not read.
    if path.name.startswith(f"{Path(os.path.abspath(path.parent)).name}_"):
        for one in scan(path.parent).series:
            if one.path == path:
                return one
    raise VolumeError(f"{path}: expected a volume or a DICOM series, found no such file")


def named_volumes(folders: str | Path | Iterable[Path], names: Iterable[str] | None = None) -> dict[str, Source]:
    """The volumes of some folders by name, sorted.

    folders: one or several.
    names: the volumes to return. None for all.
    Raises VolumeError where a folder has no volume, two folders have one name, or one of `names` is not there.
    """
    folders = [Path(folders)] if isinstance(folders, str | Path) else list(folders)
    where = ", ".join(map(str, folders))
    sources: dict[str, Source] = {}
    for folder in folders:
        found = {source.name: source for source in find_volumes(folder)}
        if not found:
            raise VolumeError(f"{folder}: expected {FORMATS}, found none")
        twice = sorted(set(found) & set(sources))
        if twice:
            raise VolumeError(f"{where}: expected each volume's name once, found {twice[0]} twice")
        sources |= found
    missing = [name for name in names or [] if name not in sources]
    if missing:
        raise VolumeError(f"{where}: expected a volume called {missing[0]}, found {len(sources)} others")
    return {name: sources[name] for name in sorted(sources if names is None else set(names))}


def _by_name(path: Path) -> Source:
    """A file by the ending of its name: NIfTI for any that is not known."""
    return Source("itk" if suffix_of(path.name).lower() in ITK_SUFFIXES else "nifti", path, (path,))


def _check_names(folder: Path, sources: list[Source]) -> None:
    names: dict[str, Path] = {}
    for source in sources:
        other = names.setdefault(source.output_name, source.path)
        if other != source.path:
            raise VolumeError(
                f"{folder}: expected each prediction's name once, found {source.output_name} for {other.name} and "
                f"{source.path.name}"
            )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        found = "no such file or folder" if isinstance(error, FileNotFoundError) else one_line(error)
        raise VolumeError(f"{folder}: expected a volume, or a folder of {FORMATS}, found {found}") from error
