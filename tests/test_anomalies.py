"""Planted anomalies: where they change the volume, where they do not, and that they repeat."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mood_submission.lab.planting.anomalies import KINDS, plant, plant_with_details  # noqa: E402
from mood_submission.lab.planting.phantoms import abdom_phantom, brain_phantom  # noqa: E402
from mood_submission.preprocessing.body import body_mask  # noqa: E402
from mood_submission.volumes import read_volume  # noqa: E402

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    return brain_phantom(64, np.random.default_rng(0))


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    return abdom_phantom(96, np.random.default_rng(0), depth=7)


def check(volume: np.ndarray, new: np.ndarray, mask: np.ndarray, kind: str) -> None:
    assert new.dtype == np.float32 and mask.dtype == bool and new.shape == mask.shape == volume.shape
    assert new.min() >= 0 and new.max() <= 1
    assert mask.any(), kind
    np.testing.assert_array_equal(new[~mask], volume[~mask], err_msg=kind)
    change = np.abs(new - volume)[mask]
    assert (change > 0.01).mean() > 0.6, kind
    assert change.mean() > 0.05, kind


@pytest.mark.parametrize("kind", KINDS)
def test_changes_inside_its_mask_and_nothing_outside(kind: str, brain: np.ndarray, stack: np.ndarray) -> None:
    for volume in (brain, stack):
        before = volume.copy()
        body = body_mask(volume)
        for seed in range(4):
            new, mask = plant(volume, kind, np.random.default_rng(seed))
            check(volume, new, mask, kind)
            assert not (mask & ~body).any()
        np.testing.assert_array_equal(volume, before)


@pytest.mark.parametrize("kind", KINDS)
def test_repeats_with_the_same_generator_and_differs_with_another(kind: str, brain: np.ndarray) -> None:
    first, mask = plant(brain, kind, np.random.default_rng(5))
    again, mask_again = plant(np.asfortranarray(brain), kind, np.random.default_rng(5))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(mask, mask_again)
    assert (plant(brain, kind, np.random.default_rng(6))[1] != mask).any()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_thin_stacks(depth: int) -> None:
    volume = abdom_phantom(64, np.random.default_rng(depth), depth=depth)
    for kind in KINDS:
        new, mask = plant(volume, kind, np.random.default_rng(1))
        check(volume, new, mask, kind)


def test_size_follows_the_radius_fraction(brain: np.ndarray) -> None:
    small = plant_with_details(brain, "uniform", np.random.default_rng(0), (0.08, 0.08))
    large = plant_with_details(brain, "uniform", np.random.default_rng(0), (0.16, 0.16))
    for planted, radius in ((small, 0.08 * 64), (large, 0.16 * 64)):
        assert all(0.8 * radius < r < 1.25 * radius for r in planted.radii)
        assert planted.mask.sum() < 1.6 * 4.19 * np.prod(planted.radii)
    assert large.mask.sum() > 3 * small.mask.sum()


def test_the_centre_lies_in_the_given_body(brain: np.ndarray) -> None:
    half = body_mask(brain)
    half[:32] = False
    for seed in range(10):
        planted = plant_with_details(brain, "uniform", np.random.default_rng(seed), body=half)
        assert half[planted.centre]
        assert not planted.mask[:32].any()


def test_uniform_is_one_value_unlike_what_was_there(brain: np.ndarray) -> None:
    new, mask = plant(brain, "uniform", np.random.default_rng(3))
    assert len(np.unique(new[mask])) == 1
    assert np.abs(new - brain)[mask].mean() > 0.15


def test_shuffle_only_moves_values(brain: np.ndarray) -> None:
    new, mask = plant(brain, "shuffle", np.random.default_rng(2))
    assert np.isin(new[mask], brain).all()


def test_body_mask_leaves_out_table_and_air() -> None:
    volume = abdom_phantom(128, np.random.default_rng(0), depth=4)
    body = body_mask(volume)
    assert not body[:, :12].any()  # the table is at the bottom of the frame
    assert body[64, 64].all() and not body[0].any()
    assert 0.3 < body.mean() < 0.6


def test_wide_grids_are_masked_coarsely() -> None:
    volume = abdom_phantom(300, np.random.default_rng(0), depth=2)
    body = body_mask(volume)
    assert body.shape == volume.shape
    tissue = volume[150:, 40:260] > 0.4  # a half without table
    assert body[150:, 40:260][tissue].mean() > 0.99 and 0.3 < body.mean() < 0.6
    new, mask = plant(volume, "add", np.random.default_rng(0))
    check(volume, new, mask, "add")


def test_a_speck_of_a_body_can_be_planted_in(brain: np.ndarray) -> None:
    speck = np.zeros((200, 200, 200), bool)
    speck[101, 101, 101] = True
    new, mask = plant(np.full(speck.shape, 0.5, np.float32), "uniform", np.random.default_rng(0), body=speck)
    np.testing.assert_array_equal(mask, speck)
    assert abs(new[101, 101, 101] - 0.5) > 0.1


def test_says_what_is_wrong(brain: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="kind.*'odd'"):
        plant(brain, "odd", rng)
    with pytest.raises(ValueError, match="float32"):
        plant(brain.astype(np.float64), "add", rng)
    with pytest.raises(ValueError, match="radius_fraction"):
        plant(brain, "add", rng, (0.2, 0.1))
    with pytest.raises(ValueError, match="body"):
        plant(brain, "add", rng, body=np.ones((2, 2, 2), bool))
    with pytest.raises(ValueError, match="no body"):
        plant(np.zeros_like(brain), "add", rng)
    with pytest.raises(ValueError, match="no place"):
        plant(np.full((20, 20, 20), 0.5, np.float32), "mirror", rng)


def test_islands_in_black_fat_are_one_body() -> None:
    volume = abdom_phantom(128, np.random.default_rng(0), depth=4)
    window = np.clip((volume - 0.4) / 0.5, 0, 1)  # as narrow as the pancreas stacks': fat and skin as black as air
    window[60:68, 64:] = 0  # and the muscle wall open in front
    wide, narrow = body_mask(volume), body_mask(window)
    assert not (narrow & ~wide).any()
    assert narrow.sum() > 0.5 * wide.sum()


@pytest.mark.parametrize("folder, share", [("brain/brain_train", 0.1), ("abdom/abdom_train", 0.25)])
def test_real_volumes(folder: str, share: float) -> None:
    files = sorted((DATA / folder).glob("*.nii.gz"))
    if not files:
        pytest.skip(f"shared/data/{folder} is not here")
    volume = np.clip(read_volume(files[len(files) // 2]).data, 0, 1)
    body = body_mask(volume)
    assert share < body.mean() < 0.7
    for kind in KINDS:
        new, mask = plant(volume, kind, np.random.default_rng(0), body=body)
        check(volume, new, mask, kind)
