"""Ways of scoring, side by side: anomalies of every kind planted in held-out healthy volumes, one table."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .anomalies import KINDS, body_mask, plant
from .evaluation import average_precision, bootstrap_interval, score_counts
from .predictor import Predictor, Prepared
from .preprocessing import to_unit_range, volume_to_slices
from .rarity import combined_rarity, soften, top_mean
from .scoring import smooth, top_score
from .toy import file_seed
from .vae import VAE, divergence
from .volumes import Volume, read_volume

SIZES = {"small": (0.07, 0.107), "medium": (0.107, 0.143), "large": (0.143, 0.18)}  # radius, shares of the field of view
PICTURE = ("slice", "label", "restoration")  # what of a planted case is kept for the page of examples, before the scores


@dataclass(frozen=True)
class Case:
    """A volume by name, healthy (`kind` and `size` None) or with one anomaly planted. `seed`: of the planting."""

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


def make(case: Case, path: Path, predictor: Predictor) -> tuple[Volume, np.ndarray]:
    """The case's volume, and where its anomaly is: bool (X, Y, Z)."""
    volume = read_volume(path)
    data = np.ascontiguousarray(to_unit_range(volume.data, predictor.model.about.preprocessing))
    if case.kind is None:
        return dataclasses.replace(volume, data=data), np.zeros(data.shape, bool)
    data, mask = plant(data, case.kind, np.random.default_rng(case.seed), SIZES[case.size], body_mask(data))
    return dataclasses.replace(volume, data=data), mask


# --- the ways of scoring ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def vae_scores(vae: VAE, prepared: Prepared) -> tuple[Tensor, float]:
    """The VAE's |slice - reconstruction| (N, S, S), and the volume's mean negative ELBO a slice, nats."""
    residuals, losses = [], []
    for slices, position in zip(prepared.slices.cpu().split(16), prepared.position.split(16)):
        mean, log_variance = vae.encode(slices, position)
        residual = (slices - vae.decode(mean, position)).abs()
        residuals.append(residual)
        losses.append(residual.sum((1, 2)) + divergence(mean, log_variance))
    return torch.cat(residuals), float(torch.cat(losses).mean())


def score(predictor: Predictor, prepared: Prepared, vae: VAE | None) -> tuple[dict[str, Tensor], dict[str, float], Tensor]:
    """Every way's pixel scores, as maps (N, ., .) in [0, 1] for `to_volume`; sample scores, higher for more anomalous;
    and the restorations' mean residual (N, S, S)."""
    model, about = predictor.model, predictor.model.about
    codes = model.encode(prepared.slices, prepared.position)
    nll = model.nll(codes, prepared.position)
    published, restoration = predictor.residuals(prepared, predictor.restore(prepared, codes))
    decoded = model.decode(codes, prepared.position)
    pixel = {"vq-vae reconstruction": smooth((prepared.slices.to(decoded) - decoded).abs()).clamp(0, 1),
             "paper": smooth(published).clamp(0, 1)}
    paper = Predictor(model, sample_method="paper", pixel_method="paper")
    sample = {"paper": paper.sample_score_of(prepared, codes, nll), "top": top_score(nll)}
    if vae is not None:
        residual, sample["vae elbo"] = vae_scores(vae, prepared)
        pixel["vae"], sample["vae residual"] = smooth(residual).clamp(0, 1), float(residual.mean())
    if about.rarity_tables:
        evidence = predictor.evidence(prepared, codes, nll)
        groups = {"rarity without sampling": evidence, "rarity": evidence | predictor.smoothed(restoration=restoration)}
        groups |= {f"rarity of {name}": {name: maps} for name, maps in groups["rarity"].items()}
        for name, members in groups.items():
            rare = combined_rarity(members, about.rarity_tables)
            pixel[name], sample[name] = soften(rare), top_mean(rare)
    return pixel, sample, restoration


def measure(case: Case, path: Path, predictor: Predictor, vae: VAE | None) -> dict[str, np.ndarray]:
    """A case's outcome: `pixel` (ways, 2, values) counts of `score_counts`, `sample` (ways,), their names, `picture`."""
    volume, mask = make(case, path, predictor)
    prepared = predictor.prepare(volume)
    pixel, sample, restoration = score(predictor, prepared, vae)
    counts = [score_counts(predictor.to_volume(prepared, maps).astype(np.float16), mask) for maps in pixel.values()]
    outcome = {"pixel": np.stack(counts), "pixel_ways": np.array(list(pixel)),
               "sample": np.array(list(sample.values())), "sample_ways": np.array(list(sample))}
    if case.kind is not None:
        outcome["picture"] = _picture(prepared, volume, mask, predictor, restoration, pixel)
    return outcome


