"""What the commands of a step tell: kept in a file, and read while they work."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

# How much of the end of a file is read for its last lines.
END_BYTES = 8192
# What a line of progress tells of how far it is, such as "calibrating: 3 of 10 volumes".
COUNTED = re.compile(r"\b(\d+) of (\d+) \w")
# What a command says of itself begins so.
COMMAND = re.compile(r"^mood[-_]submission[\w -]*: ")
# The columns of a training's row that tell how much of a budget is spent, with the budget's option.
BUDGETS = (("step", "steps"), ("minutes", "minutes"))
# The numbers of a training's row that are shown, by how their names begin.
SHOWN = ("step", "loss", "validation")


class StepLog:
    """A file with all that the commands of a step have written. Each start adds to what is there."""

    def __init__(self, file: Path):
        self.file, self.begins = file, 0

    def begin(self, words: Sequence[object]) -> None:
        """Note a command that begins. From now on its lines alone are read."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "ab") as file:
            file.write(f"$ mood-submission {' '.join(map(str, words))}\n".encode("utf-8", "backslashreplace"))
            self.begins = file.tell()

    def lines(self) -> list[str]:
        """The last lines that the command has written, without empty ones."""
        with open(self.file, "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(self.begins, end - END_BYTES))
            text = file.read().decode("utf-8", "backslashreplace")
        return [line.strip() for line in text.splitlines() if line.strip()]

    def complaint(self) -> str:
        """What the command has said of itself at last, or else its last line. Empty where it has told nothing."""
        lines = self.lines()
        own = [COMMAND.sub("", line) for line in lines if COMMAND.match(line)]
        return (own or lines or [""])[-1]


def numbers_in(line: str) -> dict[str, float]:
    """The numbers of a training's row, which is JSON. None in any other line."""
    try:
        row = json.loads(line)
        return {name: float(value) for name, value in row.items() if value != ""} if isinstance(row, dict) else {}
    except (ValueError, TypeError):
        return {}


def in_short(line: str) -> str:
    """A line of progress for people: of a training's row the step and the losses, else the line."""
    numbers = numbers_in(line)
    shown = [f"{name} {value:.4g}" for name, value in numbers.items() if name.startswith(SHOWN)]
    return ", ".join(shown) or line


def share_counted(line: str) -> float:
    """How far work is by a line that counts it, 0 .. 1. 0 where it counts nothing."""
    found = COUNTED.search(line)
    return min(1.0, int(found[1]) / int(found[2])) if found and int(found[2]) else 0.0


def share_trained(line: str, budget: Mapping[str, object], minutes: float) -> float:
    """How far a command is by the line that it wrote last, 0 .. 1: a training by its steps or minutes.

    budget: the training's "steps" or "minutes". Without, the line alone tells.
    minutes: how long it has trained, by the clock. Rows come seldom.
    """
    row = numbers_in(line) | {"minutes": minutes}
    shares = [row.get(key, 0.0) / float(str(budget[name])) for key, name in BUDGETS if name in budget]
    return min(1.0, max([share_counted(line), *shares]))
