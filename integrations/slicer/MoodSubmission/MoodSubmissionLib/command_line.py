"""Finds an installed mood-submission, and builds the command line that scores a volume."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NAME = "mood-submission"
PACKAGE = "mood_submission"
# This variable of the environment names what `find_program` looks for.
VARIABLE = "MOOD_SUBMISSION"
# Slicer sets these for its own Python. Another Python would load the wrong libraries with them.
OF_SLICER = ("PYTHONHOME", "PYTHONNOUSERSITE", "ITK_AUTOLOAD_PATH")
# The checkout that this file lies in, where it lies in one.
CHECKOUT = Path(__file__).resolve().parents[4]
# The volume's name in the folder of a run. NRRD holds whatever grid Slicer's volumes have.
VOLUME = "volume.nrrd"


class CommandError(RuntimeError):
    """There is no program, or no such options. One line says what was expected and what was found."""


@dataclass(frozen=True)
class Program:
    """How mood-submission is run.

    words: the beginning of its command lines. The first is the file that is run.
    package: the folder that Python finds the package in. None where it is installed.
    """

    words: tuple[str, ...]
    package: Path | None = None


def find_program(chosen: str, environment: Mapping[str, str], checkout: Path = CHECKOUT) -> Program:
    """The program that was chosen, or else the one that is found.

    It is looked for under VARIABLE, in PATH, and in the checkout that this module lies in.

    chosen: a Python, the program itself, a virtual environment or a checkout with one in `.venv`. Empty for the one that is
        found.
    environment: that programs are started with.
    Raises CommandError where there is none.
    """
    for name, place in (("the chosen program", chosen), (VARIABLE, environment.get(VARIABLE, ""))):
        if place.strip():
            found = _program_at(Path(place.strip()).expanduser())
            if found is None:
                expected = f"{NAME}, a Python that has it, its virtual environment or its checkout"
                raise CommandError(f"{name}: expected {expected}, found {place.strip()}")
            return found
    in_path = shutil.which(NAME, path=environment.get("PATH", ""))
    found = Program((in_path,)) if in_path else _program_at(checkout)
    if found is None:
        raise CommandError(
            f"expected {NAME} in PATH, in the variable {VARIABLE} or chosen here, found none: see integrations/slicer/README.md"
        )
    return found


def _program_at(place: Path) -> Program | None:
    """The program that a path names. None where it names none."""
    if place.is_file():
        if not os.access(place, os.X_OK):
            return None
        return (
            Program((str(place), "-m", PACKAGE)) if place.name.lower().startswith("python") else Program((str(place),))
        )
    for folder in ("bin", "Scripts"):
        for file in (place / folder / NAME, place / folder / f"{NAME}.exe"):
            if file.is_file():
                return Program((str(file),))
    if (place / PACKAGE / "__main__.py").is_file():
        for python in (place / ".venv" / "bin" / "python", place / ".venv" / "Scripts" / "python.exe"):
            if python.is_file():
                return Program((str(python), "-m", PACKAGE), place)
    return None


def environment_of(program: Program, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment to run a program in. environment: as it was before Slicer changed it."""
    values = {name: value for name, value in environment.items() if name not in OF_SLICER}
    values["PYTHONUNBUFFERED"] = "1"
    if program.package is not None:
        values["PYTHONPATH"] = str(program.package)
    return values


@dataclass(frozen=True)
class Choices:
    """What a user chooses.

    region: "brain" or "abdom".
    skull_strip: "auto", "yes" or "no".
    further: more options of `predict`, as on a command line.
    """

    region: str
    skull_strip: str = "auto"
    further: str = ""


def predict_words(choices: Choices, folder: Path) -> list[str]:
    """The words that make `predict` score FOLDER/in/VOLUME, and write into FOLDER/out and FOLDER/found.

    Raises CommandError for further options that are no words.
    """
    try:
        further = split_words(choices.further, backslashes=os.name == "nt")
    except ValueError as error:
        raise CommandError(f"further options: expected words, found {choices.further!r}: {error}") from None
    words = ["predict", "--region", choices.region, "--task", "both", "--skull-strip", choices.skull_strip, "--verbose"]
    folders = ["--input", folder / "in", "--output", folder / "out", "--findings", folder / "found"]
    return [*words, *map(str, folders), *further]


def split_words(text: str, backslashes: bool) -> list[str]:
    """The words of a command line, as a shell reads them. Raises ValueError for a quote that does not end.

    backslashes: whether these are letters, as in paths on Windows. Elsewhere they quote what follows.
    """
    words = shlex.shlex(text, posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters = True, ""
    if backslashes:
        words.escape = ""
    return list(words)


def make_folders(folder: Path) -> Path:
    """Make the folder of a run. Returns where the volume belongs."""
    (folder / "in").mkdir(parents=True)
    return folder / "in" / VOLUME
