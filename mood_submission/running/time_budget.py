"""Scores a volume within some seconds, with fewer restorations and then fewer slices.

A few slices with one restoration are timed first. In larger batches, a slice or a restoration takes less time. So plans that
are made with the first times do not overrun.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from ..predictor import Predictor, Prepared, Scored
from ..runtime.stopwatch import Stopwatch

# How many slices are timed first. At least so many are scored.
PILOT = 8


@dataclass(frozen=True, eq=False)
class Computed:
    """A volume's scores, with the slices that were scored and how many restorations each slice had."""

    prepared: Prepared
    scored: Scored
    restorations: int


def compute_within(
    predictor: Predictor,
    prepared: Prepared,
    task: str,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    *,
    remark: Callable[[str], object] = lambda line: None,
) -> Computed:
    """Score with as many slices and restorations as the time allows. Where it allows all, this is `predictor.compute`.

    At least PILOT slices are scored in any time, with one restoration where the task needs any.

    predictor, prepared, task, remark: as for `Predictor.compute`.
    seconds: the time.
    clock: gives seconds, rising.
    """
    within = _Within(predictor, prepared, task, end=clock() + seconds, clock=clock, remark=remark)
    with predictor.same_bits_for_any_threads():
        drawn = predictor.restorations_for(task)
        return within.with_restorations() if drawn else within.without_restorations()


@dataclass(frozen=True, eq=False)
class _Within:
    """The computation of one volume. end: when it must be done, by `clock`. The rest is as in `compute_within`."""

    predictor: Predictor
    prepared: Prepared
    task: str
    end: float
    clock: Callable[[], float]
    remark: Callable[[str], object]

    def without_restorations(self) -> Computed:
        pilot, watch = self.prepared.with_slices(PILOT), self._stopwatch()
        remarks: list[str] = []
        scored = self.predictor.compute(pilot, self.task, remarks.append)
        chosen = self._slices_within(self._left(), watch.lap() / len(pilot.indices))
        if len(chosen.indices) > len(pilot.indices):
            return Computed(chosen, self._compute(chosen), 0)
        self._say(remarks)
        return Computed(pilot, scored, 0)

    def with_restorations(self) -> Computed:
        pilot, watch = self.prepared.with_slices(PILOT), self._stopwatch()
        count = len(pilot.indices)
        evidence = self.predictor.evidence(pilot)
        fixed = watch.lap()
        evidence = evidence.with_restorations(self.predictor.restore(pilot, evidence.codes, slice(1)))
        sampling = watch.lap() / count
        evidence.decode_restorations()
        decoding = watch.lap() / count
        scored = self.predictor.score(evidence, self.task)
        remarks = self.predictor.remarks(evidence, self.prepared.path)
        fixed = (fixed + watch.lap()) / count
        left, slices, copies = self._left(), len(self.prepared.indices), self.predictor.restorations
        if slices * (fixed + copies * (sampling + decoding)) <= left:
            return Computed(self.prepared, self._compute(self.prepared), copies)
        chosen = self._slices_within(left, fixed + sampling + decoding)
        if len(chosen.indices) < count or copies == 1 and len(chosen.indices) == count:
            self._say(remarks)
            return Computed(pilot, scored, 1)
        return self._in_rounds(chosen, (fixed, sampling, decoding))

    def _in_rounds(self, chosen: Prepared, seconds_each: tuple[float, float, float]) -> Computed:
        """Draw restorations in rounds while there is time. A round draws as many as fit by the time of the round before.

        seconds_each: for each slice, the seconds for all but restorations, for sampling one, and for decoding one.
        """
        fixed, sampling, decoding = (seconds * len(chosen.indices) for seconds in seconds_each)
        watch, parts, done = self._stopwatch(), [], 0
        evidence = self.predictor.evidence(chosen)
        while done < self.predictor.restorations:
            wanted = self.predictor.restorations - done
            more = _how_many(self._left() - fixed - done * decoding, sampling + decoding, wanted)
            if more == 0 and done:
                break
            more = max(1, more)
            watch.lap()
            parts.append(self.predictor.restore(chosen, evidence.codes, slice(done, done + more)))
            sampling, done = watch.lap() / more, done + more
        evidence = evidence.with_restorations(torch.cat(parts, dim=1))
        self._say(self.predictor.remarks(evidence, self.prepared.path))
        return Computed(chosen, self.predictor.score(evidence, self.task), done)

    def _compute(self, prepared: Prepared) -> Scored:
        return self.predictor.compute(prepared, self.task, self.remark)

    def _say(self, remarks: Iterable[str]) -> None:
        """Tell what is strange about the slices that were scored."""
        for line in remarks:
            self.remark(line)

    def _slices_within(self, seconds: float, seconds_each: float) -> Prepared:
        """The volume with as many slices as fit in `seconds`, where one takes `seconds_each`. At least one."""
        return self.prepared.with_slices(max(1, _how_many(seconds, seconds_each, len(self.prepared.indices))))

    def _left(self) -> float:
        return self.end - self.clock()

    def _stopwatch(self) -> Stopwatch:
        return Stopwatch(self.predictor.model.device, self.clock)


def _how_many(seconds: float, seconds_each: float, most: int) -> int:
    """How many steps of `seconds_each` fit in `seconds`, 0 .. `most`."""
    return most if seconds_each * most <= seconds else max(0, int(seconds / seconds_each))
