"""What is strange in a volume as a whole: limits from healthy volumes, and how it looks at a coarse scale."""

import numpy as np
import pytest
import torch

from mood_submission.evidence.normalised import NormalisedEvidence, usual_nll, usual_residual
from mood_submission.evidence.strangeness import (
    COARSE,
    LEAST_MARGIN,
    MARGIN,
    MOST_DEVIATIONS,
    bounded,
    coarse_look,
    distance_from,
    distances_among,
    excess,
    limits,
    typical_of,
)


def test_limits_are_wider_than_the_healthy_range_by_the_larger_margin():
    assert limits((2.0, 4.0)) == pytest.approx((2 - MARGIN * 2, 4 + MARGIN * 2))
    assert limits((4.0, 4.0)) == pytest.approx((4 - LEAST_MARGIN * 4, 4 + LEAST_MARGIN * 4))
    low, high = limits((2.0, 4.0))
    assert [bounded(v, (2.0, 4.0)) for v in (-9.0, low, 3.0, high, 9.0)] == [low, low, 3.0, high, high]
    assert bounded(9.0, None) == 9.0
    assert [excess(v, (2.0, 4.0)) for v in (low, 3.0, high)] == [0, 0, 0]
    assert excess(0.0, (2.0, 4.0), one_sided=True) == 0 < excess(0.0, (2.0, 4.0))
    assert excess(high + (high - low), (2.0, 4.0)) == excess(low - (high - low), (2.0, 4.0)) == pytest.approx(1)


def test_a_coarse_look_is_the_mean_of_each_place():
    slices = torch.arange(4.0)[:, None, None] * torch.ones(4, 16, 16)
    slices[1, :2, :2] += 8
    position = torch.tensor([[-0.5], [-0.45], [0.0], [0.5]])
    slices[3, :2] = 0
    look, shown = coarse_look(slices, position)
    assert look.shape == shown.shape == (COARSE,) * 3
    assert (
        look[0, 0, 0] == (0 + 1 + 8) / 2 and look[0, 1, 1] == 0.5 and (look[4] == 2).all() and (look[-1, 1:] == 3).all()
    )
    assert (look[-1, 0] == 0).all() and (shown[-1, 0] == 0).all() and (shown[[4, -1], 1:] == 1).all()
    assert np.isnan(look[[1, 2, 3, 5, 6]]).all() and np.isnan(shown[[1, 2, 3, 5, 6]]).all()


@pytest.fixture(scope="module")
def looks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    typical = rng.normal(size=(2, *(COARSE,) * 3))
    looks = [(typical + 0.1 * rng.normal(size=typical.shape)).astype(np.float32) for _ in range(12)]
    for number, look in enumerate(looks):
        look[:, 0] = np.nan  # places that no volume reaches
        look[:, 1] = np.nan if number else look[:, 1]  # places that one volume reaches
    return looks


def test_what_looks_otherwise_is_farther_from_healthy_volumes(looks):
    typical = typical_of(looks)
    assert [value is None for value in typical["mean"]] == 2 * [n < 2 * COARSE**2 for n in range(COARSE**3)]
    among = distances_among(looks)
    assert all(0.5 < distance < 2 for distance in among)
    moved = looks[3].copy()
    distances = []
    for rows in range(COARSE):
        moved[:, :, :rows] += 0.5
        distances.append(distance_from(moved, typical))
    assert distances == sorted(distances) and distances[-1] > 3 * max(among)
    assert distance_from(looks[3] + 1e6, typical) == pytest.approx(MOST_DEVIATIONS)
    assert distance_from(np.full_like(looks[3], np.nan), typical) == 0


def test_a_slab_is_compared_where_it_is(looks):
    """Places that a volume does not reach count neither way."""
    slab = looks[5].copy()
    slab[:, 3:] = np.nan
    assert 0.5 < distance_from(slab, typical_of(looks)) < 2


def test_what_the_detector_reads_is_scaled_within_the_limits():
    generator = torch.Generator().manual_seed(0)
    slices, decoded = torch.rand(3, 16, 16, generator=generator) + 0.1, torch.zeros(3, 16, 16)
    nll, position = torch.rand(3, 4, 4, generator=generator) * 9, torch.zeros(3, 1)
    maps = (slices, decoded, decoded, nll, position)
    own = NormalisedEvidence.of(*maps)
    usual, high = usual_nll(slices, nll)
    assert (own.residual, own.usual, own.high) == (usual_residual(slices, decoded), usual, high)
    wide = {"likelihood": [0.0, 9.0], "likelihood_spread": [0.0, 9.0], "residual": [0.0, 2.0]}
    assert NormalisedEvidence.of(*maps, ranges=wide).usual == usual
    narrow = {"likelihood": [0.5, 1.0], "likelihood_spread": [0.5, 1.0], "residual": [0.05, 0.1]}
    bound = NormalisedEvidence.of(*maps, ranges=narrow)
    assert bound.residual == pytest.approx(0.125) and bound.usual == pytest.approx(1.25)
    assert bound.high == pytest.approx(1.25 + 1.25)


def test_limits_have_a_width_where_all_healthy_volumes_have_the_same_value():
    for usual in ([0.0, 0.0], [2.5, 2.5]):
        low, high = limits(usual)
        assert low < usual[0] < high and excess(usual[0], usual) == 0 < excess(high + 1, usual) < float("inf")
