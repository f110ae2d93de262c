"""Score predictions against labels by the challenge's rules, and by the field's other measures."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...cli.command import run_command
from ...runtime.contract import TASKS
from ...runtime.files import write_text
from ...runtime.option_types import at_least
from ...runtime.options import option
from ..evaluation.challenge import Evaluation, evaluate_pixel, evaluate_sample, read_mask
from ..evaluation.details import Details


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of `evaluate`."""

    pred: Path = option("folder of NAME.nii.gz (pixel) or NAME.nii.gz.txt (sample)")
    label: Path = option("toy_label folder, or its pixel or sample subfolder")
    task: str = option("one score per volume, or one per voxel", choices=TASKS)
    bootstrap: int = option("resamples of the volumes for the interval; 0: none", type=at_least(0), default=1000)
    seed: int = option("seed of the resampling", type=at_least(0), default=0)
    objects: bool = option(
        "with --task pixel: count whole objects too, at many scores; reads all files again", default=False
    )
    findings: Path | None = option(
        "with --task pixel: count the objects that 'predict --findings' wrote there", metavar="DIR", default=None
    )
    json: Path | None = option("write all figures here as well", metavar="FILE", default=None)
    cases: Path | None = option("write a row for every case here", metavar="FILE.csv", default=None)
    curves: Path | None = option(
        "write a picture of the precision-recall and ROC curves here", metavar="FILE.png", default=None
    )
    size_curves: Path | None = option(
        "write a picture of figures by radius here, for cases of make-toy --sizes or --gross",
        metavar="FILE.png",
        default=None,
    )


def evaluate(args: EvaluateOptions) -> tuple[Evaluation, Details]:
    """The challenge's figure, and the details behind it. Raises ValueError, OSError."""
    details = Details.beside(args.label, args.task)
    if args.task == "sample":
        result = evaluate_sample(args.pred, args.label, args.bootstrap, args.seed, details.add_sample)
        return result, details
    result = evaluate_pixel(args.pred, args.label, args.bootstrap, args.seed, on_case=details.add_pixel)
    if args.objects:
        levels = details.object_levels()

        def count(name: str, scores: np.ndarray, label: np.ndarray, _: np.ndarray) -> None:
            details.add_objects(name, scores, label, levels)

        evaluate_pixel(args.pred, args.label, 0, on_case=count)
    if args.findings is not None:
        evaluate_pixel(args.pred, args.label, 0, on_case=counting_findings(args.findings, details))
    return result, details


def counting_findings(folder: Path, details: Details) -> Callable[..., None]:
    """A function that counts a case's objects by its mask of findings in `folder`.

    It raises ValueError for a mask that is missing or of another shape.
    """

    def count(name: str, _: np.ndarray, label: np.ndarray, __: np.ndarray) -> None:
        mask = read_mask(folder / name)
        if mask.shape != label.shape:
            raise ValueError(f"{folder / name}: expected the label's shape {label.shape}, found {mask.shape}")
        details.add_findings(name, mask, label)

    return count


def lines_of(result: Evaluation, details: Details, interval: bool) -> list[str]:
    """The lines that are printed, the challenge's figure first. interval: whether to print its interval."""
    unit = "voxels" if result.task == "pixel" else "volumes"
    by = f" (95% interval {result.low:.4f} to {result.high:.4f})" if interval else ""
    lines = [
        f"{result.task} average precision {result.ap:.4f}{by}",
        f"chance {result.chance:.4f}, {result.cases} cases, {result.positives} positive {unit}",
    ]
    lines += [f"{name} {value:.4f}" for name, value in details.measures().items()]
    for name, groups in details.tables().items():
        lines.append(f"by {name}: " + ", ".join(f"{group} {value:.3f}" for group, value in groups.items()))
    lines.append(f"predictions counted as zeros: {len(result.missing)}")
    return lines + [f"  {line}" for line in result.missing]


def evaluate_and_write(args: EvaluateOptions) -> list[str]:
    """Write the files that are asked for. Returns the lines to print. Raises ValueError, OSError."""
    result, details = evaluate(args)
    if args.json:
        figures = result.to_dict() | {"measures": details.measures(), "tables": details.tables()}
        write_text(args.json, json.dumps(finite(figures), indent=1) + "\n")
    if args.cases:
        details.write_cases(args.cases)
    if args.curves:
        details.plot_curves(args.curves)
    if args.size_curves:
        details.plot_by_radius(args.size_curves)
    return lines_of(result, details, args.bootstrap > 0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="mood-submission evaluate",
        description=__doc__,
        epilog="Predictions that are missing, unreadable or of the wrong shape count as all zeros and are listed.",
    )
    return run_command(parser, EvaluateOptions, evaluate_and_write, argv)


def finite(value: Any) -> Any:
    """Figures as JSON has them, with None for those that are not defined."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
