"""The detector that reads a slice with its neighbours, sees evidence relative to the volume's own bulk, and answers at the
network's own pixels.

Not in the paper; the discriminative half of DRAEM (Zavrtanik et al., ICCV 2021) and DSR (ECCV 2022), on top of restoration.
Scanners differ in how large residuals and NLL are all over; an anomaly is small. So both are divided by what is usual in
the volume itself before the network sees them.
"""

from dataclasses import dataclass, replace
from functools import cached_property

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
FINE = 8  # channels of `BoxDetector` at the slice's own resolution
NLL_POOLED = 2  # of its poolings, after which the NLL comes in: at an eighth of the resolution
BOX_WIDTHS = (32, 64, 96, 128)  # channels of `BoxDetector` from half the slice's resolution on
NLL_LEVEL = 3  # of the levels, where the NLL comes in: an eighth of the resolution
MARGIN = 8  # pixels of air round the anatomy that `BoxDetector` reads
AIR_LOGIT = -12.0  # of what lies outside that
SAMPLED = 4  # of each axis, every so many pixels: enough for a quantile


@dataclass(frozen=True)
class Box:
    """A part of all slices of a volume: rows and columns."""

    rows: slice
    columns: slice

    def codes(self, maps: Tensor, size: torch.Size) -> Tensor:
        """What of maps of codes (B, h, w) lies in the box of slices of this size."""
        parts = []
        for part, places, side in zip((self.rows, self.columns), maps.shape[-2:], size):
            step = max(1, side // places)
            parts.append(
                slice(0, places) if part == slice(0, side) else slice(part.start // step, part.stop // step)
            )
        return maps[..., parts[0], parts[1]]

    def put(self, maps: Tensor, size: torch.Size, value: float) -> Tensor:
        """Maps (B, height, width) of the box on slices of this size, with a value all round: (B, *size)."""
        if maps.shape[-2:] == size:
            return maps
        whole = maps.new_full((len(maps), *size), value)
        whole[:, self.rows, self.columns] = maps
        return whole


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

    def inputs(
        self, index: Tensor, context: tuple[int, ...], stride: int = 1, box: Box | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `ContextDetector` reads of the slices `index` (B,): maps (B, C, S, S) and NLL (B, len(context), h, w).

        stride: slices from one neighbour to the next; beyond the first and last slice these are repeated. box: what part of
        the slices to read, whose sides are multiples of a code's; None for all.
        """
        count = len(self.slices if self.rows is None else self.rows)
        near = (index[:, None] + torch.tensor(context, device=index.device) * stride).clamp(0, count - 1)
        near = near if self.rows is None else self.rows[near]
        box = box or self.whole
        take = lambda maps, at: self._cut(maps, at.flatten(), box).unflatten(0, at.shape)  # noqa: E731
        slices, decoded = take(self.slices, near), take(self.reconstruction, near)
        own = context.index(0)
        restored = take(self.restoration, near[:, own])
        residual = (slices - decoded) / self.residual
        more = torch.stack([decoded[:, own], (slices[:, own] - restored) / self.residual], 1)
        position = self.position[near[:, own]].float()[:, :, None, None].expand(-1, -1, *slices.shape[-2:])
        maps = torch.cat([slices, residual.clamp(-8, 8), more.clamp(-8, 8), position], 1)
        nll = box.codes(self.nll[near.flatten()], self.slices.shape[-2:]).float().unflatten(0, near.shape)
        return maps, ((nll - self.usual) / (self.high - self.usual)).clamp(-2, 6)

    def _cut(self, maps: Tensor, at: Tensor, box: Box) -> Tensor:
        """What of maps (N, S', S') lies in the box, at the slices' resolution: (len(at), height, width) float32."""
        size = self.slices.shape[-2:]
        if maps.shape[-2:] == size:
            return maps[at][..., box.rows, box.columns].float()
        return at_size(maps[at].float(), size)[..., box.rows, box.columns]

    def to(self, device: torch.device) -> "VolumeEvidence":
        """The same on a device; itself where it is there already."""
        if self.slices.device == device:
            return self
        return replace(
            self,
            slices=self.slices.to(device),
            reconstruction=self.reconstruction.to(device),
            restoration=self.restoration.to(device),
            nll=self.nll.to(device),
            position=self.position.to(device),
            rows=None if self.rows is None else self.rows.to(device),
        )

    @property
    def whole(self) -> Box:
        """The box that is all of a slice."""
        return Box(*(slice(0, side) for side in self.slices.shape[-2:]))

    @cached_property
    def box(self) -> Box:
        """The box round all anatomy of the volume, with MARGIN pixels of air, its sides multiples of a code's."""
        if self.rows is not None:
            shown = (self.slices[self.rows.unique()] != 0).any(0)
        else:
            shown = (self.slices != 0).any(0)
        height, width = shown.shape
        cell = (height // self.nll.shape[-2], width // self.nll.shape[-1])
        if not shown.any() or (height % self.nll.shape[-2] or width % self.nll.shape[-1]):
            return self.whole
        sides = []
        for along, step, side in ((shown.any(1), cell[0], height), (shown.any(0), cell[1], width)):
            at = along.nonzero()[:, 0]
            first, last = int(at[0]) - MARGIN, int(at[-1]) + 1 + MARGIN
            sides.append(slice(max(0, first // step * step), min(side, -(-last // step) * step)))
        return Box(*sides)


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

    def of_slices(self, evidence: VolumeEvidence, index: Tensor) -> Tensor:
        """Logits of the slices `index` (B,) of a volume, (B, S, S)."""
        return self(*evidence.inputs(index, self.settings.context))


def convolution(channels: int, wider: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution, a batch norm and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, wider, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(wider),
        nn.ReLU(inplace=True),
    )


class BoxDetector(nn.Module):
    """Maps (B, C, H, W) and NLL (B, K, h, w), see `VolumeEvidence.inputs`, of a box of slices, and where the box lies, to
    logits (B, H, W): above 0 where something planted is likelier than not.

    A U-Net that works at half the slices' resolution, where most of an anomaly's pixels say the same; one layer at their own
    puts the edges where they are. What comes across is laid beside what comes up, so that neither drowns the other.
    """

    def __init__(self, settings: DetectorSettings):
        super().__init__()
        self.settings, widths = settings, settings.widths
        channels = input_channels(settings.context) + 2
        self.fine = convolution(channels, FINE)
        self.stem = nn.Sequential(
            convolution(channels, widths[0], stride=2), convolution(widths[0], widths[0])
        )
        extra = [0] * len(widths)
        extra[min(NLL_POOLED, len(widths) - 1) - 1] = len(settings.context)
        self.down = nn.ModuleList(
            nn.Sequential(convolution(w + more, wider), convolution(wider, wider))
            for w, wider, more in zip(widths, widths[1:], extra)
        )
        self.nll_level = extra.index(len(settings.context))
        self.drop = nn.Dropout2d(settings.dropout)
        self.beside = nn.ModuleList(convolution(w + wider, w, 1) for w, wider in zip(widths, widths[1:]))
        self.up = nn.ModuleList(convolution(w, w) for w in widths[:-1])
        self.last = convolution(widths[0], 2 * FINE, 1)
        self.head = nn.Sequential(convolution(3 * FINE, 2 * FINE), nn.Conv2d(2 * FINE, 1, 1))

    def forward(
        self, maps: Tensor, nll: Tensor, place: Tensor
    ) -> Tensor:  # place: (B, 2, H, W), see `places`
        maps = torch.cat([maps, place.to(maps.dtype)], 1)
        x, kept = self.stem(maps), []
        for level, down in enumerate(self.down):
            kept.append(x)
            x = F.max_pool2d(x, 2, ceil_mode=True)
            if level == self.nll_level:
                x = torch.cat([x, at_size_channels(nll.to(x.dtype), x.shape[-2:])], 1)
            x = down(x)
        x = self.drop(x)
        for across, beside, up in zip(kept[::-1], self.beside[::-1], self.up[::-1]):
            x = up(beside(torch.cat([across, at_size_channels(x, across.shape[-2:])], 1)))
        return self.head(torch.cat([self.fine(maps), at_size_channels(self.last(x), maps.shape[-2:])], 1))[
            :, 0
        ]

    def of_slices(self, evidence: VolumeEvidence, index: Tensor) -> Tensor:
        """Logits of the slices `index` (B,) of a volume, (B, S, S): of the box round the anatomy; AIR_LOGIT outside."""
        size = evidence.slices.shape[-2:]
        maps, nll = evidence.inputs(index, self.settings.context, box=evidence.box)
        place = places(evidence.box, size).to(maps.device).expand(len(index), -1, -1, -1)
        return evidence.box.put(self(maps, nll, place), size, AIR_LOGIT)


def places(box: Box, size: torch.Size) -> Tensor:
    """How far below and right of a slice's middle the pixels of a box lie, (2, H, W): -1 .. 1."""
    down, right = (torch.linspace(-1, 1, side) for side in size)
    return torch.stack(torch.meshgrid(down[box.rows], right[box.columns], indexing="ij"))


AnyDetector = Detector | ContextDetector | BoxDetector


def build_detector(settings: DetectorSettings) -> AnyDetector:
    """The network of these settings, with random weights."""
    if not settings.context:
        return Detector(settings)
    return BoxDetector(settings) if settings.boxed else ContextDetector(settings)


def at_size_channels(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) at another size, linear."""
    return (
        maps
        if maps.shape[-2:] == tuple(size)
        else F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
    )
