"""From healthy volumes to what is rare among them: fills in what the method "rarity" needs of a model file."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..evidence import Evidence
from ..model_file import About
from ..predictor import Predictor
from ..scoring.rarity import EVIDENCE, rarity_table
from ..volumes import read_volume


def healthy_evidence(predictor: Predictor, path: Path) -> Evidence:
    """The evidence of a healthy volume, with its restorations."""
    prepared = predictor.prepare(read_volume(path))
    evidence = predictor.evidence(prepared)
    return evidence.with_restorations(predictor.restore(prepared, evidence.codes))


def calibrate(
    predictor: Predictor, paths: Iterable[Path], progress: Callable[[], object] = lambda: None
) -> About:
    """The model's description with `rarity_tables` and `usual` from healthy volumes, which should be ones that it was not
    trained on, of all sources that it is for. The predictor's slices and restorations should be those of later use.

    Its pixel method becomes "rarity". Raises VolumeError for a file that is no volume, ValueError for no volumes.
    """
    volumes, bulks = [], []
    for path in paths:
        evidence = healthy_evidence(predictor, path)
        volumes.append({name: maps.cpu() for name, maps in evidence.smoothed.items()})
        bulks.append(evidence.bulk())
        progress()
    if not volumes:
        raise ValueError("expected healthy volumes to calibrate on, found none")
    tables = {
        name: rarity_table(np.concatenate([v[name].numpy().ravel() for v in volumes])) for name in EVIDENCE
    }
    usual = {name: [min(b[name] for b in bulks), max(b[name] for b in bulks)] for name in bulks[0]}
    about = predictor.model.about
    calibration = {
        "volumes": len(volumes),
        "slices": sum(len(v["likelihood"]) for v in volumes),
        "restorations": predictor.restorations,
        "precision": predictor.model.precision,
    }
    return dataclasses.replace(
        about,
        rarity_tables=tables,
        usual=usual,
        pixel_method="rarity",
        training=about.training | {"calibration": calibration},
    )
