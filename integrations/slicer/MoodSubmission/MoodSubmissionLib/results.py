"""Reads what `predict` wrote of a volume, and what it said where it failed."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .command_line import VOLUME

# The table that is shown. The whole one is findings.csv.
TABLE = "table.csv"


class ResultsError(RuntimeError):
    """There are no whole results. One line says what was expected and what was found."""


@dataclass(frozen=True)
class Found:
    """A finding.

    number: from 1 on, the surest first. In the mask, its voxels have this value.
    centre: in the patient, right-anterior-superior, mm.
    volume_ml: in millilitres.
    highest: of its voxel scores, 0 .. 1.
    false_objects: how many objects as sure as this a healthy scan shows. None where that was not measured.
    """

    number: int
    centre: tuple[float, float, float]
    volume_ml: float
    highest: float
    false_objects: float | None

    @property
    def label(self) -> str:
        return f"Finding {self.number}, score {self.highest:.2f}"


@dataclass(frozen=True)
class Results:
    """The results of a run.

    score: of the volume, 0 .. 1.
    findings: the surest first.
    scores: the file of voxel scores, 0 .. 1, on the volume's grid.
    mask: the file of the findings' numbers on this grid.
    table: a CSV file with a row for each finding.
    """

    score: float
    findings: tuple[Found, ...]
    scores: Path
    mask: Path
    table: Path

    @property
    def summary(self) -> str:
        count = len(self.findings)
        return f"Score {self.score:.3f} (0 ordinary, 1 anomalous), {count} finding{'' if count == 1 else 's'}"


def read_results(folder: Path) -> Results:
    """The results in the folder of a run, whose table is written here. Raises ResultsError where they are not whole."""
    scores, mask, table = folder / "out" / VOLUME, folder / "found" / VOLUME, folder / "found" / TABLE
    for file in (scores, mask):
        if not file.is_file():
            raise ResultsError(f"expected the file {file}, found none")
    try:
        score = float((folder / "out" / f"{VOLUME}.txt").read_text(encoding="utf-8"))
        (entry,) = json.loads((folder / "found" / "findings.json").read_text(encoding="utf-8"))
        findings = tuple(_found(one) for one in entry["findings"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ResultsError(f"{folder}: expected a score and findings, found {error!r}") from None
    _write_table(table, findings)
    return Results(score, findings, scores, mask, table)


def _found(entry: dict[str, Any]) -> Found:
    x, y, z = entry["centre_mm"]
    return Found(entry["number"], (x, y, z), entry["volume_ml"], entry["highest"], entry["false_objects"])


def _write_table(file: Path, findings: tuple[Found, ...]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["Finding", "R (mm)", "A (mm)", "S (mm)", "Volume (ml)", "Highest score", "In a healthy scan"])
        for one in findings:
            false = "" if one.false_objects is None else f"{one.false_objects:.2f}"
            table.writerow([one.number, *one.centre, f"{one.volume_ml:.2f}", f"{one.highest:.3f}", false])


def why_it_failed(output: str, status: int | None) -> str:
    """A line on a run that failed, with its own reason. status: None for a run that crashed or was killed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    ended = "crashed" if status is None else f"ended with status {status}"
    if not lines:
        return f"mood-submission {ended} and wrote nothing"
    # The line on what is wrong. A count of failures may follow it.
    reasons = [line for line in lines if " expected " in line]
    return f"mood-submission {ended}: {(reasons or lines)[-1]}"
