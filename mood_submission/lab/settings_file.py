"""Records the settings that a folder's files were made with, so that files of other settings never mix with them."""

import json
from collections.abc import Mapping
from pathlib import Path

from ..runtime.files import LOCK, exclusive_lock, write_text


def check_settings(file: Path, settings: Mapping[str, object], error: type[ValueError] = ValueError) -> None:
    """Write settings to a file, or check that the file holds the same.

    file: JSON, in the folder that it is about.
    settings: values that JSON can hold.
    error: raised where the file holds other settings, or none that can be read. It names the file and a setting that differs.
    """
    text = json.dumps(settings, indent=1, default=str) + "\n"
    if not file.exists():
        with exclusive_lock(file.with_name(LOCK)):
            # Another process may have been first.
            if not file.exists():
                write_text(file, text)
    wanted, found = json.loads(text), read_json(file, error)
    different = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if different:
        name = different[0]
        raise error(
            f"{file}: expected files made with {name} {_short(wanted.get(name))}, found some made with "
            f"{_short(found.get(name))}; choose another folder"
        )


def read_json(file: Path, error: type[ValueError] = ValueError) -> dict:
    """What a JSON file holds. Raises `error`, which names the file, where that is no object."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise error(f"{file}: expected settings in JSON, found a damaged file; remove it, or choose another folder")
    return found


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-16:]}"
