"""From healthy volumes to what is usual and what is rare among them: fills in what a model file says of that."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ...about import About
from ...evidence.evidence import USUAL, Evidence
from ...evidence.strangeness import distances_among, typical_of, usual_range
from ...findings.objects import least_voxels
from ...findings.thresholds import HealthyVoxels
from ...methods import table
from ...methods.base import Method
from ...predictor import Predictor, Prepared
from ...volumes import Source, read_volume


def calibrate(
    predictor: Predictor, sources: Iterable[Source | Path], progress: Callable[[], object] = lambda: None
) -> About:
    """The model's description with all that healthy volumes tell.

    What is measured: what each method stores (`Method.calibrated`), `usual`, `typical`, `healthy_voxels` and `healthy_samples`. Without
    restorations, methods that need some stay as they are.
    predictor: its slices and restorations are those of later use.
    paths: healthy volumes that the model was not trained on, of all sources that it is for.
    progress: called after each volume.
    Raises VolumeError for a file that is no volume, ValueError for no volumes.
    """
    measured: list[tuple[Prepared, Evidence]] = []
    for source in sources:
        prepared = predictor.prepare(read_volume(source))
        with predictor.same_bits_for_any_threads():
            evidence = predictor.complete_evidence(prepared, "pixel")
            _compute(evidence)
        measured.append((prepared, evidence))
        progress()
    if not measured:
        raise ValueError("expected healthy volumes to calibrate on, found none")
    about = _with_usual(predictor.model.about, [evidence for _, evidence in measured])
    with predictor.same_bits_for_any_threads():
        measured = [(prepared, evidence.with_calibration(about)) for prepared, evidence in measured]
        for method in _measurable(predictor):
            about = method.calibrated(about, [_as_by_default(method, evidence) for _, evidence in measured])
        about = _with_healthy_scores(about, predictor, measured)
    calibration = {
        "volumes": len(measured),
        "slices": sum(len(prepared.indices) for prepared, _ in measured),
        "restorations": predictor.restorations,
        "precision": predictor.model.precision,
    }
    # What was measured without restorations does not replace how tables that need restorations were made.
    name = "calibration" if predictor.restorations else "healthy_scores"
    return dataclasses.replace(about, training=about.training | {name: calibration})


def _measurable(predictor: Predictor) -> list[Method]:
    """The methods that have all the restorations that they need."""
    return [method for method in table.METHODS.values() if predictor.restorations or not method.needs_restorations]


def _compute(evidence: Evidence) -> None:
    """Have the parts of the evidence computed that take time, while the progress is told."""
    evidence.nll, evidence.smoothed  # noqa: B018


def _with_usual(about: About, healthy: Sequence[Evidence]) -> About:
    """The description with what is usual in healthy volumes, and how they look at a coarse scale."""
    looks = [evidence.look for evidence in healthy]
    values = [evidence.usual_values([kind for kind in USUAL if kind != "look"]) for evidence in healthy]
    usual = {kind: usual_range([of_one[kind] for of_one in values]) for kind in values[0]}
    usual["look"] = usual_range(distances_among(looks))
    return dataclasses.replace(about, usual=usual, typical=typical_of(looks))


def _as_by_default(method: Method, evidence: Evidence) -> Evidence:
    """The evidence as the method's pixel scores see it by default: without restorations where it draws none."""
    return evidence if method.restorations(evidence.about) else evidence.without_restorations()


def _with_healthy_scores(about: About, predictor: Predictor, measured: list[tuple[Prepared, Evidence]]) -> About:
    """The description with the scores of the healthy volumes, by every method that model and restorations allow."""
    least = [least_voxels(prepared.spacing) for prepared, _ in measured]
    calibrated = [(prepared, evidence.with_calibration(about)) for prepared, evidence in measured]
    voxels, samples = dict(about.healthy_voxels), dict(about.healthy_samples)
    for method in table.methods("pixel"):
        if method.fits(about) and method in _measurable(predictor):
            scores = [
                predictor.to_volume(prepared, method.pixel(_as_by_default(method, evidence))).astype(np.float16)
                for prepared, evidence in calibrated
            ]
            voxels[method.name] = HealthyVoxels.of(scores, least)
    for method in table.methods("sample"):
        if method.fits(about):
            # The sample task draws nothing.
            scored = (method.sample(evidence.without_restorations()) for _, evidence in calibrated)
            samples[method.name] = sorted(round(score, 6) for score in scored)
    return dataclasses.replace(about, healthy_voxels=voxels, healthy_samples=samples)
