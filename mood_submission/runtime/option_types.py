"""Types of options. Each raises argparse.ArgumentTypeError for other texts."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from .contract import AUTO_ENGINE, ENGINE_VARIABLE, ENGINES

DEVICE_HELP = "cpu, cuda, cuda:1, mps ... (default: cuda if there, else cpu)"


# What --engine takes.
ENGINE_NAMES = (AUTO_ENGINE, *ENGINES)


def engine_by_default() -> str:
    """The engine that the environment names, else torch."""
    return os.environ.get(ENGINE_VARIABLE) or "torch"


def check_engine_by_default(engine: str) -> None:
    """Raises argparse.ArgumentError, which names the environment's variable. argparse itself checks what is given by --engine."""
    if engine not in ENGINE_NAMES:
        expected = f"expected one of {', '.join(ENGINE_NAMES)}, found {engine!r}"
        raise argparse.ArgumentError(None, f"{ENGINE_VARIABLE} (of the environment): {expected}")


def at_least(low: int) -> Callable[[str], int]:
    """The type of a whole number from `low` on, which is 0 or more."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected a number of at least {low}, found {text!r}")
        return int(text)

    return parse


positive = at_least(1)


def port_option(text: str) -> int:
    """A port of this machine, 0 to 65535."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port, 0 to 65535, found {text!r}")
    return int(text)


def shard_option(text: str) -> tuple[int, int]:
    """A shard and how many there are, such as 2/5."""
    try:
        number, count = map(int, text.split("/"))
    except ValueError:
        number, count = 0, 0
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"expected I/N, such as 2/5, found {text}")
    return number, count


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected 0 to 1, found {value}")
    return value


def radius_share(text: str) -> float:
    """A radius as a share of the field of view, above 0 and at most 0.5."""
    value = float(text)
    if not 0 < value <= 0.5:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 0.5, found {text}")
    return value


def slices_option(text: str) -> int | str:
    """ "all", or a whole number of at least 1."""
    if text != "all" and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"expected 'all' or a number of slices, found {text!r}")
    return text if text == "all" else int(text)


def odd(text: str) -> int:
    """A whole number such as 1, 3, 5."""
    if not text.isdecimal() or int(text) % 2 == 0:
        raise argparse.ArgumentTypeError(f"expected an odd number, found {text!r}")
    return int(text)


def not_negative(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {text!r}")
    return value


def above_zero(unit: str) -> Callable[[str], float]:
    """The type of a finite number above 0. unit: what it counts, for the message."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number of {unit} above 0, found {text!r}")
        return value

    return parse


seconds_option = above_zero("seconds")


def ending_in(ending: str) -> Callable[[str], Path]:
    """The type of a file with this ending. So no file of another kind is overwritten by mistake."""

    def parse(text: str) -> Path:
        if not text.lower().endswith(ending):
            raise argparse.ArgumentTypeError(f"expected a name ending in {ending}, found {text!r}")
        return Path(text)

    return parse


json_option = ending_in(".json")
