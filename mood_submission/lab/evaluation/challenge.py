"""The challenge's own evaluation: average precision over all voxels (pixel) or all volumes (sample) together, of files."""

import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from tqdm import tqdm

from ...runtime.names import shown
from .metrics import VALUES, average_precision, bootstrap_interval, score_counts

UNREADABLE = (OSError, EOFError, ValueError, KeyError, zlib.error, nib.filebasedimages.ImageFileError)


@dataclass(frozen=True)
class Evaluation:
    """One task's outcome.

    ap: average precision, 0 .. 1.
    low, high: its 95% interval over resampled volumes. Both are `ap` where nothing was resampled.
    chance: the share of positive voxels or volumes. Random scores reach this average precision.
    cases: how many volumes are labelled.
    positives: how many voxels or volumes are positive.
    missing: "NAME: what was wrong" for each prediction that counted as all zeros.
    """

    task: str
    ap: float
    low: float
    high: float
    chance: float
    cases: int
    positives: int
    missing: list[str]

    def to_dict(self) -> dict[str, object]:
        """The fields as JSON takes them."""
        return asdict(self)


def _result(task: str, counts: np.ndarray, missing: list[str], *, resamples: int, seed: int, where: Path) -> Evaluation:
    negatives, positives = counts.sum(0)
    if not positives.sum():
        raise ValueError(f"{where}: expected at least one positive label, found none in {len(counts)} cases")
    ap = float(average_precision(negatives, positives))
    low, high = bootstrap_interval(counts, resamples, seed) if resamples else (ap, ap)
    total = int(positives.sum())
    return Evaluation(
        task,
        ap,
        low,
        high,
        chance=total / int(counts.sum()),
        cases=len(counts),
        positives=total,
        missing=missing,
    )


# --- files -----------------------------------------------------------------------------------------------------------


def _cases(pred_dir: Path, label_dir: Path, task: str, suffix: str) -> list[tuple[Path, Path]]:
    """Label and prediction file of each case, by name. `label_dir` may be `toy_label` or its folder for `task`."""
    if not pred_dir.is_dir():
        raise ValueError(
            f"{pred_dir}: expected a folder of predictions, found {'a file' if pred_dir.exists() else 'nothing'}"
        )
    label_dir = label_dir / task if (label_dir / task).is_dir() else label_dir
    if not label_dir.is_dir():
        raise ValueError(
            f"{label_dir}: expected a folder of labels, found {'a file' if label_dir.exists() else 'nothing'}"
        )
    labels = sorted(p for p in label_dir.iterdir() if p.name.endswith(suffix) and not p.name.startswith("."))
    if not labels:
        raise ValueError(f"{label_dir}: expected labels called NAME{suffix}, found none")
    return [(label, pred_dir / label.name) for label in labels]


def _say(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())


def _load(path: Path) -> SpatialImage:
    """The image of a file, whose voxels are not read yet. Raises one of UNREADABLE."""
    image = nib.load(path)
    if not isinstance(image, SpatialImage):
        raise ValueError(f"found {type(image).__name__}, which is no volume")
    return image


def _read_label(path: Path) -> np.ndarray:
    """A pixel label as bool (X, Y, Z), in the file's own axis order."""
    try:
        return np.asanyarray(_load(path).dataobj) > 0.5
    except UNREADABLE as error:
        raise ValueError(f"{path}: expected a readable label volume, found {_say(error)}") from error


def read_mask(path: Path) -> np.ndarray:
    """Numbers of objects (I, J, K), in the file's own axis order. Raises ValueError for what is no volume."""
    try:
        return np.asanyarray(_load(path).dataobj).astype(np.int32)
    except UNREADABLE as error:
        raise ValueError(f"{path}: expected a readable mask, found {_say(error)}") from error


def _read_prediction(path: Path, shape: tuple[int, ...]) -> np.ndarray | str:
    """A pixel prediction as float16 of `shape`, or what is wrong with it."""
    if not path.is_file():
        return "missing"
    try:
        image = _load(path)
        if image.shape != shape:
            return f"shape {image.shape}, expected {shape}"
        # Values beyond float16 become infinite, and are clipped.
        with np.errstate(all="ignore"):
            return image.get_fdata(dtype=np.float16, caching="unchanged")
    except UNREADABLE as error:
        return f"unreadable, {_say(error)}"


