"""Make a page of a run's predictions: ranked volumes, pictures, findings and a viewer. Nothing leaves the machine."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.contract import REGIONS
from ..runtime.options import option
from .command import run_command


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `report`."""

    input: Path = option("folder with the volumes", "-i", "--input", metavar="IN")
    pred: Path = option("folder with their pixel scores", "-p", "--pred", metavar="PRED")
    out: Path = option("folder for index.html and its data", "-o", "--out", metavar="FOLDER")
    samples: Path | None = option(
        "folder with their sample scores, which rank the volumes (default: PRED)", default=None, metavar="DIR"
    )
    label: Path | None = option("folder with pixel labels, or a toy_label folder", default=None, metavar="DIR")
    findings: Path | None = option("folder that 'predict --findings' wrote", default=None, metavar="DIR")
    run: Path | None = option(
        "file that 'predict --report' wrote: warnings, devices, seconds", default=None, metavar="FILE.json"
    )
    region: str | None = option(
        "region whose shipped weights made the scores, to show what is usual among healthy scans",
        choices=REGIONS,
        default=None,
        not_with="weights",
    )
    weights: Path | None = option(
        "model file that made the scores, for the same", default=None, metavar="FILE", not_with="weights"
    )


def report(options: ReportOptions) -> list[str]:
    """Write the page. Returns a line that says where it is. Raises ValueError, OSError for what is wrong."""
    from ..model_file import load_model
    from ..output.report import what_is_missing

    if what_is_missing():
        raise ValueError(what_is_missing())
    from ..output.report.collect import Sources
    from ..output.report.page import write_report

    label, weights = options.label, options.weights or options.region
    if label is not None and (label / "pixel").is_dir():
        label = label / "pixel"
    model = load_model(weights, "cpu") if weights else None
    settings = {"volumes": str(options.input), "predictions": str(options.pred)}
    settings |= {"weights": f"{model.file} (sha256 {model.sha256})"} if model else {}
    sources = Sources(
        volumes=options.input,
        predictions=options.pred,
        findings=options.findings,
        label=label,
        run=options.run,
        samples=options.samples,
    )
    entries = write_report(sources, options.out, model.about if model else None, settings)
    return [f"{options.out / 'index.html'}: {len(entries)} volumes"]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="mood-submission report", description=__doc__)
    return run_command(parser, ReportOptions, report, argv)
