"""Files with the names of volumes, one a line. Such a file holds every name that a volume's file may have."""

from collections.abc import Sequence
from pathlib import Path

from ...runtime.files import write_whole


def read_names(file: Path) -> list[str]:
    """The names in a file: one a line, without white space around it. They may be no UTF-8, as names of files may.

    In a file with NUL characters, each name ends with one, and is taken as it stands.

    Raises OSError where the file cannot be read.
    """
    text = file.read_bytes().decode("utf-8", "surrogateescape")
    lines = text.split("\0") if "\0" in text else [line.strip() for line in text.split("\n")]
    return [line for line in lines if line]


def write_names(file: Path, names: Sequence[str]) -> None:
    """Write names for `read_names`: one a line, or each with NUL at its end where a line could not hold one of them."""
    plain = all(name == name.strip() and "\n" not in name for name in names)
    text = "".join(f"{name}\n" if plain else f"{name}\0" for name in names)
    with write_whole(file) as out:
        out.write(text.encode("utf-8", "surrogateescape"))