def _read_number(path: Path) -> float | str:
    """The float on a file's first line, or what is wrong with it."""
    if not path.is_file():
        return "missing"
    try:
        return float(path.read_text("utf-8").split("\n", 1)[0])
    except (OSError, ValueError) as error:
        return f"unreadable, {_say(error)}"


def evaluate_pixel(
    pred_dir: str | Path,
    label_dir: str | Path,
    bootstrap: int = 1000,
    seed: int = 0,
    *,
    progress: bool | None = None,
    on_case: Callable[[str, np.ndarray, np.ndarray, np.ndarray], object] = lambda *_: None,
) -> Evaluation:
    """Average precision over all voxels of all cases together, by the challenge's rules.

    pred_dir: NAME.nii.gz of the label's shape, read as float16 and clipped to [0, 1]. NaN is 0. A file that is missing,
        unreadable or of another shape counts as all zeros.
    label_dir: NAME.nii.gz with 0 and 1, or the toy_label folder that has them in its subfolder pixel.
    bootstrap: how many resamples of the volumes give the interval. 0 for none.
    seed: of the resampling.
    progress: whether to show a bar on stderr. None for a bar on terminals.
    on_case: is called with each case's name, scores (float16), label (bool) and counts by score.
    Raises ValueError for missing folders, unreadable labels and labels without a positive.
    """
    pred_dir, label_dir = Path(pred_dir), Path(label_dir)
    cases = _cases(pred_dir, label_dir, "pixel", ".nii.gz")
    counts, missing = np.zeros((len(cases), 2, VALUES), np.int64), []
    bar = None if progress is None else not progress
    for i, (label_path, pred_path) in enumerate(tqdm(cases, "evaluating", disable=bar)):
        labels = _read_label(label_path)
        scores = _read_prediction(pred_path, labels.shape)
        if isinstance(scores, str):
            missing.append(shown(f"{pred_path.name}: {scores}"))
            scores = np.zeros(labels.shape, np.float16)
        counts[i] = score_counts(scores, labels)
        on_case(label_path.name, scores, labels, counts[i])
    return _result("pixel", counts, missing, resamples=bootstrap, seed=seed, where=label_dir)


def evaluate_sample(
    pred_dir: str | Path,
    label_dir: str | Path,
    bootstrap: int = 1000,
    seed: int = 0,
    on_case: Callable[[str, int, float], object] = lambda *_: None,
) -> Evaluation:
    """Average precision over all volumes, by the challenge's rules.

    pred_dir: NAME.nii.gz.txt, whose first line is one number. It is clipped to [0, 1]. NaN, and a file that is missing or
        unreadable, count as 0.
    label_dir: NAME.nii.gz.txt with 0 or 1, or the toy_label folder that has them in its subfolder sample.
    bootstrap, seed: as for `evaluate_pixel`.
    on_case: is called with each case's name, label and score.
    Raises ValueError for missing folders, labels that are not 0 or 1 and labels without a positive.
    """
    pred_dir, label_dir = Path(pred_dir), Path(label_dir)
    cases = _cases(pred_dir, label_dir, "sample", ".nii.gz.txt")
    labels, scores, missing = np.zeros(len(cases), np.int64), np.zeros(len(cases)), []
    for i, (label_path, pred_path) in enumerate(cases):
        label, score = _read_number(label_path), _read_number(pred_path)
        if label not in (0.0, 1.0):
            raise ValueError(f"{label_path}: expected 0 or 1, found {label}")
        if isinstance(score, str):
            missing.append(shown(f"{pred_path.name}: {score}"))
            score = 0.0
        labels[i], scores[i] = label, np.clip(np.nan_to_num(score, posinf=1, neginf=0), 0, 1)
        on_case(label_path.name.removesuffix(".txt"), int(label), float(scores[i]))
    values, place = np.unique(scores, return_inverse=True)
    counts = np.zeros((len(cases), 2, len(values)), np.int64)
    counts[np.arange(len(cases)), labels, place] = 1
    return _result("sample", counts, missing, resamples=bootstrap, seed=seed, where=label_dir)
