"""The evaluation against scikit-learn, and its rules for bad predictions."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, mood
from scipy import ndimage
from sklearn import metrics
from sklearn.metrics import average_precision_score

from mood_submission.lab.evaluation.challenge import evaluate_pixel, evaluate_sample
from mood_submission.lab.evaluation.field_metrics import (
    ObjectCounts,
    aupro,
    auroc,
    best_dice,
    centres_of,
    count_objects,
    dice_at,
    sensitivity_at,
)
from mood_submission.lab.evaluation.metrics import average_precision, score_counts
from mood_submission.lab.planting.toy import make_toy

SHAPE = (12, 10, 8)


def save(path: Path, data: np.ndarray) -> None:
    nib.Nifti1Image(data, np.eye(4)).to_filename(path)


def folders(base: Path, task: str) -> tuple[Path, Path]:
    pred, label = base / "pred", base / "toy_label" / task
    pred.mkdir(parents=True)
    label.mkdir(parents=True)
    return pred, label


def pixel_cases(base: Path, cases: int, seed: int = 0) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """Files of `cases` noisy predictions, and the same as float32 scores and bool labels (cases, X, Y, Z)."""
    rng = np.random.default_rng(seed)
    labels = rng.random((cases, *SHAPE)) < rng.uniform(0.01, 0.3, (cases, 1, 1, 1))
    scores = (0.3 * labels + rng.normal(0.3, 0.3, labels.shape)).astype(np.float32)  # partly outside [0, 1]
    pred, label = folders(base, "pixel")
    for i in range(cases):
        save(pred / f"{i}.nii.gz", scores[i])
        save(label / f"{i}.nii.gz", labels[i].astype(np.uint8))
    return pred, label, scores, labels


def reference(scores: np.ndarray, labels: np.ndarray) -> float:
    return average_precision_score(labels.ravel(), scores.astype(np.float16).clip(0, 1).ravel())


def sample_cases(base: Path, scores: list[str], labels: list[int]) -> tuple[Path, Path]:
    pred, label = folders(base, "sample")
    for i, (score, truth) in enumerate(zip(scores, labels, strict=True)):
        (pred / f"{i:03}.nii.gz.txt").write_text(score)
        (label / f"{i:03}.nii.gz.txt").write_text(f"{truth}\n")
    return pred, label


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_counts_give_sklearns_value_ties_included(decimals: int | None) -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(50_000) < 0.05
    scores = (0.2 * labels + rng.random(labels.size)).astype(np.float16).clip(0, 1)
    scores = scores if decimals is None else scores.round(decimals)
    assert average_precision(*score_counts(scores, labels)) == pytest.approx(reference(scores, labels), abs=1e-12)


def test_counts_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random((20, 30, 40)).astype(np.float16), rng.random((20, 30, 40)) < 0.1
    whole = score_counts(scores, labels)
    monkeypatch.setattr("mood_submission.lab.evaluation.metrics.CHUNK", 1000)
    np.testing.assert_array_equal(score_counts(np.asfortranarray(scores), np.asfortranarray(labels)), whole)
    assert whole.sum() == scores.size and whole[1].sum() == labels.sum()


def test_counts_clip_and_take_nan_for_zero() -> None:
    odd = np.array([-np.inf, -3, -0.0, 0, np.nan, -np.nan, 6e-8, 1, 1.5, np.inf], np.float16)
    counts = score_counts(odd, np.zeros(odd.shape, bool))[0]
    assert counts[0] == 6 and counts[1] == 1 and counts[-1] == 3 and counts.sum() == odd.size


def test_every_float16_from_0_to_1_keeps_its_rank() -> None:
    values = np.arange(0x3C01, dtype=np.uint16).view(np.float16)
    assert (np.diff(values.astype(np.float64)) > 0).all() and values[-1] == 1
    counts = score_counts(values, np.ones(values.shape, bool))
    assert (counts[1] == 1).all() and not counts[0].any()


def test_pixel_equals_sklearn_over_all_voxels_together(tmp_path: Path) -> None:
    pred, label, scores, labels = pixel_cases(tmp_path, 4)
    result = evaluate_pixel(pred, label)
    assert result.ap == pytest.approx(reference(scores, labels), abs=1e-12)
    assert result.chance == pytest.approx(labels.mean())
    assert (result.cases, result.positives, result.missing) == (4, labels.sum(), [])
    assert evaluate_pixel(pred, label.parent) == result  # toy_label or its folder


def test_integer_predictions_with_a_slope_are_scaled(tmp_path: Path) -> None:
    pred, label, scores, labels = pixel_cases(tmp_path, 2)
    codes = (scores.clip(0, 1) * 255).round().astype(np.uint8)
    for i in range(2):
        image = nib.Nifti1Image(codes[i], np.eye(4))
        image.header.set_slope_inter(1 / 255, 0)
        image.to_filename(pred / f"{i}.nii.gz")
    assert evaluate_pixel(pred, label).ap == pytest.approx(reference(codes / 255, labels), abs=2e-3)


def test_bad_pixel_predictions_are_zeros_and_named(tmp_path: Path) -> None:
    pred, label, scores, labels = pixel_cases(tmp_path, 5)
    (pred / "0.nii.gz").unlink()
    save(pred / "1.nii.gz", scores[1][:-1])
    (pred / "2.nii.gz").write_bytes(b"not a volume")
    whole = (pred / "3.nii.gz").read_bytes()
    (pred / "3.nii.gz").write_bytes(whole[: len(whole) // 2])
    (pred / "9.nii.gz").write_bytes(b"of no case")
    scores[:4] = 0
    result = evaluate_pixel(pred, label)
    assert result.ap == pytest.approx(reference(scores, labels), abs=1e-12)
    assert [line.split(":")[0] for line in result.missing] == [f"{i}.nii.gz" for i in range(4)]
    assert "missing" in result.missing[0] and "(11, 10, 8)" in result.missing[1]
    assert all("unreadable" in line and "\n" not in line for line in result.missing[2:])


def test_nan_and_out_of_range_voxels(tmp_path: Path) -> None:
    pred, label, scores, labels = pixel_cases(tmp_path, 2)
    scores[0, 0] = np.nan
    scores[0, 1], scores[0, 2] = 1e9, -1e9
    save(pred / "0.nii.gz", scores[0])
    scores[0, 0] = 0
    with np.errstate(over="ignore"):
        assert evaluate_pixel(pred, label).ap == pytest.approx(reference(scores, labels), abs=1e-12)


def test_sample_equals_sklearn(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 60)
    scores = (labels * 0.2 + rng.random(60)).round(1)
    pred, label = sample_cases(tmp_path, [f"{score}\nmore\n" for score in scores], labels.tolist())
    result = evaluate_sample(pred, label.parent)
    assert result.ap == pytest.approx(average_precision_score(labels, scores.clip(0, 1)), abs=1e-12)
    assert (result.cases, result.positives, result.chance) == (60, labels.sum(), pytest.approx(labels.mean()))


def test_bad_sample_predictions_are_zeros(tmp_path: Path) -> None:
    texts = ["0.4", "nan", "", "high", "7", "-2", "0.5", "inf"]
    labels = [1, 0, 1, 0, 1, 1, 0, 0]
    pred, label = sample_cases(tmp_path, texts, labels)
    (pred / "006.nii.gz.txt").unlink()
    result = evaluate_sample(pred, label)
    assert result.ap == pytest.approx(average_precision_score(labels, [0.4, 0, 0, 0, 1, 0, 0, 1]), abs=1e-12)
    assert [line[:3] for line in result.missing] == ["002", "003", "006"]


def test_interval_holds_the_estimate_and_narrows_with_volumes(tmp_path: Path) -> None:
    width = {}
    for cases in (6, 60):
        pred, label, *_ = pixel_cases(tmp_path / str(cases), cases)
        result = evaluate_pixel(pred, label, bootstrap=300)
        assert result.low <= result.ap <= result.high and result.low < result.high
        width[cases] = result.high - result.low
    assert width[60] < 0.7 * width[6]


def test_bootstrap_is_what_resampling_by_hand_gives(tmp_path: Path) -> None:
    pred, label, scores, labels = pixel_cases(tmp_path, 5)
    times = np.random.default_rng(3).multinomial(5, np.full(5, 0.2), size=40)
    by_hand = []
    for row in times:
        chosen = np.repeat(np.arange(5), row)
        by_hand.append(reference(scores[chosen], labels[chosen]))
    result = evaluate_pixel(pred, label, bootstrap=40, seed=3)
    np.testing.assert_allclose((result.low, result.high), np.percentile(by_hand, [2.5, 97.5]), atol=1e-12)
    assert evaluate_pixel(pred, label, bootstrap=40, seed=3) == result
    assert evaluate_pixel(pred, label, bootstrap=40, seed=4) != result


def test_resamples_without_a_positive_are_left_out(tmp_path: Path) -> None:
    pred, label = sample_cases(tmp_path, ["0.9", "0.1"], [1, 0])
    result = evaluate_sample(pred, label)
    assert (result.low, result.ap, result.high) == (1, 1, 1)
    off = evaluate_sample(pred, label, bootstrap=0)
    assert (off.low, off.high) == (off.ap, off.ap)


def test_labels_must_be_usable(tmp_path: Path) -> None:
    pred, label = sample_cases(tmp_path, ["0.9", "0.1"], [0, 0])
    with pytest.raises(ValueError, match="at least one positive"):
        evaluate_sample(pred, label)
    (label / "000.nii.gz.txt").write_text("perhaps")
    with pytest.raises(ValueError, match=r"000\.nii\.gz\.txt: expected 0 or 1"):
        evaluate_sample(pred, label)
    for task in (evaluate_sample, evaluate_pixel):
        with pytest.raises(ValueError, match="nowhere"):
            task(tmp_path / "nowhere", label)
        with pytest.raises(ValueError, match="nowhere"):
            task(pred, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"NAME\.nii\.gz"):
        evaluate_pixel(pred, label)
    (label / "x.nii.gz").write_text("broken")
    with pytest.raises(ValueError, match=r"x\.nii\.gz.*readable label"):
        evaluate_pixel(pred, label)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return mood("evaluate", *arguments)


def test_command_line(tmp_path: Path) -> None:
    pred, label, scores, labels = pixel_cases(tmp_path, 3)
    (pred / "2.nii.gz").unlink()
    scores[2] = 0
    done = command("--pred", pred, "--label", label.parent, "--task pixel --json", tmp_path / "result.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"average precision {reference(scores, labels):.4f}" in done.stdout
    assert "3 cases" in done.stdout and "2.nii.gz: missing" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["ap"] == pytest.approx(reference(scores, labels)) and result["missing"] == ["2.nii.gz: missing"]


# --- the field's other measures --------------------------------------------------------------------------------------


def some_scores(seed: int = 0, size: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties (float16), labels, and their counts."""
    rng = np.random.default_rng(seed)
    labels = rng.random(size) < 0.1
    scores = (np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1).round(2)).astype(np.float16)
    return scores, labels, score_counts(scores, labels)


