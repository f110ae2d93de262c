"""The weights that come along."""

import numpy as np
import pytest
import torch
from conftest import write_nifti
from sklearn.metrics import average_precision_score

from mood_submission import Predictor, load_model
from mood_submission.lab.planting.anomalies import plant
from mood_submission.lab.planting.phantoms import abdom_phantom, brain_template_subject
from mood_submission.methods import table
from mood_submission.model_file import WEIGHTS, networks_sha256
from mood_submission.runtime.contract import REGIONS
from mood_submission.volumes import read_volume

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=REGIONS)
def model(request):
    return load_model(request.param, device="cpu")


def test_they_say_where_they_come_from(model):
    training = model.about.training
    assert training["data"] and "not MOOD" in training["data"] and training["licence"]
    for stage in ("vqvae", "prior"):
        about = training[stage]
        assert len(about["revision"]) >= 40 and about["date"] and about["slices_seen"] and about["minutes"]
        train, validation, test = (set(about["volumes"][split]) for split in ("train", "validation", "test"))
        assert train and validation and test and not (train & validation or train & test or validation & test)
    assert training["vqvae"]["volumes"] == training["prior"]["volumes"]
    assert 0 < model.about.pixel_threshold < model.about.sample_threshold
    assert (WEIGHTS / f"{model.about.region}.safetensors").stat().st_size < 50e6


def test_the_detector_is_of_these_networks_and_saw_no_held_out_volume(model):
    about, split = model.about.training["detector"], model.about.training["vqvae"]["volumes"]
    held_out = {*split["validation"], *split["test"]}
    assert about["networks"] == networks_sha256(model) and about["volumes"]["validation"]
    assert len(about["revision"]) >= 40 and about["kinds"] and about["slices_seen"] and about["minutes"]
    # It, those that it is the mean of, and those that they began from.
    trained = [about]
    for part in trained:
        trained += [*part.get("mean_with", []), *([part["started_from"]] if "started_from" in part else [])]
        assert part["networks"] and not held_out & set(part.get("volumes", {}).get("train", []))
    assert any(part.get("volumes", {}).get("train") for part in trained)


def test_defaults_won_on_the_validation_half(model):
    """Of the methods that are there to choose from, by the figures that the file carries."""
    figures = model.about.training["comparison"]["validation"]
    for task, methods, default in (
        ("pixel", table.names("pixel"), model.about.pixel_method),
        ("sample", table.names("sample"), model.about.sample_method),
    ):
        undrawn = task == "sample" or model.about.detector.restorations == 0
        name = {"learned": "learned without sampling"} if undrawn else {}
        assert figures[task][name.get(default, default)] == max(figures[task][name.get(m, m)] for m in methods)


def test_parameters_are_finite_in_half_precision(model):
    for network in (model.vqvae, model.prior, model.detector):
        assert all(torch.isfinite(p).all() for p in network.state_dict().values())


def test_a_bright_ball_stands_out(model, tmp_path):
    """A planted ball's voxels are among the highest scored of the body by each method: average precision well above chance."""
    rng = np.random.default_rng(0)
    if model.about.region == "brain":
        pytest.importorskip("nilearn", reason="toy brains are made from nilearn's template")
        data = brain_template_subject(80, rng)
    else:
        data = abdom_phantom(96, rng, depth=24)
    planted, mask = plant(data, "uniform", np.random.default_rng(3), (0.15, 0.16))
    volume = read_volume(write_nifti(tmp_path / "ball.nii.gz", planted))
    body = mask | (data > 0.05)
    predictors = [
        Predictor(model, slice_count=8, restorations=8, pixel_method=method) for method in table.names("pixel")
    ]
    prepared = predictors[0].prepare(volume)
    with predictors[0].same_bits_for_any_threads():
        # all methods tell their scores from the same evidence
        evidence = predictors[0].complete_evidence(prepared, "pixel")
        scored = [predictor.pixel(evidence) for predictor in predictors]
    for method, slices in zip(table.names("pixel"), scored):
        scores = predictors[0].to_volume(prepared, slices)
        assert np.isfinite(scores).all() and 0 <= scores.min() and scores.max() <= 1
        precision = average_precision_score(mask[body], scores[body])
        assert precision > 1.5 * mask[body].mean(), method
