"""Time a prediction on a made-up healthy volume, step by step, beside the naive loop and beside bare nibabel."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...cli.command import run_command
from ...cli.output import Progress, say
from ...model_file import load_model
from ...predictor import Predictor
from ...runtime.contract import REGIONS
from ...runtime.devices import device_named
from ...runtime.files import write_text
from ...runtime.option_types import DEVICE_HELP, at_least, positive, slices_option
from ...runtime.options import option
from ..measuring.benchmark import FreeNetworks, benchmark, benchmark_io, machine
from ..measuring.engines import RUNS, engine_table, measure_engines
from ..measuring.profile import matrix_speed, profile, stage_table
from .options import engine_option, precision_option, weights_option

# Voxels a side of the challenge's volumes.
SIZE = {"brain": 256, "abdom": 512}
# The same with --engines, where the brain's voxels are of 1 mm.
ENGINE_SIZE = {"brain": 200, "abdom": 512}
# Places of the code grid at which the naive loop is measured.
NAIVE_PLACES = 3


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Options of `benchmark`."""

    region: str | None = option("needed without --engines; with it: both by default", choices=REGIONS, default=None)
    device: str | None = option(DEVICE_HELP, default=None)
    precision: str = precision_option()
    engine: str = engine_option()
    io: bool = option(
        "only reading, writing and all else that is no network, beside a bare nibabel load and save (with --slices all by "
        "default)",
        default=False,
    )
    profile: bool = option(
        "only where the time goes, as users run it: seconds and arithmetic of each stage (slices and restorations as the "
        "model file says by default)",
        default=False,
    )
    engines: bool = option(
        "only the default run, both tasks, by each engine and precision in turn: seconds, memory, how far scores are apart; of a "
        "brain of 1 mm and of a CT of 512 voxels a side",
        default=False,
    )
    repeats: int | None = option("with --engines: how often (default: 3)", type=positive, metavar="N", default=None)
    slices: int | str | None = option("a volume (default: 32)", type=slices_option, metavar="all|N", default=None)
    restorations: int | None = option("a slice (default: 15)", type=at_least(0), metavar="N", default=None)
    weights: Path | None = weights_option()
    size: int | None = option(
        "voxels a side of the toy (default: 256 brain, or 200 with --engines, 512 abdom)",
        type=positive,
        metavar="N",
        default=None,
    )
    volume: Path | None = option("a healthy volume instead of the toy", metavar="FILE", default=None)
    naive_places: int | None = option(
        "places of the code grid at which the naive loop is measured (default: 3)",
        type=positive,
        metavar="N",
        default=None,
    )
    json: Path | None = option("write all figures here", metavar="F", default=None)

    def __post_init__(self) -> None:
        if self.io + self.profile + self.engines > 1:
            raise argparse.ArgumentError(None, "--io, --profile, --engines: expected one of these at most")
        if self.engines and (self.engine, self.precision) != ("torch", "float32"):
            raise argparse.ArgumentError(
                None, "--engines measures all of them: expected no --engine and no --precision"
            )
        if self.io and (self.engine, self.precision) != ("torch", "float32"):
            raise argparse.ArgumentError(None, "--io computes no network: expected no --engine and no --precision")
        if self.naive_places is not None and (self.io or self.profile or self.engines):
            raise argparse.ArgumentError(None, "--naive-places: expected none of --io, --profile, --engines beside it")
        if self.size is not None and self.volume is not None:
            raise argparse.ArgumentError(None, "--size is the toy's: expected no --volume beside it")
        if self.repeats is not None and not self.engines:
            raise argparse.ArgumentError(None, "--repeats: expected --engines beside it")
        if self.region is None and not self.engines:
            raise argparse.ArgumentError(None, f"--region: expected one of {', '.join(REGIONS)}, found none")
        if self.region is None and (self.weights or self.volume):
            raise argparse.ArgumentError(None, "--weights, --volume: expected a --region beside them, found none")
        if self.restorations == 0 and not (self.profile or self.engines):
            raise argparse.ArgumentError(None, "--restorations: expected 1 or more without --profile, found 0")

    def predictor(self) -> Predictor:
        """The predictor to measure: of the model file, or of networks that cost nothing."""
        assert self.region is not None
        device = device_named(self.device)
        slices, restorations = self.slices, self.restorations
        if not self.profile:
            slices, restorations = slices or ("all" if self.io else 32), restorations or 15
        if self.io:
            return Predictor(FreeNetworks(self.region, device), slices, restorations)
        model = load_model(self.weights or self.region, device, precision=self.precision, engine=self.engine)
        for note in model.notes:
            say(note)
        return Predictor(model, slices, restorations)


