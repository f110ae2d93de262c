"""Measure on healthy volumes what is usual and what is rare, and write the model file with that: what methods compare with,
what each score means, and which scans look strange.

Takes the volumes that the model's training held out for thresholds, where --data has them, or those named, or all.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ...about import About
from ...cli.options import add_device, add_names_file, add_scoring, names_in
from ...cli.output import Progress, say, tell
from ...methods import table
from ...model_file import load_model, rewrite_about
from ...predictor import Predictor
from ...runtime.names import in_one_line
from ...volumes import Source, named_volumes
from ..measuring.calibration import calibrate


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mood-submission calibrate", description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.safetensors", help="model file, of mood-submission export")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="healthy volumes, of one or several scanners",
    )
    add_names_file(parser, "names of the volumes to take, one a line")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="model file to write (default: the same)")
    add_scoring(
        parser,
        restorations="of a slice (default: what the model file says); 0: measure anew only what needs none, such "
        "as the detector's scores",
    )
    parser.add_argument(
        "--sample-method",
        choices=table.names("sample"),
        help="from then on the file's default (default: as it is)",
    )
    parser.add_argument(
        "--pixel-method",
        choices=table.names("pixel"),
        help="from then on the file's default (default: the method that calibration measures tables for; as it is where that is "
        "a detector's)",
    )
    add_device(parser)
    return parser.parse_args(argv)


def chosen(args: argparse.Namespace, held_out: list[str]) -> list[Source]:
    if args.names_file:
        return list(named_volumes(args.data, names_in(args.names_file)).values())
    files = named_volumes(args.data)
    return [files[name] for name in held_out if name in files] or list(files.values())


def default_method(before: About, after: About) -> str:
    """The pixel method of a calibrated model: a detector's stays, others give way to what was calibrated."""
    method = table.method_named(before.pixel_method, "pixel")
    return method.name if method.needs_detector else after.pixel_method


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        model = load_model(args.model, args.device, precision=args.precision)
        predictor = Predictor(
            model,
            args.slices,
            args.restorations,
            sample_method=table.first_that_fits("sample", model.about, args.restorations).name,
            pixel_method=table.first_that_fits("pixel", model.about, args.restorations).name,
        )
        files = chosen(args, model.about.training.get("vqvae", {}).get("volumes", {}).get("validation", []))
        with Progress(len(files), "calibrating") as progress:
            about = calibrate(predictor, files, progress.update)
        about = dataclasses.replace(
            about,
            sample_method=args.sample_method or about.sample_method,
            pixel_method=args.pixel_method or default_method(model.about, about),
        )
        rewrite_about(args.model, args.out or args.model, about)
    except (ValueError, OSError, RuntimeError) as error:
        say(f"mood-submission calibrate: {in_one_line(error)}")
        return 1
    tell(f"{args.out or args.model}: calibrated on {len(files)} volumes")
    return 0
