"""Making a model from healthy volumes, from beginning to end: the other commands one after another, as a recipe says.

Each command runs in a process of its own, so that it gives all its memory back. What is finished is noted in the run's folder. So
the same command goes on after any kill.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...preprocessing import Preprocessing
from ...runtime.contract import REGIONS
from ...runtime.files import write_text
from ...runtime.memory import free_memory
from ...runtime.names import as_text
from ...runtime.option_types import DEVICE_HELP, above_zero, ending_in, positive
from ...runtime.options import option
from ...runtime.settings_file import check_settings
from ...volumes import named_volumes
from .cache import load_cache
from .checkpoints import RunError
from .recipe import Recipe, default_recipe, quick_recipe
from .store import stored_files

# The package's folder.
PACKAGE = Path(__file__).parents[2]
# Bytes of a planted volume on disk and in memory, and of all checkpoints together.
STORED_BYTES, CHECKPOINT_BYTES = 40 << 20, 2 << 30
# The slices of a volume that are cached by default, about.
CACHED_SLICES = 100
# The least free memory that training works with.
LEAST_MEMORY = 3 << 30
# The detector begins when so many volumes are planted.
FIRST_PLANTED = 3
# A number of Linux: what a process is sent when its parent ends.
PR_SET_PDEATHSIG = 1
# Names of files in the run's folder.
FINISHED, RECIPE, VOLUMES = "finished.json", "recipe.toml", "volumes.json"
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
    Raises RunError where a step fails, where disk or memory do not suffice, and for a folder with the run of another recipe or
    of other volumes.
    """
    run = WholeRun(options)
    say(run.needs())
    steps = run.steps()
    for number, step in enumerate(steps):
        if run.has_finished(step.name):
            continue
        then = f", then {steps[number + 1].name}" if number + 1 < len(steps) else ""
        say(f"{number + 1}/{len(steps)} {step.name}: {step.what}{then}")
        began = time.monotonic()
        step.act()
        run.note(step.name, time.monotonic() - began)
    return run.folder / "index.html"


class WholeRun:
    """The run of a recipe in a folder. Raises RunError where it cannot work."""

    def __init__(self, options: AllOptions):
        self.options, self.folder = options, options.folder
        self.volumes = named_volumes(options.data)
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
        return [
            Step("cache", "reads the volumes and keeps their slices", self._cache),
            Step("vqvae", "trains the VQ-VAE", lambda: self._train("vqvae")),
            Step("prior", "trains the prior on its codes", lambda: self._train("prior")),
            Step("export", "writes both to a file", self._export),
            Step("detector", "plants anomalies and trains the detector on them", self._detector),
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
        self._command(["train", "cache", "--region", self.options.region, *words, *self.recipe.words("cache")])

    def _train(self, stage: str) -> None:
        self._command([*self._stage(stage), "--out", self.folder, "--resume", *self.recipe.words(stage)])

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
        self._command(["export", self.folder, "-o", self.folder / NETWORKS, *self.recipe.words("export")])

    def _detector(self) -> None:
        """Planters fill the store while the detector trains, and end with it."""
        networks: list[object] = ["--model", self.folder / NETWORKS, "--store", self.folder / "store"]
        budget = [] if "count" in self.recipe.options["plant"] else ["--minutes", 10**6]
        planters = [
            self._start(
                [
                    *self._stage("plant"),
                    *networks,
                    *self.recipe.words("plant"),
                    *budget,
                    "--shard",
                    f"{number}/{self.options.processes}",
                ],
                threads=1,
            )
            for number in range(1, self.options.processes + 1)
        ]
        try:
            while len(stored_files(self.folder / "store")) < FIRST_PLANTED:
                if all(planter.poll() is not None for planter in planters):
                    if any(planter.returncode for planter in planters):
                        raise RunError("train plant: expected planted volumes, found that it failed; see above")
                    break
                time.sleep(0.2)
            words = [*networks, "--out", self.folder, "--resume", *self.recipe.words("detector")]
            self._command([*self._stage("detector"), *words])
        finally:
            _end(planters)

    def _add_detector(self) -> None:
        shutil.copyfile(self.folder / NETWORKS, self.folder / MODEL)
        self._command(["add-detector", self.folder, self.folder / MODEL, *self.recipe.words("add_detector")])

    def _calibrate(self) -> None:
        words = ["calibrate", self.folder / MODEL, *self._measured_on]
        self._command([*words, *self.recipe.words("calibrate")])
        self._command([*words, "--restorations", 0])

    def _compare(self) -> None:
        words = ["compare", "--region", self.options.region, *self._measured_on]
        words += ["--weights", self.folder / MODEL, "-o", self.folder / "results"]
        self._command([*words, *self.recipe.words("compare")])

    def _try(self) -> None:
        source = self.volumes[self._held_out().read_text("utf-8").splitlines()[0]]
        alone = self.folder / "tried" / "volume"
        shutil.rmtree(alone, ignore_errors=True)
        alone.mkdir(parents=True)
        for file in source.files:
            shutil.copyfile(file, alone / file.name)
        words: list[object] = ["--region", self.options.region, "--task", "both", "-i", alone]
        words += ["-o", self.folder / "tried" / "scores", "--weights", self.folder / MODEL, "--restorations", 0]
        self._command(["predict", *words, *(["--slices", 4] if self.options.quick else [])])
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

    def _held_out(self) -> Path:
        """A file with the names of the volumes that are held out for validation, one a line."""
        file = self.folder / "held_out.txt"
        if not file.exists():
            _, names = load_cache(self.slices)
            write_text(file, "".join(f"{name}\n" for name in names["validation"]))
        return file

    def _start(self, words: Sequence[object], threads: int | None = None) -> subprocess.Popen:
        """Start a command of this package."""
        # The package may lie in a checkout that is not installed.
        paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        command = [sys.executable, "-m", "mood_submission", *map(str, words)]
        return subprocess.Popen(
            command, env=environment, preexec_fn=_end_with_parent if sys.platform == "linux" else None
        )

    def _command(self, words: Sequence[object]) -> None:
        """Run a command of this package. Raises RunError where it fails; it has said why."""
        process = self._start(words)
        try:
            code = process.wait()
        except BaseException:
            _end([process])
            raise
        if code:
            name = " ".join(str(word) for word in words[: 2 if words[0] == "train" else 1])
            raise RunError(
                f"{name}: expected it to work, found exit status {code}; the same command goes on from there"
            )


def _end_with_parent() -> None:
    """Have the system end this process when its parent is killed, so that two runs never write the same files. For Linux."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """End processes, and wait until they have."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
