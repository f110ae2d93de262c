"""Writes lines for people: errors and progress on standard error, answers on standard output.

Lines of several threads never mix. Names of files are escaped (`runtime.names`).
"""

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from ..runtime.names import in_one_line, shown

Item = TypeVar("Item")


def say(line: object) -> None:
    """Write a whole line on standard error, above any progress bar.

    Nothing is raised for a closed pipe, as after `2>&1 | head`.
    """
    text = shown(str(line).strip())
    with contextlib.suppress(OSError), tqdm.external_write_mode(file=sys.stderr):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def tell(*lines: object) -> None:
    """Write lines on standard output."""
    print("\n".join(shown(line) for line in lines), flush=True)


def quiet() -> None:
    """Make each warning one line. nibabel's own notes on odd headers, which repeat ours, are not shown."""
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {in_one_line(message)}")
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)


class Progress:
    """Shows how far long work is: by a bar on a terminal, elsewhere by a plain line now and then, for logs.

    total: how many items there are.
    what: is done with them, such as "calibrating".
    unit: what an item is called.
    quiet: whether to show nothing.
    every: seconds between plain lines, and before the first one.
    clock: gives seconds, rising.
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
        self.began = self.last_line = clock()
        self.bar = tqdm(total=total, desc=what, unit=unit, disable=True if quiet else None)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def stage(self, name: str) -> None:
        """Show beside the bar what is being done now."""
        self.bar.set_postfix_str(shown(name), refresh=True)

    def counting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each counted as done when the next one is taken."""
        for item in items:
            yield item
            self.update()

    def update(self, done: int | None = None) -> None:
        """Count one more item as done. done: how many are done in all, where others count too."""
        before, self.done = self.done, self.done + 1 if done is None else done
        self.bar.update(self.done - before)
        now = self.clock()
        if self.quiet or not self.bar.disable or now - self.last_line < self.every:
            return
        self.last_line = now
        left = (now - self.began) / self.done * (self.total - self.done)
        say(f"{self.what}: {self.done} of {self.total} {self.unit}s, {duration(left)} left")


def duration(seconds: float) -> str:
    """Such as 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
