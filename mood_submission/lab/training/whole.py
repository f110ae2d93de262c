"""Making a model from healthy volumes, from beginning to end: the other commands one after another, as a recipe says.

Each command runs in a process of its own, so that it gives all its memory back. What is finished is noted in the run's folder. So
the same command goes on after any kill.
"""

import filecmp
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from ...cli.output import duration
from ...preprocessing import Preprocessing
from ...runtime.files import copy_whole, no_folders_left, write_text
from ...runtime.memory import free_memory
from ...runtime.names import as_text
from ...runtime.precision import fast_precision
from ...runtime.torchrun import Process
from ...volumes import Source, named_volumes
from ..settings_file import check_settings, read_json
from .alone import alone_in
from .cache import OF_ANOTHER_REGION, check_region, load_cache, matches
from .checkpoints import RunError
from .commands import Helpers, run, start
from .detector_stage import DetectorOptions
from .names_file import read_names, write_names
from .recipe import FURTHER_STORES, TRAINED, Options, Recipe, default_recipe, quick_recipe
from .run import device_for_training
from .sharing import minutes_beside, minutes_for
from .step_log import StepLog, in_short, share_trained
from .store import stored_files
from .trainer import Log
from .whole_options import AllOptions, check_before, check_folder, check_split, how_many_together
from .whole_progress import WholeProgress

# Bytes of a planted volume on disk and in memory, and of all checkpoints together.
STORED_BYTES, CHECKPOINT_BYTES = 40 << 20, 2 << 30
# The slices of a volume that are cached by default, about.
CACHED_SLICES = 100
# The least free memory that training works with.
LEAST_MEMORY = 3 << 30
# The detector begins when so many volumes are planted.
FIRST_PLANTED = 3
# The most held-out volumes that are compared on, how many anomalies show every kind in every size, and the most in a volume.
MOST_COMPARED, ALL_PLANTED, MOST_PLANTED = 15, 30, 3
# Names of files in the run's folder.
FINISHED, RECIPE, VOLUMES, LOGS = "finished.json", "recipe.toml", "volumes.json", "logs"
# This is locked as long as a run goes on.
RUNNING = ".running"
NETWORKS, MODEL = "networks.safetensors", "model.safetensors"
# So much of the beginning, the middle and the end of a file tells it from another one.
MARKED_BYTES = 1 << 16
# The fewest planted volumes that are meant to be held in memory.
LEAST_STORED = 20
# Options that follow from the memory that is free, which another start may find otherwise.
BY_MEMORY = ("keep", "most")


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
    check_folder(options)
    with ExitStack() as stack:
        with _folders_of(options):
            stack.enter_context(alone_in(options.folder, RUNNING, "run", "--run"))
            whole = WholeRun(options, say)
        say(whole.needs())
        steps = whole.steps()
        progress = stack.enter_context(whole.progress)
        for number, step in enumerate(steps):
            if whole.has_finished(step.name):
                continue
            then = f", then {steps[number + 1].name}" if number + 1 < len(steps) else ""
            say(f"{number + 1}/{len(steps)} {step.name}: {step.what}{then}")
            progress.begin(step.name)
            began = time.monotonic()
            step.act()
            whole.note(step.name, time.monotonic() - began)
    return whole.folder / "index.html"


@contextmanager
def _folders_of(options: AllOptions) -> Iterator[None]:
    """Make the folders of a run. Where it is refused, those that were not there are taken away again.

    Raises RunError where a folder cannot be made or written to.
    """
    wanted, new = (options.folder, options.out.parent), not os.path.exists(options.folder)
    with no_folders_left(*wanted):
        try:
            for folder in wanted:
                _make_folder(folder)
            yield
        except BaseException:
            if new:
                with suppress(OSError):
                    (options.folder / RUNNING).unlink()
            raise


