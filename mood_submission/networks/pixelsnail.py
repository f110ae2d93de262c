"""The prior, a PixelSNAIL: it gives the likelihood of each code, given the codes before it in raster order.

Marimont & Tarroni, 2020, section 2 (autoregressive modelling); the network is that of Chen et al., 2017.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from .layers import GatedResidualUnit, SameConv2d, broadcast_position

# Kernel of the masked convolutions before the attention.
ATTENTION_KERNEL = 5


@dataclass(frozen=True)
class PixelSNAILSettings:
    """Sizes of a prior.

    codebook_size: number of codes, the VQ-VAE's.
    n_channels: width throughout. Published: 128.
    n_block: number of blocks. Published: 4.
    n_res_block: pairs of residual units in each block. Published: 4.
    first_kernel: kernel of the first masked convolution. Published: 7 (brain), 3 (abdomen).
    downsample: stride of the attention's grid. Published: 2 (brain), 1 (abdomen).
    key_size: width of the attention's keys and queries. Published: 16.
    dropout: probability that a unit drops a channel in training. Published: 0.1.
    """

    codebook_size: int = 128
    n_channels: int = 128
    n_block: int = 4
    n_res_block: int = 4
    first_kernel: int = 7
    downsample: int = 2
    key_size: int = 16
    dropout: float = 0.1


class MaskedConv2d(nn.Module):
    """Convolution that sees only earlier places in raster order (type A), or also its own place (type B).

    The weight (out, in, taps) holds the unmasked taps only, in raster order. centre: True for type B.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, centre: bool):
        super().__init__()
        self.kernel, self.stride, self.taps = (
            kernel,
            stride,
            kernel * (kernel // 2) + kernel // 2 + int(centre),
        )
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, self.taps))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        # As nn.Conv2d does it.
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def full_weight(self) -> Tensor:
        """The weight (out, in, kernel // 2 + 1, kernel), without the rows below the centre, which are all zeros."""
        rows = self.kernel // 2 + 1
        padded = F.pad(self.weight, (0, rows * self.kernel - self.taps))
        return torch.unflatten(padded, 2, (rows, self.kernel))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        half = self.kernel // 2
        return F.conv2d(F.pad(x, (half, half, half, 0)), self.full_weight(), self.bias, self.stride)


class PointwiseMap(nn.Module):
    """A gated unit of kernel 1, then a linear map, at every position: (B, C, h, w) -> (B, h * w, out)."""

    def __init__(self, channels: int, out: int, dropout: float):
        super().__init__()
        self.unit = GatedResidualUnit(channels, 1, dropout=dropout)
        self.linear = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.linear(self.unit(x).flatten(2).transpose(1, 2))
        return mapped


