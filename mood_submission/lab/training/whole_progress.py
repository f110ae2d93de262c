"""How far a run of `train all` is: the whole, the step at work and what it tells, and what comes next."""

import time
from collections.abc import Callable, Mapping, Sequence

from tqdm import tqdm

from ...cli.output import duration
from ...runtime.names import shown
from .recipe import SHARES

# What share of a run each step takes, about. The trainings' are planned, the others' are what is usual.
USUAL_SHARES = SHARES | {
    "cache": 0.05,
    "export": 0.002,
    "plant_2": 0.05,
    "plant_3": 0.05,
    "detector_2": 0.15,
    "add_detector": 0.005,
    "calibrate": 0.02,
    "compare": 0.02,
    "try": 0.005,
    "report": 0.002,
}
# The time that is left is told by the pace so far when so much of the whole is done.
PACE_FROM = 0.02


def expected_minutes(steps: Sequence[str], planned: Mapping[str, float]) -> dict[str, float]:
    """The minutes that each step is expected to take. Without a plan they are shares, 0 .. 1.

    steps: their names, of USUAL_SHARES.
    planned: minutes of the steps that train by the clock.
    """
    unit = sum(planned.values()) / sum(USUAL_SHARES[name] for name in planned) if planned else 1.0
    return {name: planned.get(name, USUAL_SHARES[name] * unit) for name in steps}


class WholeProgress:
    """Shows how far a run is: by one bar on a terminal, elsewhere by a plain line now and then.

    steps: their names, in order.
    planned: minutes of the steps that train by the clock. Empty where the recipe counts steps.
    finished: the seconds that finished steps have taken. They are noted there by others as steps end.
    say: prints a line.
    every: seconds between plain lines.
    clock: gives seconds, rising.
    """

    def __init__(
        self,
        steps: Sequence[str],
        planned: Mapping[str, float],
        finished: Mapping[str, float],
        say: Callable[[str], None],
        *,
        every: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.expected, self.by_minutes = expected_minutes(steps, planned), bool(planned)
        self.finished, self.say, self.every, self.clock = finished, say, every, clock
        self.step, self.share, self.told = "", 0.0, ""
        self.began = self.last_line = clock()
        self.bar = tqdm(total=100, disable=None, bar_format="{percentage:3.0f}%|{bar:20}| {desc}")

    def __enter__(self) -> "WholeProgress":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self.bar.n = 100
            self.bar.set_description_str("", refresh=True)
        self.bar.close()

    def begin(self, step: str) -> None:
        """A step begins."""
        self.step, self.share, self.told, self.began = step, 0.0, "", self.clock()
        self._draw()

    def show(self, told: str, share: float) -> None:
        """Show what the step tells at last, and how far it is, 0 .. 1. It never goes back."""
        self.told, self.share = told, max(self.share, min(share, 1.0))
        self._draw()
        now = self.clock()
        if self.bar.disable and now - self.last_line >= self.every:
            self.last_line = now
            self.say(f"{self.done:.0%} of all, {self.line()}")

    @property
    def done(self) -> float:
        """How much of the whole is done, 0 .. 1."""
        whole = sum(self.expected.values())
        ended = [name for name in self.finished if name in self.expected and name != self.step]
        return (sum(self.expected[name] for name in ended) + self.share * self.expected.get(self.step, 0.0)) / whole

    @property
    def seconds_left(self) -> float | None:
        """The seconds that are left: what is planned, or else by the pace so far. None as long as too little is done to tell."""
        if self.by_minutes:
            return 60 * (1 - self.done) * sum(self.expected.values())
        if self.done < PACE_FROM:
            return None
        ended = sum(seconds for name, seconds in self.finished.items() if name != self.step)
        return (ended + self.clock() - self.began) / self.done * (1 - self.done)

    def line(self) -> str:
        """The step at work and the one that comes next, the time that is left, and what the step tells."""
        names = [name for name in self.expected if name == self.step or name not in self.finished]
        following = names[names.index(self.step) + 1 :] if self.step in names else names
        left = self.seconds_left
        parts = [f"{self.step}, then {following[0]}" if following else self.step]
        parts += [] if left is None else [f"{duration(left)} left"]
        # It may be long, and a narrow terminal cuts the end off.
        parts += [self.told] if self.told else []
        return "; ".join(parts)

    def _draw(self) -> None:
        """Draw the bar anew."""
        self.bar.n = round(100 * self.done)
        self.bar.set_description_str(shown(self.line()), refresh=True)