@pytest.mark.parametrize("seed", range(3))
def test_measures_are_scikit_learns(seed):
    scores, labels, (negatives, positives) = some_scores(seed)
    assert auroc(negatives, positives) == pytest.approx(metrics.roc_auc_score(labels, scores))
    thresholds = np.unique(scores)
    dices = [metrics.f1_score(labels, scores >= t) for t in thresholds]
    assert best_dice(negatives, positives) == pytest.approx(max(dices))
    for rate in (0.01, 0.05):
        allowed = [t for t in thresholds if (scores[~labels] >= t).mean() <= rate]
        expected = metrics.f1_score(labels, scores >= min(allowed)) if allowed else 0.0
        assert dice_at(negatives, positives, negatives, rate) == pytest.approx(expected)
        found = (scores[labels] >= min(allowed)).mean() if allowed else 0.0
        assert sensitivity_at(negatives, positives, rate) == pytest.approx(found)


def test_region_overlap_is_the_obvious_integral():
    scores, labels, (negatives, _) = some_scores(size=3000)
    parts = [np.flatnonzero(labels)[i::4] for i in range(4)]
    regions = np.stack([score_counts(scores[part], np.ones(len(part), bool))[1] for part in parts])
    points = [(0.0, 0.0)]
    for t in np.unique(scores)[::-1]:
        overlap = np.mean([(scores[part] >= t).mean() for part in parts])
        points.append(((scores[~labels] >= t).mean(), overlap))
    x, y = np.array(points).T
    at = np.append(x[x <= 0.3], 0.3)
    assert aupro(regions, negatives) == pytest.approx(np.trapezoid(np.interp(at, x, y), at) / 0.3, abs=1e-3)
    assert math.isnan(aupro(regions[:0], negatives))