class CausalAttention(nn.Module):
    """Attention with one head. Each position attends to earlier positions in raster order. The first gets zeros."""

    def __init__(self, s: PixelSNAILSettings):
        super().__init__()
        self.query = PointwiseMap(s.n_channels, s.key_size, s.dropout)
        self.key = PointwiseMap(s.n_channels, s.key_size, s.dropout)
        self.value = PointwiseMap(s.n_channels, s.n_channels, s.dropout)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, C, h, w) twice -> (B, C, h, w)."""
        # (B, L, 16), (B, L, 16), (B, L, C).
        q, k, v = self.query(query), self.key(key), self.value(key)
        # Query i sees keys 0 .. i-1. That is plain causal attention of queries 1 .. L-1 over keys 0 .. L-2.
        seen = F.scaled_dot_product_attention(q[:, None, 1:], k[:, None, :-1], v[:, None, :-1], is_causal=True)[:, 0]
        return torch.unflatten(F.pad(seen, (0, 0, 1, 0)).transpose(1, 2), 2, query.shape[2:])


class Block(nn.Module):
    """`n_res_block` pairs of vertical and horizontal units, then causal attention, then a unit that joins both."""

    def __init__(self, s: PixelSNAILSettings):
        super().__init__()
        c = s.n_channels
        self.vertical = nn.ModuleList(
            GatedResidualUnit(c, (2, 3), cond_channels=1, dropout=s.dropout) for _ in range(s.n_res_block)
        )
        self.horizontal = nn.ModuleList(
            GatedResidualUnit(c, (2, 2), aux_channels=c, cond_channels=1, dropout=s.dropout)
            for _ in range(s.n_res_block)
        )
        self.downsample_key = MaskedConv2d(2 * c + 2, c, ATTENTION_KERNEL, s.downsample, centre=True)
        self.downsample_query = MaskedConv2d(c + 2, c, ATTENTION_KERNEL, s.downsample, centre=True)
        self.attention = CausalAttention(s)
        self.upsample = nn.ConvTranspose2d(c, c, s.downsample, stride=s.downsample)
        self.out = GatedResidualUnit(c, 1, aux_channels=c, dropout=s.dropout)

    def forward(self, x: Tensor, cond: Tensor, background: Tensor) -> Tensor:
        v = h = x
        for vertical, horizontal in zip(self.vertical, self.horizontal):
            v = vertical(v, cond=cond)
            # v of the row above, since v has seen its whole row.
            above = F.pad(v, (0, 0, 1, 0))[:, :, :-1]
            h = horizontal(h, aux=above, cond=cond)
        key = F.elu(self.downsample_key(torch.cat([x, h, background], dim=1)))
        query = F.elu(self.downsample_query(torch.cat([h, background], dim=1)))
        attended = self.upsample(F.elu(self.attention(query, key)))
        # `attended` is one row and column too large for an odd grid.
        joined: Tensor = self.out(h, aux=attended[:, :, : h.shape[2], : h.shape[3]])
        return joined


class PixelSNAIL(nn.Module):
    """From codes (B, h, w) int64 and positions (B, 1) to logits (B, K, h, w). Those of a place depend on earlier codes only."""

    def __init__(self, settings: PixelSNAILSettings):
        super().__init__()
        s = self.settings = settings
        self.first = MaskedConv2d(s.codebook_size, s.n_channels, s.first_kernel, centre=False)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.n_block))
        self.upsample = nn.ConvTranspose2d(s.n_channels, s.n_channels, 1)
        self.out = SameConv2d(s.n_channels, s.codebook_size, 1)

    def forward(self, codes: Tensor, position: Tensor) -> Tensor:
        one_hot = F.one_hot(codes, self.settings.codebook_size).to(self.first.weight.dtype)
        x = self.first(one_hot.movedim(-1, 1))
        cond = broadcast_position(position, x)
        background = background_of(codes.shape[1], codes.shape[2], like=x).expand(len(x), -1, -1, -1)
        for block in self.blocks:
            x = block(x, cond, background)
        logits: Tensor = self.out(F.elu(self.upsample(F.elu(x))))
        return logits

    def nll(self, codes: Tensor, position: Tensor) -> Tensor:
        """NLL in nats of each code given the earlier ones, (B, h, w)."""
        return F.cross_entropy(self(codes, position), codes, reduction="none")


def blocks_of(prior: PixelSNAIL) -> list[Block]:
    """The prior's blocks, in order."""
    return [block for block in prior.blocks if isinstance(block, Block)]


def background_of(height: int, width: int, like: Tensor) -> Tensor:
    """Each place's row and column, (1, 2, H, W), -0.5 .. 0.5."""
    # In float32 first, as in the published checkpoints.
    rows = (torch.arange(height, dtype=torch.float32, device=like.device) - height / 2) / height
    columns = (torch.arange(width, dtype=torch.float32, device=like.device) - width / 2) / width
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None].to(like.dtype)


def weight_normed_layers(prior: PixelSNAIL) -> list[nn.Module]:
    """The layers that are trained with weight norm: the units' convolutions, the attention's linear maps, the output."""
    units = [m for m in prior.modules() if isinstance(m, GatedResidualUnit)]
    layers: list[nn.Module] = [m for u in units for m in (u.conv1, u.conv1_aux, u.conv2) if m is not None]
    return layers + [m.linear for m in prior.modules() if isinstance(m, PointwiseMap)] + [prior.out]


def add_weight_norm(prior: PixelSNAIL) -> PixelSNAIL:
    """Replace `weight` by `g * v / |v|` for each output channel, in place. `g` and `v` are trained then."""
    for layer in weight_normed_layers(prior):
        parametrizations.weight_norm(layer, dim=0)
    return prior


def fold_weight_norm(prior: PixelSNAIL) -> PixelSNAIL:
    """Turn `g` and `v` back into `weight`, in place. The network computes the same as before."""
    for layer in weight_normed_layers(prior):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")
    return prior
