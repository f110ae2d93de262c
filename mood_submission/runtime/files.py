"""Files that are there whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to under a hidden name beside `path`, moved there at the end: `path` is never half written.

    What an earlier run left of it is taken away, never written into: it could be a link to elsewhere.
    """
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(
                file.fileno()
            )  # a disk may say only here that it is full, and power may fail after the renaming
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole_by_name(path: Path, write: Callable[[str], object]) -> None:
    """`write_whole` for libraries that open the file themselves: `write` is called with a hidden name that ends as
    `path` does, in small letters."""
    part = path.with_name(f".part.{path.stem}{path.suffix.lower()}")
    part.unlink(missing_ok=True)
    try:
        write(str(part))
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
