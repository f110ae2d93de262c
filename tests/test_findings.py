"""Findings: what scores mean among healthy scans, and objects with their places, sizes and outlines."""

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import mood, write_nifti
from scipy import ndimage

from mood_submission import Predictor, load_model
from mood_submission.findings.objects import FALSE_BY_DEFAULT, STEPS, _outlined, least_voxels, outline_objects
from mood_submission.findings.thresholds import (
    CORNERS,
    HealthyVoxels,
    false_alarm_score,
    object_counts,
    ordinary_score,
)
from mood_submission.volumes import read_volume


def bumps(shape=(40, 40, 40), places=(), noise=0.0, seed=0) -> np.ndarray:
    """Scores with smooth bumps: (centre, deviation, height) each."""
    scores = np.full(shape, 0.1) + noise * np.random.default_rng(seed).random(shape)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    for centre, deviation, height in places:
        scores += height * np.exp(-((grid - centre) ** 2).sum(-1) / (2 * deviation**2))
    return scores.clip(0, 1).astype(np.float32)


@pytest.fixture
def healthy() -> HealthyVoxels:
    volumes = [bumps(places=[((20, 20, 20), 3, 0.1 * i)], noise=0.02, seed=i) for i in range(6)]
    return HealthyVoxels.of(volumes, [9] * 6)


def counted_slowly(scores: np.ndarray, level: float, least: int) -> int:
    """How many objects a volume shows at a level, looked for in all of it."""
    labels, count = ndimage.label(scores.astype(np.float64) >= level, CORNERS)
    return sum((labels == number).sum() >= least for number in range(1, count + 1))


def grid_of(tmp_path, affine, shape=(40, 40, 40)):
    return read_volume(write_nifti(tmp_path / "v.nii.gz", np.zeros(shape, np.float32), np.asarray(affine)))


def test_counts_of_false_objects_fall_and_end_at_none(healthy):
    assert healthy.levels == sorted(healthy.levels) and healthy.false_objects[-1] == 0
    assert all(a >= b for a, b in zip(healthy.false_objects, healthy.false_objects[1:]))
    for wanted in (0.1, 0.5, 1.0):
        threshold = healthy.threshold(wanted)
        volumes = [bumps(places=[((20, 20, 20), 3, 0.1 * i)], noise=0.02, seed=i) for i in range(6)]
        assert np.mean([counted_slowly(v, threshold, 9) for v in volumes]) <= wanted
        assert healthy.expected(threshold) <= wanted


def test_a_volume_with_higher_ordinary_scores_has_a_higher_threshold(healthy):
    """As a scanner moves them: the same volume, all of its logits higher, shows the same objects, within a healthy range."""

    def moved(scores: np.ndarray, by: float) -> np.ndarray:
        return 1 / (1 + (1 / scores - 1) * np.exp(-by))

    volume = bumps(noise=0.02, seed=1)
    level, highest = healthy.threshold(0.25), healthy.threshold(0)
    assert level < highest and healthy.ordinary == pytest.approx(ordinary_score(volume), abs=0.01)
    # What lies no higher than healthy volumes, and what was not measured, leave it as it is.
    unmeasured = dataclasses.replace(healthy, ordinary=None)
    assert healthy.threshold_in(moved(volume, -0.5), 0.25) == unmeasured.threshold_in(moved(volume, 2), 0.25) == level
    assert healthy.threshold_in(np.zeros_like(volume), 0.25) == level
    by = 0.5 * (np.log(highest / (1 - highest)) - np.log(level / (1 - level)))
    found = healthy.threshold_in(moved(volume, by), 0.25)
    assert level < found < highest
    assert found == pytest.approx(float(moved(np.array(level), by)), abs=0.01)
    # An anomaly that covers a third of a volume is ordinary there, and stands out all the same.
    third = volume.copy()
    third[:, :, :14] = 0.97
    assert healthy.threshold_in(third, 0.25) == highest < 0.97
    # Places without a score do not count.
    padded = np.pad(moved(volume, by), 40)
    assert healthy.threshold_in(padded, 0.25) == pytest.approx(found)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("least", [1, 9, 40])
