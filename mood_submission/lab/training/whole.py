"""Making a model from healthy volumes, from beginning to end: the other commands one after another, as a recipe says.

Each command runs in a process of its own, so that it gives all its memory back. What is finished is noted in the run's folder. So
the same command goes on after any kill.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...preprocessing import Preprocessing
from ...runtime.contract import REGIONS
from ...runtime.files import exclusive_lock, write_text
from ...runtime.memory import free_memory
from ...runtime.names import as_text
from ...runtime.option_types import DEVICE_HELP, above_zero, ending_in, positive
from ...runtime.options import option
from ...runtime.settings_file import check_settings
from ...runtime.torchrun import Process
from ...volumes import named_volumes
from .cache import load_cache, matches, split_names
from .checkpoints import RunError
from .commands import Helpers, run, start
from .names_file import read_names, write_names
from .recipe import TRAINED, Recipe, default_recipe, quick_recipe
from .run import device_named
from .sharing import minutes_beside, minutes_for
from .store import stored_files
from .trainer import Log

# Bytes of a planted volume on disk and in memory, and of all checkpoints together.
STORED_BYTES, CHECKPOINT_BYTES = 40 << 20, 2 << 30
# The slices of a volume that are cached by default, about.
CACHED_SLICES = 100
# The least free memory that training works with.
LEAST_MEMORY = 3 << 30
# The detector begins when so many volumes are planted.
FIRST_PLANTED = 3
# Names of files in the run's folder.
FINISHED, RECIPE, VOLUMES = "finished.json", "recipe.toml", "volumes.json"
# This is locked as long as a run goes on.
RUNNING = ".running"
NETWORKS, MODEL = "networks.safetensors", "model.safetensors"
# Options that follow from the memory that is free, which another start may find otherwise.
BY_MEMORY = ("keep", "most")


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
    device: str | None = option(DEVICE_HELP, default=None)

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.run or self.out.with_suffix(".run")


@dataclass(frozen=True)
class Step:
    """One step of the run. name: of STAGES, or what else is done. what: in a few words. act: does it."""

    name: str
    what: str
    act: Callable[[], None] = field(repr=False)


def train_all(options: AllOptions, say: Callable[[str], None]) -> Path:
    """Make a model. Returns the page that tells how well that went.

    say: prints a line.
    Raises RunError where a step fails, where the volumes, the device, disk or memory do not suffice, for a folder with the run
    of another recipe or of other volumes, and for one where another process is at work.
    """
    for folder in (options.folder, options.out.parent):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder}: expected a folder to write to, found: {error.strerror}") from None
        if not os.access(folder, os.W_OK):
            raise RunError(f"{folder}: expected a folder to write to, found one that is read-only")
    with _alone_in(options.folder):
        whole = WholeRun(options, say)
        say(whole.needs())
        steps = whole.steps()
        for number, step in enumerate(steps):
            if whole.has_finished(step.name):
                continue
            then = f", then {steps[number + 1].name}" if number + 1 < len(steps) else ""
            say(f"{number + 1}/{len(steps)} {step.name}: {step.what}{then}")
            began = time.monotonic()
            step.act()
            whole.note(step.name, time.monotonic() - began)
    return whole.folder / "index.html"


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """While open, no other run begins in the folder. Raises RunError where one is at work there."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder / RUNNING, wait=False))
        except BlockingIOError:
            raise RunError(
                f"{folder}: expected no other run in this folder, found one at work; wait for its end, or choose another --run"
            ) from None
        yield


