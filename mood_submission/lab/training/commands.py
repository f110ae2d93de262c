"""Commands of this package in processes of their own, which end with the process that started them."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .checkpoints import RunError

# The package's folder.
PACKAGE = Path(__file__).parents[2]
# A number of Linux: what a process is sent when its parent ends.
PR_SET_PDEATHSIG = 1
# Seconds between two looks at other processes while a command runs.
LOOK_EVERY = 0.5


def start(words: Sequence[object], threads: int | None = None) -> subprocess.Popen:
    """Start `mood-submission WORDS`. threads: how many it computes with; None for as many as there are cores."""
    # The package may lie in a checkout that is not installed.
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    command = [sys.executable, "-m", "mood_submission", *map(str, words)]
    return subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent if sys.platform == "linux" else None)


def run(words: Sequence[object], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Run `mood-submission WORDS` to its end. meanwhile: is called now and then. Raises RunError where the command fails."""
    process = start(words)
    try:
        while True:
            try:
                code = process.wait(LOOK_EVERY)
                break
            except subprocess.TimeoutExpired:
                meanwhile()
    except BaseException:
        end([process])
        raise
    if code:
        name = " ".join(str(word) for word in words[: 2 if words[0] == "train" else 1])
        raise RunError(f"{name}: expected it to work, found exit status {code}; the same command goes on from there")


def end(processes: Sequence[subprocess.Popen]) -> None:
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


class Helpers:
    """Processes that work beside a command, and may fail without it.

    processes: by their names for messages.
    say: prints a line. Each helper that fails is named once.
    """

    def __init__(self, processes: Mapping[str, subprocess.Popen], say: Callable[[str], None]):
        self.processes, self.say = processes, say
        self.failed: dict[str, int] = {}

    def look(self) -> bool:
        """Name those that have failed since the last look. Returns whether any is still at work."""
        codes = {name: process.poll() for name, process in self.processes.items()}
        for name, code in codes.items():
            if code and name not in self.failed:
                self.failed[name] = code
                self.say(
                    f"{name}: expected it to go on, found that it ended with status {code}; the others go on without it"
                )
        return None in codes.values()

    def end(self) -> None:
        """End those that are still at work."""
        end(list(self.processes.values()))


def _end_with_parent() -> None:
    """Have the system end this process when its parent is killed, so that two runs never write the same files. For Linux."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
