"""Writes the folder of a run's findings: a mask for each volume, and one table of all findings."""

import csv
import io
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from ..findings.objects import EXPECTED
from ..predictor import LabelledObjects
from ..runtime.files import LOCK, exclusive_lock, write_text
from ..runtime.names import as_text, in_one_line, shown
from ..volumes import Grid, Source, write_mask, write_volume
from .dicom_seg import SUFFIX, write_dicom_seg

COLUMNS = (
    "file",
    "number",
    *(f"centre_{axis}_mm" for axis in "xyz"),
    *(f"centre_{axis}_voxel" for axis in "ijk"),
    *(f"first_{axis}_voxel" for axis in "ijk"),
    *(f"last_{axis}_voxel" for axis in "ijk"),
    "volume_ml",
    "voxels",
    "highest",
    "mean",
    "false_objects",
)


@dataclass
class FindingsFolder:
    """A folder of findings.

    For each volume it holds DIR/NAME.nii.gz, a mask of numbered objects, and DIR/expected/NAME.nii.gz, what the model would
    have expected to see, both on the volume's own grid. The tables DIR/findings.csv and DIR/findings.json hold all findings.

    The tables are written again after each volume. Volumes of an earlier run or another process stay in them until they are
    added again. File names are written as `as_text` gives them.

    folder: DIR, which is made where it is missing.
    dicom_seg: whether findings in a DICOM series are also written as DIR/NAME.seg.dcm.
    findings_by_file: the findings in the tables, by file name.
    Raises OSError where the folder cannot be written to, ValueError where its findings.json is no such table.
    """

    folder: Path
    dicom_seg: bool = False
    findings_by_file: dict[str, list[dict]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.folder / LOCK):
            self._read_table()
            self._write_tables()

    def _read_table(self) -> None:
        table = self.folder / "findings.json"
        if table.exists():
            self.findings_by_file |= read_findings(table)

    def add(self, source: Source, objects: LabelledObjects, grid: Grid) -> None:
        """Write a volume's objects, and add its findings to the tables. grid: the volume's."""
        name = source.output_name
        if objects.expected is not None:
            (self.folder / EXPECTED).mkdir(exist_ok=True)
            write_volume(self.folder / EXPECTED / name, objects.expected, grid)
        write_mask(self.folder / name, objects.mask, grid)
        if self.dicom_seg:
            self._write_dicom_seg(source, objects, grid)
        with exclusive_lock(self.folder / LOCK):
            self._read_table()
            self.findings_by_file[as_text(name)] = [finding.to_dict() for finding in objects.findings]
            self._write_tables()

    def segmentation_of(self, source: Source) -> Path:
        """Where findings in a series of DICOM files are written as a segmentation."""
        return self.folder / f"{source.name}{SUFFIX}"

    def _write_dicom_seg(self, source: Source, objects: LabelledObjects, grid: Grid) -> None:
        """Write the segmentation in place of an earlier run's. Warn where the series cannot be referred to."""
        file = self.segmentation_of(source)
        # This is False for a name that is too long. Only series are refused for that.
        if os.path.lexists(file):
            file.unlink(missing_ok=True)
        if not objects.findings or source.kind != "dicom":
            return
        try:
            write_dicom_seg(file, source, objects.mask, grid, objects.findings)
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            text = in_one_line(error)[:300]
            warnings.warn(f"{shown(source)}: no DICOM segmentation written: {text}", stacklevel=2)

    def has(self, name: str) -> bool:
        """Whether a volume's mask and findings are there already."""
        return as_text(name) in self.findings_by_file and (self.folder / name).exists()

    def _write_tables(self) -> None:
        names = sorted(self.findings_by_file)
        entries = [{"file": name, "findings": self.findings_by_file[name]} for name in names]
        write_text(self.folder / "findings.json", json.dumps(entries, indent=1) + "\n")
        text = io.StringIO(newline="")
        rows = [_row(name, finding) for name in names for finding in self.findings_by_file[name]]
        kinds = list(dict.fromkeys(name for row in rows for name in row if name not in COLUMNS))
        table = csv.DictWriter(text, [*COLUMNS, *kinds], restval="")
        table.writeheader()
        table.writerows(rows)
        write_text(self.folder / "findings.csv", text.getvalue())


def read_findings(table: Path) -> dict[str, list[dict]]:
    """The findings in a findings.json, by the volume's file name (`as_text`). Raises ValueError for another file."""
    try:
        # Tables of earlier versions may hold names that are not printable.
        return {shown(entry["file"]): list(entry["findings"]) for entry in json.loads(table.read_text("utf-8"))}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{table}: expected findings of a run, found {error!r}") from None


def _row(file: str, finding: dict) -> dict[str, object]:
    """A finding as a row of the table, with a column for each axis and for each kind of evidence."""
    row: dict[str, object] = {"file": file}
    for name, value in finding.items():
        if name == "evidence":
            row |= {f"rarity_{kind}": rare for kind, rare in value.items()}
        elif isinstance(value, list | tuple):
            what, unit = name.rsplit("_", 1)
            axes = "xyz" if unit == "mm" else "ijk"
            row |= {f"{what}_{axis}_{unit}": number for axis, number in zip(axes, value)}
        else:
            row[name] = "" if value is None else value
    return row
