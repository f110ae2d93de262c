"""A volume's prediction within some seconds: with fewer restorations, then fewer slices, rather than none.

A few slices with one restoration are timed first. That time for each slice and restoration is more than many take
together, so what is planned by it does not overrun.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..predictor import Predictor, Prepared, Scored
from ..runtime.stopwatch import Stopwatch

PILOT = 8  # slices; the least that a prediction is made of


@dataclass(frozen=True, eq=False)
class Computed:
    """A volume's scores, the slices that they are of, and how many restorations each slice had."""

    prepared: Prepared
    scored: Scored
    restorations: int


def compute_within(
    predictor: Predictor,
    prepared: Prepared,
    task: str,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    remark: Callable[[str], object] = lambda line: None,
) -> Computed:
    """`predictor.compute` with as many slices and restorations as `seconds` allow; where they allow all, just that.

    At least PILOT slices, with one restoration if any are asked for, whatever the time. clock: seconds, rising. remark: see
    `predictor.compute`.
    """
    end, pilot = clock() + seconds, prepared.part(PILOT)
    with predictor.alone():
        if task != "sample" and predictor.restorations:
            return _pixel_within(predictor, prepared, task, pilot, end, clock, remark)
        return _undrawn_within(predictor, prepared, task, pilot, end, clock, remark)


def _undrawn_within(
    predictor: Predictor,
    prepared: Prepared,
    task: str,
    pilot: Prepared,
    end: float,
    clock: Callable[[], float],
    remark: Callable[[str], object],
) -> Computed:
    watch = Stopwatch(predictor.model.device, clock)
    scored = predictor.compute(pilot, task, remark)
    each = watch.lap() / len(pilot.indices)
    chosen = prepared.part(max(1, _share(end - clock(), each, len(prepared.indices))))
    if len(chosen.indices) <= len(pilot.indices):
        return Computed(pilot, scored, 0)
    return Computed(chosen, predictor.compute(chosen, task, remark), 0)


def _pixel_within(
    predictor: Predictor,
    prepared: Prepared,
    task: str,
    pilot: Prepared,
    end: float,
    clock: Callable[[], float],
    remark: Callable[[str], object],
) -> Computed:
    watch, count = Stopwatch(predictor.model.device, clock), len(pilot.indices)
    evidence = predictor.evidence(pilot)
    codes = evidence.codes
    fixed = watch.lap()
    evidence = evidence.with_restorations(predictor.restore(pilot, codes, 0, 1))
    sampling = watch.lap() / count
    evidence.decode_restorations()
    decoding = watch.lap() / count
    scored = predictor.score(evidence, task)
    for line in predictor.remarks(evidence, prepared.path):
        remark(line)
    fixed = (fixed + watch.lap()) / count
    left, slices, copies = end - clock(), len(prepared.indices), predictor.restorations
    if slices * (fixed + copies * (sampling + decoding)) <= left:
        return Computed(prepared, predictor.compute(prepared, task, remark), copies)
    chosen = prepared.part(max(1, _share(left, fixed + sampling + decoding, slices)))
    if len(chosen.indices) < count or copies == 1 and len(chosen.indices) == count:
        return Computed(pilot, scored, 1)
    return _in_rounds(predictor, chosen, task, end, (fixed, sampling, decoding), clock)


def _in_rounds(
    predictor: Predictor,
    prepared: Prepared,
    task: str,
    end: float,
    each: tuple[float, float, float],
    clock: Callable[[], float],
) -> Computed:
    """Restorations as long as there is time: each round, as many as fit by what one took in the round before.

    each: seconds a slice takes but for restorations, to sample one, and to decode one.
    """
    fixed, sampling, decoding = (seconds * len(prepared.indices) for seconds in each)
    watch, parts, done = Stopwatch(predictor.model.device, clock), [], 0
    evidence = predictor.evidence(prepared)
    while done < predictor.restorations:
        left = end - clock() - fixed - done * decoding
        more = min(
            _share(left, sampling + decoding, predictor.restorations - done), predictor.restorations - done
        )
        if more == 0 and done:
            break
        more = max(1, more)
        watch.lap()
        parts.append(predictor.restore(prepared, evidence.codes, done, done + more))
        sampling, done = watch.lap() / more, done + more
    evidence = evidence.with_restorations(torch.cat(parts, dim=1))
    return Computed(prepared, predictor.score(evidence, task), done)


def _share(seconds: float, each: float, most: int) -> int:
    """How many of `each` seconds fit in `seconds`, 0 .. `most`."""
    return most if each * most <= seconds else max(0, int(seconds / each))
