"""Commands of this package in processes of their own, which end with the process that started them."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .checkpoints import RunError
from .parents import end_with_parent
from .step_log import StepLog

# The package's folder.
PACKAGE = Path(__file__).parents[2]
# Seconds between two looks at other processes while a command runs.
LOOK_EVERY = 0.5
# Seconds that a process has to end. What torchrun's engine has started has half of it.
PATIENCE = 60
# Starts several processes of a command, as torchrun does.
TOGETHER = (
    "import sys; from mood_submission.running.processes import launch; sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))"
)


def start(words: Sequence[object], log: StepLog, *, threads: int | None = None, together: int = 1) -> subprocess.Popen:
    """Start `mood-submission WORDS`.

    log: gets all that it writes.
    threads: how many it computes with. None for as many as there are cores.
    together: how many processes do it, as under torchrun.
    """
    # The package may lie in a checkout that is not installed.
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    how = ["-m", "mood_submission"] if together == 1 else ["-c", TOGETHER, str(together)]
    log.begin(words)
    with open(log.file, "ab") as file:
        return subprocess.Popen(
            [sys.executable, *how, *map(str, words)],
            env=environment,
            stdout=file,
            stderr=file,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )


def run(
    words: Sequence[object], log: StepLog, *, together: int = 1, meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Run `mood-submission WORDS` to its end. Raises RunError where the command fails, with what it said.

    log, together: as for `start`.
    meanwhile: is called now and then.
    """
    process = start(words, log, together=together)
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
        # What a command finds to be wrong stays wrong. One that was killed, as for want of memory, may do better.
        again = "; the same command goes on from there" if code < 0 else ""
        raise RunError(f"{name}: expected it to work, {ended(code, log)}; all that it told is in {log.file}{again}")


def ended(code: int, log: StepLog) -> str:
    """How a command ended that failed: the status and what it has said. code: as `Popen.returncode` has it."""
    if code < 0:
        return f"found that signal {-code} ended it"
    complaint = log.complaint()
    return f"found that it ended with status {code}{complaint and f': {complaint}'}"


def end(processes: Sequence[subprocess.Popen]) -> None:
    """End processes, and wait until they have."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Helpers:
    """Processes that work beside a command, and may fail without it.

    processes: by their names for messages.
    logs: what they write, by the same names.
    say: prints a line. Each helper that fails is named once.
    """

    def __init__(
        self, processes: Mapping[str, subprocess.Popen], logs: Mapping[str, StepLog], say: Callable[[str], None]
    ):
        self.processes, self.logs, self.say = processes, logs, say
        # How those ended that failed.
        self.failed: dict[str, str] = {}

    def look(self) -> bool:
        """Name those that have failed since the last look. Returns whether any is still at work."""
        codes = {name: process.poll() for name, process in self.processes.items()}
        for name, code in codes.items():
            if code and name not in self.failed:
                self.failed[name] = ended(code, self.logs[name])
                self.say(f"{name}: expected it to go on, {self.failed[name]}; the others go on without it")
        return None in codes.values()

    def end(self) -> None:
        """End those that are still at work."""
        end(list(self.processes.values()))
