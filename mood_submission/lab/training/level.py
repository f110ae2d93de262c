"""Training of the network that tells where along the body a slice lies. It is small: a few minutes on one core suffice."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...networks.level import UNIT_MM, LevelNet, LevelSettings
from ...preprocessing import Preprocessing, harmonise, volume_to_slices
from ...preprocessing.known import AGREEING, agreement, offset_of
from ...volumes import Volume
from .randomise import RANDOMISATIONS, randomise

# In a step, so many slices of each of so many scans are compared.
SLICES, SCANS = 8, 6
RATE, WEIGHT_DECAY = 2e-3, 1e-2
# Differences of up to so many units count by their square, larger ones by themselves.
SMOOTH = 0.2
# The fewest slices of a scan that show a length.
FEWEST = 8


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan to train on.

    name: the volume's.
    slices: (N, S, S) float32 in [0, 1].
    heights: (N,) float32, in mm above the scan's lowest slice.
    """

    name: str
    slices: Tensor
    heights: Tensor

    @classmethod
    def of(cls, volume: Volume, prep: Preprocessing, size: int) -> "Scan":
        """Slices of a volume as prediction shows them to the network. Their distance in the volume's header must be true."""
        data, view = harmonise(volume.data, volume.spacing, prep)
        indices = view.indices()
        small = dataclasses.replace(prep, image_size=size)
        slices = volume_to_slices(data, volume.spacing, indices, small, view=view)
        return cls(volume.path.name, slices, torch.from_numpy((indices * volume.spacing[2]).astype(np.float32)))


def train_level(
    scans: Sequence[Scan],
    settings: LevelSettings,
    *,
    region: str,
    threshold: float,
    steps: int,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> LevelNet:
    """The trained network. `with_range` says between which levels the scans lie.

    scans: of several bodies, each with FEWEST slices or more.
    settings: sizes of the network.
    region: one of `contract.REGIONS`.
    threshold: grey values below it are air.
    steps: how many.
    seed: of batches, augmentation and initial weights.
    advance: is called after each step.
    Raises ValueError without scans, and for a scan of fewer slices.
    """
    if not scans:
        raise ValueError("expected scans to learn levels of, found none")
    for scan in scans:
        if len(scan.slices) < FEWEST:
            raise ValueError(f"{scan.name}: expected at least {FEWEST} slices, found {len(scan.slices)}")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LevelNet(settings).train()
        optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step / steps))
        for _ in range(steps):
            slices, heights = _batch(scans, generator)
            shown = randomise(slices, settings.size, RANDOMISATIONS[region]["bold"], threshold, generator)
            loss = _loss(network(shown).view(heights.shape), heights)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            advance()
    return network.eval()


def _rate(done: float) -> float:
    """The share of the highest learning rate, after this share of the steps: a cosine."""
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2


def _batch(scans: Sequence[Scan], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Slices (K * SLICES, S, S) of K scans, and their heights (K, SLICES)."""
    slices, heights = [], []
    for number in torch.randperm(len(scans), generator=generator)[:SCANS].tolist():
        chosen = torch.randint(len(scans[number].slices), (SLICES,), generator=generator)
        slices.append(scans[number].slices[chosen])
        heights.append(scans[number].heights[chosen])
    return torch.cat(slices), torch.stack(heights)


def _loss(levels: Tensor, heights: Tensor) -> Tensor:
    """How far differences of levels (K, n), in mm, are from those of heights (K, n), within each scan."""
    apart = (levels[:, :, None] - levels[:, None]) - (heights[:, :, None] - heights[:, None])
    return F.smooth_l1_loss(apart / UNIT_MM, torch.zeros_like(apart), beta=SMOOTH)


def with_range(network: LevelNet, scans: Sequence[Scan]) -> LevelNet:
    """The network with settings that tell the lowest and the highest level of these scans, each made straight.

    Scans whose slices do not agree with their heights, such as one that is upside down, do not count. Where all do
    not, nothing of a body is known, and prediction believes no levels.
    """
    ends: list[float] = []
    for scan in scans:
        if agreement_of(network, scan) >= AGREEING:
            levels, heights = _levels_and_heights(network, scan)
            ends += [float(end) + offset_of(levels, heights) for end in (heights[0], heights[-1])]
    low, high = (round(end(ends, default=0.0), 1) for end in (min, max))
    network.settings = dataclasses.replace(network.settings, low=low, high=high)
    return network


def agreement_of(network: LevelNet, scan: Scan) -> float:
    """The share of a scan's slices whose levels agree with their heights."""
    return agreement(*_levels_and_heights(network, scan))


@torch.inference_mode()
def _levels_and_heights(network: LevelNet, scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """(N,) float64 each, of a scan's slices, in mm."""
    return network(scan.slices).double().numpy(), scan.heights.double().numpy()
