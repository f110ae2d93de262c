"""The plane that a brain is nearly symmetrical about, and its slices mirrored in that."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from mood_submission.evidence.normalised import Box, NormalisedEvidence, detector_logits
from mood_submission.evidence.symmetry import Midline, find_midline, mirrored_slice
from mood_submission.networks.detector import Detector, DetectorSettings, fitted_to, input_channels

SIDE, COUNT = 64, 40
POSITION = torch.linspace(-0.35, 0.35, COUNT)[:, None]
PLAIN = DetectorSettings((4, 6, 8, 8), context=(-1, 0, 1))


def brain(midline: Midline) -> torch.Tensor:
    """Slices of an egg with four pairs of balls in it, symmetrical about a plane: (COUNT, SIDE, SIDE), 0 outside."""
    places = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    up, down, right = np.meshgrid(POSITION[:, 0].numpy(), places, places, indexing="ij")
    normal = np.array(midline.normal)
    from_plane = normal[0] * right + normal[1] * down + normal[2] * up - midline.offset
    along = down - normal[1] * (from_plane + midline.offset), up - normal[2] * (from_plane + midline.offset)
    aside = np.abs(from_plane)
    volume = np.where((aside / 0.3) ** 2 + (along[0] / 0.4) ** 2 + (along[1] / 0.33) ** 2 < 1, 0.3, 0)
    rng = np.random.default_rng(0)
    for _ in range(4):
        at, grey = rng.uniform([0.05, -0.25, -0.2], [0.2, 0.25, 0.2]), rng.uniform(-1, 1)
        ball = (aside - at[0]) ** 2 + (along[0] - at[1]) ** 2 + (along[1] - at[2]) ** 2 < 0.07**2
        volume = np.where(ball & (volume != 0), grey, volume)
    return torch.from_numpy(volume).float()


@pytest.mark.slow
@pytest.mark.parametrize(
    "midline", [Midline(), Midline(0.03, 0.1, -0.06), Midline(-0.04, -0.15, 0.1)], ids=["middle", "left", "right"]
)
def test_the_midline_of_a_symmetrical_volume_is_found(midline):
    found = find_midline(brain(midline), POSITION)
    assert found.offset == pytest.approx(midline.offset, abs=0.006)
    assert found.yaw == pytest.approx(midline.yaw, abs=0.03) and found.roll == pytest.approx(midline.roll, abs=0.03)
    assert find_midline(brain(midline), POSITION) == found


@pytest.mark.slow
def test_what_is_on_one_side_alone_hardly_moves_the_midline():
    volume = brain(Midline(0.03, 0.1, -0.06))
    volume[12:18, 22:30, 36:44] = -1.2
    found = find_midline(volume, POSITION)
    assert (found.offset, found.yaw, found.roll) == pytest.approx((0.03, 0.1, -0.06), abs=0.04)


def test_nothing_has_its_midline_in_the_middle():
    assert find_midline(torch.zeros(5, 16, 16), torch.linspace(-0.5, 0.5, 5)[:, None]) == Midline()
    assert find_midline(torch.rand(1, 16, 16) + 0.1, torch.zeros(1, 1)).offset == pytest.approx(0, abs=0.1)


def test_mirrored_in_the_middle_is_turned_left_for_right():
    volume, heights = torch.rand(5, 16, 16), np.linspace(-0.5, 0.5, 5)
    for number in range(5):
        image = mirrored_slice(volume, None, heights, Midline(), number)
        assert torch.allclose(image, volume[number].flip(-1), atol=1e-5)


def test_the_mirror_image_is_a_slow_obvious_one():
    midline, volume, heights = Midline(0.05, 0.2, -0.3), brain(Midline()), POSITION[:, 0].double().numpy()
    normal, places = np.array(midline.normal), (np.arange(SIDE) + 0.5) / SIDE - 0.5
    image, padded = mirrored_slice(volume, None, heights, midline, 12), np.pad(volume.numpy(), ((0, 0), (1, 1), (1, 1)))
    for row in range(0, SIDE, 7):
        for column in range(0, SIDE, 5):
            place = np.array([places[column], places[row], heights[12]])
            other = place - 2 * (normal @ place - midline.offset) * normal
            at = [np.interp(other[2], heights, np.arange(COUNT)), *((other[[1, 0]] + 0.5) * SIDE + 0.5)]
            expected = ndimage.map_coordinates(padded, np.array(at)[:, None], order=1)[0]
            assert float(image[row, column]) == pytest.approx(float(expected), abs=1e-4)


def test_a_symmetrical_volume_is_its_own_mirror_image():
    midline = Midline(0.03, 0.1, -0.06)
    volume, heights = brain(midline), POSITION[:, 0].double().numpy()
    image = mirrored_slice(volume, None, heights, midline, 20)
    other = mirrored_slice(volume, None, heights, Midline(), 20)
    assert (image - volume[20]).abs().mean() < 0.3 * (other - volume[20]).abs().mean()


def evidence_of(volume: torch.Tensor) -> NormalisedEvidence:
    nll = torch.rand(len(volume), 8, 8, generator=torch.Generator().manual_seed(0))
    return NormalisedEvidence.of(volume, volume * 0.9, volume * 0.9, nll, POSITION, mirror=True)


def test_the_image_and_the_difference_follow_the_other_maps():
    evidence, index = evidence_of(brain(Midline(0.02, 0.05, 0.0))), torch.tensor([3, 20])
    plain, _ = evidence.inputs(index, PLAIN.context)
    maps, _ = evidence.inputs(index, PLAIN.context, mirror=True)
    assert maps.shape[1] == input_channels(PLAIN.context, mirror=True) == plain.shape[1] + 2
    assert torch.equal(maps[:, :-2], plain) and torch.equal(maps[:, -1], maps[:, 1] - maps[:, -2])
    box = Box(slice(8, 40), slice(16, 56))
    part, _ = evidence.inputs(index, PLAIN.context, box=box, mirror=True)
    assert torch.equal(part, maps[:, :, box.rows, box.columns])
    with pytest.raises(ValueError, match="expected evidence with a midline"):
        dataclasses.replace(evidence, midline=None).inputs(index, PLAIN.context, mirror=True)
    # The slices may stand in any order in the arrays.
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    arrays = {
        name: getattr(evidence, name)[order] for name in ("slices", "reconstruction", "restoration", "nll", "position")
    }
    shuffled = dataclasses.replace(evidence, rows=order.argsort(), **arrays)
    assert torch.equal(shuffled.inputs(index, PLAIN.context, mirror=True)[0], maps)


@pytest.mark.slow
def test_a_detector_answers_as_before_when_it_is_given_mirror_images():
    torch.manual_seed(0)
    evidence, detector = evidence_of(brain(Midline())), Detector(PLAIN).eval()
    mirroring = Detector(dataclasses.replace(PLAIN, mirror=True)).eval()
    mirroring.load_state_dict(fitted_to(detector.state_dict(), mirroring.settings))
    index = torch.arange(0, COUNT, 13)
    with torch.inference_mode():
        before, after = (detector_logits(network, evidence, index) for network in (detector, mirroring))
    assert torch.allclose(after, before, atol=1e-5)
    again = fitted_to(mirroring.state_dict(), mirroring.settings)
    assert all(torch.equal(again[name], value) for name, value in mirroring.state_dict().items())
