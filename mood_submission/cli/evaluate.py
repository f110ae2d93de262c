"""Score predictions against labels by the challenge's rules."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..evaluation.challenge import EVALUATE
from ..runtime.contract import TASKS
from .options import at_least


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="mood-submission evaluate",
        description=__doc__,
        epilog="Predictions that are missing, unreadable or of the wrong shape count as all zeros and are listed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--pred", type=Path, required=True, help="folder of NAME.nii.gz (pixel) or NAME.nii.gz.txt (sample)"
    )
    parser.add_argument(
        "--label", type=Path, required=True, help="toy_label folder, or its pixel or sample subfolder"
    )
    parser.add_argument("--task", choices=TASKS, required=True, help="one score per volume, or one per voxel")
    parser.add_argument(
        "--bootstrap",
        type=at_least(0),
        default=1000,
        help="resamples of the volumes for the interval; 0: none",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the resampling")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here as well")
    args = parser.parse_args(argv)
    try:
        result = EVALUATE[args.task](args.pred, args.label, args.bootstrap, args.seed)
        if args.json:
            args.json.write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"evaluate: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    interval = f" (95% interval {result.low:.4f} to {result.high:.4f})" if args.bootstrap else ""
    unit = "voxels" if args.task == "pixel" else "volumes"
    lines = [
        f"{result.task} average precision {result.ap:.4f}{interval}",
        f"chance {result.chance:.4f}, {result.cases} cases, {result.positives} positive {unit}",
        f"predictions counted as zeros: {len(result.missing)}",
    ]
    print("\n".join(lines + [f"  {line}" for line in result.missing]))
    return 0
