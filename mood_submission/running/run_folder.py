"""Scores a folder of volumes. Each is read, computed and written, and a failure of one does not stop the others."""

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
from ..runtime.names import as_bytes, as_text, in_one_line, shown, too_long
from ..runtime.stopping import check_stopped
from ..volumes import Source, VolumeError, read_grid, read_volume, source_at
from .time_budget import Computed, compute_within

T = TypeVar("T")
STATUSES = ("predicted", "resumed", "failed", "not reached")


@dataclass
class Outcome:
    """The outcome of a volume.

    source: the volume.
    status: one of STATUSES.
    device: where its networks ran.
    computed: the engine and the precision that they ran in, such as "torch in float32".
    graphs: the digest of the file of graphs that ONNX Runtime computed. None by torch.
    seconds: for reading, computing and writing it.
    score: the sample score, or else the highest voxel's, 0 .. 1.
    slice_count: how many slices were scored.
    restorations: how many each slice had.
    message: why it failed, or what was unusual. One line that names the file, or empty.
    notes: of reading it.
    """

    source: Source
    status: str = "not reached"
    device: str = ""
    computed: str = ""
    graphs: str | None = None
    seconds: float = 0.0
    score: float | None = None
    slice_count: int | None = None
    restorations: int | None = None
    message: str = ""
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """The volume's path."""
        return self.source.path

    def remark(self, line: str) -> None:
        """Add a line to the message, unless it is empty or in there already."""
        if line and line not in self.message:
            self.message = "; ".join(filter(None, (self.message, line)))

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        names = ("status", "seconds", "device", "computed", "graphs", "score", "restorations")
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
    *,
    resume: bool = False,
    seconds: float | None = None,
    findings: FindingsFolder | None = None,
    stage: Callable[[str, Path], object] = lambda name, file: None,
) -> list[Outcome]:
    """Score volumes and write their scores into a folder. A failure becomes that volume's outcome, and the others go on.

    While the networks run on one volume, one thread reads the next and another writes the last. At most one volume waits on
    either side. A volume that a GPU fails at is computed on the CPU.

    KeyboardInterrupt (see also `stopping.ask_to_stop`), and any exception that is no volume's failure, is raised once the volume
    that is being read and the one that is being written are done. No other volume is begun.

    predictor: scores the volumes.
    sources: volumes as `find_volumes` gives them, or paths (see `source_at`). Each is taken when the one before it is begun.
        So they may come from a queue that other processes share.
    task: one of TASKS or BOTH.
    out: the folder, which exists.
    done: is called with each outcome, in the order of `sources`.
    resume: skip volumes whose whole prediction exists (see `finished`).
    seconds: for each volume, from reading to writing (see `time_budget`). None for no limit.
    findings: the folder for objects that stand out, with the pixel task.
    stage: is called with "reading" or "scoring" and a volume's path, when the run waits for that.
    """
    return FolderRun(
        predictor=predictor,
        task=task,
        out=out,
        done=done,
        resume=resume,
        seconds=seconds,
        findings=findings,
        stage=stage,
    ).run(sources)


def finished(source: Source | Path, task: str, out: Path) -> float | None:
    """The score (see `Outcome`) of a whole prediction: scores in [0, 1] for each voxel of the source's grid.

    None where there is no such prediction. The options that it was made with are not checked.
    """
    if task == BOTH:
        values = [finished(source, one_task, out) for one_task in TASKS]
        return None if None in values else values[0]
    try:
        source = source if isinstance(source, Source) else source_at(source)
        if task == "sample":
            score = float((out / f"{source.output_name}.txt").read_text("utf-8"))
            return score if 0 <= score <= 1 else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores, grid = read_volume(out / source.output_name), read_grid(source)
    except (OSError, ValueError):
        return None
    same = scores.grid.shape == grid.shape and np.allclose(scores.grid.affine_mm, grid.affine_mm, rtol=1e-6, atol=1e-4)
    low, high = float(scores.data.min()), float(scores.data.max())
    return high if same and not scores.missing and low >= 0 and high <= 1 else None


