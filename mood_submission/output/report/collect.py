"""Gathers what a report shows of each volume from the files of a run."""

import base64
import gzip
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from ...findings.objects import EXPECTED, FALSE_BY_DEFAULT
from ...findings.thresholds import HealthyVoxels
from ...runtime.names import as_text, shown
from ...runtime.triples import three
from ...volumes import Source, Volume, VolumeError, find_volumes, read_volume
from ..findings_folder import read_findings
from . import pictures

# The most voxels along an axis in the viewer. Larger volumes are thinned out.
MOST_SIDE = 256
# How many findings have pictures of their own.
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where a report's files are.

    volumes: folder of the volumes.
    predictions: folder of their pixel scores.
    findings: folder of masks and findings.json.
    label: folder of pixel labels.
    run: the JSON report of the run.
    samples: folder of sample scores. None for `predictions`.
    """

    volumes: Path
    predictions: Path
    findings: Path | None = None
    label: Path | None = None
    run: Path | None = None
    samples: Path | None = None


@dataclass
class Entry:
    """What the report shows of one volume.

    number: its place in the ranking, from 0 on.
    name: of its file.
    score: ranks the volumes.
    score_name: says which score that is.
    places: titles and pictures of slices through the places that stand out most.
    histogram, profile: plots of its scores, as data URLs.
    findings: as in findings.json.
    warnings: lines of its reading and its scoring.
    facts: further lines, by name.
    viewer: small NIfTI files in base64, by layer.
    """

    number: int
    name: str
    score: float
    score_name: str
    places: list[dict] = field(default_factory=list)
    histogram: str = ""
    profile: str = ""
    findings: list[dict] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    viewer: dict[str, str] = field(default_factory=dict)


def collect(sources: Sources, healthy: HealthyVoxels | None, outcomes: dict[str, dict] | None = None) -> list[Entry]:
    """An entry for every volume that has pixel scores, the most anomalous first.

    sources: the files of the run.
    healthy: what scores mean, where that was measured.
    outcomes: the run's outcomes by file name (`as_text`). None to read them from `sources.run`.
    Raises VolumeError where no volume has pixel scores or arrays of one volume differ in shape, ValueError for a findings.json
    or a run's report that is none.
    """
    found = _findings(sources.findings)
    outcomes = _outcomes(sources.run) if outcomes is None else outcomes
    entries = []
    for source in find_volumes(sources.volumes):
        name = source.output_name
        if (sources.predictions / name).is_file():
            entries.append(
                _entry(
                    source,
                    sources,
                    healthy,
                    found.get(as_text(name)),
                    outcomes.get(as_text(source.path.name), {}),
                )
            )
    if not entries:
        raise VolumeError(
            f"{sources.predictions}: expected pixel scores of the volumes in {sources.volumes}, found none"
        )
    entries.sort(key=lambda entry: (-entry.score, entry.name))
    for number, entry in enumerate(entries):
        entry.number = number
    return entries


def _entry(
    source: Source, sources: Sources, healthy: HealthyVoxels | None, found: list[dict] | None, outcome: dict
) -> Entry:
    volume, written = read_volume(source), source.output_name
    scores = _alike(sources.predictions / written, volume)
    mask, expected = None, None
    if found is not None and sources.findings is not None:
        mask = _alike(sources.findings / written, volume)
        if (sources.findings / EXPECTED / written).is_file():
            expected = _alike(sources.findings / EXPECTED / written, volume)
    label = None
    if sources.label is not None and (sources.label / written).is_file():
        label = _alike(sources.label / written, volume)
    text = (sources.samples or sources.predictions) / f"{written}.txt"
    score, name = float(scores.max()), "highest voxel score"
    # Path.is_file raises for a name that is too long.
    if os.path.isfile(text):
        score, name = float(text.read_text("utf-8").split("\n", 1)[0]), "sample score"
    threshold = healthy.threshold_in(scores, FALSE_BY_DEFAULT) if healthy else None
    entry = Entry(0, source.path.name, score, name, findings=found or [])
    entry.places = [
        {
            "title": title,
            "planes": pictures.slices_at(
                volume.data, scores, volume.spacing, place, mask=mask, label=label, expected=expected
            ),
        }
        for title, place in _places(volume, scores, entry.findings)
    ]
    entry.histogram = pictures.histogram(scores, healthy.exceeded if healthy else {})
    entry.profile = pictures.profile(scores, threshold)
    entry.warnings = [line for line in (outcome.get("message"), *volume.notes) if line]
    entry.facts = _facts(volume, outcome)
    entry.viewer = _layers(volume, scores, mask, label)
    return entry


def _alike(path: Path, volume: Volume) -> np.ndarray:
    """An array (X, Y, Z) that belongs to a volume. Raises VolumeError for another shape than the volume's."""
    array = read_volume(path).data
    if array.shape != volume.data.shape:
        raise VolumeError(f"{path}: expected the shape of {volume.path}, {volume.data.shape}, found {array.shape}")
    return array