def test_objects_counted_level_by_level_are_those_of_the_whole_volume(dtype, least):
    """Rings, bridges that break, plateaus and noise: parts of an object that fall apart, or become too small."""
    rng = np.random.default_rng(4)
    rough = ndimage.gaussian_filter(rng.random((22, 20, 18)), 1.1)
    rough = ((rough - rough.min()) / np.ptp(rough)).astype(dtype)
    rough[3:6, 3:6, 3:6] = rough.max()
    levels = [*np.linspace(0.4, float(rough.max()), 23).tolist(), math.nextafter(float(rough.max()), 2.0)]
    counts = object_counts(rough, levels, least)
    assert counts == [counted_slowly(rough, level, least) for level in levels]
    assert max(counts) > 1 and counts[-1] == 0 and (counts[-2] > 0) == (least <= 27)


def test_voxel_thresholds_are_exceeded_as_often_as_they_say(healthy):
    volumes = [bumps(places=[((20, 20, 20), 3, 0.1 * i)], noise=0.02, seed=i) for i in range(6)]
    above = np.mean([(v > healthy.exceeded["0.01"]).mean() for v in volumes])
    assert 0.005 < above < 0.02
    assert healthy.exceeded["0.01"] < healthy.exceeded["0.001"] < healthy.exceeded["0.0001"]
    scores = list(range(20))
    assert sum(s > false_alarm_score(scores, 0.1) for s in scores) <= 2
    with pytest.raises(ValueError, match="found none"):
        HealthyVoxels.of([], [])


@pytest.mark.parametrize("spacing, least", [((1, 1, 1), 100), ((2, 2, 2), 13), ((4, 4, 4), 9)])
def test_an_object_has_a_size_and_the_challenge_s_voxels(spacing, least):
    assert least_voxels(spacing) == least


def test_findings_are_where_and_as_large_as_what_is_there(healthy, tmp_path):
    affine = [[-2.0, 0, 0, 50], [0, 3.0, 0, -20], [0, 0, 2.5, 7], [0, 0, 0, 1]]
    volume = grid_of(tmp_path, affine)
    places = [((10, 12, 30), 2.5, 0.8), ((30, 25, 8), 2.0, 0.6)]
    scores = bumps(places=places)
    findings, mask = outline_objects(scores, volume.spacing, volume.grid, healthy)
    assert [f.number for f in findings] == [1, 2] and set(np.unique(mask)) == {0, 1, 2}
    for finding, (centre, _, height) in zip(findings, places):
        in_file = (39 - centre[0], centre[1], centre[2])  # x runs the other way in the file
        assert np.allclose(finding.centre_voxel, in_file, atol=0.1)
        assert np.allclose(finding.centre_mm, (np.array(affine) @ [*in_file, 1])[:3], atol=0.3)
        inside = mask == finding.number
        assert finding.voxels == inside.sum() and finding.volume_ml == pytest.approx(inside.sum() * 0.015, abs=1e-3)
        assert finding.highest == pytest.approx(scores[inside].max()) and height < finding.highest
        in_grid = volume.grid.to_file(inside)
        where = np.argwhere(in_grid)
        assert finding.first_voxel == tuple(where.min(0)) and finding.last_voxel == tuple(where.max(0))
        assert finding.false_objects <= FALSE_BY_DEFAULT


def test_the_outline_is_the_lesion_s_not_the_smoothing_s(healthy, tmp_path):
    """A ball whose scores were smoothed: its outline is within half and double its size at any threshold."""
    volume = grid_of(tmp_path, np.eye(4))
    x = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1)
    ball = ((x - 20) ** 2).sum(-1) < 36
    scores = (0.1 + 0.8 * ndimage.gaussian_filter(ball.astype(float), 2)).astype(np.float32)
    for threshold in (0.2, 0.3, 0.5, 0.7):
        (finding,), _ = outline_objects(scores, (1.0,) * 3, volume.grid, None, threshold)
        assert ball.sum() / 2 < finding.voxels < ball.sum() * 2 and math.isnan(finding.false_objects)
        assert finding.to_dict()["false_objects"] is None
    with pytest.raises(ValueError, match="threshold"):
        outline_objects(scores, (1.0,) * 3, volume.grid, None)