def toy(region: str, size: int, folder: Path) -> Path:
    """Make a healthy toy volume in a process of its own, so that its memory does not count here. Returns its file."""
    words = f"--region {region} --volumes 1 --size {size} --healthy-fraction 1 -o".split()
    # The folder of this package, installed or not.
    here = str(Path(__file__).resolve().parents[3])
    subprocess.run(
        [sys.executable, "-m", "mood_submission", "make-toy", *words, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder / region / "toy" / "toy_0.nii.gz"


def by_engine(options: BenchmarkOptions) -> list[str]:
    """The figures of each engine, as lines of text. Raises OSError where a run fails."""
    regions = [options.region] if options.region else list(REGIONS)
    words = [] if options.weights is None else ["--weights", str(options.weights)]
    for name in ("device", "slices", "restorations"):
        value = getattr(options, name)
        words += [] if value is None else [f"--{name}", str(value)]
    figures, lines, repeats = {}, [], options.repeats or 3
    with Progress(len(regions) * len(RUNS) * repeats, "measuring", "run") as progress:
        for region in regions:
            with tempfile.TemporaryDirectory() as work:
                volume = options.volume or toy(region, options.size or ENGINE_SIZE[region], Path(work))
                runs = Path(work) / "runs"
                figures[region] = measure_engines(["--region", region, *words], volume, runs, repeats, progress.update)
            lines += [f"{region}, {machine(device_named(options.device))}", *engine_table(figures[region]), ""]
    if options.json:
        write_text(options.json, json.dumps(figures, indent=1) + "\n")
    return lines[:-1]


def measure(options: BenchmarkOptions) -> list[str]:
    """The figures, as lines of text. Raises ValueError, OSError, RuntimeError where they cannot be measured."""
    if options.engines:
        return by_engine(options)
    assert options.region is not None
    predictor = options.predictor()
    lines: list[str] = []
    measured: dict[str, float | int | str] = {}
    with tempfile.TemporaryDirectory() as work:
        volume = options.volume or toy(options.region, options.size or SIZE[options.region], Path(work))
        out = Path(work) / "out"
        out.mkdir()
        if options.profile:
            speed = matrix_speed(predictor.model.device)
            stages = profile(predictor, volume, out)
            lines = [*stage_table(stages, speed), ""]
            measured["matrix_gflops"] = speed
            measured |= {f"{stage.name}_s": stage.seconds for stage in stages}
            measured |= {f"{stage.name}_gflop": stage.gflop for stage in stages if stage.gflop}
        elif options.io:
            measured |= benchmark_io(predictor, volume, out)
        else:
            measured |= benchmark(predictor, volume, out, options.naive_places or NAIVE_PLACES)
    figures = {
        "region": options.region,
        "machine": machine(predictor.model.device),
        "torch": torch.__version__,
        "precision": predictor.model.precision if not options.io else options.precision,
        "engine": predictor.model.engine.name if not options.io else options.engine,
        "slices": predictor.slice_count or "by default",
        "restorations": predictor.restorations,
    } | measured
    if options.json:
        write_text(options.json, json.dumps(figures, indent=1) + "\n")
    return lines + [f"{name:20} {value:{'.4g' if isinstance(value, float) else ''}}" for name, value in figures.items()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission benchmark", description=__doc__)
    return run_command(parser, BenchmarkOptions, measure, argv, also=(RuntimeError, subprocess.CalledProcessError))
