"""How a file's name becomes text. A name is any bytes but / and 0: it may hold control characters, or be no UTF-8 at all."""

from pathlib import PurePath


def shown(text: object) -> str:
    """A name, path or message for people, on one line: each character that is not printable is escaped.

    A byte that is no UTF-8, and each control character of ASCII, becomes `\\xe9`; others, such as those that turn the reading
    direction, become `\\u202e`. What is printable stays as it is, so text that was made so stays as it is too.
    """
    line = str(text)
    return line if line.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in line)


def as_text(name: str | PurePath) -> str:
    """A name or path for tables (JSON, CSV): as `shown`, with each backslash twice, so that no two names have one text."""
    return shown(str(name).replace("\\", "\\\\"))


def in_one_line(error: object) -> str:
    """An error's text on one line, white space as single spaces, then as `shown`."""
    return shown(" ".join(str(error).split()))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
