"""Restoration of what stands out, and of nothing else: the picture of what should be there."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from mood_submission import Predictor, load_model
from mood_submission.evidence.suspected import blended, suspected_codes, suspected_places, thresholds_at
from mood_submission.lab.planting.anomalies import plant
from mood_submission.lab.planting.toy import make_toy
from mood_submission.preprocessing import volume_to_slices
from mood_submission.volumes import read_volume


def test_each_object_is_suspected_down_to_half_its_own_height():
    scores = torch.full((6, 20, 20), 0.1)
    scores[1:3, 1:11, 1:11] = 0.45  # above the threshold, and less than half-way up
    scores[1:3, 2:10, 2:10] = 0.5
    scores[1:3, 4:8, 4:8] = 0.9  # half-way up from 0.1 is 0.5
    scores[4:, 12:18, 12:18] = 0.4
    scores[4:, 14:16, 14:16] = 0.5
    found = suspected_places(scores, 0.3)
    expected = torch.zeros(scores.shape, dtype=torch.bool)
    expected[1:3, 2:10, 2:10] = True
    expected[4:, 12:18, 12:18] = True
    assert torch.equal(found, expected)
    assert torch.equal(suspected_places(scores, 0.45), expected & (scores >= 0.45))
    assert not suspected_places(scores, 0.95).any() and not suspected_places(scores, math.inf).any()


def test_codes_round_what_is_suspected_are_drawn_anew_and_those_near_if_they_are_unlikely():
    suspected = torch.zeros(2, 80, 80, dtype=torch.bool)
    suspected[1, 42, 17] = True  # in the code in row 10, column 4
    codes = suspected_codes(suspected, (20, 20))
    assert not codes[0].any() and codes[1].nonzero().tolist() == [[r, c] for r in (9, 10, 11) for c in (3, 4, 5)]
    thresholds = thresholds_at(codes, 4.5)
    assert (thresholds[0] == math.inf).all() and (thresholds[1][codes[1]] == -1).all()
    assert (thresholds[1] == 4.5).nonzero().tolist() == [
        [r, c] for r in range(8, 13) for c in range(2, 7) if not codes[1, r, c]
    ]
    # A finer or coarser map of scores marks the same codes.
    assert torch.equal(suspected_codes(suspected[:, 1::2, ::2] | suspected[:, ::2, 1::2], (20, 20)), codes)


def test_what_is_far_from_the_codes_stays_the_reconstruction():
    codes = torch.zeros(1, 20, 20, dtype=torch.bool)
    codes[0, 5:10, 5:10] = True
    restored, reconstruction = torch.ones(1, 160, 160), torch.zeros(1, 160, 160)
    mixed = blended(restored, reconstruction, codes)
    assert (mixed[0, 48:72, 48:72] == 1).all() and (mixed[0, :32] == 0).all() and (mixed[0, 88:] == 0).all()
    assert 0 <= mixed.min() and mixed.max() <= 1


@pytest.mark.long
@pytest.mark.parametrize("kind", ["uniform", "add"])
def test_the_expected_picture_shows_tissue_where_something_was_planted(kind, tmp_path):
    """It is nearer to the brain before planting than the reconstruction is; far from the anomaly it is the reconstruction."""
    make_toy("brain", tmp_path, 1, 100, seed=1, healthy_fraction=1.0)
    healthy = read_volume(tmp_path / "brain" / "toy" / "toy_0.nii.gz")
    data, mask = plant(np.ascontiguousarray(healthy.data), kind, np.random.default_rng(3), (0.12, 0.15))
    planted = dataclasses.replace(healthy, data=np.asfortranarray(data))
    predictor = Predictor(load_model("brain", "cpu"), 14, 0, explain=True)
    before, prepared = predictor.prepare(healthy), predictor.prepare(planted)
    evidence = predictor.evidence(prepared)
    scored = predictor.compute(prepared, "pixel")
    view = dataclasses.replace(prepared.view, tone=None, blur_along=0.0, blur_in_plane=0.0, body=None)
    preprocessing = predictor.model.about.preprocessing
    label = volume_to_slices(
        np.asfortranarray(mask.astype(np.float32)), planted.spacing, prepared.indices, preprocessing, view=view
    )
    inside, anatomy = label > 0.5, prepared.slices != 0
    assert scored.expected is not None and inside.any()
    distance = {
        name: float((shown - before.slices).abs()[inside & anatomy].mean())
        for name, shown in (("expected", scored.expected), ("reconstruction", evidence.decoded))
    }
    assert distance["expected"] < 0.95 * distance["reconstruction"], distance
    untouched = ~inside.any(2).any(1)
    same = (scored.expected - evidence.decoded).abs()[untouched][anatomy[untouched]]
    assert float((same > 1e-5).float().mean()) < 0.3
