"""Options that several commands share."""

import argparse
from pathlib import Path

from ..running.processes import AUTO
from ..runtime.contract import REGIONS
from ..runtime.option_types import DEVICE_HELP, positive
from ..runtime.precision import PRECISIONS


def add_region(parser: argparse.ArgumentParser) -> None:
    """The option --region, which must be given."""
    parser.add_argument("--region", choices=REGIONS, required=True)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option --device."""
    parser.add_argument("--device", help=DEVICE_HELP)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """The option --weights."""
    parser.add_argument("--weights", type=Path, metavar="FILE", help="model file (default: the region's shipped one)")


def add_precision(
    parser: argparse.ArgumentParser, help_text: str = "of the networks, as in predict (default: float32)"
) -> None:
    """The option --precision."""
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help=help_text)


def processes_option(text: str) -> int | str:
    """ "auto", or a whole number of at least 1."""
    return text if text == AUTO else positive(text)
