"""Time a prediction on a made-up healthy volume, step by step, beside the naive loop and beside bare nibabel."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from ...about import ModelError
from ...cli.options import add_device, add_precision, add_region, add_weights
from ...cli.output import say, tell
from ...model_file import load_model
from ...predictor import Predictor
from ...runtime.files import write_text
from ...runtime.names import in_one_line
from ...runtime.option_types import positive, restorations_option, slices_option
from ...volumes import VolumeError
from ..measuring.benchmark import FreeNetworks, benchmark, benchmark_io, machine
from ..measuring.profile import matrix_speed, profile, table

SIZE = {"brain": 256, "abdom": 512}  # the challenge's


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mood-submission benchmark", description=__doc__)
    add_region(parser)
    add_device(parser)
    add_precision(parser)
    parser.add_argument(
        "--io",
        action="store_true",
        help="only reading, writing and all else that is no network, "
        "beside a bare nibabel load and save (with --slices all by default)",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="only where the time goes, as users run it: seconds and arithmetic of each stage (slices and restorations as the "
        "model file says by default)",
    )
    parser.add_argument("--slices", type=slices_option, default=argparse.SUPPRESS, metavar="all|N", help="default: 32")
    parser.add_argument(
        "--restorations", type=restorations_option, default=argparse.SUPPRESS, metavar="N", help="default: 15"
    )
    add_weights(parser)
    parser.add_argument("--size", type=positive, help="voxels a side of the toy (default: 256 brain, 512 abdom)")
    parser.add_argument("--volume", type=Path, metavar="FILE", help="a healthy volume instead of the toy")
    parser.add_argument(
        "--naive-places",
        type=positive,
        default=3,
        metavar="N",
        help="places of the code grid at which the naive loop is measured (default: 3)",
    )
    parser.add_argument("--json", type=Path, metavar="F", help="write all figures here")
    args = parser.parse_args(argv)
    if args.io and args.profile:
        parser.error("--profile: expected no --io beside it")
    args.slices = getattr(args, "slices", "all" if args.io else None if args.profile else 32)
    args.restorations = getattr(args, "restorations", None if args.profile else 15)
    if args.restorations == 0 and not args.profile:
        parser.error("--restorations: expected 1 or more without --profile, found 0")
    return args


def toy(region: str, size: int, folder: Path) -> Path:
    """Make a healthy toy volume in a process of its own, so that its memory does not count here. Returns its file."""
    words = f"--region {region} --volumes 1 --size {size} --healthy-fraction 1 -o".split()
    here = str(Path(__file__).resolve().parents[3])  # where this package is, installed or not
    subprocess.run(
        [sys.executable, "-m", "mood_submission", "make-toy", *words, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder / region / "toy" / "toy_0.nii.gz"


def measure(args: argparse.Namespace, work: Path) -> dict[str, float | int | str]:
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = (
        FreeNetworks(args.region, device)
        if args.io
        else load_model(args.weights or args.region, device, precision=args.precision)
    )
    volume = args.volume or toy(args.region, args.size or SIZE[args.region], work)
    predictor = Predictor(model, args.slices, args.restorations)
    out = work / "out"
    out.mkdir()
    if args.profile:
        return _profile(predictor, volume, out)
    figures = benchmark_io(predictor, volume, out) if args.io else benchmark(predictor, volume, out, args.naive_places)
    return {
        "region": args.region,
        "machine": machine(device),
        "torch": torch.__version__,
        "precision": args.precision,
        "slices": args.slices,
        "restorations": args.restorations,
    } | figures


def _profile(predictor: Predictor, volume: Path, out: Path) -> dict[str, float | int | str]:
    """Print the table; returns its figures."""
    speed = matrix_speed(predictor.model.device)
    stages = profile(predictor, volume, out)
    tell(*table(stages, speed), "")
    return {
        "machine": machine(predictor.model.device),
        "torch": torch.__version__,
        "matrix_gflops": speed,
        **{f"{stage.name}_s": stage.seconds for stage in stages},
        **{f"{stage.name}_gflop": stage.gflop for stage in stages if stage.gflop},
    }


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        with tempfile.TemporaryDirectory() as work:
            figures = measure(args, Path(work))
        if args.json:
            write_text(args.json, json.dumps(figures, indent=1) + "\n")
    except (ModelError, VolumeError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        say(f"mood-submission benchmark: {in_one_line(error)}")
        return 1
    for name, value in figures.items():
        tell(f"{name:20} {value:.4g}" if isinstance(value, float) else f"{name:20} {value}")
    return 0
