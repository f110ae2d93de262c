"""Measures how long steps take. On CUDA a step starts and ends when all work is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Measures seconds.

    device: where the work is done.
    clock: gives seconds, rising.
    seconds: of the steps that `step` measured, by name.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter):
        self.device, self.clock = device, clock
        self.seconds: dict[str, float] = {}
        self.last = self._now()

    def lap(self) -> float:
        """Seconds since the last call, or since the start."""
        before, self.last = self.last, self._now()
        return self.last - before

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure what is done while this is open, as the step `name`."""
        start = self._now()
        yield
        self.seconds[name] = self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()
