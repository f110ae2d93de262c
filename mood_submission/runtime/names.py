"""Turns file names into printable text, and into bytes. It knows how long a name may be.

On Linux a name may hold any bytes but / and 0: control characters, or bytes that are no UTF-8.
"""

import os
from pathlib import Path, PurePath

# How many characters a name may have where the system does not say. That is Windows' number.
LONGEST = 255


def shown(text: object) -> str:
    """A name, path or message for people, on one line. Characters that are not printable are escaped.

    Bytes that are no UTF-8 and control characters of ASCII become such as `\\xe9`. Others, such as those that turn the reading
    direction, become such as `\\u202e`. Printable text stays as it is, so escaping twice changes nothing.
    """
    line = str(text)
    return line if line.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in line)


def as_text(name: str | PurePath) -> str:
    """A name or path for tables (JSON, CSV): `shown` with each backslash doubled, so that no two names have one text."""
    return shown(str(name).replace("\\", "\\\\"))


def in_one_line(error: object) -> str:
    """An error's text as `shown`, with all white space as single spaces."""
    return shown(" ".join(str(error).split()))


def as_bytes(name: str) -> bytes:
    """The bytes of a name. On Linux and macOS they are those on the disk, elsewhere UTF-8."""
    return os.fsencode(name)


def of_bytes(name: bytes) -> str:
    """The name of these bytes, the reverse of `as_bytes`. Bytes that are no name's are kept, so that no such file is found."""
    try:
        return os.fsdecode(name)
    # Windows knows no other bytes.
    except UnicodeDecodeError:
        return name.decode("utf-8", "surrogateescape")


def too_long(name: str, folder: Path) -> str:
    """What is wrong with a name that is too long for a file in that folder. Empty for the others."""
    try:
        most, unit, found = os.pathconf(folder, "PC_NAME_MAX"), "bytes", len(as_bytes(name))
    # Windows has no such function.
    except AttributeError:
        most, unit, found = LONGEST, "characters", len(name)
    return f"at most {most} {unit}, found {found}" if found > most else ""


def _escaped(character: str) -> str:
    code = ord(character)
    # Python holds a byte that is no UTF-8 as one of these.
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
