"""The networks against the authors' implementation, and the prior's causality."""

import golden
import pytest
import torch
from conftest import TINY

from mood_submission.networks.checkpoint_names import PublishedCheckpointError, convert_prior, convert_vqvae
from mood_submission.networks.pixelsnail import (
    PixelSNAIL,
    PixelSNAILSettings,
    add_weight_norm,
    background_of,
    fold_weight_norm,
)
from mood_submission.networks.vqvae import VQVAE


@pytest.fixture(scope="session")
def published(reference):
    """VQ-VAE and prior with the test vectors' parameters, float64."""
    networks = []
    for network, (settings, parameters, *_) in (
        (VQVAE, convert_vqvae(reference.state("vqvae"))),
        (PixelSNAIL, convert_prior(reference.state("prior"))),
    ):
        module = network(settings).double().eval()
        module.load_state_dict(parameters, strict=False)
        networks.append(module.requires_grad_(False))
    return networks


def close(a, b) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-8)


@pytest.mark.parametrize("region", golden.SIZES)
def test_networks_give_the_golden_vectors(region):
    """Those that come with this repository; the authors' own are checked below where they are at hand."""
    found, stored = golden.compute(region), golden.stored(region)
    assert found.keys() == stored.keys()
    for name, expected in stored.items():
        whole = expected.dtype == torch.int64
        assert torch.equal(found[name], expected) if whole else close(found[name], expected), name
    assert len(found["codes"].unique()) > 4
    assert 0.1 < (found["restored"] != found["codes"][:, None]).double().mean() < 0.9


def test_vqvae_matches_the_authors(reference, published):
    vqvae, _ = published
    z_e = vqvae.features(reference["x"], reference["coord"])
    assert close(z_e, reference["z_e"])
    codes = vqvae.nearest_codes(z_e)
    assert torch.equal(codes, reference["codes"])
    assert torch.equal(vqvae.encode(reference["x"], reference["coord"]), codes)
    assert close(vqvae.decode(codes, reference["coord"]), reference["reconstruction"])
    assert vqvae.settings.latent_size(160) == codes.shape[-1]


def test_prior_matches_the_authors(reference, published):
    _, prior = published
    assert close(prior(reference["codes"], reference["coord"]), reference["logits"])
    assert close(prior.nll(reference["codes"], reference["coord"]), reference["nll"])


def test_background_is_the_published_buffer(reference):
    stored = reference["prior/background"]
    assert torch.equal(background_of(*stored.shape[-2:], like=stored), stored)


def test_nearest_codes_is_the_obvious_search():
    vqvae = VQVAE(TINY["brain"][0]).double()
    z = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    distance = (z[:, None] - vqvae.codebook.detach()[None, :, :, None, None]).square().sum(2)
    assert torch.equal(vqvae.nearest_codes(z), distance.argmin(1))


@pytest.mark.parametrize("region, grid", [("brain", (6, 7)), ("abdom", (5, 4)), ("brain", (5, 5))])
def test_prior_is_causal_at_every_position(region, grid):
    torch.manual_seed(1)
    settings = TINY[region][1]
    prior = PixelSNAIL(settings).double().eval()
    codes = torch.randint(settings.codebook_size, (1, *grid))
    position = torch.zeros(1, 1, dtype=torch.float64)
    with torch.no_grad():
        before = prior(codes, position).flatten(2)
        for place in range(codes.numel()):
            changed = codes.flatten(1).clone()
            changed[0, place] = (changed[0, place] + 1) % settings.codebook_size
            after = prior(changed.view_as(codes), position).flatten(2)
            assert torch.equal(after[..., : place + 1], before[..., : place + 1])
            if place + 1 < codes.numel():
                assert not torch.equal(after[..., place + 1 :], before[..., place + 1 :])


def test_weight_norm_folds_to_the_same_function():
    torch.manual_seed(2)
    prior = add_weight_norm(PixelSNAIL(TINY["brain"][1])).double().eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    codes, position = torch.randint(12, (2, 6, 6)), torch.rand(2, 1, dtype=torch.float64)
    before = prior(codes, position)
    names = {name for name, _ in fold_weight_norm(prior).named_parameters()}
    assert torch.allclose(prior(codes, position), before, atol=1e-12)
    assert names == {name for name, _ in PixelSNAIL(TINY["brain"][1]).named_parameters()}


def test_published_sizes_are_read_off_the_tensors(reference):
    vqvae, _ = convert_vqvae(reference.state("vqvae"), stem_padding=3)
    prior, _, grid = convert_prior(reference.state("prior"))
    meta = reference.meta
    assert vqvae.channels == tuple(meta["vqvae"]["n_channels"]) and vqvae.stem_padding == 3
    assert (vqvae.codebook_size, vqvae.n_res_block) == (
        meta["vqvae"]["codebook_size"],
        meta["vqvae"]["n_res_block"],
    )
    assert grid == tuple(meta["prior"]["shape"])
    assert prior == PixelSNAILSettings(
        16,
        meta["prior"]["n_channels"],
        meta["prior"]["n_block"],
        meta["prior"]["n_res_block"],
        meta["prior"].get("ini_kernel_size", 7),
        meta["prior"].get("downsample_attn", 2),
        key_size=16,
    )


def test_the_wrong_dictionary_is_refused(reference):
    with pytest.raises(PublishedCheckpointError, match="Q.0.weight"):
        convert_vqvae(reference.state("prior"))
    with pytest.raises(PublishedCheckpointError, match="ini_conv.weight"):
        convert_prior(reference.state("vqvae"))
