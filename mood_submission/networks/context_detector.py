"""The detector that reads a slice with its neighbours, sees evidence relative to the volume's own bulk, and answers at the
network's own pixels.

Not in the paper; the discriminative half of DRAEM (Zavrtanik et al., ICCV 2021) and DSR (ECCV 2022), on top of restoration.
Scanners differ in how large residuals and NLL are all over; an anomaly is small. So both are divided by what is usual in
the volume itself before the network sees them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .detector import Block, Detector, DetectorSettings, at_size

CONTEXT = (-4, -2, -1, 0, 1, 2, 4)  # slices read with a slice
WIDTHS = (
    12,
    24,
    48,
    72,
    96,
)  # channels from the slice's resolution on, each level half as fine as the one before
NLL_LEVEL = 3  # of the levels, where the NLL comes in: an eighth of the resolution
SAMPLED = 4  # of each axis, every so many pixels: enough for a quantile


@dataclass(frozen=True, eq=False)
class VolumeEvidence:
    """The evidence of a volume's slices, in order.

    slices: (N, S, S) in the network's intensities. reconstruction: what they are decoded to, (N, S', S'). restoration: the mean
    of each slice's restorations, (N, S', S'); the reconstruction again where there are none. nll: of the codes, (N, h, w).
    position: (N, 1).
    residual: the 75th percentile of |slice - reconstruction| in the anatomy. usual, high: the 50th and 90th percentile of
    the NLL there. rows: (Z,) int64, where in the arrays each slice of the volume stands; None for 0, 1, 2 ...
    """

    slices: Tensor
    reconstruction: Tensor
    restoration: Tensor
    nll: Tensor
    position: Tensor
    residual: float
    usual: float
    high: float
    rows: Tensor | None = None

    @classmethod
    def of(
        cls, slices: Tensor, reconstruction: Tensor, restoration: Tensor, nll: Tensor, position: Tensor
    ) -> "VolumeEvidence":
        usual, high = usual_nll(slices, nll)
        residual = usual_residual(slices, reconstruction)
        return cls(slices, reconstruction, restoration, nll, position, residual, usual, high)

    def inputs(self, index: Tensor, context: tuple[int, ...], stride: int = 1) -> tuple[Tensor, Tensor]:
        """What `ContextDetector` reads of the slices `index` (B,): maps (B, C, S, S) and NLL (B, len(context), h, w).

        stride: slices from one neighbour to the next; beyond the first and last slice these are repeated.
        """
        count = len(self.slices if self.rows is None else self.rows)
        near = (index[:, None] + torch.tensor(context, device=index.device) * stride).clamp(0, count - 1)
        near = near if self.rows is None else self.rows[near]
        size = self.slices.shape[-2:]
        take = lambda maps, at: at_size(maps[at.flatten()].float(), size).unflatten(0, at.shape)  # noqa: E731
        slices, decoded = take(self.slices, near), take(self.reconstruction, near)
        own = context.index(0)
        restored = take(self.restoration, near[:, own])
        residual = (slices - decoded) / self.residual
        more = torch.stack([decoded[:, own], (slices[:, own] - restored) / self.residual], 1)
        position = self.position[near[:, own]].float()[:, :, None, None].expand(-1, -1, *size)
        nll = (self.nll[near.flatten()].float().unflatten(0, near.shape) - self.usual) / (
            self.high - self.usual
        )
        return torch.cat([slices, residual.clamp(-8, 8), more.clamp(-8, 8), position], 1), nll.clamp(-2, 6)


def usual_residual(slices: Tensor, reconstruction: Tensor) -> float:
    """The 75th percentile of |slice - reconstruction| where the slices (N, S, S) show anatomy; above 0."""
    decoded = at_size(reconstruction, slices.shape[-2:])[:, ::SAMPLED, ::SAMPLED].float()
    some = slices[:, ::SAMPLED, ::SAMPLED].float()
    return max(_quantile((some - decoded).abs()[some != 0], 0.75, 1.0), 1e-3)  # air is exactly 0


def usual_nll(slices: Tensor, nll: Tensor) -> tuple[float, float]:
    """The 50th and the 90th percentile of the NLL (N, h, w) where the slices (N, S, S) show anatomy, the second larger."""
    anatomy = (slices[:, ::SAMPLED, ::SAMPLED] != 0).float()
    places = F.adaptive_avg_pool2d(anatomy[:, None], (nll.shape[-2], nll.shape[-1]))[:, 0] > 0.5
    usual, high = (
        _quantile(nll.float()[places], share, default) for share, default in ((0.5, 1.0), (0.9, 3.0))
    )
    return usual, max(high, usual + 0.1)


def _quantile(values: Tensor, share: float, default: float) -> float:
    """As a number; `default` of nothing."""
    if not values.numel():
        return default
    return float(values.flatten().kthvalue(max(1, round(share * values.numel()))).values)


def input_channels(context: tuple[int, ...]) -> int:
    """How many channels the maps of `VolumeEvidence.inputs` have: a slice and a residual for each neighbour, then the
    reconstruction, the restoration's residual and the position."""
    return 2 * len(context) + 3


