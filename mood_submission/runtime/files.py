"""Files that are there whole or not at all, whoever else writes them at the same time."""

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

LOCK = ".lock"  # what the file is called that is locked where several processes share a folder
PART = ".part-"  # how the names of files begin that are being written
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system that knows none


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to under a hidden name beside `path`, moved there at the end: `path` is never half written.

    The hidden name is this writer's alone: of several that write one path at once, the last to end has its file there. It is
    short, so that every name that a file may have can be written. What killed writers of `path` left is taken away.
    """
    with _part(path) as (part, file):
        yield file
        file.flush()
        # a disk may say only here that it is full, and power may fail after the renaming
        os.fsync(file.fileno())
        os.replace(part, path)


def write_whole_by_name(path: Path, write: Callable[[str], object]) -> None:
    """`write_whole` for libraries that open the file themselves: `write` is called with the name of an empty file, which ends
    as `path` does, in small letters."""
    with _part(path, path.suffix.lower()) as (part, file):
        write(str(part))
        os.fsync(file.fileno())
        os.replace(part, path)


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text, in UTF-8. A character that UTF-8 cannot hold is escaped: no name spoils a table."""
    with write_whole(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """No other process, on this machine or another, is in here with the same file `lock` meanwhile; it is made, and stays.

    On a file system without locks nothing is kept out.
    """
    common = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # some network file systems lock only what is open for writing, which a folder cannot be
        file = os.open(lock, os.O_RDWR | os.O_CREAT | common, 0o666)
    except PermissionError:  # it is another user's
        file = os.open(lock, os.O_RDONLY | common)
    try:
        _lock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


# --- the hidden file -------------------------------------------------------------------------------------------------


@contextmanager
def _part(path: Path, ending: str = "") -> Iterator[tuple[Path, BinaryIO]]:
    """A new hidden file beside `path`, locked as long as its writer is alive, and gone at the end if it was not moved."""
    _take_away_left(path)
    while True:
        part = path.with_name(f"{_beginning(path)}{secrets.token_hex(8)}{ending}")
        with open(part, "xb") as file:
            try:
                _lock(file.fileno(), fcntl.LOCK_EX)
                if not _is_at(file.fileno(), part):  # another took it for one that was left, before it was locked
                    continue
                yield part, file
                return
            finally:
                part.unlink(missing_ok=True)


def _beginning(path: Path) -> str:
    """Of the hidden names of all writers of a path, and of no other in its folder."""
    return f"{PART}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}-"


def _take_away_left(path: Path) -> None:
    """Take away what killed writers of `path` left: what nobody holds locked. Where that cannot be known, it stays."""
    beginning = _beginning(path)
    with suppress(OSError), os.scandir(path.parent) as entries:
        left = [path.with_name(entry.name) for entry in entries if entry.name.startswith(beginning)]
        for part in left:
            with suppress(OSError):
                _take_away_if_left(part)


def _take_away_if_left(part: Path) -> None:
    if part.is_symlink():  # no writer's
        part.unlink()
        return
    file = os.open(part, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises OSError where its writer is alive
        part.unlink()
    finally:
        os.close(file)


def _lock(file: int, how: int) -> None:
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