@dataclass(kw_only=True)
class FolderRun:
    """The run of `predict_files`, whose arguments are its fields."""

    predictor: Predictor
    task: str
    out: Path
    done: Callable[[Outcome], object]
    resume: bool
    seconds: float | None
    findings: FindingsFolder | None
    stage: Callable[[str, Path], object]
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
        """The step's result. None where it fails, and the outcome says so."""
        try:
            return step(*arguments)
        # Any exception, since the other volumes must not suffer.
        except Exception as error:
            if self.predictor.model.device.type != "cpu" and is_gpu_failure(error):
                self.attempt_on_cpu(outcome, error)
            else:
                outcome.status, outcome.message = "failed", _message(outcome.file, error)
            return None

    def attempt_on_cpu(self, outcome: Outcome, error: Exception) -> None:
        """Read, compute and write the volume again. Nothing on the failed GPU can be relied on."""
        failure = _message(outcome.file, error)
        try:
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        # The GPU may be gone.
        except RuntimeError:
            pass
        try:
            self.cpu = self.cpu or self.predictor.on_cpu()
            prepared = read_prepared(self.cpu, outcome.source)
            outcome.notes = prepared.notes
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

    # --- The three steps, each in a thread of its own. Each adds its time to the outcome. -----------------------------

    def read(self, outcome: Outcome) -> Prepared | None:
        # Its path leads to no volume.
        if outcome.status == "failed":
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
        """Raises VolumeError where the prediction's name would be too long, before anything is computed."""
        names = [source.output_name + ("" if self.task == "pixel" else ".txt")]
        if self.findings is not None and self.findings.dicom_seg and source.kind == "dicom":
            names.append(self.findings.segmentation_of(source).name)
        if wrong := too_long(max(names, key=lambda name: len(as_bytes(name))), self.out):
            raise VolumeError(f"{source.path}: expected a prediction's name of {wrong}")

    def compute(self, outcome: Outcome, prepared: Prepared, predictor: Predictor | None = None) -> Computed:
        predictor, begin = predictor or self.predictor, time.monotonic()
        if self.seconds is None:
            copies = predictor.restorations_for(self.task)
            result = Computed(prepared, predictor.compute(prepared, self.task, outcome.remark), copies)
        else:
            # Writing takes about as long as reading.
            seconds = self.seconds - 2 * outcome.seconds
            result = compute_within(predictor, prepared, self.task, seconds, remark=outcome.remark)
            outcome.remark(_shortage(predictor, prepared, result, self.task))
        outcome.slice_count, outcome.restorations = len(result.prepared.indices), result.restorations
        outcome.device = str(predictor.model.device)
        # Torch may have taken over from another engine meanwhile.
        computed = predictor.model.computed
        outcome.computed, outcome.graphs = "{engine} in {precision}".format(**computed), computed["graphs"]
        # Writing needs memory of its own.
        predictor.model.rest()
        outcome.seconds += time.monotonic() - begin
        return result

    def write(self, outcome: Outcome, result: Computed, predictor: Predictor | None = None) -> None:
        begin = time.monotonic()
        if self.findings is not None and self.findings.dicom_seg and outcome.source.kind != "dicom":
            outcome.remark("no DICOM series, so its findings are not written as a segmentation too (--dicom-seg)")
        keep = None if self.findings is None else self.findings.add
        predictor = predictor or self.predictor
        outcome.score = write_scores(predictor, result.prepared, result.scored, self.out, keep)
        outcome.seconds += time.monotonic() - begin
        outcome.status = "predicted"


def _outcome_of(source: Source | Path) -> Outcome:
    """A new outcome of a volume. It has failed already where a path leads to none."""
    if isinstance(source, Source):
        return Outcome(source)
    try:
        return Outcome(source_at(source))
    except (VolumeError, OSError) as error:
        return Outcome(Source("nifti", source, (source,)), "failed", message=_message(source, error))


def _ahead(
    reader: Executor, read: Callable[[Outcome], Prepared | None], outcomes: Iterable[Outcome]
) -> Iterator[tuple[Outcome, "Future[Prepared | None]"]]:
    """Outcomes with their volumes, which are read one ahead of the one that is used."""
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
    # The texts of these two need no class name.
    if not isinstance(error, (VolumeError, OSError)):
        text = f"{type(error).__name__}: {text}"
    return text if shown(source) in text else f"{shown(source)}: {text}"


def _shortage(predictor: Predictor, prepared: Prepared, result: Computed, task: str) -> str:
    """A line on what the time budget cost. Empty where it cost nothing."""
    slices, of = len(result.prepared.indices), len(prepared.indices)
    copies, wanted = result.restorations, predictor.restorations_for(task)
    if (slices, copies) == (of, wanted):
        return ""
    restorations = f", {copies} of {wanted} restorations" if wanted else ""
    return f"{shown(prepared.path)}: {slices} of {of} slices{restorations} within the time budget"
