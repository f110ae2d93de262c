"""From healthy volumes to what is usual and what is rare among them: fills in what a model file says of that."""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ...evidence.evidence import Evidence
from ...findings.objects import least_voxels
from ...findings.thresholds import HealthyVoxels
from ...methods.rarity import EVIDENCE, rarity_table
from ...methods.table import PIXEL_WAYS, SAMPLE_WAYS
from ...model_file import About
from ...predictor import Predictor, Prepared
from ...volumes import Source, read_volume


def calibrate(
    predictor: Predictor, sources: Iterable[Source | Path], progress: Callable[[], object] = lambda: None
) -> About:
    """The model's description with all that healthy volumes tell: `rarity_tables`, `usual`, `healthy_voxels` and
    `healthy_samples`. The volumes should be ones that it was not trained on, of all sources that it is for; the predictor's
    slices and restorations those of later use. Without restorations the rarity tables stay as they are, and only what needs none
    is measured.

    With restorations its pixel method becomes "rarity". Raises VolumeError for a file that is no volume, ValueError for no volumes.
    """
    measured: list[tuple[Prepared, Evidence]] = []
    for source in sources:
        prepared = predictor.prepare(read_volume(source))
        with predictor.alone():
            evidence = predictor.complete_evidence(prepared, "pixel")
            _compute(evidence)  # now, while the progress is told
        measured.append((prepared, evidence))
        progress()
    if not measured:
        raise ValueError("expected healthy volumes to calibrate on, found none")
    bulks = [evidence.bulk() for _, evidence in measured]
    usual = {name: [min(b[name] for b in bulks), max(b[name] for b in bulks)] for name in bulks[0]}
    about = dataclasses.replace(predictor.model.about, usual=usual)
    if predictor.restorations:
        tables = {name: _table([evidence for _, evidence in measured], name) for name in EVIDENCE}
        about = dataclasses.replace(about, rarity_tables=tables, pixel_method="rarity")
    about = _with_healthy_scores(about, predictor, measured)
    calibration = {
        "volumes": len(measured),
        "slices": sum(len(prepared.indices) for prepared, _ in measured),
        "restorations": predictor.restorations,
        "precision": predictor.model.precision,
    }
    # what was measured without restorations does not stand in the place of how the rarity tables were made
    name = "calibration" if predictor.restorations else "healthy_scores"
    return dataclasses.replace(about, training=about.training | {name: calibration})


def _table(evidence: list[Evidence], name: str) -> list[float]:
    return rarity_table(np.concatenate([e.smoothed[name].cpu().numpy().ravel() for e in evidence]))


def _compute(evidence: Evidence) -> None:
    """Have all parts of the evidence computed that `calibrate` looks at."""
    evidence.nll, evidence.smoothed  # noqa: B018
    if evidence.model.detector is not None:
        _detected(evidence).logits  # noqa: B018


def _detected(evidence: Evidence) -> Evidence:
    """The evidence as the detector sees it by default: without restorations where it was made for none."""
    settings = evidence.about.detector
    return evidence if settings is not None and settings.restorations else evidence.without_restorations()


def _with_healthy_scores(
    about: About, predictor: Predictor, measured: list[tuple[Prepared, Evidence]]
) -> About:
    """The description with the scores of the healthy volumes, by every way that model and restorations allow."""
    model = copy.copy(predictor.model)
    model.about = about  # whose rarity tables are there now
    for _, evidence in measured:
        evidence.model = model
    least = [least_voxels(prepared.spacing) for prepared, _ in measured]
    seen = {
        way: [evidence for _, evidence in measured] for way in ("paper", "rarity") if predictor.restorations
    }
    if model.detector is not None:
        seen["learned"] = [_detected(evidence) for _, evidence in measured]
    voxels, samples = dict(about.healthy_voxels), dict(about.healthy_samples)
    for way, of_volumes in seen.items():
        scores = [
            predictor.to_volume(prepared, PIXEL_WAYS[way](evidence)).astype(np.float16)
            for (prepared, _), evidence in zip(measured, of_volumes)
        ]
        voxels[way] = HealthyVoxels.of(scores, least)
    for way in ("paper", "top"):
        seen[way] = [evidence for _, evidence in measured]
    for way, of_volumes in seen.items():
        if way in SAMPLE_WAYS:
            samples[way] = sorted(round(SAMPLE_WAYS[way](evidence), 6) for evidence in of_volumes)
    return dataclasses.replace(about, healthy_voxels=voxels, healthy_samples=samples)