class Mirror(nn.Module):
    """x plus a map of x turned left to right, so that a place is seen beside its mirror image in the other half of the body."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.mix.weight)
        assert self.mix.bias is not None
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x.flip(-1))


class ContextDetector(nn.Module):
    """Maps (B, C, S, S) and NLL (B, K, h, w), see `VolumeEvidence.inputs`, to logits (B, S, S): above 0 where something
    planted is likelier than not. A U-Net; at the slice's own resolution there is one convolution on either side."""

    def __init__(self, settings: DetectorSettings):
        super().__init__()
        self.settings, widths = settings, settings.widths
        self.stem = nn.Conv2d(input_channels(settings.context), widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(w, wider, 3, stride=2, padding=1) for w, wider in zip(widths, widths[1:])
        )
        self.read_nll = nn.Conv2d(len(settings.context), widths[NLL_LEVEL], 1)
        self.blocks = nn.ModuleList(Block(w) for w in widths[1:-1])
        self.mirrors = nn.ModuleList(Mirror(w) for w in widths[NLL_LEVEL:])
        self.bottom = nn.Sequential(Block(widths[-1]), Block(widths[-1]), nn.Dropout2d(settings.dropout))
        self.up = nn.ModuleList(nn.Conv2d(wider, w, 1) for w, wider in zip(widths, widths[1:]))
        levels = widths[:-1] if settings.balanced else ()
        self.scale_up = nn.ModuleList(nn.BatchNorm2d(w) for w in levels)
        self.scale_across = nn.ModuleList(nn.BatchNorm2d(w) for w in levels)
        self.merge = nn.ModuleList(Block(w) for w in widths[1:-1])
        self.fine = nn.Sequential(
            nn.BatchNorm2d(widths[0]), nn.ELU(), nn.Conv2d(widths[0], widths[0], 3, padding=1)
        )
        self.head = nn.Sequential(nn.BatchNorm2d(widths[0]), nn.ELU(), nn.Conv2d(widths[0], 1, 1))

    def forward(self, maps: Tensor, nll: Tensor) -> Tensor:
        x, kept = self.stem(maps), []
        for level, down in enumerate(self.down, 1):
            kept.append(x)
            x = down(F.elu(x))
            if level == NLL_LEVEL:
                x = x + self.read_nll(at_size_channels(nll.to(x.dtype), x.shape[-2:]))
            if level >= NLL_LEVEL:
                x = self.mirrors[level - NLL_LEVEL](x)
            if level < len(self.down):
                x = self.blocks[level - 1](x)
        x = self.bottom(x)
        for level in range(len(self.down) - 1, -1, -1):
            across, up = kept[level], self.up[level](x)
            if self.settings.balanced:
                across, up = self.scale_across[level](across), self.scale_up[level](up)
            x = across + F.interpolate(up, across.shape[-2:], mode="bilinear", align_corners=False)
            x = self.merge[level - 1](x) if level else x + self.fine(x)
        return self.head(x)[:, 0]


def build_detector(settings: DetectorSettings) -> Detector | ContextDetector:
    """The network of these settings, with random weights."""
    return ContextDetector(settings) if settings.context else Detector(settings)


def at_size_channels(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) at another size, linear."""
    return (
        maps
        if maps.shape[-2:] == tuple(size)
        else F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
    )
