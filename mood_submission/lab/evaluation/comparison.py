"""Scoring methods, side by side: anomalies of every kind planted in held-out healthy volumes, one table."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evidence.evidence import Evidence
from ...methods import table
from ...methods.base import Method
from ...methods.paper import smooth
from ...networks.vae import VAE, divergence
from ...predictor import Predictor, Prepared
from ...preprocessing import to_unit_range, volume_to_slices
from ...preprocessing.body import body_mask
from ...runtime.files import write_whole
from ...volumes import Source, Volume, read_volume
from ..planting.anomalies import KINDS, plant
from ..planting.toy import file_seed
from ..sources import source_of
from .further_methods import FURTHER_METHODS
from .metrics import average_precision, bootstrap_interval, score_counts

# Radii of the anomalies, as shares of the field of view.
SIZES = {"small": (0.07, 0.107), "medium": (0.107, 0.143), "large": (0.143, 0.18)}
# What of a planted case is kept for the page of examples, before the scores.
PICTURE = ("slice", "label", "restoration")


@dataclass(frozen=True)
class Case:
    """A volume, healthy or with one anomaly planted.

    volume: its name. kind, size: of the anomaly; None for a healthy volume. seed: of the planting.
    """

    volume: str
    kind: str | None = None
    size: str | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        return self.volume if self.kind is None else f"{self.volume}_{self.kind}_{self.size}"


def plan(volumes: Sequence[str], planted: int, seed: int) -> list[Case]:
    """Each volume healthy, and `planted` times with an anomaly: kinds in turn, then sizes in turn."""
    cases = []
    for number, volume in enumerate(sorted(volumes)):
        cases.append(Case(volume))
        for i in range(number * planted, (number + 1) * planted):
            kind, size = KINDS[i % len(KINDS)], list(SIZES)[i // len(KINDS) % len(SIZES)]
            cases.append(Case(volume, kind, size, file_seed(seed, f"{volume}/{kind}/{size}")))
    return cases


def make(case: Case, source: Source | Path, predictor: Predictor) -> tuple[Volume, np.ndarray]:
    """The case's volume, and where its anomaly is: bool (X, Y, Z)."""
    volume = read_volume(source)
    data = np.ascontiguousarray(to_unit_range(volume.data, predictor.model.about.preprocessing))
    if case.kind is None or case.size is None:
        return dataclasses.replace(volume, data=data), np.zeros(data.shape, bool)
    data, mask = plant(data, case.kind, np.random.default_rng(case.seed), SIZES[case.size], body_mask(data))
    return dataclasses.replace(volume, data=data), mask


# --- the methods -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scores:
    """A volume's scores by several methods.

    pixel: maps (N, ., .) in [0, 1] by method, for `Predictor.to_volume`.
    sample: numbers by method, higher for more anomalous.
    restored: the mean of the restorations, or the reconstruction where there are none, (N, S, S).
    """

    pixel: dict[str, Tensor]
    sample: dict[str, float]
    restored: Tensor


Scoring = Callable[[Predictor, Prepared], Scores]


def model_scores(predictor: Predictor, prepared: Prepared) -> Scores:
    """Scores by every method that the model has all for: those that are registered, and FURTHER_METHODS.

    A method that looks at restorations and needs none is there twice, with and "without sampling". Where the predictor draws no
    restorations, only what needs none is there.
    """
    undrawn, drawn = predictor.evidence(prepared), None
    if predictor.restorations:
        drawn = undrawn.with_restorations(predictor.restore(prepared, undrawn.codes))
    pixel: dict[str, Tensor] = {}
    sample: dict[str, float] = {}
    for method in compared_methods():
        if not method.fits(undrawn.about):
            continue
        if "pixel" in method.scores:
            pixel |= {name: method.pixel(e) for name, e in _seen_by(method, "pixel", undrawn, drawn).items()}
        if "sample" in method.scores:
            sample |= {name: method.sample(e) for name, e in _seen_by(method, "sample", undrawn, drawn).items()}
    restored = None if drawn is None else drawn.restored
    return Scores(pixel, sample, undrawn.decoded if restored is None else restored)


def compared_methods() -> list[Method]:
    """All methods that `model_scores` knows."""
    return [*table.METHODS.values(), *FURTHER_METHODS]


def _seen_by(method: Method, task: str, undrawn: Evidence, drawn: Evidence | None) -> dict[str, Evidence]:
    """The evidence that a method's score of a task is made of, by the name that the score has in the table.

    undrawn, drawn: the evidence without restorations and with; None where none are drawn.
    """
    if task not in method.reads_restorations:
        return {method.name: undrawn}
    seen = {} if drawn is None else {method.name: drawn}
    return seen if method.needs_restorations else seen | {undrawn_name(method.name): undrawn}


