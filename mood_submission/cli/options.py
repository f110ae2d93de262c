"""Options that several commands share."""

import argparse
from pathlib import Path

from ..runtime.contract import PRECISIONS, REGIONS
from ..runtime.option_types import DEVICE_HELP, restorations_option, slices_option


def add_region(parser: argparse.ArgumentParser) -> None:
    """The option --region, which must be given."""
    parser.add_argument("--region", choices=REGIONS, required=True)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option --device."""
    parser.add_argument("--device", help=DEVICE_HELP)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """The option --weights."""
    parser.add_argument("--weights", type=Path, metavar="FILE", help="model file (default: the region's shipped one)")


def add_names_file(parser: argparse._ActionsContainer, help_text: str) -> None:
    """The option --names-file."""
    parser.add_argument("--names-file", type=Path, metavar="FILE", help=help_text)


def names_in(file: Path) -> list[str]:
    """The names in a file, separated by white space. Names that are no UTF-8 are held as Python holds file names."""
    return file.read_text("utf-8", "surrogateescape").split()


def add_scoring(parser: argparse.ArgumentParser, restorations: str) -> None:
    """The options --slices, --restorations and --precision of commands that measure. restorations: help of that one."""
    parser.add_argument(
        "--slices",
        type=slices_option,
        metavar="all|N",
        help="a volume (default: those that prediction looks at)",
    )
    parser.add_argument("--restorations", type=restorations_option, metavar="N", help=restorations)
    add_precision(parser)


def add_precision(
    parser: argparse.ArgumentParser, help_text: str = "of the networks, as in predict (default: float32)"
) -> None:
    """The option --precision."""
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help=help_text)
