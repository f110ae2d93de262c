"""What most commands do: read their options, act, print some lines, and tell what was wrong in one line."""

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
    """Read the options of the dataclass `kind`, act on them, and print the lines that this returns.

    also: further errors that are told in one line, such as the RuntimeError that torch raises of devices and their memory.

    Returns the exit status: 1 after a ValueError or an OSError, which is told in one line. Options that do not go together
    raise an argparse.ArgumentError as the dataclass is made: wrong usage, as argparse tells it.
    """
    parser.formatter_class = DefaultsShown
    add_options(parser, kind)
    args = parser.parse_args(argv)
    try:
        options = options_of(kind, args)
    except argparse.ArgumentError as error:
        parser.error(str(error))
    expected: tuple[type[Exception], ...] = (ValueError, OSError, *also)
    try:
        lines = act(options)
    except expected as error:
        say(f"{parser.prog}: {in_one_line(error)}")
        return 1
    if lines:
        tell(*lines)
    return 0
