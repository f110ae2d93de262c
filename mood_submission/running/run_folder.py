"""A folder of volumes: each is read, computed and written, and nothing that happens to one keeps the others from it."""

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ..output.findings_folder import FindingsFolder
from ..output.predictions import read_prepared, write_scores
from ..predictor import Predictor, Prepared
from ..runtime.contract import BOTH, TASKS
from ..runtime.memory import is_gpu_failure
from ..runtime.names import as_text, in_one_line, shown
from ..runtime.stopping import check_stopped
from ..volumes import Source, VolumeError, read_grid, read_volume, source_at
from .time_budget import Computed, compute_within

T = TypeVar("T")
STATUSES = ("predicted", "resumed", "failed", "not reached")


@dataclass
class Outcome:
    """What became of a volume.

    status: one of STATUSES. device: that its networks ran on. seconds: reading, computing and writing it.
    score: the sample score, or the highest voxel's, 0 .. 1. slice_count, restorations: what it was made of.
    message: why it failed, or what was not as usual; one line that names the file, or empty. notes: of reading it.
    """

    source: Source
    status: str = "not reached"
    device: str = ""
    seconds: float = 0.0
    score: float | None = None
    slice_count: int | None = None
    restorations: int | None = None
    message: str = ""
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """What names it."""
        return self.source.path

    def remark(self, line: str) -> None:
        """Add a line to the message; nothing where it is empty or there already."""
        if line and line not in self.message:
            self.message = "; ".join(filter(None, (self.message, line)))

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        names = ("status", "seconds", "device", "score", "restorations")
        message = "; ".join(filter(None, (self.message, *self.notes)))
        return (
            {"file": as_text(self.file.name)}
            | {name: getattr(self, name) for name in names}
            | {"slices": self.slice_count, "message": shown(message)}
        )


def predict_files(
    predictor: Predictor,
    sources: Iterable[Source | Path],
    task: str,
    out: Path,
    done: Callable[[Outcome], object] = lambda outcome: None,
    resume: bool = False,
    seconds: float | None = None,
    findings: FindingsFolder | None = None,
    stage: Callable[[str, Path], object] = lambda name, file: None,
) -> list[Outcome]:
    """Predict each file into the folder `out`. One that fails is an outcome, and the others go on.

    sources: volumes as `find_volumes` gives them, or paths (see `source_at`). Each is asked for when the one before it is begun, so
    they may come from a queue that others take from too.

    While the networks run on one file, the next is read and the last one written, each in a thread: no more than one
    waits on either side. A file that a GPU fails at is computed on the CPU.
    done: called with each outcome, in the sources' order. resume: leave out files whose whole prediction is there (see
    `finished`). seconds: for each file, from reading to writing it (see `time_budget`); None for as long as it takes. findings: where
    the objects that stand out are written to, with the pixel task. stage: called when the networks begin with a file, with
    what is done with it.

    An exception that is no file's failure, such as KeyboardInterrupt (see also `stopping.ask_to_stop`), is raised when the file that is being read and the
    one that is being written are done; nothing else is begun.
    """
    return FolderRun(predictor, task, out, done, resume, seconds, findings, stage).run(sources)


def finished(source: Source | Path, task: str, out: Path) -> float | None:
    """The score (see `Outcome`) of a prediction that is there and whole: scores in [0, 1], for each voxel of the
    source's grid. None where it is not. With which options it was made is not known."""
    if task == BOTH:
        of_each = [finished(source, part, out) for part in TASKS]
        return None if None in of_each else of_each[0]
    try:
        source = source if isinstance(source, Source) else source_at(source)
        if task == "sample":
            score = float((out / f"{source.output_name}.txt").read_text("utf-8"))
            return score if 0 <= score <= 1 else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores, grid = read_volume(out / source.output_name), read_grid(source)
    except (OSError, ValueError):  # VolumeError is one
        return None
    same = scores.grid.shape == grid.shape and np.allclose(
        scores.grid.affine_mm, grid.affine_mm, rtol=1e-6, atol=1e-4
    )
    low, high = float(scores.data.min()), float(scores.data.max())
    return high if same and not scores.missing and low >= 0 and high <= 1 else None