def _picture(prepared: Prepared, volume: Volume, mask: np.ndarray, predictor: Predictor, restoration: Tensor,
             pixel: dict[str, Tensor]) -> np.ndarray:
    """The slice with most of the anomaly: PICTURE and each way's pixel scores, float16 (., S, S)."""
    label = volume_to_slices(mask.astype(np.float32), volume.spacing, prepared.indices,
                             predictor.model.about.preprocessing)
    i = int(label.sum((1, 2)).argmax())
    side = label.shape[-1]
    maps = [torch.nn.functional.interpolate(m[i][None, None].float().cpu(), (side, side), mode="bilinear")[0, 0]
            for m in (prepared.slices, label, restoration, *pixel.values())]
    return torch.stack(maps).half().numpy()


# --- all cases, and the table ----------------------------------------------------------------------------------------


def run_case(case: Case, path: Path, predictor: Predictor, vae: VAE | None, folder: Path) -> None:
    """Measure a case into `folder`/NAME.npz, unless it is there."""
    file = folder / f"{case.name}.npz"
    if file.exists():
        return
    part = folder / f".{case.name}.part.npz"
    np.savez_compressed(part, **measure(case, path, predictor, vae))
    os.replace(part, file)


def table(cases: Sequence[Case], folder: Path, resamples: int = 1000) -> dict[str, dict[str, object]]:
    """By task and way: `ap`, its 95% interval `low`, `high` over resampled volumes, `kinds` (AP of each kind's cases
    alone; for samples, against all healthy volumes) and `sizes`, likewise.

    Healthy volumes count as often as their planted copies, so that half of the cases are anomalous.
    """
    stored = {}
    for case in cases:
        with np.load(folder / f"{case.name}.npz", allow_pickle=False) as file:
            stored[case] = {name: file[name] for name in ("pixel", "pixel_ways", "sample", "sample_ways")}
    volumes = sorted({case.volume for case in cases})
    times = (len(cases) - len(volumes)) // len(volumes)
    result: dict[str, dict[str, object]] = {"pixel": {}, "sample": {}}
    for task, ways in result.items():
        for i, way in enumerate(stored[cases[0]][f"{task}_ways"].tolist()):
            counts = _counts_by_case(task, i, stored)
            weighted = {case: c * (times if case.kind is None else 1) for case, c in counts.items()}
            of_volume = np.stack([sum(c for case, c in weighted.items() if case.volume == v) for v in volumes])
            ap = float(average_precision(*of_volume.sum(0)))
            low, high = bootstrap_interval(of_volume, resamples, seed=0)
            ways[way] = {"ap": ap, "low": low, "high": high, "kinds": _parts(counts, "kind", task),
                         "sizes": _parts(counts, "size", task)}
    return result


def _counts_by_case(task: str, i: int, stored: dict[Case, dict[str, np.ndarray]]) -> dict[Case, np.ndarray]:
    """Each case's (2, values) counts of the i-th way's scores."""
    if task == "pixel":
        return {case: outcome["pixel"][i] for case, outcome in stored.items()}
    values, place = np.unique([outcome["sample"][i] for outcome in stored.values()], return_inverse=True)
    counts = {}
    for case, at in zip(stored, place):
        counts[case] = np.zeros((2, len(values)), np.int64)
        counts[case][int(case.kind is not None), at] = 1
    return counts


def _parts(counts: dict[Case, np.ndarray], field: str, task: str) -> dict[str, float]:
    """AP by kind or size of anomaly: of these cases' voxels; of these cases and as many healthy ones."""
    parts = {}
    for value in dict.fromkeys(getattr(case, field) for case in counts if case.kind is not None):
        chosen = [c for case, c in counts.items() if getattr(case, field) == value]
        total = np.sum(chosen, axis=0, dtype=np.float64)
        if task == "sample":
            healthy = np.sum([c for case, c in counts.items() if case.kind is None], axis=0)
            total = total + healthy * len(chosen) / healthy.sum()
        parts[value] = float(average_precision(*total))
    return parts


def to_markdown(result: dict[str, dict[str, object]]) -> str:
    """The table as Markdown, one for each task, best first."""
    lines = []
    for task, ways in result.items():
        kinds = list(next(iter(ways.values()))["kinds"])
        lines += [f"| {task} task | AP | 95% interval | {' | '.join(kinds)} |", "|---" * (len(kinds) + 3) + "|"]
        for way, row in sorted(ways.items(), key=lambda item: -item[1]["ap"]):
            by_kind = " | ".join(f"{row['kinds'][kind]:.2f}" for kind in kinds)
            lines.append(f"| {way} | {row['ap']:.3f} | {row['low']:.3f} .. {row['high']:.3f} | {by_kind} |")
        lines.append("")
    return "\n".join(lines)


def check_settings(folder: Path, settings: dict[str, object]) -> None:
    """Remember what the results in `folder` were made with. Raises ValueError where it holds results of others."""
    file = folder / "settings.json"
    text = json.dumps(settings, indent=1, default=str) + "\n"
    if file.exists() and file.read_text() != text:
        raise ValueError(f"{file}: expected results of the same settings, found others; choose another folder")
    file.write_text(text)
