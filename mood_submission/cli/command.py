"""Runs a command: reads its options, acts, and prints lines, or one line on what was wrong."""

import argparse
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..runtime.names import in_one_line
from ..runtime.options import DefaultsShown, add_options, options_of
from .output import say, tell

Kind = TypeVar("Kind")


def run_command(
    parser: argparse.ArgumentParser,
    kind: type[Kind],
    act: Callable[[Kind], list[str]],
    argv: Sequence[str] | None,
    *,
    also: tuple[type[Exception], ...] = (),
) -> int:
    """Read a command's options, act on them, and print the result.

    parser: without options. Its name and description are the command's.
    kind: the dataclass of the options. It raises argparse.ArgumentError for options that do not go together, which ends the
        command as wrong usage does.
    act: takes the options, and returns lines to print.
    argv: the command's words. None for those of the process.
    also: further errors that are told in one line, such as the RuntimeError that torch raises of devices and their memory.
    Returns the exit status: 1 after a ValueError or an OSError of `act`, which is printed in one line.
    """
    parser.formatter_class = DefaultsShown
    add_options(parser, kind)
    args = parser.parse_args(argv)
    try:
        options = options_of(kind, args)
    except argparse.ArgumentError as error:
        parser.error(str(error))
    foreseen: tuple[type[Exception], ...] = (ValueError, OSError, *also)
    try:
        lines = act(options)
    except foreseen as error:
        say(f"{parser.prog}: {in_one_line(error)}")
        return 1
    if lines:
        tell(*lines)
    return 0
