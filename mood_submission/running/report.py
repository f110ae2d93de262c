"""What became of each volume, as a JSON file that is whole at every moment."""

import argparse
import json
import time
from datetime import datetime, timezone
from pathlib import Path

from ..model import Model
from ..runtime.files import write_text
from ..runtime.names import as_text
from ..version import __version__
from ..volumes import Source
from .run_folder import STATUSES, Outcome

OPTIONS = (
    "region",
    "task",
    "slices",
    "restorations",
    "sample_method",
    "pixel_method",
    "precision",
    "seed",
    "resume",
    "time_budget",
)


class Report:
    """The report of a run, written when it begins and after each volume. Without a file, nothing is written.

    args: the command's (see `cli.predict`). sources: the volumes in order. path: of the file. Raises OSError where it cannot be
    written.

    The file holds: version; weights (file and sha256); options, None for what the model file says; device; input,
    output; started (UTC); seconds so far; counts by status; volumes, each as `run_folder.Outcome.to_dict`.
    """

    def __init__(self, args: argparse.Namespace, model: Model, sources: list[Source], path: Path | None):
        self.path, self.begin = path, time.monotonic()
        self.outcomes = {source: Outcome(source) for source in sources}
        self.head = {
            "version": __version__,
            "weights": {"file": as_text(str(model.file)), "sha256": model.sha256},
            "options": {name: getattr(args, name) for name in OPTIONS},
            "device": str(model.device),
            "input": as_text(args.input),
            "output": as_text(args.output),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        self.write()

    def add(self, outcome: Outcome) -> str | None:
        """Take a volume in. Returns a line where the report cannot be written: no reason to lose predictions."""
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
            "seconds": time.monotonic() - self.begin,
            "counts": {status: statuses.count(status) for status in STATUSES},
            "volumes": [outcome.to_dict() for outcome in self.outcomes.values()],
        }
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def rank_path(path: Path, rank: int) -> Path:
    """The report of one of several processes: FILE.rank-0.json of FILE.json."""
    return path.with_name(f"{path.stem}.rank-{rank}{path.suffix}")


def merge_reports(path: Path, count: int) -> dict[str, dict]:
    """Make one report of those of `count` processes, which go; a volume is as the process that took it says. Returns what became
    of each volume, by its file's name (`as_text`). Raises OSError, ValueError where one is missing or broken."""
    parts = [json.loads(rank_path(path, rank).read_text("utf-8")) for rank in range(count)]
    volumes: dict[str, dict] = {}
    for part in parts:
        for volume in part["volumes"]:
            if volume["file"] not in volumes or volume["status"] != "not reached":
                volumes[volume["file"]] = volume
    statuses = [volume["status"] for volume in volumes.values()]
    content = parts[0] | {
        "started": min(part["started"] for part in parts),
        "seconds": max(part["seconds"] for part in parts),
        "counts": {status: statuses.count(status) for status in STATUSES},
        "volumes": list(volumes.values()),
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
    for rank in range(count):
        rank_path(path, rank).unlink(missing_ok=True)
    return volumes