def reached_slowly(scores: np.ndarray, seed: tuple[int, ...], level: float) -> np.ndarray:
    """All voxels that are connected to the seed and reach the level, found by adding neighbours one shell at a time."""
    inside = np.zeros(scores.shape, bool)
    inside[seed] = True
    while True:
        more = ndimage.binary_dilation(inside, CORNERS) & (scores >= level)
        if (more == inside).all():
            return inside
        inside = more


@pytest.mark.parametrize("centre", [(20, 20, 20), (1, 38, 20)])
@pytest.mark.parametrize("deviation", [3, 6, 12])
def test_an_outline_below_the_threshold_is_all_that_is_connected(centre, deviation, tmp_path):
    """However far that reaches: it may be the whole volume."""
    spacing = (3.0, 3.0, 3.0)
    scores = bumps(places=[(centre, deviation, 0.7)], noise=0.05)
    scores[30:32] = 0.1  # a gap that nothing grows across
    scores[32:] = scores[32:].clip(0, 0.7)
    scores[35, 5, 5] = 0.9  # too small to be an object
    volume = grid_of(tmp_path, np.eye(4))
    (finding,), mask = outline_objects(scores, spacing, volume.grid, None, 0.75)
    above = scores >= 0.75
    above[32:] = False
    strength = float(np.sort(scores[above])[-least_voxels(spacing)])
    base = float(np.median(scores[::2, ::2, ::2]))
    level = base + 0.5 * (strength - base)
    assert np.array_equal(mask == 1, reached_slowly(scores, centre, min(level, 0.75)))
    assert finding.voxels == (mask == 1).sum() > above.sum() and level < 0.75


def test_objects_that_grow_become_one_or_stop_before_a_surer_one(tmp_path):
    volume, spacing = grid_of(tmp_path, np.eye(4)), (3.0, 3.0, 3.0)
    strong, near, apart = ((12, 20, 20), 4, 0.9), ((24, 20, 20), 4, 0.55), ((34, 20, 20), 4, 0.58)
    scores = bumps(places=[strong, near])
    assert counted_slowly(scores, 0.6, 9) == 2
    (one,), mask = outline_objects(scores, spacing, volume.grid, None, 0.6)
    assert mask[24, 20, 20] == mask[12, 20, 20] == one.number
    # The bridge is lower than half of the strong one's height, and higher than half of the weak one's.
    scores = bumps(places=[strong, apart])
    scores[12:35, 19:22, 19:22] = scores[12:35, 19:22, 19:22].clip(0.45)
    findings, mask = outline_objects(scores, spacing, volume.grid, None, 0.6)
    assert [f.number for f in findings] == [1, 2] and mask[12, 20, 20] == 1 and mask[34, 20, 20] == 2
    assert mask[24, 20, 20] == 0 and findings[1].voxels > (scores[26:] >= 0.6).sum()


@pytest.mark.parametrize("seed", range(4))
def test_growth_ends_at_the_lowest_level_that_meets_nothing_surer(seed):
    """As trying one level after the other finds it, from below."""
    scores = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((40, 40, 40)), 2.5).astype(np.float32)
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    threshold, ground = float(np.quantile(scores, 0.97)), 0.3
    base, taken = float(np.median(scores[::2, ::2, ::2])), np.zeros(scores.shape, bool)
    grown = 0
    for found in _outlined(scores, threshold, 9, ground):
        level = base + 0.5 * (found.strength - base)
        if level < threshold:
            labels, _ = ndimage.label(scores >= threshold, CORNERS)
            first = labels[found.box][found.inside & (scores[found.box] >= threshold)]
            shapes = [np.isin(labels, number) for number in np.unique(first[first > 0])]
            wanted = []
            for part in shapes:
                place = tuple(int(i) for i in np.argwhere(part)[0])
                reached = part
                for lower in np.linspace(max(level, ground), threshold, STEPS, endpoint=False):
                    reached = reached_slowly(scores, place, float(lower))
                    if not (reached & taken).any():
                        break
                    reached = part
                wanted.append(reached)
            whole = np.zeros(scores.shape, bool)
            whole[found.box] = found.inside
            assert any(np.array_equal(whole, one) for one in wanted)
            grown += 1
        taken[found.box] |= found.inside
    assert grown > 2


