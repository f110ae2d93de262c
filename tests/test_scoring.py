"""Scores against the authors' numbers and against slow, obvious versions."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from mood_submission.evidence.restorations import restoration_weights, weighted_difference
from mood_submission.methods.paper import sample_score, smooth
from mood_submission.methods.top import top_score
from mood_submission.networks.checkpoint_names import convert_vqvae
from mood_submission.networks.vqvae import VQVAE


def test_scores_match_the_authors(reference):
    settings, parameters = convert_vqvae(reference.state("vqvae"))
    vqvae = VQVAE(settings).double().eval().requires_grad_(False)
    vqvae.load_state_dict(parameters, strict=False)
    codes, temperature = reference["restored_codes"], reference.meta["softmax_temperature"]
    decoded = torch.stack([vqvae.decode(codes[:, s], reference["coord"]) for s in range(codes.shape[1])], 1)
    near = dict(rtol=0, atol=1e-8)
    assert torch.allclose(decoded, reference["restorations"].double(), rtol=0, atol=1e-6)  # stored as float32
    assert torch.allclose(
        restoration_weights(reference["x"], decoded, temperature), reference["restoration_weights"], **near
    )
    raw = weighted_difference(reference["x"], decoded, temperature)
    assert torch.allclose(raw, reference["pixel_raw"], **near)
    assert torch.allclose(smooth(raw), reference["pixel_smoothed"], **near)
    assert torch.allclose(
        sample_score(reference["nll"], reference.meta["threshold"]),
        reference["sample_score_per_slice"],
        **near,
    )


def test_smooth_is_the_obvious_loop():
    volume = torch.rand(4, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    depth, height, width = volume.shape

    def around(array, z, y, x, dz, dy, dx):
        return array[max(z - dz, 0) : z + dz + 1, max(y - dy, 0) : y + dy + 1, max(x - dx, 0) : x + dx + 1]

    least, mean = torch.empty_like(volume), torch.empty_like(volume)
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                least[z, y, x] = around(volume, z, y, x, 1, 1, 1).min()
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                mean[z, y, x] = around(least, z, y, x, 1, 3, 3).sum() / (3 * 7 * 7)
    assert torch.allclose(smooth(volume), mean, atol=1e-12)


def test_weights_favour_the_near_and_survive_the_perfect():
    slices = torch.rand(2, 5, 5)
    restorations = torch.stack([slices, slices + 0.1, slices + 1], 1)
    weights = restoration_weights(slices, restorations, 3.0)
    assert torch.isfinite(weights).all() and torch.allclose(weights.sum(1), torch.ones(2))
    assert (weights.argmax(1) == 0).all()
    assert (weighted_difference(slices, restorations, 3.0) < 1e-3).all()
    even = restoration_weights(slices, torch.stack([slices, slices], 1), 3.0)
    assert torch.allclose(even, torch.full((2, 2), 0.5))


def test_nothing_unlikely_scores_zero():
    assert sample_score(torch.full((3, 4, 4), 2.0), 2.0).tolist() == [0, 0, 0]
    assert sample_score(torch.full((1, 2, 2), 3.0), 2.0).tolist() == [12]


def test_top_score_is_the_mean_of_the_smoothed_top():
    nll = torch.rand(20, 10, 10, generator=torch.Generator().manual_seed(1))
    smoothed = np.sort(ndimage.gaussian_filter(nll.numpy(), (0.8, 1, 1)).ravel())
    assert top_score(nll) == pytest.approx(smoothed[-20:].mean(), rel=1e-5)


def test_top_score_counts_a_cluster_more_than_the_same_scattered():
    generator = torch.Generator().manual_seed(2)
    scattered, cluster = torch.zeros(30, 20, 20), torch.zeros(30, 20, 20)
    scattered.view(-1)[torch.randperm(12000, generator=generator)[:216]] = 8
    cluster[10:16, 5:11, 5:11] = 8
    assert sample_score(scattered, 1).sum() == sample_score(cluster, 1).sum()
    assert top_score(cluster) > 2 * top_score(scattered)
    assert np.isfinite(top_score(torch.ones(1, 5, 5)))


@pytest.mark.parametrize("shape", [(1, 9, 9), (2, 3, 8), (1, 1, 1)])
def test_volumes_smaller_than_the_kernel_are_smoothed_like_others(shape):
    around = smooth(torch.ones(shape))
    d, h, w = (min(size, half) for size, half in zip(shape, (2, 4, 4)))  # of the kernel, at a corner
    assert around.shape == shape and around[0, 0, 0].item() == pytest.approx(d * h * w / (3 * 7 * 7))
