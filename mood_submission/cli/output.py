"""Lines for people: errors and progress on standard error, in one piece whatever happens at the same time; answers on
standard output. No file's name reaches a terminal as it is (`runtime.names`)."""

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Callable

from tqdm import tqdm

from ..runtime.names import in_one_line, shown


def say(line: object) -> None:
    """Write a line on standard error, above any progress bar and in one piece, whatever other threads write.

    A closed pipe, as after `2>&1 | head`, stops nothing.
    """
    text = shown(str(line).strip())
    with contextlib.suppress(OSError), tqdm.external_write_mode(file=sys.stderr):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def tell(*lines: object) -> None:
    """Write lines on standard output."""
    print("\n".join(shown(line) for line in lines), flush=True)


def quiet() -> None:
    """One line a warning and an error, from us; nibabel's notes on odd headers would only repeat them."""
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {in_one_line(message)}")
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)


class Progress:
    """How far long work is: a bar on a terminal, elsewhere a plain line now and then, for logs.

    total: how many there are of what is called `unit`. what: is done with them. quiet: nothing is told. every: seconds from one
    plain line to the next; the first comes after as long, so that short work tells nothing. clock: seconds, rising.
    """

    def __init__(
        self,
        total: int,
        what: str,
        unit: str = "volume",
        *,
        quiet: bool = False,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.what, self.unit, self.quiet = total, what, unit, quiet
        self.every, self.clock, self.done = every, clock, 0
        self.began = self.told = clock()
        self.bar = tqdm(total=total, desc=what, unit=unit, disable=True if quiet else None)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def stage(self, name: str) -> None:
        """What is being done now, shown beside the bar."""
        self.bar.set_postfix_str(shown(name), refresh=True)

    def update(self, done: int | None = None) -> None:
        """One more is done, or so many in all."""
        before, self.done = self.done, self.done + 1 if done is None else done
        self.bar.update(self.done - before)
        now = self.clock()
        if self.quiet or not self.bar.disable or now - self.told < self.every:
            return
        self.told = now
        left = (now - self.began) / self.done * (self.total - self.done)
        say(f"{self.what}: {self.done} of {self.total} {self.unit}s, {_duration(left)} left")


def _duration(seconds: float) -> str:
    """Such as 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
