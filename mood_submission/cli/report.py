"""Make a page of a run's predictions: ranked volumes, pictures, findings and a viewer. Nothing leaves the machine."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..model_file import load_model
from ..output.report import what_is_missing
from ..runtime.contract import REGIONS
from ..runtime.names import in_one_line
from .output import say, tell


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mood-submission report", description=__doc__)
    add = parser.add_argument
    add("-i", "--input", type=Path, required=True, metavar="IN", help="folder with the volumes")
    add(
        "-p",
        "--pred",
        type=Path,
        required=True,
        metavar="PRED",
        help="folder with their pixel scores",
    )
    add(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder for index.html and its data",
    )
    add(
        "--samples",
        type=Path,
        metavar="DIR",
        help="folder with their sample scores, which rank the volumes (default: PRED)",
    )
    add("--label", type=Path, metavar="DIR", help="folder with pixel labels, or a toy_label folder")
    add("--findings", type=Path, metavar="DIR", help="folder that 'predict --findings' wrote")
    add(
        "--run",
        type=Path,
        metavar="FILE.json",
        help="file that 'predict --report' wrote: warnings, devices, seconds",
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--region",
        choices=REGIONS,
        help="region whose shipped weights made the scores, to show what is usual among healthy scans",
    )
    weights.add_argument("--weights", type=Path, metavar="FILE", help="model file that made the scores, for the same")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if what_is_missing():
        say(f"mood-submission report: {what_is_missing()}")
        return 1
    from ..output.report.collect import Sources
    from ..output.report.page import write_report

    label = args.label / "pixel" if args.label and (args.label / "pixel").is_dir() else args.label
    try:
        model = load_model(args.weights or args.region, "cpu") if args.weights or args.region else None
        settings = {"volumes": str(args.input), "predictions": str(args.pred)}
        settings |= {"weights": f"{model.file} (sha256 {model.sha256})"} if model else {}
        sources = Sources(args.input, args.pred, args.findings, label, args.run, args.samples)
        entries = write_report(sources, args.out, model.about if model else None, settings)
    except (ValueError, OSError) as error:
        say(f"mood-submission report: {in_one_line(error)}")
        return 1
    tell(f"{args.out / 'index.html'}: {len(entries)} volumes")
    return 0
