"""Writes files so that they exist whole or not at all, even where several processes write one path at a time."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from . import locks
from .names import as_bytes

# The file that is locked where several processes share a folder.
LOCK = ".lock"
# The names of files that are being written begin with this.
HIDDEN = ".part-"


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to under a hidden name beside `path`. It is moved to `path` at the end, so `path` is never half written.

    Each writer has its own hidden name. Where several write one path at a time, the file of the last to end remains. Hidden
    names are short, so that `path` may have a name of any allowed length. Hidden files that killed writers of `path` left are
    deleted.
    """
    with _hidden_file(path) as (hidden, file):
        yield file
        file.flush()
        _move(hidden, file, path)


def write_whole_by_name(path: Path, write: Callable[[str], object]) -> None:
    """`write_whole` for libraries that open files themselves.

    write: is called with the name of an empty file. It has the ending of `path` in small letters.
    """
    with _hidden_file(path, path.suffix.lower()) as (hidden, file):
        write(str(hidden))
        _move(hidden, file, path)


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text, in UTF-8. Characters that UTF-8 cannot hold are escaped."""
    with write_whole(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def copy_whole(file: Path, path: Path) -> None:
    """`write_whole` of what another file holds."""
    with open(file, "rb") as source, write_whole(path) as copy:
        shutil.copyfileobj(source, copy)


@contextmanager
def exclusive_lock(lock: Path, wait: bool = True) -> Iterator[None]:
    """While open, no other process on any machine has this open for the same file.

    The file is made, and stays. On a file system or a system without locks, others are not kept out.
    wait: until another process has closed it. Without, BlockingIOError is raised where another has it open.
    """
    try:
        # Some network file systems lock only files that are open for writing.
        file = locks.open_to_lock(lock, os.O_RDWR | os.O_CREAT)
    # The file is another user's.
    except PermissionError:
        file = locks.open_to_lock(lock, os.O_RDONLY)
    try:
        locks.lock_alone(file, wait)
        yield
    finally:
        os.close(file)


@contextmanager
def no_folders_left(*folders: Path) -> Iterator[None]:
    """Where what is done within raises, take away those of these folders, and above them, that were not there before.

    A folder that holds something stays.
    """
    paths = {path for folder in folders for path in (folder.absolute(), *folder.absolute().parents)}
    missing = [path for path in paths if not os.path.exists(path)]
    try:
        yield
    except BaseException:
        for path in sorted(missing, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):
                path.rmdir()
        raise


# --- the hidden file -------------------------------------------------------------------------------------------------


@contextmanager
def _hidden_file(path: Path, ending: str = "") -> Iterator[tuple[Path, BinaryIO]]:
    """A new hidden file beside `path`. Its writer holds it locked. At the end it is deleted, unless it was moved."""
    _delete_left(path)
    while True:
        hidden = path.with_name(f"{_beginning(path)}{secrets.token_hex(8)}{ending}")
        try:
            with open(hidden, "xb") as file:
                locks.lock_file(file.fileno())
                # Before it was locked, another writer may have deleted it as one that was left.
                if not _is_at(file.fileno(), hidden):
                    continue
                yield hidden, file
                return
        # It is closed by now. Windows deletes no open file.
        finally:
            hidden.unlink(missing_ok=True)


def _move(hidden: Path, file: BinaryIO, path: Path) -> None:
    """Move a hidden file, which is written, to `path`."""
    # Some disks report only here that they are full. Power may fail after the renaming.
    os.fsync(file.fileno())
    # While it is locked, no other writer takes it for one that was left. Where nothing is locked, nothing is taken, and Windows
    # moves no open file.
    if not locks.whole_files_are_locked():
        file.close()
    os.replace(hidden, path)


def _beginning(path: Path) -> str:
    """The beginning of the hidden names of all writers of a path. Other paths in its folder have other beginnings."""
    return f"{HIDDEN}{hashlib.sha256(as_bytes(path.name)).hexdigest()[:16]}-"


def _delete_left(path: Path) -> None:
    """Delete the hidden files of killed writers of `path`, which nobody holds locked. Where that cannot be known, they stay."""
    beginning = _beginning(path)
    with suppress(OSError), os.scandir(path.parent) as entries:
        left = [path.with_name(entry.name) for entry in entries if entry.name.startswith(beginning)]
        for hidden in left:
            with suppress(OSError):
                _delete_unless_locked(hidden)


def _delete_unless_locked(hidden: Path) -> None:
    # No writer makes links.
    if hidden.is_symlink():
        hidden.unlink()
        return
    file = locks.open_to_lock(hidden, os.O_WRONLY)
    try:
        # This raises OSError where its writer is alive.
        locks.check_unlocked(file)
        hidden.unlink()
    finally:
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
