"""Keeps two processes from writing the same files of a run."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ...runtime.files import exclusive_lock
from .checkpoints import RunError

# Seconds between two looks.
LOOK_EVERY = 0.2


@contextmanager
def alone_in(folder: Path, lock: str, what: str, option: str, *, patience: float = 0) -> Iterator[None]:
    """While open, no other process has this open for the same folder. Raises RunError where one has.

    lock: the name of the file that is locked.
    what, option: what the other one is, and the option that names the folder, for the message.
    patience: seconds that it has to end. One whose parent was killed is about to.
    """
    until = time.monotonic() + patience
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusive_lock(folder / lock, wait=False))
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise RunError(
                        f"{folder}: expected no other {what} in this folder, found one at work; wait for its end, or choose "
                        f"another {option}"
                    ) from None
                time.sleep(LOOK_EVERY)
        yield