@dataclass
class FolderRun:
    """See `predict_files`."""

    predictor: Predictor
    task: str
    out: Path
    done: Callable[[Outcome], object]
    resume: bool
    seconds: float | None
    findings: FindingsFolder | None = None
    stage: Callable[[str, Path], object] = lambda name, file: None
    cpu: Predictor | None = field(default=None, init=False)

    def run(self, sources: Iterable[Source | Path]) -> list[Outcome]:
        outcomes: list[Outcome] = []

        def taken() -> Iterator[Outcome]:
            for source in sources:
                outcomes.append(_outcome_of(source))
                yield outcomes[-1]

        reader, writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        writing: tuple[Outcome, Future[None]] | None = None
        try:
            for outcome, reading in _ahead(reader, self.read, taken()):
                check_stopped()
                self.stage("reading", outcome.file)
                prepared = self.attempt(outcome, reading.result)
                check_stopped()
                self.stage("scoring", outcome.file)
                result = None if prepared is None else self.attempt(outcome, self.compute, outcome, prepared)
                if writing is not None:
                    self.settle(*writing)
                writing = None if result is None else (outcome, writer.submit(self.write, outcome, result))
                if result is None:
                    self.done(outcome)
            if writing is not None:
                self.settle(*writing)
                writing = None
        finally:
            for executor in (reader, writer):
                executor.shutdown(cancel_futures=True)
            if writing is not None:
                self.settle(*writing)
        return outcomes

    def attempt(self, outcome: Outcome, step: Callable[..., T], *arguments: Any) -> T | None:
        """The step's result, or None where it fails, which is noted."""
        try:
            return step(*arguments)
        except Exception as error:  # whatever it is, the other files must not suffer
            if self.predictor.model.device.type != "cpu" and is_gpu_failure(error):
                self.attempt_on_cpu(outcome, error)
            else:
                outcome.status, outcome.message = "failed", _message(outcome.file, error)
            return None

    def attempt_on_cpu(self, outcome: Outcome, error: Exception) -> None:
        """All of the file again: what there is of it may be on the GPU."""
        failure = _message(outcome.file, error)
        try:
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        except RuntimeError:  # of a GPU that is gone
            pass
        try:
            self.cpu = self.cpu or self.predictor.on_cpu()
            prepared = read_prepared(self.cpu, outcome.source)
            self.write(outcome, self.compute(outcome, prepared, self.cpu), self.cpu)
            outcome.message = f"{failure}; computed on the CPU instead"
        except Exception as second:
            outcome.status, outcome.message = (
                "failed",
                f"{failure}; then on the CPU: {_message(outcome.file, second)}",
            )

    def settle(self, outcome: Outcome, future: Future[None]) -> None:
        """Wait for the writing, and pass the outcome on."""
        if not future.cancelled():
            self.attempt(outcome, future.result)
            self.done(outcome)

    # --- the three steps, each in a thread of its own; each adds its time to the outcome ------------------------------

    def read(self, outcome: Outcome) -> Prepared | None:
        if outcome.status == "failed":  # its path leads to no volume
            return None
        begin = time.monotonic()
        try:
            self.check_name(outcome.source)
            if self.resume and (self.findings is None or self.findings.has(outcome.source.output_name)):
                outcome.score = finished(outcome.source, self.task, self.out)
                if outcome.score is not None:
                    outcome.status = "resumed"
                    return None
            prepared = read_prepared(self.predictor, outcome.source)
            outcome.notes = prepared.notes
            return prepared
        finally:
            outcome.seconds += time.monotonic() - begin

    def check_name(self, source: Source) -> None:
        """See that the prediction's name is not too long, before anything is computed. Raises VolumeError."""
        names = [source.output_name + ("" if self.task == "pixel" else ".txt")]
        if self.findings is not None and self.findings.dicom_seg and source.kind == "dicom":
            names.append(self.findings.segmentation_of(source).name)
        most, found = os.pathconf(self.out, "PC_NAME_MAX"), max(len(os.fsencode(name)) for name in names)
        if found > most:
            raise VolumeError(
                f"{source.path}: expected a prediction's name of at most {most} bytes, found {found}"
            )

    def compute(self, outcome: Outcome, prepared: Prepared, predictor: Predictor | None = None) -> Computed:
        predictor, begin = predictor or self.predictor, time.monotonic()
        if self.seconds is None:
            copies = predictor.restorations_for(self.task)
            result = Computed(prepared, predictor.compute(prepared, self.task, outcome.remark), copies)
        else:  # writing takes about as long as reading
            seconds = self.seconds - 2 * outcome.seconds
            result = compute_within(predictor, prepared, self.task, seconds, remark=outcome.remark)
            outcome.remark(_shortage(predictor, prepared, result, self.task))
        outcome.slice_count, outcome.restorations = len(result.prepared.indices), result.restorations
        outcome.device = str(predictor.model.device)
        outcome.seconds += time.monotonic() - begin
        return result

    def write(self, outcome: Outcome, result: Computed, predictor: Predictor | None = None) -> None:
        begin = time.monotonic()
        found = None if self.findings is None else self.findings.add
        predictor = predictor or self.predictor
        outcome.score = write_scores(predictor, result.prepared, result.scored, self.out, found)
        outcome.seconds += time.monotonic() - begin
        outcome.status = "predicted"


def _outcome_of(source: Source | Path) -> Outcome:
    """The outcome to be of a volume; that of a path that leads to none has failed already."""
    if isinstance(source, Source):
        return Outcome(source)
    try:
        return Outcome(source_at(source))
    except (VolumeError, OSError) as error:
        return Outcome(Source("nifti", source, (source,)), "failed", message=_message(source, error))


def _ahead(
    reader: Executor, read: Callable[[Outcome], Prepared | None], outcomes: Iterable[Outcome]
) -> Iterator[tuple[Outcome, "Future[Prepared | None]"]]:
    """Each file and its volume to come. When one is handed out, the next is to be read, and no more."""
    waiting: deque[tuple[Outcome, Future[Prepared | None]]] = deque()
    for outcome in outcomes:
        waiting.append((outcome, reader.submit(read, outcome)))
        if len(waiting) > 1:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _message(source: Path, error: Exception) -> str:
    """One line that names the file."""
    text = in_one_line(str(error).replace(str(source), shown(source)))
    if not isinstance(error, (VolumeError, OSError)):  # whose texts say by themselves what it is
        text = f"{type(error).__name__}: {text}"
    return text if shown(source) in text else f"{shown(source)}: {text}"


def _shortage(predictor: Predictor, prepared: Prepared, result: Computed, task: str) -> str:
    """What the time budget cost, if anything."""
    slices, of = len(result.prepared.indices), len(prepared.indices)
    copies, wanted = result.restorations, predictor.restorations_for(task)
    if (slices, copies) == (of, wanted):
        return ""
    restorations = f", {copies} of {wanted} restorations" if wanted else ""
    return f"{shown(prepared.path)}: {slices} of {of} slices{restorations} within the time budget"
