"""Run as an algorithm of grand-challenge.org: one case from /input, its scores to /output.

Writes OUTPUT/images/PIXEL_SLUG/NAME.mha, a score for every voxel on the input's grid, and OUTPUT/SAMPLE_SLUG.json, one number for
the volume. Both lie in [0, 1]. Exit status: 0 when both are there, else 1 and one line on standard error.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.contract import ENGINE_VARIABLE, REGIONS
from ..runtime.option_types import ENGINE_NAMES, check_engine_by_default, engine_by_default
from ..runtime.options import option
from .command import run_command
from .output import say


@dataclass(frozen=True, kw_only=True)
class CaseOptions:
    """Options of `grand-challenge`. The platform gives none, so each has a default."""

    input: Path = option("folder with inputs.json or images/SLUG", default=Path("/input"))
    output: Path = option("folder for the scores", default=Path("/output"))
    model: Path = option("folder that may hold another model file", default=Path("/opt/ml/model"))
    region: str | None = option(
        "default: MOOD_REGION, or what the input's slug names",
        choices=REGIONS,
        default=lambda: os.environ.get("MOOD_REGION"),
    )
    pixel_slug: str = option(
        "of the output image (default: MOOD_PIXEL_SLUG, or anomaly-map)",
        default=lambda: os.environ.get("MOOD_PIXEL_SLUG", "anomaly-map"),
    )
    sample_slug: str = option(
        "of the output number (default: MOOD_SAMPLE_SLUG, or anomaly-score)",
        default=lambda: os.environ.get("MOOD_SAMPLE_SLUG", "anomaly-score"),
    )
    engine: str = option(
        f"what computes the networks, as in predict (default: {ENGINE_VARIABLE}, or torch; the images say auto)",
        choices=ENGINE_NAMES,
        default=engine_by_default,
    )

    def __post_init__(self) -> None:
        check_engine_by_default(self.engine)
        if self.region not in (None, *REGIONS):
            raise argparse.ArgumentError(
                None, f"MOOD_REGION: expected one of {', '.join(REGIONS)}, found {self.region!r}"
            )


def score(options: CaseOptions) -> list[str]:
    """Score the case. Returns a line. Raises ValueError for what is wrong, in one line."""
    from ..running.grand_challenge_case import score_case

    try:
        return [
            score_case(
                options.input,
                options.output,
                models=options.model,
                region=options.region,
                slugs=(options.pixel_slug, options.sample_slug),
                engine=options.engine,
                remark=say,
            )
        ]
    except (OSError, MemoryError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="mood-submission grand-challenge", description=__doc__)
    return run_command(parser, CaseOptions, score, argv)
