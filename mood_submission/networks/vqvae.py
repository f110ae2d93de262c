"""The VQ-VAE, which turns a slice into a grid of codes and back (Marimont & Tarroni, 2020, section 2: feature extraction)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import GatedResidualUnit, broadcast_position


@dataclass(frozen=True)
class VQVAESettings:
    """Sizes of a VQ-VAE.

    channels: width at each level. The first has the slice's resolution, each next one half of it, the last the code grid's.
        Published: (16, 32, 64, 256) for the brain, (16, 32, 64, 128, 256) for the abdomen.
    codebook_size: number of codes. Published: 128.
    n_res_block: gated residual units at each level.
    stem_kernel, stem_padding: of the first convolution. The published weights have 7 and 0, the authors' later notebook 7 and 3.
    dropout: probability that a unit drops a channel in training. Published: 0.1.
    """

    channels: tuple[int, ...] = (16, 32, 64, 256)
    codebook_size: int = 128
    n_res_block: int = 2
    stem_kernel: int = 7
    stem_padding: int = 3
    dropout: float = 0.1

    def __post_init__(self) -> None:
        # JSON gives lists.
        object.__setattr__(self, "channels", tuple(int(c) for c in self.channels))

    def latent_size(self, image_size: int) -> int:
        """Side of the code grid for slices of `image_size` squared. For the brain, 160 gives 20."""
        size = image_size + 2 * self.stem_padding - self.stem_kernel + 1
        for _ in self.channels[1:]:
            # Kernel 5, stride 2, padding 2.
            size = (size - 1) // 2 + 1
        return size


class VQVAE(nn.Module):
    """Encoder, codebook and decoder. Slices are (B, H, W), positions (B, 1) in [-0.5, 0.5], codes (B, h, w) int64."""

    def __init__(self, settings: VQVAESettings):
        super().__init__()
        self.settings = settings
        self.encoder = make_encoder(settings)
        self.codebook = nn.Parameter(torch.randn(settings.codebook_size, settings.channels[-1]))
        self.decoder = make_decoder(settings)

    def features(self, slices: Tensor, position: Tensor) -> Tensor:
        """Encoder output before quantisation, (B, C, h, w), for slices (B, H, W) and positions (B, 1)."""
        x = slices[:, None]
        features: Tensor = self.encoder(torch.cat([x, broadcast_position(position, x)], dim=1))
        return features

    def nearest_codes(self, z_e: Tensor) -> Tensor:
        """The nearest codes by squared L2 distance: features (B, C, h, w) -> (B, h, w) int64."""
        # (B, h, w, C).
        z = z_e.movedim(1, -1)
        codebook = self.codebook.to(z.dtype)
        # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, and |z|^2 is the same for every e.
        return (codebook.square().sum(1) - 2 * z @ codebook.T).argmin(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Codebook vectors of codes, (B, h, w) -> (B, C, h, w)."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    def decode_features(self, z_q: Tensor, position: Tensor) -> Tensor:
        """Slices (B, H, W) from code vectors (B, C, h, w) and positions (B, 1)."""
        slices: Tensor = self.decoder(torch.cat([z_q, broadcast_position(position, z_q)], dim=1))
        return slices[:, 0]

    def encode(self, slices: Tensor, position: Tensor) -> Tensor:
        """Codes (B, h, w) of slices (B, H, W) at positions (B, 1)."""
        return self.nearest_codes(self.features(slices, position))

    def decode(self, codes: Tensor, position: Tensor) -> Tensor:
        """Slices (B, H, W) from codes (B, h, w) at positions (B, 1)."""
        return self.decode_features(self.lookup(codes), position)

    def reconstruct(self, slices: Tensor, position: Tensor) -> Tensor:
        """Slices (B, H, W) encoded and decoded again."""
        return self.decode(self.encode(slices, position), position)


def _units(channels: int, s: VQVAESettings, count: int) -> list[nn.Module]:
    return [GatedResidualUnit(channels, 3, norm=True, dropout=s.dropout) for _ in range(count)]


def make_encoder(s: VQVAESettings) -> nn.Sequential:
    """cat[slice, position] (B, 2, H, W) -> features (B, C, h, w)."""
    first, last = s.channels[0], s.channels[-1]
    layers: list[nn.Module] = [
        nn.Conv2d(2, first, s.stem_kernel, padding=s.stem_padding),
        nn.BatchNorm2d(first),
    ]
    for width, wider in zip(s.channels, s.channels[1:]):
        layers += _units(width, s, s.n_res_block)
        layers += [nn.Conv2d(width, wider, 5, stride=2, padding=2), nn.BatchNorm2d(wider)]
    return nn.Sequential(*layers, *_units(last, s, 1))


def make_decoder(s: VQVAESettings) -> nn.Sequential:
    """cat[features, position] (B, C + 1, h, w) -> slice (B, 1, H, W)."""
    first, last = s.channels[0], s.channels[-1]
    layers: list[nn.Module] = [nn.Conv2d(last + 1, last, 3, padding=1), nn.BatchNorm2d(last)]
    for width, narrower in zip(s.channels[::-1], s.channels[-2::-1]):
        layers += _units(width, s, s.n_res_block)
        layers += [nn.ConvTranspose2d(width, narrower, 6, stride=2, padding=2), nn.BatchNorm2d(narrower)]
    return nn.Sequential(*layers, *_units(first, s, 1), nn.ELU(), nn.Conv2d(first, 1, 1))
