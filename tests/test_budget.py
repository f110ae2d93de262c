"""Predictions within a time budget, by a clock that only the networks move."""

import pytest
import torch

from mood_submission import Predictor, load_model
from mood_submission.lab.measuring.benchmark import FreeNetworks
from mood_submission.running.run_folder import predict_files
from mood_submission.running.time_budget import PILOT, compute_within
from mood_submission.volumes import read_volume

ENCODE, NLL, SAMPLE, DECODE = 0.5, 0.5, 4.0, 0.25  # seconds a slice; of the last two: and a restoration


class SlowNetworks(FreeNetworks):
    """Networks that take time by a clock of their own. Restoring costs less for each, the more there are at a time."""

    def __init__(self):
        super().__init__("brain")
        self.seconds, self.drawn = 0.0, []

    def encode(self, slices, position):
        self.seconds += ENCODE * len(slices)
        return super().encode(slices, position)

    def nll(self, codes, position):
        self.seconds += NLL * len(codes)
        return super().nll(codes, position)

    def restore(self, codes, position, uniforms, threshold):
        self.seconds += SAMPLE * (len(codes) * uniforms.shape[1]) ** 0.9
        self.drawn.append(uniforms)
        return super().restore(codes, position, uniforms, threshold)

    def decode(self, codes, position):
        self.seconds += DECODE * len(codes)
        return super().decode(codes, position)


def within(seconds, blobs, task="pixel"):
    networks = SlowNetworks()
    predictor = Predictor(networks, restorations=15)
    prepared = predictor.prepare(read_volume(blobs / "case_0.nii.gz"))
    return predictor, prepared, compute_within(predictor, prepared, task, seconds, lambda: networks.seconds)


def test_a_budget_is_kept_from_above_and_mostly_used(blobs):
    made = []
    for seconds in (60, 90, 150, 250, 400, 600, 900, 2000):
        predictor, prepared, result = within(seconds, blobs)
        assert predictor.model.seconds <= seconds
        made.append((len(result.prepared.indices), result.restorations))
        assert len(result.scored.pixel) == len(result.prepared.indices)
    assert made == sorted(made) and made[-1] == (12, 15) and made[0][0] <= PILOT
    assert any(slices == 12 and 1 < copies < 15 for slices, copies in made)


def test_the_least_is_a_few_slices_with_one_restoration(blobs):
    _, _, result = within(0.001, blobs)
    assert (len(result.prepared.indices), result.restorations) == (PILOT, 1)
    assert result.prepared.indices[0] == 0 and result.prepared.indices[-1] >= 10  # over all of the volume
    _, _, result = within(0.001, blobs, "sample")
    assert len(result.prepared.indices) == PILOT and 0 <= result.scored.sample <= 1


def test_restorations_are_the_first_of_those_without_a_budget(blobs):
    predictor, prepared, result = within(250, blobs)
    expected = predictor.uniforms("case_0.nii.gz", result.prepared.indices, (10, 10))[:, : result.restorations]
    drawn = [uniforms for uniforms in predictor.model.drawn if len(uniforms) == len(result.prepared.indices)]
    assert torch.equal(torch.cat(drawn, 1), expected) and 1 < result.restorations < 15


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sample", "pixel"])
def test_a_budget_that_is_enough_changes_nothing(task, tiny_weights, blobs, tmp_path):
    predictor, files = (
        Predictor(load_model(tiny_weights["brain"], device="cpu"), restorations=2),
        sorted(blobs.iterdir()),
    )
    for name, seconds in (("with", 1e6), ("without", None)):
        (tmp_path / name).mkdir()
        outcomes = predict_files(predictor, files, task, tmp_path / name, seconds=seconds)
        assert all(outcome.status == "predicted" and outcome.message == "" for outcome in outcomes)
    for path in (tmp_path / "with").iterdir():
        assert path.read_bytes() == (tmp_path / "without" / path.name).read_bytes()


def test_what_a_budget_cost_is_said(tiny_weights, blobs, tmp_path):
    predictor = Predictor(load_model(tiny_weights["brain"], device="cpu"), restorations=7)
    (outcome,) = predict_files(predictor, [blobs / "case_0.nii.gz"], "pixel", tmp_path, seconds=1e-3)
    assert outcome.status == "predicted" and (outcome.slice_count, outcome.restorations) == (PILOT, 1)
    assert outcome.message == f"{blobs / 'case_0.nii.gz'}: 8 of 12 slices, 1 of 7 restorations within the time budget"
    assert read_volume(tmp_path / "case_0.nii.gz").data.shape == (28, 24, 12)
