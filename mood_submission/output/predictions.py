"""Files to predictions: a volume is read and prepared, and its scores are written."""

from collections.abc import Callable
from pathlib import Path

from ..predictor import LabelledObjects, Predictor, Prepared, Scored
from ..runtime.files import write_text
from ..volumes import Grid, Source, read_volume, write_volume


def read_prepared(predictor: Predictor, source: Source | Path) -> Prepared:
    """A file, ready for the networks. Raises VolumeError where it is no volume."""
    return predictor.prepare(read_volume(source))


def write_scores(
    predictor: Predictor,
    prepared: Prepared,
    scored: Scored,
    out: Path,
    keep: Callable[[Source, LabelledObjects, Grid], object] | None = None,
) -> float:
    """Write what was scored into a folder.

    Pixel scores become `volumes.Source.output_name`, such as NAME.nii.gz. The sample score becomes the same with .txt behind.
    predictor: the one that scored.
    out: the folder, which is there.
    keep: called with where the volume came from, what stands out in it and its grid, where voxels were scored.
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
    """Predict one file into a folder. For many files: `running.run_folder.predict_files`.

    task: one of TASKS or BOTH.
    out: the folder, which is there.
    Returns the sample score (None for the pixel task). Raises VolumeError where the file is no volume, OSError where `out`
    cannot be written to.
    """
    prepared = read_prepared(predictor, source)
    scored = predictor.compute(prepared, task)
    write_scores(predictor, prepared, scored, out)
    return scored.sample
