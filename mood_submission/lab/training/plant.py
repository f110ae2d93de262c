"""Filling a store of planted volumes for a detector."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ...model import Model
from ...model_file import load_model
from ...runtime.option_types import above_zero, positive, shard_option
from ...runtime.options import option
from ...runtime.precision import fast_precision
from .cache import cache_names
from .checkpoints import RunError
from .run import DataOptions, Slices, SplitOptions, device_for_training
from .store import Planter, PlantingSettings, fill_store


@dataclass(frozen=True, kw_only=True)
class PlantOptions:
    """Options of `train plant`."""

    data: DataOptions
    model: Path = option("VQ-VAE and prior", metavar="FILE.safetensors")
    store: Path = option(
        "where to; goes on where it was. The slices of a --data FOLDER are cached there too", metavar="FOLDER"
    )
    count: int | None = option(
        "volumes that the store is to have had in all", type=positive, default=None, one_of="much"
    )
    minutes: float | None = option("plant so long", type=above_zero("minutes"), default=None, one_of="much")
    keep: int | None = option("volumes that are kept, the newest (default: all)", type=positive, default=None)
    shard: tuple[int, int] = option(
        "be one of N processes that fill the store together (default: 1/1)",
        type=shard_option,
        nargs=None,
        metavar="I/N",
        default=(1, 1),
    )
    planting: PlantingSettings
    split: SplitOptions


def plant_store(options: PlantOptions) -> int:
    """Fill a store for `train detector`. Returns how many volumes were planted."""
    model = planting_model(options.model, device_for_training(options.split.device))
    slices = Slices(options.data, options.split, options.store, torch.device("cpu"))
    check_volumes(slices, model, options.model)
    planter = Planter(slices["train"], model, options.planting, cache_names(slices.file))
    return fill_store(
        planter,
        options.store,
        options.count,
        minutes=options.minutes,
        keep=options.keep,
        shard=options.shard,
    )


def planting_model(file: Path, device: torch.device) -> Model:
    """The model of a file as `Planter` wants it: bfloat16 is precise enough there, and the fastest where the device has it."""
    return load_model(file, device, precision=fast_precision(device), engine="torch")


def check_volumes(slices: Slices, model: Model, file: Path) -> None:
    """Raises RunError where the model was trained on volumes that are held out here.

    What it has seen would look more ordinary to it than what it has not. Other volumes than the model's may be trained on.
    """
    trained = model.about.training.get("vqvae", {}).get("volumes", {}).get("train", [])
    seen = sorted(set(trained) & {name for split in ("validation", "test") for name in slices.names[split]})
    if seen:
        raise RunError(
            f"{slices.file}: expected held-out volumes that {file} was not trained on, found {', '.join(seen[:3])} among them"
        )