def undrawn_name(method: str) -> str:
    """What the scores of a method are called that needs no restorations, and has none here."""
    return f"{method} without sampling"


def vae_scores(vae: VAE) -> Scoring:
    """Scores by a VAE, whatever the predictor's model: |slice - reconstruction|, smoothed as the published scores are.

    For samples its mean, and the mean negative ELBO of a slice. This is no `Method`: all scores come of one pass of another
    network.
    """

    @torch.inference_mode()
    def scoring(predictor: Predictor, prepared: Prepared) -> Scores:
        parts, losses = [], []
        for slices, position in zip(prepared.slices.cpu().split(16), prepared.position.split(16)):
            mean, log_variance = vae.encode(slices, position)
            parts.append(vae.decode(mean, position))
            losses.append((slices - parts[-1]).abs().sum((1, 2)) + divergence(mean, log_variance))
        decoded = torch.cat(parts)
        residual = (prepared.slices.cpu() - decoded).abs()
        return Scores(
            {"vae": smooth(residual).clamp(0, 1)},
            {"vae": float(residual.mean()), "vae elbo": float(torch.cat(losses).mean())},
            decoded,
        )

    return scoring


def measure(case: Case, source: Source | Path, predictor: Predictor, scoring: Scoring) -> dict[str, np.ndarray]:
    """A case's outcome: arrays by name.

    pixel, pixel_methods: (methods, 2, values), the counts of `score_counts`, and the methods' names.
    sample, sample_methods: (methods,), the scores, and the methods' names.
    picture: see `_picture`. Only where there is an anomaly.
    """
    volume, mask = make(case, source, predictor)
    prepared = predictor.prepare(volume)
    scores = scoring(predictor, prepared)
    counts = [
        score_counts(predictor.to_volume(prepared, maps).astype(np.float16), mask) for maps in scores.pixel.values()
    ]
    outcome = {
        "pixel": np.stack(counts),
        "pixel_methods": np.array(list(scores.pixel)),
        "sample": np.array(list(scores.sample.values())),
        "sample_methods": np.array(list(scores.sample)),
    }
    if case.kind is not None:
        label = volume_to_slices(
            mask.astype(np.float32),
            volume.spacing,
            prepared.indices,
            predictor.model.about.preprocessing,
            view=dataclasses.replace(prepared.view, tone=None, blur_along=0.0, blur_in_plane=0.0, body=None),
        )
        outcome["picture"] = _picture(prepared, label, scores)
    return outcome


def _picture(prepared: Prepared, label: Tensor, scores: Scores) -> np.ndarray:
    """The slice with most of the anomaly: PICTURE and each method's pixel scores, float16 (., S, S)."""
    i, side = int(label.sum((1, 2)).argmax()), label.shape[-1]
    maps = [
        torch.nn.functional.interpolate(m[i][None, None].float().cpu(), (side, side), mode="bilinear")[0, 0]
        for m in (prepared.slices, label, scores.restored, *scores.pixel.values())
    ]
    return torch.stack(maps).half().numpy()


# --- all cases, and the table ----------------------------------------------------------------------------------------


def run_case(case: Case, source: Source | Path, predictor: Predictor, scoring: Scoring, folder: Path) -> None:
    """Measure a case into `folder`/NAME.npz, unless it is there."""
    file = folder / f"{case.name}.npz"
    if file.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    outcome: dict[str, Any] = measure(case, source, predictor, scoring)
    with write_whole(file) as out:
        np.savez_compressed(out, **outcome)


