"""The variational autoencoder that the paper compares with. Its pixel score is |slice - reconstruction| (section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import broadcast_position
from .vqvae import VQVAESettings, make_decoder, make_encoder


@dataclass(frozen=True)
class VAESettings:
    """Sizes of a VAE: the VQ-VAE's encoder and decoder, two levels deeper, around a dense Gaussian latent.

    channels, n_res_block, dropout: as in `VQVAESettings`.
    latent: dimensions of the latent.
    image_size: side of the slices in pixels.
    kl_weight: weight of the Kullback-Leibler divergence in the loss, beside the slice's summed L1. 1 makes the loss the ELBO.
    """

    channels: tuple[int, ...] = (16, 32, 64, 128, 256, 256)
    latent: int = 256
    image_size: int = 160
    n_res_block: int = 2
    dropout: float = 0.1
    kl_weight: float = 1.0

    def __post_init__(self) -> None:
        # JSON gives lists.
        object.__setattr__(self, "channels", tuple(int(c) for c in self.channels))

    def convolutional(self) -> VQVAESettings:
        """Settings of the encoder and the decoder, which are those of a VQ-VAE."""
        return VQVAESettings(self.channels, n_res_block=self.n_res_block, dropout=self.dropout)


class VAE(nn.Module):
    """From slices (B, H, W) and positions (B, 1) to a Gaussian over latents (B, L), and from latents back to slices."""

    def __init__(self, settings: VAESettings):
        super().__init__()
        self.settings, inner = settings, settings.convolutional()
        side = inner.latent_size(settings.image_size)
        self.grid = (settings.channels[-1], side, side)
        self.encoder = make_encoder(inner)
        self.to_latent = nn.Linear(self.grid[0] * side * side, 2 * settings.latent)
        self.from_latent = nn.Linear(settings.latent, self.grid[0] * side * side)
        self.decoder = make_decoder(inner)

    def encode(self, slices: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent, both (B, L)."""
        x = slices[:, None]
        features = self.encoder(torch.cat([x, broadcast_position(position, x)], dim=1))
        mean, log_variance = self.to_latent(F.elu(features.flatten(1))).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)

    def decode(self, latent: Tensor, position: Tensor) -> Tensor:
        """Slices (B, H, W) of latents (B, L)."""
        x = self.from_latent(latent.to(self.from_latent.weight.dtype)).unflatten(1, self.grid)
        slices: Tensor = self.decoder(torch.cat([x, broadcast_position(position, x)], dim=1))
        return slices[:, 0]

    def reconstruct(self, slices: Tensor, position: Tensor) -> Tensor:
        """Slices (B, H, W) decoded from the means of their latents."""
        return self.decode(self.encode(slices, position)[0], position)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of diagonal Gaussians (B, L) from the standard normal one, in nats, (B,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
