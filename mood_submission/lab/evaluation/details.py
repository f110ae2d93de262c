"""What lies behind one average precision: the field's other measures, tables by kind, size and source, every case, curves."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...findings.thresholds import FALSE_ALARMS
from ...runtime.files import write_text
from ...runtime.names import as_text
from ..sources import source_of
from .field_metrics import (
    HEALTHY_RATES,
    OBJECT_RATES,
    ObjectCounts,
    aupro,
    auroc,
    best_dice,
    components_of,
    count_objects,
    dice_at,
    rates,
    sensitivity_at,
)
from .metrics import VALUES, average_precision, score_counts

# An anomaly is called so up to this volume.
SIZES_ML = {"small": 1.0, "medium": 10.0, "large": np.inf}
# The score of each place in the counts.
SCORE_OF = np.arange(VALUES, dtype=np.uint16).view(np.float16).astype(np.float64)


@dataclass
class Judged:
    """A case of either task with its prediction.

    name: of the volume, without its ending.
    kind: of the anomaly; "healthy" without one, "" where it is not known.
    size: a name of SIZES_ML, or "" where it is not known.
    source: of the healthy volume, see `source_of`.
    counts: (2, K), of its scores, see `metrics.score_counts`.
    voxels: of the anomaly. In the sample task 1 or 0.
    highest: the highest score.
    ap: the average precision of its voxels. NaN without an anomaly, and in the sample task.
    regions: (R, K), the counts of the scores in each connected anomaly.
    objects: by the score that voxels must reach.
    findings: of a mask of findings.
    radius: of the anomaly in mm, where the record says it.
    """

    name: str
    kind: str
    size: str
    source: str
    counts: np.ndarray
    voxels: int = 0
    highest: float = 0.0
    ap: float = float("nan")
    regions: np.ndarray | None = None
    objects: dict[float, ObjectCounts] = field(default_factory=dict)
    findings: ObjectCounts | None = None
    radius: float | None = None


@dataclass
class Details:
    """Takes in case after case, and then gives measures and tables.

    task: one of TASKS.
    records: what is known of the cases by name (`as_text`), as toy_label/anomalies.json has it. It may be empty.
    """

    task: str
    records: Mapping[str, Mapping]
    cases: list[Judged] = field(default_factory=list)

    @classmethod
    def beside(cls, label_dir: Path, task: str) -> "Details":
        """With the records that lie beside the labels, where there are any. Raises ValueError where these are none."""
        for folder in (label_dir, label_dir.parent):
            file = folder / "anomalies.json"
            if file.is_file():
                try:
                    records = json.loads(file.read_text("utf-8"))
                    return cls(task, {name.removesuffix(".nii.gz"): r for name, r in records.items()})
                except (ValueError, AttributeError):
                    raise ValueError(f"{file}: expected records of planted anomalies, found something else") from None
        return cls(task, {})

    def add_pixel(self, name: str, scores: np.ndarray, label: np.ndarray, counts: np.ndarray) -> None:
        """Take in a case of the pixel task, as `challenge.evaluate_pixel` calls it."""
        case = self._case(name, counts, int(label.sum()))
        case.highest = float(scores.max())
        if case.voxels:
            case.ap = float(average_precision(counts[0], counts[1]))
            objects, sizes = components_of(label)
            of_each = [
                score_counts(scores[objects == n], np.ones(sizes[n - 1], bool))[1] for n in range(1, len(sizes) + 1)
            ]
            case.regions = np.stack(of_each)

    def add_sample(self, name: str, label: int, score: float) -> None:
        """Take in a case of the sample task, as `challenge.evaluate_sample` calls it."""
        counts = score_counts(np.array([score], np.float16), np.array([bool(label)]))
        self._case(name, counts, label).highest = score

    def add_objects(self, name: str, scores: np.ndarray, label: np.ndarray, levels: Sequence[float]) -> None:
        """Count the objects of a case that was taken in, at each of these scores."""
        self._named(name).objects = {level: count_objects(scores >= level, label) for level in levels}

    def add_findings(self, name: str, mask: np.ndarray, label: np.ndarray) -> None:
        """Count the objects of a case that was taken in as a mask of findings has them."""
        self._named(name).findings = count_objects(mask, label)

    def _named(self, name: str) -> Judged:
        return next(case for case in self.cases if case.name == name.removesuffix(".nii.gz"))

    def _case(self, name: str, counts: np.ndarray, positives: int) -> Judged:
        name = name.removesuffix(".nii.gz")
        record = self.records.get(as_text(name), {})
        kind = str(record.get("kind") or ("healthy" if not positives else ""))
        size = ""
        if positives and "volume_ml" in record:
            size = next(size for size, most in SIZES_ML.items() if float(record["volume_ml"]) <= most)
        origin = str(record.get("origin", name))
        case = Judged(name, kind, size, source_of(origin), counts, voxels=positives, radius=record.get("radius_mm"))
        self.cases.append(case)
        return case

    # --- figures ------------------------------------------------------------------------------------------------------

    def object_levels(self) -> list[float]:
        """Scores at which objects are worth counting: those that OBJECT_RATES of the negative voxels reach."""
        negatives = self._sum(self.cases)[0]
        false, _ = rates(negatives, negatives)
        places = [int(np.flatnonzero(false <= rate)[-1]) for rate in OBJECT_RATES]
        return sorted({float(SCORE_OF[VALUES - place]) for place in places if place})

    def measures(self) -> dict[str, float]:
        """The field's measures of all cases together."""
        negatives, positives = self._sum(self.cases)
        figures = {"auroc": auroc(negatives, positives)}
        if self.task == "sample":
            return figures | {
                f"sensitivity at {rate:.0%} false alarms": sensitivity_at(negatives, positives, rate)
                for rate in FALSE_ALARMS
            }
        healthy = [case for case in self.cases if not case.voxels] or self.cases
        clean = self._sum(healthy)[0]
        figures["best dice"] = best_dice(negatives, positives)
        figures |= {
            f"dice at {rate:.0%} healthy false positives": dice_at(negatives, positives, clean, rate)
            for rate in HEALTHY_RATES
        }
        regions = [case.regions for case in self.cases if case.regions is not None]
        figures["aupro up to 0.3"] = aupro(np.concatenate(regions), negatives) if regions else float("nan")
        return figures | self._object_measures() | self._finding_measures()

    def _finding_measures(self) -> dict[str, float]:
        counted = [(case, case.findings) for case in self.cases if case.findings is not None]
        if not counted:
            return {}
        total = sum((found for _, found in counted), ObjectCounts())
        healthy = [found.false for case, found in counted if not case.voxels]
        figures = {
            "findings f1": total.f1,
            "findings recall": total.found / total.true if total.true else float("nan"),
            "findings false in a healthy volume": sum(healthy) / len(healthy) if healthy else float("nan"),
        }
        for kind in sorted({case.kind for case, _ in counted if case.voxels} - {""}):
            figures[f"findings f1 of {kind}"] = sum((f for c, f in counted if c.kind == kind), ObjectCounts()).f1
        return figures

    def _object_measures(self) -> dict[str, float]:
        counted = [case for case in self.cases if case.objects]
        if not counted:
            return {}
        totals = {level: sum((case.objects[level] for case in counted), ObjectCounts()) for level in counted[0].objects}
        level, best = max(totals.items(), key=lambda item: np.nan_to_num(item[1].f1))
        healthy = [case.objects[level] for case in counted if not case.voxels]
        figures = {
            "object f1": best.f1,
            "object f1 at score": level,
            "object recall": best.found / best.true if best.true else float("nan"),
            "false objects a volume": best.false / len(counted),
            "false objects a healthy volume": sum(o.false for o in healthy) / len(healthy) if healthy else float("nan"),
        }
        for size in SIZES_ML:
            members = [case.objects[level] for case in counted if case.voxels and case.size == size]
            if sum(o.true for o in members):
                figures[f"object recall, {size}"] = sum(o.found for o in members) / sum(o.true for o in members)
                figures[f"false objects a volume, {size}"] = sum(o.false for o in members) / len(members)
        return figures

    def tables(self) -> dict[str, dict[str, float]]:
        """Average precision by kind, size and source of the anomalies, each where there are several.

        For samples, each group is judged beside all healthy volumes.
        """
        figures: dict[str, dict[str, float]] = {}
        healthy = [case for case in self.cases if not case.voxels]
        for name in ("kind", "size", "source"):
            values = sorted({getattr(case, name) for case in self.cases if case.voxels} - {""})
            if len(values) < 2:
                continue
            figures[name] = {}
            for value in values:
                members = [case for case in self.cases if case.voxels and getattr(case, name) == value]
                others = healthy if self.task == "sample" else []
                negatives, positives = self._sum(members + others)
                figures[name][value] = float(average_precision(negatives, positives))
                if self.task == "sample" and name == "kind":
                    figures.setdefault("kind, area under the curve", {})[value] = auroc(negatives, positives)
                found = sum((case.findings for case in members if case.findings is not None), ObjectCounts())
                if name == "kind" and found.true:
                    figures.setdefault("kind, findings recall", {})[value] = found.found / found.true
        return figures

    def curves_by_radius(self) -> dict[str, list[tuple[float, float]]]:
        """How well anomalies of one kind are found by their radius: rising (mm, figure) by kind, such as "ball".

        The figure is the average precision of the pixel task, or the area under the curve of the sample task. Kinds are those of
        `make-toy --gross` and `--sizes`, "ball_05mm" and the like; others are left out.
        """
        tables, task = self.tables(), "kind" if self.task == "pixel" else "kind, area under the curve"
        radii = {case.kind: case.radius for case in self.cases if case.radius is not None}
        curves: dict[str, list[tuple[float, float]]] = {}
        for kind, figure in tables.get(task, {}).items():
            if kind in radii:
                curves.setdefault(kind.rpartition("_")[0] or kind, []).append((float(radii[kind]), figure))
        return {kind: sorted(points) for kind, points in curves.items()}

    @staticmethod
    def _sum(cases: Sequence[Judged]) -> np.ndarray:
        return np.sum([case.counts for case in cases], axis=0)

    # --- files -----------------------------------------------------------------------------------------------------------

    def write_cases(self, file: Path) -> None:
        """A CSV file with a row for every case."""
        columns = ["name", "kind", "size", "source", "positive", "highest_score"] + (
            ["ap"] if self.task == "pixel" else []
        )
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(columns)
        for case in self.cases:
            row = [as_text(case.name), case.kind, case.size, case.source, case.voxels, f"{case.highest:.6g}"]
            table.writerow(row + ([f"{case.ap:.6g}"] if self.task == "pixel" else []))
        write_text(file, text.getvalue())

    def plot_curves(self, file: Path) -> None:
        """A picture of the precision-recall curve and the ROC curve of all cases together."""
        plt = _pyplot()
        negatives, positives = self._sum(self.cases)
        false, true = rates(negatives, positives)
        found = np.cumsum(positives[::-1]) / np.maximum(np.cumsum((negatives + positives)[::-1]), 1)
        figure, axes = plt.subplots(1, 2, figsize=(9, 4.2))
        axes[0].step(true[1:], found, where="post")
        axes[0].set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes[0].set_title(f"average precision {average_precision(negatives, positives):.3f}", fontsize=10)
        axes[1].plot(false, true)
        axes[1].plot([0, 1], [0, 1], linestyle=":", color="grey")
        axes[1].set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.02))
        axes[1].set_title(f"area under the curve {auroc(negatives, positives):.3f}", fontsize=10)
        for axis in axes:
            axis.grid(alpha=0.3)
        _save(figure, file)

    def plot_by_radius(self, file: Path) -> None:
        """A picture of `curves_by_radius`. Raises ValueError where no case's radius is known."""
        plt = _pyplot()
        curves = self.curves_by_radius()
        if not curves:
            raise ValueError(f"{file}: expected cases of make-toy --sizes or --gross, found none with a radius in mm")
        figure, axis = plt.subplots(figsize=(6, 4.2))
        for kind, points in curves.items():
            axis.plot(*zip(*points), marker="o", label=kind)
        figures = "average precision of voxels" if self.task == "pixel" else "area under the curve of volumes"
        axis.set(xscale="log", xlabel="radius in mm", ylabel=figures, ylim=(0, 1.02))
        ticks = sorted({radius for points in curves.values() for radius, _ in points})
        axis.set_xticks(ticks, [f"{radius:g}" for radius in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
        _save(figure, file)


def _pyplot() -> Any:
    """matplotlib's pyplot, which is loaded only where a picture is made."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    _pyplot().close(figure)
