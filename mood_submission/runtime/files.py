"""Writes files so that they exist whole or not at all, even where several processes write one path at a time."""

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# The file that is locked where several processes share a folder.
LOCK = ".lock"
# The names of files that are being written begin with this.
HIDDEN = ".part-"
# The errors of a file system without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


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
        # Some disks report only here that they are full. Power may fail after the renaming.
        os.fsync(file.fileno())
        os.replace(hidden, path)


def write_whole_by_name(path: Path, write: Callable[[str], object]) -> None:
    """`write_whole` for libraries that open files themselves.

    write: is called with the name of an empty file. It has the ending of `path` in small letters.
    """
    with _hidden_file(path, path.suffix.lower()) as (hidden, file):
        write(str(hidden))
        os.fsync(file.fileno())
        os.replace(hidden, path)


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text, in UTF-8. Characters that UTF-8 cannot hold are escaped."""
    with write_whole(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


@contextmanager
def exclusive_lock(lock: Path, wait: bool = True) -> Iterator[None]:
    """While open, no other process on any machine has this open for the same file.

    The file is made, and stays. On a file system without locks, others are not kept out.
    wait: until another process has closed it. Without, BlockingIOError is raised where another has it open.
    """
    common = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Some network file systems lock only files that are open for writing.
        file = os.open(lock, os.O_RDWR | os.O_CREAT | common, 0o666)
    # The file is another user's.
    except PermissionError:
        file = os.open(lock, os.O_RDONLY | common)
    try:
        _lock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(file)


# --- the hidden file -------------------------------------------------------------------------------------------------


@contextmanager
def _hidden_file(path: Path, ending: str = "") -> Iterator[tuple[Path, BinaryIO]]:
    """A new hidden file beside `path`. Its writer holds it locked. At the end it is deleted, unless it was moved."""
    _delete_left(path)
    while True:
        hidden = path.with_name(f"{_beginning(path)}{secrets.token_hex(8)}{ending}")
        with open(hidden, "xb") as file:
            try:
                _lock(file.fileno(), fcntl.LOCK_EX)
                # Before it was locked, another writer may have deleted it as one that was left.
                if not _is_at(file.fileno(), hidden):
                    continue
                yield hidden, file
                return
            finally:
                hidden.unlink(missing_ok=True)


def _beginning(path: Path) -> str:
    """The beginning of the hidden names of all writers of a path. Other paths in its folder have other beginnings."""
    return f"{HIDDEN}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}-"


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
    file = os.open(hidden, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # This raises OSError where its writer is alive.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.unlink()
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
