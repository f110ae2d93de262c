"""The options of `train all`, and what can be wrong with them before anything is done."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from ...runtime.contract import REGIONS
from ...runtime.option_types import DEVICE_HELP, above_zero, ending_in, positive
from ...runtime.options import option
from .cache import matches, split_names
from .checkpoints import RunError
from .recipe import TRAINED, Recipe
from .run import device_for_training
from .trainer import Schedule


@dataclass(frozen=True, kw_only=True)
class AllOptions:
    """Options of `train all`."""

    region: str = option(None, choices=REGIONS)
    data: tuple[Path, ...] = option("healthy volumes, of one or several scanners", metavar="FOLDER")
    out: Path = option("model file to write", "-o", "--out", metavar="FILE.safetensors", type=ending_in(".safetensors"))
    leave_out: tuple[str, ...] = option("volumes not to read, by name", metavar="PATTERN", default=())
    hold_out: tuple[str, ...] = option(
        "volumes for validation, by name (default: a tenth of each source, and another tenth for the test)",
        metavar="PATTERN",
        default=(),
    )
    run: Path | None = option(
        "folder for what is made on the way (default: FILE.run beside the model file)", metavar="RUN_DIR", default=None
    )
    hours: float | None = option("train so long", type=above_zero("hours"), default=None, one_of="time")
    quick: bool = option("tiny networks and a few steps, to see whether all works", default=False, one_of="time")
    recipe: Path | None = option(
        "a recipe of your own, such as RUN_DIR/recipe.toml of another run",
        metavar="FILE.toml",
        default=None,
        one_of="time",
    )
    processes: int = option(
        "processes that plant volumes beside the detector's training",
        type=positive,
        metavar="N",
        default=lambda: max(1, (os.cpu_count() or 1) // 2),
    )
    together: int | None = option(
        "processes that train each network together, each on a GPU of its own, or all on the CPU "
        "(default: as many GPUs as are there and as batches can be parted for)",
        type=positive,
        metavar="N",
        default=None,
    )
    device: str | None = option(DEVICE_HELP, default=None)

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.run or self.out.with_suffix(".run")


def check_folder(options: AllOptions) -> None:
    """Raises RunError where the run's folder is one with volumes."""
    if any(options.folder.exists() and folder.exists() and options.folder.samefile(folder) for folder in options.data):
        raise RunError(f"{options.folder}: expected a folder of its own for the run, found the one with the volumes")


def check_before(options: AllOptions) -> None:
    """Raises RunError where the model file cannot be written, or a package is missing that a step needs."""
    if options.out.is_dir():
        raise RunError(f"{options.out}: expected a file to write, found a folder")
    if find_spec("matplotlib") is None:
        raise RunError(
            "train all: expected matplotlib, for the pictures of each step, found none; pip install '.[train]'"
        )


def check_split(options: AllOptions, volumes: Collection[str]) -> None:
    """Raises RunError where the volumes' names leave none to train on, or none to hold out."""
    where = ", ".join(map(str, options.data))
    names = [name for name in volumes if not matches(name, options.leave_out)]
    if not names:
        raise RunError(f"{where}: expected volumes that --leave-out does not name, found none of {len(volumes)}")
    # A name with a slip would be trained on.
    for pattern in options.hold_out:
        if not any(matches(name, [pattern]) for name in names):
            raise RunError(f"{where}: expected volumes named {pattern} to hold out, found none")
    held_out = [name for name in names if matches(name, options.hold_out)]
    split = split_names(names, held_out=held_out)
    if held_out and not split["train"]:
        raise RunError(f"{where}: expected volumes to train on, found that --hold-out names all {len(names)}")
    if not (split["train"] and split["validation"]):
        raise RunError(
            f"{where}: expected at least three volumes whose names begin with the same letters, since some of each source are "
            f"held out, found {len(names)} volumes without; --hold-out NAME holds some out"
        )


def how_many_together(options: AllOptions, recipe: Recipe) -> int:
    """How many processes train each network together.

    Raises RunError for more than there are GPUs, for a device that they cannot share, and where a batch has no even share for
    each.
    """
    device, wanted = device_for_training(options.device), options.together
    gpus = torch.cuda.device_count() if device.type == "cuda" and options.device in (None, "cuda") else 0
    if wanted is None:
        return next((count for count in range(gpus, 1, -1) if not _not_parted(recipe, count)), 1)
    if wanted == 1:
        return 1
    if device.type != "cpu" and not gpus:
        raise RunError(f"--together {wanted}: expected --device cpu or cuda, found {options.device}")
    if gpus and wanted > gpus:
        raise RunError(f"--together {wanted}: expected at most as many processes as GPUs, found {gpus} GPUs")
    if wrong := _not_parted(recipe, wanted):
        raise RunError(f"--together {wanted}: {wrong}")
    return wanted


def _not_parted(recipe: Recipe, count: int) -> str:
    """What is wrong with the first batch that cannot be divided evenly among `count` processes. Empty where all can be."""
    for stage in TRAINED:
        options = recipe.options[stage]
        if stage == "detector_2" and not options:
            continue
        batch, parts = (options.get(name, getattr(Schedule, name)) for name in ("batch", "accumulate"))
        if isinstance(batch, int) and isinstance(parts, int) and batch % (count * parts):
            return f"expected a batch in [{stage}] that is a multiple of {count * parts}, found {batch}"
    return ""
