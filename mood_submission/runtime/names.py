"""Turns file names into printable text. A name may hold any bytes but / and 0: control characters, or bytes that are no UTF-8."""

from pathlib import PurePath


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


def _escaped(character: str) -> str:
    code = ord(character)
    # Python holds a byte that is no UTF-8 as one of these.
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