def test_an_object_is_the_surest_part_that_is_large_enough(tmp_path):
    """Not the largest one, nor one of fewer voxels than an object has."""
    volume, spacing = grid_of(tmp_path, np.eye(4)), (3.0, 3.0, 3.0)
    scores = np.zeros((40, 40, 40), np.float32)
    scores[5:9, 5:9, 5:9], scores[9:12, 6:8, 6:8], scores[12:24, 5:15, 5:15] = 0.95, 0.35, 0.5
    (finding,), mask = outline_objects(scores, spacing, volume.grid, None, 0.3)
    assert finding.voxels == 64 and finding.highest == np.float32(0.95) and mask[6, 6, 6] == 1
    scores = np.zeros((40, 40, 40), np.float32)
    scores[5:15, 5:15, 5:15] = 0.4
    scores[5, 5, 5:9] = scores[14, 14, 5:9] = scores[5, 14, 5:9] = 0.95
    (finding,), _ = outline_objects(scores, spacing, volume.grid, None, 0.3)
    assert finding.voxels == 1000 and least_voxels(spacing) == 9


def test_an_island_beside_a_region_that_is_odd_all_over(tmp_path):
    """Most of the volume is above the threshold, and more so than the island."""
    scores = np.full((40, 40, 40), 0.8, np.float32)
    scores[:20] = 0.1
    scores[5:12, 20:28, 20:28] = 0.65
    scores[0:10] = np.where(scores[0:10] < 0.5, 0.8, scores[0:10])
    scores[4:13, 18:30, 18:30] = np.where(scores[4:13, 18:30, 18:30] == np.float32(0.65), 0.65, 0.1)
    findings, mask = outline_objects(scores, (3.0,) * 3, grid_of(tmp_path, np.eye(4)).grid, None, 0.6)
    assert mask[8, 24, 24] == len(findings) and findings[-1].voxels == 7 * 8 * 8
    assert (mask > 0).sum() == (scores >= 0.6).sum()


def test_no_outline_lies_where_many_healthy_voxels_do(healthy, tmp_path):
    volume, spacing = grid_of(tmp_path, np.eye(4)), (3.0, 3.0, 3.0)
    scores = bumps(places=[((20, 20, 20), 5, 0.6)])
    for exceeded, lowest in (
        ({}, 0.39),
        ({"0.01": 0.2}, 0.39),
        ({"0.01": 0.2, "0.001": 0.5}, 0.5),
        ({"0.01": 0.65}, 0.6),
    ):
        measured = dataclasses.replace(healthy, exceeded=exceeded)
        _, mask = outline_objects(scores, spacing, volume.grid, measured, 0.6)
        assert lowest <= scores[mask > 0].min() < lowest + 0.05


def test_nothing_is_found_in_nothing(healthy, tmp_path):
    volume = grid_of(tmp_path, np.eye(4))
    findings, mask = outline_objects(np.zeros((40, 40, 40), np.float32), (1.0,) * 3, volume.grid, healthy)
    assert findings == [] and not mask.any()


