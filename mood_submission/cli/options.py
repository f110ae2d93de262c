"""What several commands do with their options."""

from pathlib import Path


def names_in(file: Path) -> list[str]:
    """The names in the file that --names-file names, as file names are held: they may be no UTF-8. White space parts them."""
    return file.read_text("utf-8", "surrogateescape").split()
