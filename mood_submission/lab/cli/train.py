"""Train a VQ-VAE on a folder of healthy volumes, or on slices cached from one. Then train a prior on its codes, and a detector
on both, with anomalies planted in these volumes. Or train the VAE that they are compared with. The processes that torchrun
starts train one network together."""

import argparse
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...cli.output import quiet, say, tell
from ...runtime.names import in_one_line
from ...runtime.option_types import ending_in
from ...runtime.options import DefaultsShown, add_options, option, options_of
from ..training.detector_stage import DetectorOptions, train_detector
from ..training.group import Group
from ..training.plant import PlantOptions, plant_store
from ..training.prior_stage import PriorOptions, train_prior
from ..training.recipe import STAGES as RECIPE_STAGES
from ..training.run import DataOptions
from ..training.store import count_healthy_only
from ..training.vae_stage import VAEOptions, train_vae
from ..training.vqvae_stage import VQVAEOptions, train_vqvae
from ..training.whole import AllOptions, train_all
from .add_detector import AddDetectorOptions
from .calibrate import CalibrateOptions
from .compare import CompareOptions
from .export import ExportOptions
from .recipe_check import check_recipe


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Options of `train cache`."""

    data: DataOptions
    out: Path = option(
        "cache file to write; the slices themselves lie beside it, in FILE.npy",
        "-o",
        "--out",
        metavar="FILE.npz",
        type=ending_in(".npz"),
    )


def _cache(options: CacheOptions) -> None:
    options.data.build_cache(options.out)


def _all(options: AllOptions) -> None:
    # A polite kill ends the step that runs, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.recipe is not None:
        check_recipe(options.recipe, kinds_in_recipes())
    page = train_all(options, say)
    tell(f"{options.out}: ready; how well it went is told in {page}")


def kinds_in_recipes() -> dict[str, type]:
    """The options of each table of a recipe."""
    others = {
        "export": ExportOptions,
        "add_detector": AddDetectorOptions,
        "calibrate": CalibrateOptions,
        "compare": CompareOptions,
    }
    return others | {name: STAGES[name.partition("_")[0]].options for name in RECIPE_STAGES if name not in others}


def _plant(options: PlantOptions) -> None:
    planted, healthy = plant_store(options), count_healthy_only(options.store)
    none = f"; in {healthy} of the store's nothing was, as no place was found where it would be seen" if healthy else ""
    tell(f"{options.store}: {planted} volumes planted{none}")


@dataclass(frozen=True)
class Command:
    """A stage of training.

    help: a line on it.
    options: a dataclass of options.
    run: trains with these options.
    defaults: by field, where this stage has another default.
    again: how a run that was stopped goes on.
    """

    help: str
    options: type
    run: Callable[[Any], None]
    defaults: dict[str, float] = field(default_factory=dict)
    again: str = "--resume goes on from the last checkpoint"


THE_SAME = "the same command goes on where it was"
STAGES = {
    "all": Command("make a model from healthy volumes, from beginning to end", AllOptions, _all, again=THE_SAME),
    "cache": Command(
        "only cache the slices, for training on a machine without nibabel",
        CacheOptions,
        _cache,
        again="the same command begins anew",
    ),
    "vqvae": Command("train the VQ-VAE", VQVAEOptions, train_vqvae, {"rate": 1e-3}),
    "prior": Command("train the prior", PriorOptions, train_prior, {"rate": 4e-4}),
    "detector": Command("train the detector", DetectorOptions, train_detector, {"rate": 1.5e-3}),
    "plant": Command("fill a store of planted volumes for a detector", PlantOptions, _plant, again=THE_SAME),
    "vae": Command("train the VAE, for comparison", VAEOptions, train_vae, {"rate": 1e-3}),
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="mood-submission train", description=__doc__)
    stages = top.add_subparsers(dest="stage", required=True)
    for name, command in STAGES.items():
        stage = stages.add_parser(name, help=command.help, description=command.help, formatter_class=DefaultsShown)
        add_options(stage, command.options, **command.defaults)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    quiet()
    command = STAGES[args.stage]
    try:
        command.run(options_of(command.options, args))
    # Files and settings that are not as expected.
    except (ValueError, OSError) as error:
        say(f"mood-submission train: {in_one_line(error)}")
        return Group.leave(1)
    except KeyboardInterrupt:
        say(f"mood-submission train: stopped; {command.again}")
        return Group.leave(130)
    return Group.leave(0)
