"""A training run, from its options to its folder: its slices, its device, its processes."""

import datetime
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ...preprocessing import Preprocessing
from ...runtime import devices
from ...runtime.contract import REGIONS
from ...runtime.option_types import DEVICE_HELP, share
from ...runtime.options import option
from ...runtime.precision import fast_precision
from .alone import alone_in
from .augment import Augmentation
from .cache import CacheError, SliceData, build_cache, load_cache
from .checkpoints import RunError, start_from
from .group import SINGLE_PROCESS, Group
from .randomise import RANDOMISATIONS, Randomisation
from .stage import Data, Network, Stage
from .trainer import Budget, Schedule, Trainer

# Seconds that another process has to end which trains in the same folder, since its parent was killed.
PATIENCE = 60.0
AUGMENTATIONS = ("published", "mild", "medium", "bold")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which volumes are trained on, and how they become slices."""

    region: str = option(None, choices=REGIONS)
    data: tuple[Path, ...] = option(
        "folders of healthy volumes, of one or several scanners; or a .npz made by 'mood-submission train cache'",
        metavar="FOLDER",
    )
    leave_out: tuple[str, ...] = option(
        "volumes not to read, by name: 'ucla*' keeps a scanner unseen", metavar="PATTERN", default=()
    )
    hold_out: tuple[str, ...] = option(
        "volumes for validation, by name, as a new cache notes them; all others are then trained on",
        metavar="PATTERN",
        default=(),
    )
    preprocessing: str = option(
        "how volumes become slices: framed, scaled and sharpened alike, or as published",
        choices=("harmonised", "published"),
        default="harmonised",
    )
    max_slices: int | None = option("cache at most N slices a volume, evenly spaced", metavar="N", default=None)

    def build_cache(self, file: Path) -> None:
        """Read the volumes and write their slices to `file`."""
        make = Preprocessing.published if self.preprocessing == "published" else Preprocessing.harmonised
        build_cache(
            self.data,
            file,
            make(self.region),
            max_slices=self.max_slices,
            leave_out=self.leave_out,
            hold_out=self.hold_out,
        )


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Which volumes are held out, on which training and planting must agree, and the device."""

    validation: float = option("share of volumes held out for thresholds", type=share, default=0.1)
    test: float = option("share of volumes not looked at at all", type=share, default=0.1)
    device: str | None = option(DEVICE_HELP, default=None)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What all stages have in common."""

    data: DataOptions
    out: Path = option("folder of this run", metavar="RUN_DIR")
    budget: Budget
    resume: bool = option("go on from the run's checkpoint, if it has one", default=False)
    start_from: Path | None = option(
        "start from another run's weights, or a model file's", metavar="RUN_DIR|FILE.safetensors", default=None
    )
    schedule: Schedule
    augment: str = option(
        "how slices are varied: as published, or by domain randomisation", choices=AUGMENTATIONS, default="mild"
    )
    dropout: float = option("probability that a unit drops a channel", type=share, default=0.1)
    split: SplitOptions


def device_for_training(name: str | None) -> torch.device:
    """The device of that name. None for the GPU, or the CPU where there is no GPU.

    Raises RunError for what is no device, and for a GPU that is not there.
    """
    try:
        device = devices.device_named(name)
    except RuntimeError:
        raise RunError(f"--device: expected cpu, cuda, cuda:1, mps ..., found {name}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"--device {name}: expected a GPU that is there, found {torch.cuda.device_count()} GPUs")
    return device


class Slices:
    """The cached slices that a command works on.

    file: the cache. It is made in the folder `out` where `data` names none.
    splits: the slices of each split.
    names: the names of each split's volumes.
    Raises CacheError where the cache is another region's, or where there is nothing to train on or to validate with.
    """

    def __init__(
        self, data: DataOptions, split: SplitOptions, out: Path, device: torch.device, group: Group = SINGLE_PROCESS
    ):
        out.mkdir(parents=True, exist_ok=True)
        self.file = data.data[0] if data.data[0].suffix == ".npz" else out / "slices.npz"
        if not self.file.exists() and group.first:
            data.build_cache(self.file)
        group.wait()
        self.splits, self.names = load_cache(self.file, device, split.validation, split.test)
        if self.preprocessing.region != data.region:
            raise CacheError(f"{self.file}: expected slices of region {data.region}, found {self.preprocessing.region}")
        if not len(self.splits["train"]) or not len(self.splits["validation"]):
            raise CacheError(
                f"{self.file}: expected volumes to hold out for validation, found "
                f"{sum(map(len, self.names.values()))} volumes"
            )

    def __getitem__(self, split: str) -> SliceData:
        return self.splits[split]

    @property
    def preprocessing(self) -> Preprocessing:
        return self.splits["train"].preprocessing


class Run:
    """The training of one stage: what its options say, the processes that train together, and the slices.

    slices_on: the device of the slices. None for the run's own.
    """

    def __init__(self, options: RunOptions, slices_on: torch.device | None = None):
        self.options, self.group = options, Group.from_environment()
        self.out = options.out
        self.device = device_for_training(options.split.device or self.group.device)
        self.precision = options.schedule.precision or fast_precision(self.device)
        self.schedule = replace(options.schedule, precision=self.precision)
        torch.manual_seed(self.schedule.seed)
        self.slices = Slices(options.data, options.split, self.out, slices_on or self.device, self.group)

    @property
    def augmentation(self) -> Augmentation | Randomisation:
        """The ranges that --augment stands for in the region: the published set, or a domain randomisation."""
        name = self.options.augment
        return Augmentation() if name == "published" else RANDOMISATIONS[self.options.data.region][name]

    def trainer(self, stage: Stage[Data, Network], about: dict, data: Mapping[str, Data]) -> Trainer[Data, Network]:
        """The trainer of a stage. It goes on from the stage's checkpoint, where the folder has one.

        stage: what is trained.
        about: what the checkpoint is to say of the stage.
        data: the splits that the stage trains on.
        Raises RunError where the folder has a checkpoint and the run is not to be resumed, and where another process trains the
        stage there.
        """
        with ExitStack() as stack:
            if self.group.first:
                training, lock = f"training of a {stage.name}", f".{stage.name}.lock"
                stack.enter_context(alone_in(self.out, lock, training, "--out", patience=PATIENCE))
            file = self.out / f"{stage.name}.pt"
            if file.exists() and not self.options.resume:
                raise RunError(f"{file}: exists already; continue it with --resume, or choose another --out")
            about = self._about() | about
            if self.options.start_from is not None:
                about |= {"started_from": start_from(self.options.start_from, stage)}
            trainer = Trainer(
                stage,
                data,
                out=self.out,
                budget=self.options.budget,
                schedule=self.schedule,
                device=self.device,
                about=about,
                group=self.group,
            )
            if file.exists():
                trainer.resume()
            trainer.alone = stack.pop_all()
        return trainer

    def _about(self) -> dict:
        return {
            "region": self.options.data.region,
            "preprocessing": self.slices.preprocessing.to_dict(),
            "volumes": self.slices.names,
            "data": ", ".join(folder.stem for folder in self.options.data.data),
            "augment": self.options.augment,
            "slices": {name: len(data) for name, data in self.slices.splits.items()},
            "schedule": asdict(self.schedule),
            "device": self.device.type,
        } | made_now()


def made_now() -> dict:
    """What a model file says of how one of its parts was made: the day, the commit of this code, and PyTorch's version."""
    return {
        "date": datetime.date.today().isoformat(),
        "revision": git_revision(),
        "torch": torch.__version__,
    }


def git_revision() -> str:
    """The commit of this code, with "+changes" where files differ from it. It is "unknown" outside a checkout."""

    def git(*words: str) -> str:
        command, folder = ["git", *words], Path(__file__).parent
        output = subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout
        return output.decode(errors="replace").strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