def _findings(folder: Path | None) -> dict[str, list[dict]]:
    return {} if folder is None else read_findings(folder / "findings.json")


def _outcomes(file: Path | None) -> dict[str, dict]:
    if file is None:
        return {}
    try:
        return {shown(outcome["file"]): outcome for outcome in json.loads(file.read_text("utf-8"))["volumes"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: expected the report of a run, found {error!r}") from None


def _places(volume: Volume, scores: np.ndarray, findings: list[dict]) -> list[tuple[str, tuple[int, int, int]]]:
    """Titles and places (RAS indices) of the surest findings. Without findings, of the highest score."""
    if not findings:
        highest = np.unravel_index(int(scores.argmax()), scores.shape)
        return [("the highest score", three(int(v) for v in highest))]
    places = []
    for finding in findings[:SHOWN]:
        at = volume.grid.ras_index(np.array(finding["centre_voxel"]))
        within = np.clip(np.round(at), 0, np.array(scores.shape) - 1)
        places.append((f"finding {finding['number']}", three(int(v) for v in within)))
    return places


def _facts(volume: Volume, outcome: dict) -> dict[str, str]:
    facts = {
        "grid": " x ".join(map(str, volume.grid.shape)),
        "spacing": " x ".join(f"{d:.3g}" for d in volume.spacing) + " mm (right, anterior, superior)",
    }
    for name in ("device", "computed", "slices", "restorations"):
        if outcome.get(name) not in (None, ""):
            facts[name] = str(outcome[name])
    if outcome.get("seconds"):
        facts["seconds"] = f"{outcome['seconds']:.1f}"
    return facts


def _layers(volume: Volume, scores: np.ndarray, mask: np.ndarray | None, label: np.ndarray | None) -> dict[str, str]:
    """Small NIfTI files for the viewer: the volume, the scores in hundredths, and findings and label where they are given."""
    low, high = (float(v) for v in np.percentile(volume.data[::2, ::2, ::2], (0.1, 99.9)))
    grey = ((volume.data - low) / max(high - low, 1e-9)).clip(0, 1) * 255
    layers = {"volume": grey, "scores": scores * 100}
    layers |= {name: array for name, array in (("findings", mask), ("label", label)) if array is not None}
    step = -(-max(volume.data.shape) // MOST_SIDE)
    thin = (slice(None, None, step),) * 3
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, :3] = _ras_directions(volume) * step
    affine[:3, 3] = (volume.grid.affine_mm @ [*volume.grid.file_index(np.zeros(3)), 1.0])[:3]
    return {name: _encoded(array[thin], affine) for name, array in layers.items()}


def _ras_directions(volume: Volume) -> np.ndarray:
    """The steps from voxel to voxel along the RAS axes in mm, as columns, (3, 3)."""
    origin = volume.grid.file_index(np.zeros(3))
    columns = [volume.grid.file_index(axis) - origin for axis in np.eye(3)]
    return volume.grid.affine_mm[:3, :3] @ np.stack(columns, 1)


def _encoded(array: np.ndarray, affine: np.ndarray) -> str:
    image = nib.Nifti1Image(np.round(array).astype(np.uint8), affine)
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()