@pytest.mark.slow
def test_calibration_measures_what_scores_mean(tiny_weights, blobs, tmp_path):
    out = tmp_path / "brain.safetensors"
    run = mood(
        "calibrate",
        tiny_weights["brain"],
        "--data",
        blobs,
        "-o",
        out,
        "--slices 4 --restorations 1 --device cpu",
    )
    assert run.returncode == 0, run.stderr
    about = load_model(out, device="cpu").about
    assert set(about.healthy_voxels) == {"paper", "rarity"} and set(about.healthy_samples) == {"paper", "top"}
    assert all(len(scores) == 3 and scores == sorted(scores) for scores in about.healthy_samples.values())
    assert about.healthy_voxels["rarity"].volumes == 3 and len(about.healthy_voxels["rarity"].levels) == 48


def pixel_words(source: Path, out: Path, weights: Path) -> tuple[object, ...]:
    scored = "--region brain --task pixel --slices 4 --restorations 1 -i"
    return (scored, source, "-o", out, "--weights", weights)


@pytest.mark.slow
def test_findings_are_written_as_masks_and_tables(measured, blobs, tmp_path):
    words = pixel_words(blobs, tmp_path / "out", measured)
    run = mood("predict", *words, "--findings", tmp_path / "found")
    assert run.returncode == 0, run.stderr
    entries = json.loads((tmp_path / "found" / "findings.json").read_text())
    assert [entry["file"] for entry in entries] == [f"case_{i}.nii.gz" for i in range(3)]
    with open(tmp_path / "found" / "findings.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == sum(len(entry["findings"]) for entry in entries) >= 3
    for entry in entries:
        image = nib.load(tmp_path / "found" / entry["file"])
        mask, scores = np.asarray(image.dataobj), nib.load(tmp_path / "out" / entry["file"]).get_fdata()
        assert mask.dtype == np.uint8 and np.array_equal(image.affine, nib.load(blobs / entry["file"]).affine)
        for finding in entry["findings"]:
            inside = mask == finding["number"]
            assert inside.sum() == finding["voxels"] and finding["false_objects"] == 0.2
            assert scores[inside].max() == pytest.approx(finding["highest"], abs=1e-6)
            assert np.allclose(np.argwhere(inside).mean(0), finding["centre_voxel"], atol=0.01)
            assert set(finding["evidence"]) == {"restoration", "reconstruction", "likelihood"}
    found = Predictor(load_model(measured, device="cpu"), 4, 1, explain=True).findings(
        read_volume(blobs / "case_0.nii.gz")
    )
    assert [json.loads(json.dumps(finding.to_dict())) for finding in found] == entries[0]["findings"]


@pytest.mark.slow
def test_findings_go_on_where_a_run_was_cut_off(measured, blobs, tmp_path):
    words = pixel_words(blobs, tmp_path / "out", measured)
    assert mood("predict", *words, "--findings", tmp_path / "whole").returncode == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "case_1.nii.gz").unlink()
    assert mood("predict", *words, "--resume --findings", tmp_path / "part").returncode == 0
    files = [file for file in (tmp_path / "whole").rglob("*") if file.is_file()]
    assert len(files) == 9  # masks, what was expected, two tables, what is locked
    for file in files:
        there = tmp_path / "part" / file.relative_to(tmp_path / "whole")
        assert there.read_bytes() == file.read_bytes(), file


@pytest.mark.slow
def test_what_findings_need_is_told_in_one_line(measured, tiny_weights, blobs, tmp_path):
    words = ["--region brain -i", blobs, "-o", tmp_path / "out", "--slices 4 --restorations 1"]
    for more, told in (
        (["--task sample --weights", measured, "--findings", tmp_path / "f"], "--task pixel"),
        (["--task pixel --weights", tiny_weights["brain"], "--findings", tmp_path / "f"], "calibrate"),
        (["--task pixel --weights", measured, "--findings", tmp_path / "out"], "folder of its own"),
        (["--task pixel --weights", measured, "--findings", blobs], "folder of its own"),
    ):
        run = mood("predict", *words, *more)
        assert run.returncode == 2 and run.stderr.count("\n") == 1 and told in run.stderr
    assert not (tmp_path / "f").exists()
