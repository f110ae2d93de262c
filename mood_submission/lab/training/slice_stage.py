"""What the stages that train on slices have in common: their batches, and held-out slices to validate with."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .augment import Augmentation, augment_geometry, augment_intensity
from .cache import SliceData
from .randomise import Randomisation, randomise
from .stage import Network, Stage, autocast


class SliceStage(Stage[SliceData, Network]):
    """A stage that trains a network on augmented slices, in a precision of `autocast`."""

    def __init__(self, model: Network, augmentation: Augmentation | Randomisation, precision: str):
        self.model, self.augmentation, self.precision = model, augmentation, precision

    def batch(self, data: SliceData, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented slices (B, S, S) as the network gets them, and their positions (B, 1)."""
        return augmented_batch(data, index, self.augmentation, generator)

    def autocast(self, tensor: Tensor) -> torch.autocast:
        """The stage's precision, on the tensor's device."""
        return autocast(tensor, self.precision)


def augmented_batch(
    data: SliceData, index: Tensor, a: Augmentation | Randomisation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Slices (B, S, S) as the network gets them, augmented, and their positions (B, 1)."""
    prep = data.preprocessing
    if isinstance(a, Randomisation):
        x = randomise(data.raw(index), prep.image_size, a, prep.foreground_threshold, generator)
        return data.normalised(index, x), data.position[index]
    warped = augment_geometry(data.raw(index), prep.image_size, a, generator)
    x = data.normalised(index, warped)
    background = warped < prep.foreground_threshold  # what is air stays exactly air
    return augment_intensity(x, background, a, generator), data.position[index]


def evenly(data: SliceData, count: int) -> list[Tensor]:
    """Batches of the numbers of `count` slices, evenly over the data, the same ones each time."""
    count = min(count, len(data))
    return (torch.arange(count, device=data.slices.device) * len(data) // max(count, 1)).split(32)


def held_out(data: SliceData, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `count` slices as prediction sees them, evenly over the data, with their positions."""
    return (data.plain(index) for index in evenly(data, count))