class WholeRun:
    """The run of a recipe in a folder. say: prints a line. Raises RunError where it cannot work."""

    def __init__(self, options: AllOptions, say: Callable[[str], None] = lambda line: None):
        self.options, self.folder, self.say = options, options.folder, say
        if process := Process.from_torchrun():
            raise RunError(
                f"train all: expected one process, found {process.count} that torchrun has started; "
                "start the stages by torchrun one by one, see docs/training.md"
            )
        device_named(options.device)
        self.volumes = named_volumes(options.data)
        self._check_split()
        self.folder.mkdir(parents=True, exist_ok=True)
        volumes = {
            "region": options.region,
            "volumes": [as_text(name) for name in sorted(self.volumes)],
            "leave_out": options.leave_out,
            "hold_out": options.hold_out,
        }
        check_settings(self.folder / VOLUMES, volumes, RunError)
        self.stored = self._stored()
        self.recipe = self._recipe()
        file = self.folder / FINISHED
        self.finished: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    def _check_split(self) -> None:
        """Raises RunError where the volumes' names leave none to train on, or none to hold out."""
        options, where = self.options, ", ".join(map(str, self.options.data))
        names = [name for name in self.volumes if not matches(name, options.leave_out)]
        held_out = [name for name in names if matches(name, options.hold_out)]
        if options.hold_out and not held_out:
            raise RunError(f"{where}: expected volumes named {', '.join(options.hold_out)} to hold out, found none")
        split = split_names(names, held_out=held_out)
        if not (split["train"] and split["validation"]):
            raise RunError(
                f"{where}: expected volumes to train on and others to hold out, at least three of a source, found {len(names)}"
            )

    def _recipe(self) -> Recipe:
        """The run's recipe, which is written where there is none yet."""
        file, options = self.folder / RECIPE, self.options
        if options.recipe is not None:
            wanted = Recipe.read(options.recipe)
        elif options.hours is not None:
            gpu = torch.cuda.is_available() and options.device != "cpu"
            wanted = default_recipe(options.region, options.hours, gpu=gpu, stored=self.stored)
        else:
            wanted = quick_recipe(options.region)
        if wanted.region != options.region:
            raise RunError(f"{options.recipe}: expected a recipe for {options.region}, found one for {wanted.region}")
        if not file.exists():
            wanted.write(file)
            return wanted
        found = Recipe.read(file)
        if found.without(BY_MEMORY) != wanted.without(BY_MEMORY):
            raise RunError(
                f"{file}: expected the recipe of before, found another; choose another --run, or give it as --recipe"
            )
        return found

    def _stored(self) -> int:
        """How many planted volumes memory holds in a third of what is free, 20 .. 400."""
        return min(max(free_memory(torch.device("cpu")) // 3 // STORED_BYTES, 20), 400)

    def needs(self) -> str:
        """What the run needs, in a line. Raises RunError where there is less."""
        side = Preprocessing(self.options.region).image_size
        cache = len(self.volumes) * CACHED_SLICES * side * side
        kept = self.recipe.options["plant"].get("keep") or self.recipe.options["plant"].get("count") or 0
        planted = int(kept if isinstance(kept, int) else 0)
        quick = self.options.quick
        disk = cache + planted * STORED_BYTES + (0 if quick else CHECKPOINT_BYTES)
        free, memory = shutil.disk_usage(self.folder).free, free_memory(torch.device("cpu"))
        # Once planting has begun its disk is taken already.
        if free < disk and not (self.folder / "store").exists():
            raise RunError(f"{self.folder}: expected {_gb(disk)} of free disk, found {_gb(free)}; choose another --run")
        if memory < LEAST_MEMORY and not quick:
            raise RunError(f"expected {_gb(LEAST_MEMORY)} of free memory, found {_gb(memory)}")
        hours = "" if self.options.hours is None else f" and {self.options.hours:g} hours"
        return (
            f"{len(self.volumes)} volumes; needs about {_gb(disk)} of disk in {self.folder}, "
            f"{_gb(planted * STORED_BYTES + (1 << 30))} of memory{hours}; the recipe is {self.folder / RECIPE}"
        )

    def has_finished(self, step: str) -> bool:
        """Whether a step is finished. Trying the model, which writes its file, is not where that file is gone."""
        return step in self.finished and (step != "try" or self.options.out.exists())

    def note(self, step: str, seconds: float) -> None:
        """Note that a step is finished."""
        self.finished[step] = round(seconds, 1)
        write_text(self.folder / FINISHED, json.dumps(self.finished, indent=1) + "\n")

    def steps(self) -> list[Step]:
        """All steps of the run, in order."""
        again = [Step("detector_2", "trains a second detector, on from the first", self._detector_2)]
        return [
            Step("cache", "reads the volumes and keeps their slices", self._cache),
            Step("vqvae", "trains the VQ-VAE", lambda: self._train("vqvae")),
            Step("prior", "trains the prior on its codes", lambda: self._train("prior")),
            Step("export", "writes both to a file", self._export),
            Step("detector", "plants anomalies and trains the detector on them", self._detector),
            *(again if self.recipe.options["detector_2"] else []),
            Step("add_detector", "puts the detector into the file", self._add_detector),
            Step("calibrate", "measures what scores mean on held-out volumes", self._calibrate),
            Step("compare", "scores planted anomalies in held-out volumes", self._compare),
            Step("try", "scores a held-out volume as users do, and writes the model file", self._try),
            Step("report", "writes the page on how well it went", self._report),
        ]

    # --- the steps -----------------------------------------------------------------------------------------------------

    def _cache(self) -> None:
        words = ["--data", *self.options.data, "-o", self.slices]
        words += ["--leave-out", *self.options.leave_out] if self.options.leave_out else []
        words += ["--hold-out", *self.options.hold_out] if self.options.hold_out else []
        run(["train", "cache", "--region", self.options.region, *words, *self.recipe.words("cache")])

    def _train(self, stage: str) -> None:
        run([*self._stage(stage), "--out", self.folder, "--resume", *self._words(stage)])

    def _words(self, stage: str) -> list[str]:
        """The options of a stage that trains, with the minutes that are left for it."""
        planned = self.recipe.planned
        if stage not in planned:
            return self.recipe.words(stage)
        others = [seconds / 60 for step, seconds in self.finished.items() if step not in TRAINED]
        paid = {name: self._paid(name) for name in planned if name in self.finished}
        minutes = minutes_for(stage, planned, paid, minutes_beside(others, planned))
        if minutes != planned[stage]:
            self.say(f"{stage}: {minutes:g} minutes instead of {planned[stage]:g}, by what the steps before have taken")
        return self.recipe.words(stage, minutes=minutes)

    def _paid(self, stage: str) -> float:
        """The minutes that a finished stage has taken. Its log counts those before a kill too, but the training alone."""
        folder = self.folder / stage if stage == "detector_2" else self.folder
        log = Log(folder / f"{stage.removesuffix('_2')}.csv").numbers()
        return max(self.finished[stage] / 60, log[-1]["minutes"] if log else 0.0)

    def _stage(self, stage: str) -> list[object]:
        """The words that every command of `train` takes."""
        return ["train", stage, "--region", self.options.region, "--data", self.slices, *self._device]

    @property
    def _device(self) -> list[str]:
        return ["--device", self.options.device] if self.options.device else []

    @property
    def _measured_on(self) -> list[object]:
        """The words of commands that score the held-out volumes."""
        return ["--data", *self.options.data, "--names-file", self._held_out(), *self._device]

    def _export(self) -> None:
        run(["export", self.folder, "-o", self.folder / NETWORKS, *self.recipe.words("export")])

    def _detector(self) -> None:
        """Planters fill the store while the detector trains, and end with it."""
        planters = self._start_planters()
        try:
            while len(stored_files(self.folder / "store")) < FIRST_PLANTED and planters.look():
                time.sleep(0.2)
            if planters.failed and len(stored_files(self.folder / "store")) < FIRST_PLANTED:
                raise RunError(
                    f"{', '.join(planters.failed)}: expected {FIRST_PLANTED} planted volumes, found that it failed; see above"
                )
            self._train_detector("detector", self.folder, meanwhile=planters.look)
        finally:
            planters.end()

    def _start_planters(self) -> Helpers:
        """The processes that plant volumes."""
        budget = [] if "count" in self.recipe.options["plant"] else ["--minutes", 10**6]
        words = [*self._stage("plant"), *self._networks, *self.recipe.words("plant"), *budget]
        count = self.options.processes
        shards = [f"{number}/{count}" for number in range(1, count + 1)]
        started = {f"train plant --shard {shard}": start([*words, "--shard", shard], threads=1) for shard in shards}
        return Helpers(started, self.say)

    def _detector_2(self) -> None:
        """The second one trains on what is planted."""
        self._train_detector("detector_2", self.folder / "detector_2", "--start-from", self.folder)

    def _train_detector(
        self, stage: str, out: Path, *more: object, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        words = [*self._stage("detector"), *self._networks, "--out", out, "--resume", *more]
        run([*words, *self._words(stage)], meanwhile)

    def _add_detector(self) -> None:
        """The mean of both detectors where there are two."""
        shutil.copyfile(self.folder / NETWORKS, self.folder / MODEL)
        detectors: list[object] = [self.folder, self.folder / MODEL]
        if self.recipe.options["detector_2"]:
            detectors = [self.folder / "detector_2", self.folder / MODEL, "--mean-with", self.folder]
        run(["add-detector", *detectors, *self.recipe.words("add_detector")])

    def _calibrate(self) -> None:
        words = ["calibrate", self.folder / MODEL, *self._measured_on]
        run([*words, *self.recipe.words("calibrate")])
        run([*words, "--restorations", 0])

    def _compare(self) -> None:
        words = ["compare", "--region", self.options.region, *self._measured_on]
        words += ["--weights", self.folder / MODEL, "-o", self.folder / "results"]
        run([*words, *self.recipe.words("compare")])

    def _try(self) -> None:
        source = self.volumes[read_names(self._held_out())[0]]
        alone = self.folder / "tried" / "volume"
        shutil.rmtree(alone, ignore_errors=True)
        alone.mkdir(parents=True)
        for file in source.files:
            shutil.copyfile(file, alone / file.name)
        words: list[object] = ["--region", self.options.region, "--task", "both", "-i", alone]
        words += ["-o", self.folder / "tried" / "scores", "--weights", self.folder / MODEL, "--restorations", 0]
        run(["predict", *words, *(["--slices", 4] if self.options.quick else [])])
        self.options.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.folder / MODEL, self.options.out)

    def _report(self) -> None:
        from .whole_report import write_report

        write_report(self.folder, self.options.out, self.recipe, self.finished)

    # --- what the steps share --------------------------------------------------------------------------------------------

    @property
    def slices(self) -> Path:
        """The cache."""
        return self.folder / "slices.npz"

    @property
    def _networks(self) -> list[object]:
        """The words of commands that work on the store."""
        return ["--model", self.folder / NETWORKS, "--store", self.folder / "store"]

    def _held_out(self) -> Path:
        """A file with the names of the volumes that are held out for validation."""
        file = self.folder / "held_out.txt"
        if not file.exists():
            _, names = load_cache(self.slices)
            write_names(file, names["validation"])
        return file


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