def box(*corner: int, side: int = 4) -> tuple[slice, ...]:
    return tuple(slice(c, c + side) for c in corner)


@pytest.mark.parametrize("numbers", [np.int32, np.uint8])
def test_centres_are_those_that_scipy_finds_voxel_by_voxel(numbers):
    blobs = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((40, 30, 20)), 2) > 0.12
    components = ndimage.label(blobs)[0].astype(numbers)
    # A number that no voxel has.
    components[components == 2] = 0
    found = centres_of(components)
    there = sorted(set(components.ravel().tolist()) - {0})
    assert np.array_equal(found[there], ndimage.center_of_mass(components > 0, components, there))
    assert np.isnan(found[[0, 2]]).all() and len(there) > 5
    assert centres_of(np.zeros((3, 3, 3), numbers)).shape == (1, 3)


def test_objects_are_found_by_centre_and_size():
    label = np.zeros((30, 30, 30), bool)
    label[box(2, 2, 2)] = label[box(20, 20, 20)] = True  # two objects of 64 voxels
    label[box(12, 2, 2, side=2)] = True  # 8 voxels: too small to count
    predicted = np.zeros_like(label)
    assert count_objects(predicted, label) == ObjectCounts(2, 0, 0)
    predicted[box(3, 2, 2)] = True  # shifted by a voxel
    predicted[box(12, 2, 2, side=3)] = True  # in the small one: neither right nor wrong
    assert count_objects(predicted, label) == ObjectCounts(2, 1, 0)
    predicted[box(19, 19, 19, side=6)] = True  # 216 voxels, more than double
    assert count_objects(predicted, label) == ObjectCounts(2, 1, 1)
    predicted[box(19, 19, 19, side=6)] = False
    predicted[box(20, 20, 20, side=2)] = True  # 8 voxels do not count
    predicted[box(10, 20, 10)] = True  # where nothing is
    counted = count_objects(predicted, label)
    assert counted == ObjectCounts(2, 1, 1) and counted.f1 == pytest.approx(2 / 4)
    assert (counted + ObjectCounts(1, 1, 0)) == ObjectCounts(3, 2, 1) and math.isnan(ObjectCounts().f1)


