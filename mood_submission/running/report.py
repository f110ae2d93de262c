"""Writes the outcome of each volume to a JSON file, which is whole at every moment."""

import json
import time
from datetime import datetime, timezone
from pathlib import Path

from ..model import Model
from ..runtime.files import write_text
from ..runtime.names import as_text
from ..version import __version__
from ..volumes import Source
from .options import PredictOptions
from .run_folder import STATUSES, Outcome

OPTIONS = (
    "region",
    "task",
    "slices",
    "restorations",
    "sample_method",
    "pixel_method",
    "precision",
    "engine",
    "seed",
    "resume",
    "time_budget",
)


class Report:
    """The report of a run. It is written when the run begins and after each volume.

    The file holds: version; weights (file and sha256); options, null for what the model file says; device; computed (the engine
    and the precision that compute when the file is written, and the sha256 of the graphs, null for torch; each volume says by what
    it was computed); input; output; started (UTC); seconds so far;
    counts by status; volumes, each as `run_folder.Outcome.to_dict`.

    options: the command's.
    model: the networks.
    sources: the volumes in order.
    path: of the file. None to write nothing.
    Raises OSError where the file cannot be written.
    """

    def __init__(self, options: PredictOptions, model: Model, sources: list[Source], path: Path | None):
        self.path, self.begin, self.model = path, time.monotonic(), model
        self.outcomes = {source: Outcome(source) for source in sources}
        self.head = {
            "version": __version__,
            "weights": {"file": as_text(str(model.file)), "sha256": model.sha256},
            "options": {name: getattr(options, name) for name in OPTIONS},
            "device": str(model.device),
            "computed": {},
            "input": as_text(options.input),
            "output": as_text(options.output),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        self.write()

    def add(self, outcome: Outcome) -> str | None:
        """Add an outcome. Returns a line where the report cannot be written, since predictions must not be lost for it."""
        self.outcomes[outcome.source] = outcome
        try:
            self.write()
            return None
        except OSError as error:
            return f"{self.path}: expected to write the report, found: {error.strerror}"

    def write(self) -> None:
        if self.path is None:
            return
        statuses = [outcome.status for outcome in self.outcomes.values()]
        content = self.head | {
            # Torch may have taken over meanwhile.
            "computed": self.model.computed,
            "seconds": time.monotonic() - self.begin,
            "counts": {status: statuses.count(status) for status in STATUSES},
            "volumes": [outcome.to_dict() for outcome in self.outcomes.values()],
        }
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def rank_path(path: Path, rank: int) -> Path:
    """The path of one process's report, such as FILE.rank-0.json for FILE.json."""
    return path.with_name(f"{path.stem}.rank-{rank}{path.suffix}")


def merge_reports(path: Path, count: int) -> dict[str, dict]:
    """Merge the reports of `count` processes into one, and delete them. The process that took a volume reports on it.

    What all have in common, `computed` too, is taken from the first.

    Returns the volumes' outcomes by file name (`as_text`). Raises OSError for a report that is missing, ValueError for a broken
    one.
    """
    reports = [json.loads(rank_path(path, rank).read_text("utf-8")) for rank in range(count)]
    volumes: dict[str, dict] = {}
    for report in reports:
        for volume in report["volumes"]:
            if volume["file"] not in volumes or volume["status"] != "not reached":
                volumes[volume["file"]] = volume
    statuses = [volume["status"] for volume in volumes.values()]
    content = reports[0] | {
        "started": min(report["started"] for report in reports),
        "seconds": max(report["seconds"] for report in reports),
        "counts": {status: statuses.count(status) for status in STATUSES},
        "volumes": list(volumes.values()),
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
    for rank in range(count):
        rank_path(path, rank).unlink(missing_ok=True)
    return volumes