def load_case(case: Case, folders: Sequence[Path], names: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """What `run_case` left of a case in each folder."""
    outcomes = []
    for folder in folders:
        with np.load(folder / f"{case.name}.npz", allow_pickle=False) as file:
            outcomes.append({name: file[name] for name in names})
    return outcomes


# By task, method and figure; see `comparison_table`.
Table = dict[str, dict[str, dict[str, Any]]]


def comparison_table(cases: Sequence[Case], folders: Sequence[Path], resamples: int = 1000) -> Table:
    """Figures by task and method, of the methods in all folders.

    ap: the average precision. Healthy volumes count as often as their planted copies, so that half of the cases are anomalous.
    low, high: its 95% interval over resampled volumes.
    kinds, sizes: the average precision of each kind's and each size's cases alone. For samples, beside all healthy volumes.
    healthy: for samples, the lowest, the median and the highest score of healthy volumes.
    """
    stored = {case: load_case(case, folders, ("pixel", "pixel_methods", "sample", "sample_methods")) for case in cases}
    volumes = sorted({case.volume for case in cases})
    times = (len(cases) - len(volumes)) // len(volumes)
    result: Table = {"pixel": {}, "sample": {}}
    for task, methods in result.items():
        for f in range(len(folders)):
            for i, name in enumerate(stored[cases[0]][f][f"{task}_methods"].tolist()):
                counts = _counts_by_case({case: outcomes[f][task][i] for case, outcomes in stored.items()})
                weighted = {case: c * (times if case.kind is None else 1) for case, c in counts.items()}
                of_volume = np.stack([sum(c for case, c in weighted.items() if case.volume == v) for v in volumes])
                low, high = bootstrap_interval(of_volume, resamples, seed=0)
                methods[name] = {
                    "ap": float(average_precision(*of_volume.sum(0))),
                    "low": low,
                    "high": high,
                    "kinds": _parts(counts, "kind", task),
                    "sizes": _parts(counts, "size", task),
                }
                if task == "sample":
                    healthy = [float(outcomes[f][task][i]) for case, outcomes in stored.items() if case.kind is None]
                    methods[name]["healthy"] = [float(np.quantile(healthy, share)) for share in (0, 0.5, 1)]
    return result


def telling_apart(cases: Sequence[Case], folders: Sequence[Path]) -> dict[str, dict[str, float]]:
    """How well sample scores tell the healthy volumes of two sources apart, by method and pair of sources.

    It is the area under the curve of the better direction: 0.5 for not at all, 1 for entirely.
    """
    healthy = [case for case in cases if case.kind is None]
    sources = sorted({source_of(case.volume) for case in healthy})
    result: dict[str, dict[str, float]] = {}
    for f in range(len(folders)):
        outcomes = {case: load_case(case, folders, ("sample", "sample_methods"))[f] for case in healthy}
        for i, name in enumerate(outcomes[healthy[0]]["sample_methods"].tolist()):
            scores = {s: [outcomes[c]["sample"][i] for c in healthy if source_of(c.volume) == s] for s in sources}
            for one, other in itertools.combinations(sources, 2):
                above = np.mean([(a > b) + (a == b) / 2 for a in scores[one] for b in scores[other]])
                result.setdefault(name, {})[f"{one} and {other}"] = float(max(above, 1 - above))
    return result


def _counts_by_case(outcomes: dict[Case, np.ndarray]) -> dict[Case, np.ndarray]:
    """One method's counts of each case, (2, values). A sample score becomes one count."""
    if next(iter(outcomes.values())).ndim:
        return outcomes
    values, place = np.unique(list(outcomes.values()), return_inverse=True)
    counts = {}
    for case, at in zip(outcomes, place):
        counts[case] = np.zeros((2, len(values)), np.int64)
        counts[case][int(case.kind is not None), at] = 1
    return counts


def _parts(counts: dict[Case, np.ndarray], field: str, task: str) -> dict[str, float]:
    """Average precision by kind or size of anomaly. Samples are judged beside as many healthy volumes."""
    parts = {}
    for value in dict.fromkeys(getattr(case, field) for case in counts if case.kind is not None):
        chosen = [c for case, c in counts.items() if getattr(case, field) == value]
        total = np.asarray(np.sum(chosen, axis=0, dtype=np.float64))
        if task == "sample":
            healthy = np.sum([c for case, c in counts.items() if case.kind is None], axis=0)
            total = total + healthy * len(chosen) / healthy.sum()
        parts[value] = float(average_precision(total[0], total[1]))
    return parts


def to_markdown(result: Table) -> str:
    """The table as Markdown, one for each task, best first: of all cases, by kind and by size."""
    lines = []
    for task, methods in result.items():
        first = next(iter(methods.values()))
        parts = [(group, name) for group in ("kinds", "sizes") for name in first[group]]
        names = [name for _, name in parts]
        more = ["healthy: lowest, median, highest"] if task == "sample" else []
        lines += [
            f"| {task} task | AP | 95% interval | {' | '.join([*names, *more])} |",
            "|---" * (len(names + more) + 3) + "|",
        ]
        for name, row in sorted(methods.items(), key=lambda item: -item[1]["ap"]):
            columns = [f"{row[group][name]:.2f}" for group, name in parts]
            columns += [", ".join(f"{value:.3g}" for value in row["healthy"])] if more else []
            lines.append(
                f"| {name} | {row['ap']:.3f} | {row['low']:.3f} .. {row['high']:.3f} | {' | '.join(columns)} |"
            )
        lines.append("")
    return "\n".join(lines)
