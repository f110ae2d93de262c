"""Types of command line options that several commands share. Each raises argparse.ArgumentTypeError."""

import argparse
from pathlib import Path


def slices_option(text: str) -> int | str:
    if text == "all":
        return text
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 'all' or a number of slices, found {text!r}")
    return int(text)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text!r}")
    return int(text)


def restorations_option(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number of restorations, found {text!r}")
    return int(text)


def seconds_option(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, found {text!r}")
    return value


def json_option(text: str) -> Path:
    if not text.lower().endswith(".json"):  # so that no slip of the hand writes it over a volume
        raise argparse.ArgumentTypeError(f"expected a name ending in .json, found {text!r}")
    return Path(text)