def _make_folder(folder: Path) -> None:
    """Raises RunError where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: expected a folder to write to, found: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise RunError(f"{folder}: expected a folder to write to, found one that is read-only")


def _content_mark(source: Source) -> str:
    """A short text that tells a volume from another of its name: a digest of its file's size, beginning, middle and end.

    Of a series, the number of files and the middle one stand for all.
    """
    file = source.files[len(source.files) // 2]
    try:
        with open(file, "rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            digest = hashlib.sha256(f"{len(source.files)} {size}".encode())
            for begin in (0, size // 2, max(size - MARKED_BYTES, 0)):
                opened.seek(begin)
                digest.update(opened.read(MARKED_BYTES))
    # It is left out, and named, when its turn comes.
    except OSError:
        return ""
    return digest.hexdigest()[:16]


class WholeRun:
    """The run of a recipe in a folder. Nothing is written before all is found to be right.

    say: prints a line.
    Raises RunError where it cannot work.
    """

    def __init__(self, options: AllOptions, say: Callable[[str], None] = lambda line: None):
        self.options, self.folder, self.say = options, options.folder, say
        if process := Process.from_torchrun():
            raise RunError(
                f"train all: expected one process, found {process.count} that torchrun has started; it starts such processes "
                "itself, see --together"
            )
        device_for_training(options.device)
        check_before(options)
        self.volumes = named_volumes(options.data)
        check_split(options, self.volumes)
        self.stored = self._stored()
        self.recipe = self._recipe()
        self.together = how_many_together(options, self.recipe)
        file = self.folder / FINISHED
        self.finished = _finished_in(file) if file.exists() else {}
        self.needs()
        if not self.has_finished("cache"):
            check_region(
                [source for name, source in self.volumes.items() if not matches(name, options.leave_out)],
                options.region,
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._note_what_it_is_of()
        names = [step.name for step in self.steps()]
        self.progress = WholeProgress(names, self.recipe.planned, self.finished, say)

    def _note_what_it_is_of(self) -> None:
        """Write the volumes' names and the recipe. Raises RunError where the folder is of other volumes."""
        volumes = {
            "region": self.options.region,
            "volumes": [as_text(name) for name in sorted(self.volumes)],
            # Another site may name its volumes alike.
            "contents": {as_text(name): _content_mark(self.volumes[name]) for name in sorted(self.volumes)},
            "leave_out": self.options.leave_out,
            "hold_out": self.options.hold_out,
        }
        # A recipe that was changed in the folder would be told of networks that were trained by the one before.
        recipe = self.recipe.without(BY_MEMORY).options
        # Folders of before there were further stores know nothing of them.
        volumes |= {
            f"recipe [{name}]": dict(options)
            for name, options in recipe.items()
            if options or name not in FURTHER_STORES
        }
        check_settings(self.folder / VOLUMES, volumes, RunError)
        if not (self.folder / RECIPE).exists():
            self.recipe.write(self.folder / RECIPE)

    def _recipe(self) -> Recipe:
        """The run's recipe: the folder's, where there is one. Raises RunError where that is another than the one asked for."""
        file, options = self.folder / RECIPE, self.options
        if options.recipe is not None:
            wanted = Recipe.read(options.recipe)
        elif options.hours is not None:
            gpu = torch.cuda.is_available() and options.device != "cpu"
            # To ask a GPU would hold some of its memory as long as the run goes on.
            precision = "bf16" if gpu else fast_precision(device_for_training(options.device))
            wanted = default_recipe(options.region, options.hours, gpu=gpu, stored=self.stored, precision=precision)
        else:
            wanted = quick_recipe(options.region)
        if wanted.region != options.region:
            raise RunError(f"{options.recipe}: expected a recipe for {options.region}, found one for {wanted.region}")
        if not file.exists():
            return wanted
        found = Recipe.read(file)
        if found.region != wanted.region:
            raise RunError(
                f"{file}: expected a run of region {wanted.region}, found one of {found.region}; choose another --run, or take "
                "that folder away"
            )
        if found.without(BY_MEMORY) != wanted.without(BY_MEMORY):
            raise RunError(
                f"{file}: expected the recipe of before, found another; choose another --run, or give it as --recipe"
            )
        return found

    def _stored(self) -> int:
        """How many planted volumes memory holds in a third of what is free, 20 .. 400."""
        return min(max(free_memory(torch.device("cpu")) // 3 // STORED_BYTES, LEAST_STORED), 400)

    def needs(self) -> str:
        """What the run needs, in a line. Raises RunError where there is less."""
        side = Preprocessing(self.options.region).image_size
        cache = len(self.volumes) * CACHED_SLICES * side * side
        planted = self._planted_in_all()
        quick = self.options.quick
        disk = cache + planted * STORED_BYTES + (0 if quick else CHECKPOINT_BYTES)
        there = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.exists())
        free, memory = shutil.disk_usage(there).free, free_memory(torch.device("cpu"))
        # Once planting has begun its disk is taken already.
        if free < disk and not (self.folder / "store").exists():
            raise RunError(f"{self.folder}: expected {_gb(disk)} of free disk, found {_gb(free)}; choose another --run")
        held = min(planted, self._most_held()) * STORED_BYTES + (1 << 30) if self._has_detector_to_train() else 1 << 30
        if memory < max(held, LEAST_MEMORY) and not quick:
            lower = f"; a lower most in [detector] of {self._recipe_read()} needs less" if held > LEAST_MEMORY else ""
            raise RunError(f"expected {_gb(max(held, LEAST_MEMORY))} of free memory, found {_gb(memory)}{lower}")
        hours = " and a few minutes of training" if quick else self._training_meant()
        together = f"; {self.together} processes train each network together" if self.together > 1 else ""
        return (
            f"{len(self.volumes)} volumes; needs about {_gb(disk)} of disk in {self.folder}, "
            f"{_gb(held)} of memory{hours}{together}; the recipe is {self.folder / RECIPE}"
        )

    def _planted_in_all(self) -> int:
        """How many planted volumes are kept, by the recipe, in all stores. 0 where it does not say."""
        stores = [self.recipe.options[name] for name in ("plant", *FURTHER_STORES)]
        kept = [options.get("keep") or options.get("count") or 0 for options in stores]
        return sum(number for number in kept if isinstance(number, int))

    def _has_detector_to_train(self) -> bool:
        """Whether a detector is still to be trained, or trained on."""
        return not self.has_finished("detector_2" if self.recipe.options["detector_2"] else "detector")

    def _most_held(self) -> int:
        """How many planted volumes a detector holds in memory at most, by the recipe."""
        both = [self.recipe.options[name] for name in ("detector", "detector_2") if self.recipe.options[name]]
        return max(
            (int(str(options.get("most", DetectorOptions.most))) for options in both), default=DetectorOptions.most
        )

    def _recipe_read(self) -> Path:
        """The file that the recipe was read from."""
        kept = self.folder / RECIPE
        return self.options.recipe if self.options.recipe is not None and not kept.exists() else kept

    def _training_meant(self) -> str:
        """How long the trainings are meant to take, by the recipe: their minutes in all, and the steps of those that count them."""
        planned = self.recipe.planned
        meant = [duration(60 * sum(planned.values())) + " of training"] if planned else []
        steps = {name: self.recipe.options[name].get("steps") for name in TRAINED if name not in planned}
        meant += [f"{count} steps of {name}" for name, count in steps.items() if count]
        return f" and {', '.join(meant)}" if meant else ""

    def has_finished(self, step: str) -> bool:
        """Whether a step is finished. Two are not where what they wrote is gone or another: the cache, and trying the model,
        which writes its file."""
        there = {"cache": self._has_cached, "try": self._has_written}
        return step in self.finished and (step not in there or there[step]())

    def _has_cached(self) -> bool:
        """Whether the slices are there, or no step needs them any more."""
        return self.slices.exists() or self.finished.keys() >= {"detector", "try"}

    def _has_written(self) -> bool:
        """Whether the model file is this run's."""
        made, out = self.folder / MODEL, self.options.out
        return out.exists() and (not made.exists() or filecmp.cmp(made, out, shallow=False))

    def note(self, step: str, seconds: float) -> None:
        """Note that a step is finished."""
        self.finished[step] = round(seconds, 1)
        write_text(self.folder / FINISHED, json.dumps(self.finished, indent=1) + "\n")

    def steps(self) -> list[Step]:
        """All steps of the run, in order."""
        again = [
            Step(table, "plants a further store for the second detector", partial(self._plant_further, table))
            for table in self._further_stores
        ]
        again += [Step("detector_2", "trains a second detector, on from the first", self._detector_2)]
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

    def _run(
        self,
        step: str,
        words: Sequence[object],
        *,
        budget: Mapping[str, object] | None = None,
        together: int = 1,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """Run a command of a step, and show what it tells. budget: a training's "minutes" or "steps"."""
        log, began, before = self._log(step), time.monotonic(), self._trained(step)

        def look() -> None:
            meanwhile()
            line = (log.lines() or [""])[-1]
            minutes = before + (time.monotonic() - began) / 60
            self.progress.show(in_short(line), share_trained(line, budget or {}, minutes))

        run(words, log, together=together, meanwhile=look)

    def _log(self, name: str) -> StepLog:
        return StepLog(self.folder / LOGS / f"{name}.log")

    def _cache(self) -> None:
        words = ["--data", *self.options.data, "-o", self.slices]
        words += ["--leave-out", *self.options.leave_out] if self.options.leave_out else []
        words += ["--hold-out", *self.options.hold_out] if self.options.hold_out else []
        words = ["train", "cache", "--region", self.options.region, *words, *self.recipe.words("cache")]
        self._run("cache", words)
        _, names = load_cache(self.slices)
        asked = sum(not matches(name, self.options.leave_out) for name in self.volumes)
        if left_out := asked - sum(map(len, names.values())):
            self.say(f"{left_out} of {asked} volumes cannot be read and are left out: see {self._log('cache').file}")
        for line in self._log("cache").lines():
            if OF_ANOTHER_REGION in line:
                self.say(line)

    def _train(self, stage: str) -> None:
        self._run_training(stage, [*self._stage(stage, self.together), "--out", self.folder, "--resume"])

    def _run_training(
        self, stage: str, words: Sequence[object], meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Run a command that trains, with the minutes that are left for it and the recipe's other options."""
        instead = self._minutes(stage) | self._most(stage)
        words, budget = [*words, *self.recipe.words(stage, **instead)], {**self.recipe.options[stage], **instead}
        self._run(stage, words, budget=budget, together=self.together, meanwhile=meanwhile)

    def _minutes(self, stage: str) -> Options:
        """The minutes that a stage trains, where it trains by the clock."""
        planned = self.recipe.planned
        if stage not in planned:
            return {}
        others = [seconds / 60 for step, seconds in self.finished.items() if step not in TRAINED]
        paid = {name: self._paid(name) for name in planned if name in self.finished}
        minutes = minutes_for(stage, planned, paid, minutes_beside(others, planned))
        if minutes != planned[stage]:
            self.say(f"{stage}: {minutes:g} minutes instead of {planned[stage]:g}, by what the steps before have taken")
        return {"minutes": minutes}

    def _most(self, stage: str) -> Options:
        """How many planted volumes each of several processes holds in memory."""
        if self.together == 1 or stage not in ("detector", "detector_2"):
            return {}
        most = self.recipe.options[stage].get("most", DetectorOptions.most)
        return {"most": min(int(str(most)), max(self.stored // self.together, LEAST_STORED))}

    def _paid(self, stage: str) -> float:
        """The minutes that a finished stage has taken. Its log counts those before a kill too, but the training alone."""
        return max(self.finished[stage] / 60, self._trained(stage))

    def _trained(self, stage: str) -> float:
        """The minutes that a stage has trained, by its log."""
        folder = self.folder / stage if stage == "detector_2" else self.folder
        log = Log(folder / f"{stage.removesuffix('_2')}.csv").numbers()
        return log[-1]["minutes"] if log else 0.0

    def _stage(self, stage: str, together: int = 1) -> list[object]:
        """The words that every command of `train` takes."""
        # Of several processes each takes its own GPU.
        own_gpu = together > 1 and device_for_training(self.options.device).type == "cuda"
        device = [] if own_gpu else self._device
        return ["train", stage, "--region", self.options.region, "--data", self.slices, *device]

    @property
    def _device(self) -> list[str]:
        return ["--device", self.options.device] if self.options.device else []

    def _measured_on(self, names: Path) -> list[object]:
        """The words of commands that score held-out volumes. names: a file with theirs."""
        return ["--data", *self.options.data, "--names-file", names, *self._device]

    def _export(self) -> None:
        self._run("export", ["export", self.folder, "-o", self.folder / NETWORKS, *self.recipe.words("export")])

    def _detector(self) -> None:
        """Planters fill the store while the detector trains, and end with it."""
        planters = self._start_planters("plant", self._networks)
        try:
            while (planted := self._planted()) < FIRST_PLANTED and planters.look():
                self.progress.show(f"{planted} of the first {FIRST_PLANTED} volumes are planted", 0.0)
                time.sleep(0.2)
            if planters.failed and self._planted() < FIRST_PLANTED:
                raise RunError(
                    f"{', '.join(planters.failed)}: expected {FIRST_PLANTED} planted volumes, found that it failed; see above"
                )
            self._train_detector("detector", self.folder, meanwhile=planters.look)
        finally:
            planters.end()

    def _planted(self) -> int:
        """How many planted volumes there are."""
        return len(stored_files(self.folder / "store"))

    def _start_planters(self, table: str, networks: Sequence[object]) -> Helpers:
        """The processes that plant volumes, by a table of the recipe."""
        budget = [] if {"count", "minutes"} & set(self.recipe.options[table]) else ["--minutes", 10**6]
        words = [*self._stage("plant"), *networks, *self.recipe.words(table), *budget]
        count = self.options.processes
        started, logs = {}, {}
        for number in range(1, count + 1):
            shard, log = f"{number}/{count}", self._log(f"{table}_{number}")
            name = f"train plant --shard {shard}"
            started[name], logs[name] = start([*words, "--shard", shard], log, threads=1), log
        return Helpers(started, logs, self.say)

    def _plant_further(self, table: str) -> None:
        """Planters fill a further store, and nothing else is done meanwhile. table: one of FURTHER_STORES."""
        wanted, store = self.recipe.options[table].get("count"), self._further_stores[table]
        planters = self._start_planters(table, ["--model", self.folder / NETWORKS, "--store", store])
        try:
            while planters.look():
                planted = len(stored_files(store)) if store.exists() else 0
                share = planted / wanted if isinstance(wanted, int) else 0.0
                self.progress.show(f"{planted} volumes are planted", share)
                time.sleep(0.2)
        finally:
            planters.end()
        if planters.failed:
            raise RunError(f"{', '.join(planters.failed)}: expected a further store, found that it failed; see above")

    def _detector_2(self) -> None:
        """The second one trains on what is planted."""
        also = ["--also", *self._further_stores.values()] if self._further_stores else []
        self._train_detector("detector_2", self.folder / "detector_2", "--start-from", self.folder, *also)

    def _train_detector(
        self, stage: str, out: Path, *more: object, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Train a detector. The second has the first one's sizes, which it begins from."""
        words = [*self._stage("detector", self.together), *self._networks, "--out", out, "--resume", *more]
        self._run_training(stage, words, meanwhile)

    def _add_detector(self) -> None:
        """The mean of both detectors where there are two."""
        shutil.copyfile(self.folder / NETWORKS, self.folder / MODEL)
        detectors: list[object] = [self.folder, self.folder / MODEL]
        if self.recipe.options["detector_2"]:
            detectors = [self.folder / "detector_2", self.folder / MODEL, "--mean-with", self.folder]
        self._run("add_detector", ["add-detector", *detectors, *self.recipe.words("add_detector")])

    def _calibrate(self) -> None:
        words = ["calibrate", self.folder / MODEL, *self._measured_on(self._held_out())]
        self._run("calibrate", [*words, *self.recipe.words("calibrate")])
        self._run("calibrate", [*words, "--restorations", 0])

    def _compare(self) -> None:
        """Of many held-out volumes some are enough. Of few, each is planted in several times."""
        held_out, file = read_names(self._held_out()), self.folder / "compared.txt"
        some = held_out[:: max(1, math.ceil(len(held_out) / MOST_COMPARED))]
        write_names(file, some)
        planted = min(math.ceil(ALL_PLANTED / len(some)), MOST_PLANTED)
        words = ["compare", "--region", self.options.region, *self._measured_on(file), "--planted", planted]
        words += ["--weights", self.folder / MODEL, "-o", self.folder / "results"]
        self._run("compare", [*words, *self.recipe.words("compare")])

    def _try(self) -> None:
        volume = alone(self.volumes[read_names(self._held_out())[0]], self.folder / "tried" / "volume")
        words: list[object] = ["--region", self.options.region, "--task", "both", "-i", volume, *self._device]
        words += ["-o", self.folder / "tried" / "scores", "--weights", self.folder / MODEL, "--restorations", 0]
        self._run("try", ["predict", *words, *(["--slices", 4] if self.options.quick else [])])
        self.options.out.parent.mkdir(parents=True, exist_ok=True)
        copy_whole(self.folder / MODEL, self.options.out)

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

    @property
    def _further_stores(self) -> dict[str, Path]:
        """The folders of the further stores that the recipe has, by their tables: store_2 is planted by plant_2."""
        tables = [table for table in FURTHER_STORES if self.recipe.options[table]]
        return {table: self.folder / table.replace("plant", "store") for table in tables}

    def _held_out(self) -> Path:
        """A file with the names of the volumes that are held out for validation."""
        file = self.folder / "held_out.txt"
        if not file.exists():
            _, names = load_cache(self.slices)
            write_names(file, names["validation"])
        return file


def alone(source: Source, folder: Path) -> Path:
    """A path for `predict -i` with this volume and no other: its file, or a folder with a copy of a series' files.

    folder: where the copy is made. Files of one name in different folders stay apart.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if len(source.files) == 1:
        return source.files[0]
    files = [file.absolute() for file in source.files]
    top = os.path.commonpath([file.parent for file in files])
    for file in files:
        copy = folder / "series" / file.relative_to(top)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return folder


def _finished_in(file: Path) -> dict[str, float]:
    """The seconds of each finished step. Raises RunError for a file that does not tell them."""
    finished = read_json(file, RunError)
    if not all(isinstance(seconds, int | float) for seconds in finished.values()):
        raise RunError(
            f"{file}: expected the seconds of each finished step, found something else; delete the run's folder"
        )
    return finished


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
