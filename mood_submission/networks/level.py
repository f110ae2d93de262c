"""Where along the body an axial slice lies, told from what it shows. Not in the paper.

The network learns from known distances alone: within a scan, the levels of two slices differ by as many millimetres as the slices
do. Since all bodies share it, it gives slices that look alike the same level, whatever scan they are from.
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn

# What the network gives is in units of so many millimetres.
UNIT_MM = 100.0


@dataclass(frozen=True)
class LevelSettings:
    """Sizes of the network, and what it was trained on.

    widths: channels of the convolutions.
    size: side of the slices that it takes, in pixels.
    low, high: the lowest and the highest level of the bodies that it was trained on, in mm.
    dropout: probability that a channel is dropped in training.
    Raises ValueError for sizes that no network has, and for levels that do not rise.
    """

    widths: tuple[int, ...] = (16, 32, 64, 96)
    size: int = 80
    low: float = 0.0
    high: float = 0.0
    dropout: float = 0.2

    def __post_init__(self) -> None:
        # JSON gives lists.
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))
        if not self.widths or min(self.widths) < 1 or self.size < 1:
            raise ValueError(f"expected positive widths and size, found {self.widths} and {self.size}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"expected levels that rise, found {self.low} to {self.high} mm")


class LevelNet(nn.Module):
    """Slices (B, S, S) in [0, 1], with air 0, to their levels (B,) in mm, rising towards the head."""

    def __init__(self, settings: LevelSettings):
        super().__init__()
        self.settings = settings
        layers: list[nn.Module] = []
        for before, width in zip((1, *settings.widths), settings.widths):
            layers += [
                nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
        layers += [
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.widths[-1], 1),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, slices: Tensor) -> Tensor:
        levels: Tensor = self.layers(slices[:, None])
        return levels[:, 0] * UNIT_MM
