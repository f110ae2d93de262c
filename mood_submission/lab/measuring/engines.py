"""The default run of a volume by each engine and precision, as users run it: a process of `predict` each."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...volumes import VolumeError, read_volume

# What is measured, by engine and precision. Others are compared with the first.
RUNS = (("torch", "float32"), ("torch", "bf16"), ("onnx", "float32"), ("onnx", "int8"))
# Runs a command line, and writes a JSON file of its exit status, processor seconds and ru_maxrss. A process counts the memory that
# its parent had when it was started. So a small one starts the command, not this one, which holds volumes.
SMALL_PARENT = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss], file)
"""


@dataclass(eq=False)
class EngineRuns:
    """What one engine took for a volume, and what it found.

    seconds: of the volume, in each run. whole: of the whole process. cpu: processor seconds of the whole process,
        which other work on the machine hardly changes. peak_mb: the most memory that it had in use.
    score: the sample score, 0 .. 1.
    scores: the pixel scores, (X, Y, Z).
    note: a line that says that torch computed instead, in any of the runs. None where the engine did.
    """

    engine: str
    precision: str
    seconds: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)
    score: float = 0.0
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    note: str | None = None

    def figures(self, first: "EngineRuns") -> dict[str, float | str | None]:
        """Medians, and how they compare with those of the first engine."""
        seconds, whole = statistics.median(self.seconds), statistics.median(self.whole)
        return {
            "engine": self.engine,
            "precision": self.precision,
            "seconds": seconds,
            "times_as_fast": statistics.median(first.seconds) / max(seconds, 1e-9),
            "process_seconds": whole,
            "process_times_as_fast": statistics.median(first.whole) / max(whole, 1e-9),
            "cpu_seconds": statistics.median(self.cpu),
            "peak_rss_mb": statistics.median(self.peak_mb),
            "sample_score_apart": abs(self.score - first.score),
            "voxel_apart": float(np.abs(self.scores - first.scores).max()),
            "note": self.note,
        }


def measure_engines(
    words: Sequence[str],
    volume: Path,
    work: Path,
    repeats: int,
    progress: Callable[[], object] = lambda: None,
) -> list[dict[str, float | str | None]]:
    """Run all RUNS in turn, `repeats` times each. Returns the figures of each.

    words: the options of `predict` that all have in common, without task, folders, engine and precision.
    volume: a file of one volume.
    work: an empty folder.
    progress: is called after each run.
    Raises OSError where a run fails, and VolumeError, before any run, for what is no volume in one file.
    """
    read_volume(volume)
    given = work / "in"
    given.mkdir(parents=True)
    (given / volume.name).symlink_to(volume.resolve())
    try:
        read_volume(given / volume.name)
    except VolumeError:
        raise VolumeError(f"{volume}: expected a volume in one file, found one in several") from None
    measured = [EngineRuns(engine, precision) for engine, precision in RUNS]
    for repeat in range(repeats):
        for one in measured:
            _run(one, words, given, work / f"{one.engine}_{one.precision}_{repeat}")
            progress()
    return [one.figures(measured[0]) for one in measured]


def _run(one: EngineRuns, words: Sequence[str], given: Path, out: Path) -> None:
    """Run once, and add what it took."""
    report = out.with_name(f"{out.name}.json")
    chosen = ["--engine", one.engine, "--precision", one.precision, "--report", str(report)]
    command = [sys.executable, "-m", "mood_submission", "predict", "--task", "both", "-i", str(given), "-o", str(out)]
    # The folder of this package, installed or not.
    here = str(Path(__file__).resolve().parents[3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
    begin = time.monotonic()
    with open(out.with_name(f"{out.name}.log"), "w+") as log:
        usage = out.with_name(f"{out.name}.usage")
        parent = [sys.executable, "-c", SMALL_PARENT, str(usage)]
        subprocess.run([*parent, *command, *words, *chosen], env=environment, stdout=log, stderr=log, check=True)
        status, cpu, peak = json.loads(usage.read_text())
        log.seek(0)
        told = log.read().splitlines()
    if status:
        raise OSError(f"predict: expected exit status 0, found {status}: {(told or ['nothing said'])[-1]}")
    one.whole.append(time.monotonic() - begin)
    one.cpu.append(cpu)
    one.peak_mb.append(peak / (1e6 if sys.platform == "darwin" else 1e3))
    (outcome,) = json.loads(report.read_text())["volumes"]
    one.seconds.append(outcome["seconds"])
    found = outcome["computed"]
    if found != f"{one.engine} in {one.precision}":
        why = next((line for line in told if "torch computes" in line), "no line says why")
        one.note = f"{one.engine} {one.precision}: expected figures of that, found those of {found}: {why}"
    (text,) = out.glob("*.txt")
    one.score = float(text.read_text())
    one.scores = read_volume(out / text.name.removesuffix(".txt")).data


def engine_table(figures: Sequence[dict[str, float | str | None]]) -> list[str]:
    """Lines of text: one an engine, then what was not as asked for."""
    lines = [
        f"{'engine':16}{'seconds':>9}{'as fast':>9}{'process s':>11}{'as fast':>9}{'CPU s':>8}{'peak MB':>9}{'sample':>9}{'voxel':>9}"
    ]
    for row in figures:
        lines.append(
            f"{row['engine']} {row['precision']:{15 - len(str(row['engine']))}}{row['seconds']:9.1f}{row['times_as_fast']:8.2f}x"
            f"{row['process_seconds']:11.1f}{row['process_times_as_fast']:8.2f}x{row['cpu_seconds']:8.1f}{row['peak_rss_mb']:9.0f}{row['sample_score_apart']:9.4f}{row['voxel_apart']:9.4f}"
        )
    return lines + [str(row["note"]) for row in figures if row["note"]]