def test_an_object_is_found_once():
    label, predicted = np.zeros((2, 30, 30, 30), bool)
    label[box(2, 2, 2, side=8)] = True
    predicted[2:10, 2:10, 0:5] = predicted[2:10, 2:10, 6:12] = True  # both have their centre in it, and a fitting size
    assert count_objects(predicted, label) == ObjectCounts(1, 1, 1)


@pytest.mark.slow
def test_details_tell_kinds_sources_and_every_case(tmp_path):
    make_toy("brain", tmp_path, 4, 24, kinds=["uniform", "noise"], healthy_fraction=0.5)
    labels = tmp_path / "brain" / "toy_label"
    pred = tmp_path / "pred"
    pred.mkdir()
    for file in (labels / "pixel").iterdir():
        label = nib.load(file)
        scores = np.asarray(label.dataobj) * np.float32(0.7) + np.float32(0.1)
        nib.save(nib.Nifti1Image(scores, label.affine), pred / file.name)
    done = command(
        "--pred", pred, "--label", labels, "--task pixel --objects --cases", tmp_path / "cases.csv", "--curves", tmp_path / "c.png",
        "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pixel average precision 1.0000" in done.stdout and "by kind: noise 1.000, uniform 1.000" in done.stdout
    measures = json.loads((tmp_path / "r.json").read_text())["measures"]
    assert measures["auroc"] == 1 and measures["best dice"] == 1 and measures["aupro up to 0.3"] > 0.99
    assert measures["object f1"] == 1 and measures["false objects a healthy volume"] == 0
    sizes = {row["size"] for row in csv.DictReader((tmp_path / "cases.csv").open()) if row["kind"] != "healthy"}
    assert sizes and sizes == {name.split(", ")[1] for name in measures if name.startswith("object recall, ")}
    assert all(measures[f"object recall, {size}"] == 1 for size in sizes)
    assert all(measures[f"false objects a volume, {size}"] == 0 for size in sizes)
    rows = list(csv.DictReader((tmp_path / "cases.csv").read_text().splitlines()))
    assert len(rows) == 4 and sorted(row["kind"] for row in rows) == [
        "healthy",
        "healthy",
        "noise",
        "uniform",
    ]
    assert all(float(row["ap"]) == 1 for row in rows if row["kind"] != "healthy")
    assert (tmp_path / "c.png").stat().st_size > 5000


def test_findings_are_counted_by_their_numbers(tmp_path):
    label = np.zeros((20, 20, 20), np.uint8)
    label[box(2, 2, 2)] = label[box(12, 12, 12)] = 1
    mask = np.zeros_like(label)
    mask[box(2, 2, 2)] = 1
    mask[2:6, 2:6, 6:10] = 2  # touches the first, and is another
    for folder, data in (("pred", label.astype(np.float32)), ("label", label), ("found", mask)):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "a.nii.gz", data)
    words = ["--pred", tmp_path / "pred", "--label", tmp_path / "label", "--task pixel --findings"]
    done = command(*words, tmp_path / "found")
    assert done.returncode == 0 and "findings f1 0.5000" in done.stdout and "findings recall 0.5000" in done.stdout
    failed = command(*words, tmp_path / "nowhere")
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1 and "nowhere" in failed.stderr


def test_samples_have_sensitivities(tmp_path):
    for name, label, score in (("a", 0, 0.1), ("b", 0, 0.4), ("c", 1, 0.3), ("d", 1, 0.9)):
        for folder, value in (("label", label), ("pred", score)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.nii.gz.txt").write_text(f"{value}\n")
    done = command("--pred", tmp_path / "pred", "--label", tmp_path / "label", "--task sample")
    assert done.returncode == 0, done.stderr
    assert "auroc 0.7500" in done.stdout and "sensitivity at 5% false alarms 0.5000" in done.stdout


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path):
    pred, label, _, _ = pixel_cases(tmp_path, 3)
    line = f"{sys.executable} -m mood_submission evaluate --pred {pred} --label {label.parent} --task pixel | true"
    run = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == ""


@pytest.mark.slow
def test_command_line_errors(tmp_path: Path) -> None:
    assert command("--pred", tmp_path).returncode == 2
    assert command("--pred", tmp_path, "--label", tmp_path, "--task pixel --bootstrap", -1).returncode == 2
    failed = command("--pred", tmp_path, "--label", tmp_path / "nowhere", "--task sample")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1 and "nowhere" in failed.stderr and "Traceback" not in failed.stderr
