"""The detector: a small U-Net that reads a slice beside what the VQ-VAE and the prior make of it, and says for each
place how likely something was planted there.

Not in the paper. It is trained on healthy scans alone, with anomalies planted in them: the discriminative half of DRAEM
(Zavrtanik et al., ICCV 2021) and DSR (ECCV 2022), on top of restoration.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import broadcast_position

CHANNELS = 7  # slice, reconstruction, restoration, the two differences, NLL, position
NLL_UNIT = 4.0  # nats that count as one in the network's input
STRIDE = 2  # of the slices' pixels, the detector's places


@dataclass(frozen=True)
class DetectorSettings:
    """Sizes of a detector, and how its logits are smoothed.

    widths: channels at each level, from half the slice's resolution on, each half as fine.
    dropout: probability that a channel of the coarsest level is dropped in training.
    along, in_plane: standard deviations of the smoothing, shares of the number of slices and of the slice's side.
    restorations: of a slice, by default; 0: voxels too are scored by the reconstruction alone, which stands for them.
    context: which slices beside a slice are read with it, as differences of index; () for the detector of one slice that
        earlier model files hold (`Detector`), else (..., 0, ...) for `ContextDetector`, whose widths begin at the slice's
        own resolution.
    bulk: the sample score is taken from where the logits lie above this quantile of the volume's own, so that scans whose
        logits are high all over do not score high; 0 for the logits as they are.
    boxed: whether it reads a box round the anatomy, at half the slices' resolution first: a `BoxDetector`.
    balanced: whether, of a `ContextDetector`, what comes up from the coarser level and what comes across from the same one are
        brought to one scale before they are added. Without, the coarser level drowns the finer one and maps are blobs.
    """

    widths: tuple[int, ...] = (24, 32, 48, 64)
    dropout: float = 0.1
    along: float = 0.04
    in_plane: float = 0.015
    restorations: int = 15
    context: tuple[int, ...] = ()
    balanced: bool = False
    boxed: bool = False
    bulk: float = 0.0

    def __post_init__(self) -> None:
        for name in ("widths", "context"):
            object.__setattr__(self, name, tuple(int(c) for c in getattr(self, name)))  # JSON gives lists
        if self.context and 0 not in self.context:
            raise ValueError(f"detector: expected a context with the slice itself, 0, found {self.context}")


class Block(nn.Module):
    """x + two convolutions 3 x 3, each after a batch norm and an ELU."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> the same
        return x + self.layers(x)


class Detector(nn.Module):
    """Slices (B, H, W), their reconstructions and mean restorations (likewise or a little smaller), NLL (B, h, w) and
    positions (B, 1) to logits (B, H / 2, W / 2): above 0 where something planted is likelier than not."""

    def __init__(self, settings: DetectorSettings):
        super().__init__()
        self.settings, widths = settings, settings.widths
        self.stem = nn.Conv2d(CHANNELS, widths[0], 5, stride=STRIDE, padding=2)
        self.down = nn.ModuleList(
            nn.Sequential(Block(w), nn.Conv2d(w, wider, 3, stride=2, padding=1))
            for w, wider in zip(widths, widths[1:])
        )
        self.bottom = nn.Sequential(Block(widths[-1]), Block(widths[-1]), nn.Dropout2d(settings.dropout))
        self.up = nn.ModuleList(nn.Conv2d(wider, w, 1) for w, wider in zip(widths, widths[1:]))
        self.merge = nn.ModuleList(Block(w) for w in widths[:-1])
        self.head = nn.Sequential(nn.BatchNorm2d(widths[0]), nn.ELU(), nn.Conv2d(widths[0], 1, 1))

    def forward(
        self, slices: Tensor, reconstruction: Tensor, restoration: Tensor, nll: Tensor, position: Tensor
    ) -> Tensor:
        x = self.stem(stack_input(slices, reconstruction, restoration, nll, position))
        kept = []
        for level in self.down:
            assert isinstance(level, nn.Sequential)
            kept.append(level[0](x))
            x = level[1](kept[-1])
        x = self.bottom(x)
        for below, up, merge in zip(kept[::-1], self.up[::-1], self.merge[::-1]):
            x = merge(below + F.interpolate(up(x), below.shape[-2:], mode="bilinear", align_corners=False))
        return self.head(x)[:, 0]


def stack_input(
    slices: Tensor, reconstruction: Tensor, restoration: Tensor, nll: Tensor, position: Tensor
) -> Tensor:
    """The input of the first convolution, (B, CHANNELS, H, W)."""
    size = slices.shape[-2:]
    decoded, restored, unlikely = (at_size(x, size) for x in (reconstruction, restoration, nll))
    x = torch.stack(
        [slices, decoded, restored, (slices - decoded).abs(), (slices - restored).abs(), unlikely / NLL_UNIT],
        dim=1,
    )
    return torch.cat([x, broadcast_position(position, x)], dim=1)


def at_size(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Maps (B, h, w) at another size, linear."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
