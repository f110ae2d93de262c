"""Measure on healthy volumes what is usual and what is rare, and write the model file with that: what methods compare with,
what each score means, and which scans look strange.

Takes the volumes that the model's training held out for thresholds, where --data has them, or those named, or all.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...about import About
from ...cli.command import run_command
from ...cli.output import Progress
from ...methods import table
from ...model_file import rewrite_about
from ...runtime.options import option
from ...volumes import Source, named_volumes
from ..measuring.calibration import calibrate, calibration_steps
from ..training.names_file import read_names
from .options import ScoringOptions


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Options of `calibrate`."""

    model: Path = option("model file, of mood-submission export", "model", metavar="MODEL.safetensors")
    data: tuple[Path, ...] = option("healthy volumes, of one or several scanners", metavar="FOLDER")
    names_file: Path | None = option("names of the volumes to take, one a line", metavar="FILE", default=None)
    out: Path | None = option("model file to write (default: the same)", "-o", "--out", metavar="FILE", default=None)
    scoring: ScoringOptions
    sample_method: str | None = option(
        "from then on the file's default (default: as it is)", choices=lambda: table.names("sample"), default=None
    )
    pixel_method: str | None = option(
        "from then on the file's default (default: the method that calibration measures tables for; as it is where that is "
        "a detector's)",
        choices=lambda: table.names("pixel"),
        default=None,
    )

    def volumes(self, held_out: Sequence[str]) -> list[Source]:
        """The volumes to measure. held_out: names of those that the model's training held out for thresholds."""
        if self.names_file:
            return list(named_volumes(self.data, read_names(self.names_file)).values())
        found = named_volumes(self.data)
        return [found[name] for name in held_out if name in found] or list(found.values())


def default_method(before: About, after: About) -> str:
    """The pixel method of a calibrated model: a detector's stays, others give way to what was calibrated."""
    method = table.method_named(before.pixel_method, "pixel")
    return method.name if method.needs_detector else after.pixel_method


def calibrate_file(options: CalibrateOptions) -> list[str]:
    """Write the model file. Returns a line on what it was measured on. Raises ValueError, OSError, RuntimeError."""
    predictor = options.scoring.predictor(options.model)
    before = predictor.model.about
    volumes = options.volumes(before.training.get("vqvae", {}).get("volumes", {}).get("validation", []))
    with Progress(calibration_steps(predictor, len(volumes)), "calibrating", "step") as progress:
        about = calibrate(predictor, volumes, progress.update)
    about = dataclasses.replace(
        about,
        sample_method=options.sample_method or about.sample_method,
        pixel_method=options.pixel_method or default_method(before, about),
    )
    out = options.out or options.model
    rewrite_about(options.model, out, about)
    return [f"{out}: calibrated on {len(volumes)} volumes"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission calibrate", description=__doc__)
    return run_command(parser, CalibrateOptions, calibrate_file, argv, also=(RuntimeError,))
