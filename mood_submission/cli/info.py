"""Describe a file. For a volume: its grid, its grey values, and how it will be scored. For a model file: its content."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.contract import REGIONS
from ..runtime.option_types import DEVICE_HELP
from ..runtime.options import option
from .command import run_command


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Options of `info`."""

    file: Path = option(
        "a volume of any format that predict takes, a model file, or a region's name", "file", metavar="FILE"
    )
    region: str | None = option(
        "for a volume: show what the region's preprocessing makes of it", choices=REGIONS, default=None
    )
    scan: bool = option(
        "with --region: run the shipped networks too, and say whether the volume looks like the scans they know",
        default=False,
    )
    json: bool = option("print JSON", default=False)
    device: str | None = option(DEVICE_HELP, default=None)


def describe(options: InfoOptions) -> list[str]:
    """The file's facts, as lines of text or of JSON."""
    from ..output.facts import facts_of

    try:
        facts = facts_of(options.file, options.region, options.scan, options.device)
    # There is no such device.
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    return json.dumps(facts, indent=1).split("\n") if options.json else lines_of(facts)


def lines_of(facts: dict[str, Any], indent: str = "") -> list[str]:
    """Facts as lines of text."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *lines_of(value, indent + "  ")]
        elif value not in ([], ""):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append(f"{indent}{name}: {shown}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="mood-submission info", description=__doc__)
    return run_command(parser, InfoOptions, describe, argv)
