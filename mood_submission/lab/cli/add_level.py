"""Teach a model where along the body a slice lies, from healthy scans, and write the model file with that: what then lies far
beyond these scans, such as neck or thighs, is not scored.

It learns from how far slices of one scan lie apart, so the scans' headers must tell their distance truly.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...about import ModelError
from ...cli.command import run_command
from ...cli.output import Progress
from ...model_file import add_level, load_model
from ...networks.level import LevelSettings
from ...preprocessing.known import AGREEING
from ...runtime.option_types import positive
from ...runtime.options import option
from ...volumes import named_volumes, read_volume
from ..training.cache import matches
from ..training.level import FEWEST, Scan, agreement_of, train_level, with_range
from ..training.run import made_now


@dataclass(frozen=True, kw_only=True)
class AddLevelOptions:
    """Options of `add-level`."""

    model: Path = option("model file", "model", metavar="MODEL.safetensors")
    data: tuple[Path, ...] = option("healthy volumes, of one or several scanners", metavar="FOLDER")
    leave_out: tuple[str, ...] = option("volumes not to read, by name", metavar="PATTERN", default=())
    steps: int = option("training steps", type=positive, default=1500)
    seed: int = option("of batches, augmentation and initial weights", default=0)
    out: Path | None = option("model file to write (default: the same)", "-o", "--out", metavar="FILE", default=None)


def add(options: AddLevelOptions) -> list[str]:
    """Write the model file. Returns lines on what was learned. Raises ValueError and OSError."""
    about = load_model(options.model, "cpu").about
    if about.preprocessing.frame == "array":
        raise ModelError(f"{options.model}: expected a model of harmonised slices, found one of slices as published")
    found = {name: s for name, s in named_volumes(options.data).items() if not matches(name, options.leave_out)}
    scans: list[Scan] = []
    short: list[Scan] = []
    with Progress(len(found), "reading") as progress:
        for name, source in found.items():
            scan = Scan.of(read_volume(source), about.preprocessing, LevelSettings.size)
            (scans if len(scan.slices) >= FEWEST else short).append(dataclasses.replace(scan, name=name))
            progress.update()
    with Progress(options.steps, "training", "step") as progress:
        level = train_level(
            scans,
            LevelSettings(),
            region=about.region,
            threshold=about.preprocessing.foreground_threshold,
            steps=options.steps,
            seed=options.seed,
            advance=progress.update,
        )
    level = with_range(level, scans)
    told = {"volumes": [scan.name for scan in scans], "steps": options.steps, "seed": options.seed} | made_now()
    out = options.out or options.model
    add_level(options.model, out, level, dataclasses.replace(about, training=about.training | {"level": told}))
    lines = [f"{scan.name}: fewer than {FEWEST} slices, left out" for scan in short]
    for scan in scans:
        if (agreeing := agreement_of(level, scan)) < AGREEING:
            lines.append(
                f"{scan.name}: {agreeing:.0%} of its slices lie as far apart as its header says, so its ends do not count; is it "
                "upside down, or is its slices' distance a guess?"
            )
    low, high = level.settings.low, level.settings.high
    return [*lines, f"{out}: levels of {len(scans)} volumes, from {low:.0f} to {high:.0f} mm"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission add-level", description=__doc__)
    return run_command(parser, AddLevelOptions, add, argv, also=(RuntimeError,))
