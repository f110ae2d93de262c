"""What the stages that train on slices have in common: their batches, and held-out slices for validation."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .augment import Augmentation, augment_geometry, augment_intensity
from .cache import SliceData
from .randomise import Randomisation, randomise
from .stage import Network, Stage, autocast


class SliceStage(Stage[SliceData, Network]):
    """A stage that trains a network on augmented slices. precision: of `autocast`, "bf16" or "float32"."""

    def __init__(self, model: Network, augmentation: Augmentation | Randomisation, precision: str):
        self.model, self.augmentation, self.precision = model, augmentation, precision

    def batch(self, data: SliceData, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The slices `index` (B,), augmented, (B, S, S) as the network takes them, and their positions (B, 1)."""
        prep, ranges = data.preprocessing, self.augmentation
        if isinstance(ranges, Randomisation):
            x = randomise(data.raw(index), prep.image_size, ranges, prep.foreground_threshold, generator)
            return data.normalised(index, x), data.position[index]
        warped = augment_geometry(data.raw(index), prep.image_size, ranges, generator)
        x = data.normalised(index, warped)
        # What is air stays exactly air.
        background = warped < prep.foreground_threshold
        return augment_intensity(x, background, ranges, generator), data.position[index]

    def autocast(self, tensor: Tensor) -> torch.autocast:
        """The stage's precision, on the tensor's device."""
        return autocast(tensor, self.precision)


def evenly(data: SliceData, count: int) -> list[Tensor]:
    """The indices of `count` slices, evenly over the data and always the same, in batches of 32 at most."""
    count = min(count, len(data))
    return (torch.arange(count, device=data.slices.device) * len(data) // max(count, 1)).split(32)


def held_out(data: SliceData, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `count` slices without augmentation, evenly over the data, with their positions."""
    return (data.plain(index) for index in evenly(data, count))
