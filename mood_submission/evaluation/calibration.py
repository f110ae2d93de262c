"""From healthy volumes to what is rare among them: fills in what the method "rarity" needs of a model file."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from torch import Tensor

from ..model_file import About
from ..predictor import Predictor
from ..scoring.rarity import EVIDENCE, rarity_table
from ..volumes import read_volume


def healthy_evidence(predictor: Predictor, path: Path) -> dict[str, Tensor]:
    """All kinds of smoothed evidence of a volume, (N, H, H) each."""
    prepared = predictor.prepare(read_volume(path))
    evidence = predictor.evidence(prepared)
    evidence = evidence.with_restorations(predictor.restore(prepared, evidence.codes))
    return evidence.smoothed


def calibrate(
    predictor: Predictor, paths: Iterable[Path], progress: Callable[[], object] = lambda: None
) -> About:
    """The model's description with `rarity_tables` from healthy volumes, which should be ones that it was not trained on.
    The predictor's slices and restorations should be those of later use.

    Its pixel method becomes "rarity". Raises VolumeError for a file that is no volume, ValueError for no volumes.
    """
    volumes = []
    for path in paths:
        volumes.append({name: maps.cpu() for name, maps in healthy_evidence(predictor, path).items()})
        progress()
    if not volumes:
        raise ValueError("expected healthy volumes to calibrate on, found none")
    tables = {
        name: rarity_table(np.concatenate([v[name].numpy().ravel() for v in volumes])) for name in EVIDENCE
    }
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
        pixel_method="rarity",
        training=about.training | {"calibration": calibration},
    )
