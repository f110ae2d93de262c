"""Measures on healthy volumes what is usual and what is rare among them, for the model file to say."""

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
    """The model's description with all that is measured on healthy volumes.

    That is what each method stores (`Method.calibrated`), `usual`, `typical`, `healthy_voxels` and `healthy_samples`. Methods
    that need restorations keep what they have where the predictor draws none.

    predictor: its slices and restorations are those of later use.
    sources: healthy volumes that the model was not trained on, from all scanners that it is for.
    progress: called `calibration_steps` times: after each volume, and after each volume whose voxel scores were counted.
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
        about = _with_healthy_scores(about, predictor, measured, progress)
    calibration = {
        "volumes": len(measured),
        "slices": sum(len(prepared.indices) for prepared, _ in measured),
        "restorations": predictor.restorations,
        "precision": predictor.model.precision,
    }
    # Tables that need restorations stay without them, and so does what says how these tables were made.
    name = "calibration" if predictor.restorations else "healthy_scores"
    return dataclasses.replace(about, training=about.training | {name: calibration})


def _measurable(predictor: Predictor) -> list[Method]:
    """The methods that have the restorations and the detector that they need."""
    detector = predictor.model.about.detector is not None
    return [
        method
        for method in table.METHODS.values()
        if (predictor.restorations or not method.needs_restorations) and (detector or not method.needs_detector)
    ]


def calibration_steps(predictor: Predictor, volumes: int) -> int:
    """How often `calibrate` calls its progress for so many volumes."""
    return volumes * (1 + len(_countable(predictor)))


def _countable(predictor: Predictor) -> list[Method]:
    """The methods with a pixel score, that have the restorations and the detector that they need."""
    measurable = _measurable(predictor)
    return [method for method in table.methods("pixel") if method in measurable]


def _compute(evidence: Evidence) -> None:
    """Compute the parts of the evidence that take time now, so that the progress shows it."""
    evidence.nll, evidence.smoothed  # noqa: B018


def _with_usual(about: About, healthy: Sequence[Evidence]) -> About:
    """The description with what is usual in healthy volumes, and how they look at a coarse scale."""
    looks = [evidence.look for evidence in healthy]
    values = [evidence.usual_values([kind for kind in USUAL if kind != "look"]) for evidence in healthy]
    usual = {kind: usual_range([of_one[kind] for of_one in values]) for kind in values[0]}
    # One volume does not tell how much looks differ.
    if len(looks) == 1:
        return dataclasses.replace(about, usual=usual, typical={})
    usual["look"] = usual_range(distances_among(looks))
    return dataclasses.replace(about, usual=usual, typical=typical_of(looks))


def _as_by_default(method: Method, evidence: Evidence) -> Evidence:
    """The evidence for the method's pixel scores as they are by default: without restorations where they take none."""
    return evidence if method.restorations(evidence.about) else evidence.without_restorations()


def _with_healthy_scores(
    about: About,
    predictor: Predictor,
    measured: list[tuple[Prepared, Evidence]],
    progress: Callable[[], object],
) -> About:
    """The description with the healthy volumes' scores, by every method for which model and restorations suffice."""
    least = [least_voxels(prepared.spacing) for prepared, _ in measured]
    calibrated = [(prepared, evidence.with_calibration(about)) for prepared, evidence in measured]
    voxels, samples = dict(about.healthy_voxels), dict(about.healthy_samples)
    for method in _countable(predictor):
        if method.fits(about):
            scores = [
                predictor.to_volume(prepared, method.pixel(_as_by_default(method, evidence))).astype(np.float16)
                for prepared, evidence in calibrated
            ]
            voxels[method.name] = HealthyVoxels.of(scores, least, progress)
    for method in table.methods("sample"):
        if method.fits(about):
            # The sample task draws nothing.
            scored = (method.sample(evidence.without_restorations()) for _, evidence in calibrated)
            samples[method.name] = sorted(round(score, 6) for score in scored)
    return dataclasses.replace(about, healthy_voxels=voxels, healthy_samples=samples)
