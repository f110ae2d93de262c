"""Reads and prepares volumes, and writes their scores."""

from collections.abc import Callable
from pathlib import Path

from ..predictor import LabelledObjects, Predictor, Prepared, Scored
from ..runtime.files import write_text
from ..volumes import Grid, Source, read_volume, write_volume


def read_prepared(predictor: Predictor, source: Source | Path) -> Prepared:
    """A volume read from disk, ready for the networks. Raises VolumeError where it is no volume."""
    return predictor.prepare(read_volume(source))


def write_scores(
    predictor: Predictor,
    prepared: Prepared,
    scored: Scored,
    out: Path,
    keep: Callable[[Source, LabelledObjects, Grid], object] | None = None,
) -> float:
    """Write a volume's scores into a folder.

    The file of pixel scores is called `volumes.Source.output_name`, such as NAME.nii.gz. The file of the sample score has the
    same name with .txt appended.

    predictor: the one that scored.
    prepared: the volume.
    scored: its scores.
    out: the folder, which exists.
    keep: is called with the volume's source, its objects and its grid, where voxels were scored.
    Returns the sample score, or else the highest voxel's. Raises OSError where `out` cannot be written to.
    """
    name = prepared.source.output_name
    highest = 0.0
    if scored.pixel is not None:
        scores = predictor.to_volume(prepared, scored.pixel)
        write_volume(out / name, scores, prepared.grid)
        highest = float(scores.max())
        if keep is not None:
            keep(prepared.source, predictor.outline(prepared, scored, scores), prepared.grid)
    if scored.sample is None:
        return highest
    write_text(out / f"{name}.txt", f"{scored.sample:.9g}\n")
    return scored.sample


def predict_file(predictor: Predictor, source: Source | Path, task: str, out: Path) -> float | None:
    """Score one volume and write its scores into a folder. `running.run_folder.predict_files` does so for many.

    source: the volume.
    task: one of TASKS or BOTH.
    out: the folder, which exists.
    Returns the sample score (None for the pixel task). Raises VolumeError where the file is no volume, OSError where `out`
    cannot be written to.
    """
    prepared = read_prepared(predictor, source)
    scored = predictor.compute(prepared, task)
    write_scores(predictor, prepared, scored, out)
    return scored.sample
