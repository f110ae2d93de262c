"""Whole heads lose their skulls before they are looked at; stripped brains stay as they are."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import mood, write_nifti
from heads import head_round

from mood_submission import load_model
from mood_submission.lab.evaluation.metrics import average_precision, score_counts
from mood_submission.lab.planting.anomalies import plant
from mood_submission.lab.planting.phantoms import brain_template_subject
from mood_submission.predictor import Predictor
from mood_submission.preprocessing import skull
from mood_submission.running import skull_strip
from mood_submission.running.skull_strip import SkullStrip
from mood_submission.volumes import Volume, VolumeError, read_volume

pytest.importorskip("nilearn", reason="nilearn is not installed (requirements-dev.txt)")
pytest.importorskip("deepbet", reason="deepbet is not installed (requirements-dev.txt)")

SPACING = (2.0, 2.0, 2.0)


def brain_of(number: int) -> np.ndarray:
    return brain_template_subject(100, np.random.default_rng(number))


def stored(folder: Path, name: str, data: np.ndarray) -> Volume:
    return read_volume(write_nifti(folder / f"{name}.nii.gz", data, np.diag([2.0, 2.0, 2.0, 1.0])))


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> tuple[Volume, np.ndarray]:
    """A whole head, and where its brain is."""
    brain = brain_of(0)
    whole, inside = head_round(brain, SPACING, np.random.default_rng(0))
    mask = np.zeros(whole.shape, bool)
    mask[inside] = brain > 0.02
    return stored(tmp_path_factory.mktemp("head"), "head", whole), mask


@pytest.mark.slow
def test_heads_are_told_from_brains(head, tmp_path):
    whole, _ = head
    assert skull.is_whole_head(whole.data, whole.spacing)
    assert skull.is_whole_head(3000 * whole.data[:, :, 30:] - 50, whole.spacing)  # other units, no neck
    for data in (brain_of(0), brain_of(1)[20:80], np.zeros((20, 20, 20), np.float32)):
        assert not skull.is_whole_head(data, SPACING)
    brain = stored(tmp_path, "brain", brain_of(0))
    assert SkullStrip()(brain) is brain


@pytest.mark.slow
def test_a_head_is_stripped_and_its_mask_is_used_again(head, tmp_path, monkeypatch):
    whole, brain = head
    strip = SkullStrip(masks=tmp_path)
    stripped = strip(whole)
    mask = stripped.data != 0
    assert 2 * np.count_nonzero(mask & brain) / (np.count_nonzero(mask) + np.count_nonzero(brain)) > 0.95
    assert np.array_equal(stripped.data[mask], whole.data[mask]) and "skull-stripped" in stripped.notes[-1]
    kept = read_volume(tmp_path / "head.nii.gz")
    assert np.array_equal(kept.data[mask], np.ones(np.count_nonzero(mask)))
    assert np.array_equal(kept.grid.affine, whole.grid.affine)
    monkeypatch.setattr(skull_strip, "brain_mask", None)  # would fail if it were asked
    assert np.array_equal(strip(whole).data, stripped.data)


@pytest.mark.slow
def test_what_cannot_be_stripped_is_said_in_a_line(head, tmp_path, monkeypatch):
    whole, _ = head
    noise = stored(tmp_path, "noise", np.random.default_rng(0).random((24, 24, 24), np.float32))
    with pytest.raises(VolumeError, match="noise.nii.gz: expected a"):
        SkullStrip("yes")(noise)
    monkeypatch.setattr(skull, "can_strip", lambda: False)
    with pytest.warns(UserWarning, match="looks like a whole head, and is scored as it is: expected deepbet"):
        assert SkullStrip()(whole).data is whole.data
    with pytest.raises(VolumeError, match="skullstrip"):
        SkullStrip("yes")(whole)


def test_a_head_is_scored_as_it_is_where_memory_is_short(head, monkeypatch):
    """A container is not to be killed for what it can do without."""
    whole, _ = head
    monkeypatch.setattr(skull, "free_memory", lambda device: 500 << 20)
    with pytest.warns(UserWarning, match="is scored as it is: expected 1024 MB of free memory, found 500 MB"):
        assert SkullStrip()(whole).data is whole.data

    def failing(*_):
        raise RuntimeError("not enough memory:\nyou tried")

    monkeypatch.undo()
    monkeypatch.setattr("deepbet.bet.BrainExtraction.run_model", failing)
    with pytest.warns(UserWarning, match="found: not enough memory: you tried"):
        assert SkullStrip()(whole).data is whole.data


@pytest.mark.slow
def test_predict_strips_and_tells(head, tiny_weights, tmp_path):
    folder, report = tmp_path / "in", tmp_path / "report.json"
    write_nifti(folder / "head.nii.gz", head[0].data, np.diag([2.0, 2.0, 2.0, 1.0]))
    words = (
        "predict --region brain --task sample --device cpu --slices 3 --weights",
        tiny_weights["brain"],
        "-i",
        folder,
        "-o",
        tmp_path / "out",
        "--report",
        report,
    )
    for when in ("auto", "no"):
        done = mood(*words, "--skull-strip", when)
        assert done.returncode == 0, done.stderr
        told = json.loads(report.read_text())["volumes"][0]
        assert ("skull-stripped" in told["message"]) == (when == "auto")
    abdom = mood("predict --region abdom --task sample -i", folder, "-o", tmp_path, "--skull-strip yes")
    assert abdom.returncode == 2 and "--skull-strip yes: expected --region brain" in abdom.stderr


@pytest.mark.slow
def test_whole_heads_are_scored_as_well_as_their_brains(tmp_path):
    """Planted, then put into a head: the average precision over all voxels is that of the stripped brains within 0.05."""
    plain, strip = (
        Predictor(load_model("brain", "cpu"), slice_count=16, restorations=0, strip=s) for s in (None, SkullStrip())
    )
    counts = np.zeros((2, 2, 15361), np.int64)
    for number, kind in enumerate(("uniform", "multiply", "noise")):
        rng = np.random.default_rng(number)
        brain, label = plant(brain_of(number + 5), kind, rng)
        whole, inside = head_round(brain, SPACING, rng)
        labels = np.zeros(whole.shape, bool)
        labels[inside] = label
        for i, (predictor, data, mask) in enumerate(((plain, brain, label), (strip, whole, labels))):
            scores = predictor.pixel_scores(stored(tmp_path, f"{kind}{i}", data))
            counts[i] += score_counts(scores.astype(np.float16), mask)
    before, after = (float(average_precision(*c)) for c in counts)
    assert before > 0.5 and after > before - 0.05
