"""Locks files against other processes: by `flock` on Linux and macOS, by `msvcrt` on Windows. Elsewhere there are no locks."""

import errno
import os
import time
from pathlib import Path
from typing import Any

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None

# The errors of a file system without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Seconds between two tries, where the system cannot wait for a lock.
TRY_EVERY = 0.02


def whole_files_are_locked() -> bool:
    """Whether a writer can hold its file locked while others read, move or delete it. On Windows nobody can."""
    return fcntl is not None


def open_to_lock(path: Path, how: int) -> int:
    """A file descriptor of a file that is opened to be locked. Links are not followed, where the system can tell them.

    how: flags of `os.open`.
    """
    flags = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC")
    for flag in flags:
        how |= getattr(os, flag, 0)
    return os.open(path, how, 0o666)


def lock_file(file: int, wait: bool = True) -> None:
    """Lock a whole file. Nothing is locked on a system, or on a file system, without such locks.

    wait: until no other process has it locked. Without, BlockingIOError is raised where one has.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def check_unlocked(file: int) -> None:
    """Raises OSError where another process holds the whole file locked, or where that cannot be known."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_alone(file: int, wait: bool = True) -> None:
    """`lock_file` for a file that is there for nothing else, which Windows can lock too."""
    if fcntl is not None or msvcrt is None:
        lock_file(file, wait)
        return
    while True:
        try:
            os.lseek(file, 0, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            return
        # What Windows says of a file that another process has locked.
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EDEADLK):
                raise
            if not wait:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        time.sleep(TRY_EVERY)
