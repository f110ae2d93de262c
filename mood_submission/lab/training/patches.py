"""What a detector sees in a step: random patches of the slices of a store."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ...evidence.normalised import Box, NormalisedEvidence, places
from ...networks.detector import input_channels, residual_channels
from ...runtime.option_types import share
from ...runtime.options import option
from .store import Store, StoredVolume

# So many slices from an anomaly lie near it.
REACH = 4
# The pixels of a smaller anomaly may weigh more: a disc of 8 mm radius at 1.25 mm.
SMALL_AREA = 130
# The most that a pixel of a small anomaly weighs.
MOST_WEIGHT = 8.0
# What air is in the network's intensities, round a brain and in a CT.
AIR = (0.0, -1.0)


@dataclass(frozen=True)
class PatchSettings:
    """How a batch of patches is cut from a store.

    patch: side of the patches, as a share of the slices'.
    healthy: share of slices that come from volumes without any anomaly.
    near: share of the others that show an anomaly, or lie within REACH slices of one.
    strides: how far apart a slice's neighbours are taken. One is drawn.
    warped: share of patches that are turned, stretched and bent a little, all of their maps alike.
    weaker_evidence: share of patches whose residuals and NLL are made less telling. They are smaller on volumes that the VQ-VAE
        and the prior were trained on than on new ones. So a detector would trust them too much.
    other_tones: share of patches that are shown in other greys and with more grain.
    small: whether an anomaly with fewer than SMALL_AREA pixels in a slice weighs as much as one of that size.
    """

    patch: float = 0.65
    healthy: float = 0.15
    near: float = 0.9
    strides: tuple[int, ...] = (1, 1, 1, 2)
    warped: float = 0.6
    weaker_evidence: float = option(
        "share of patches whose residuals and NLL are made less telling; helps where volumes to train on are few",
        type=share,
        default=0.0,
    )
    other_tones: float = option(
        "share of patches that are shown in other greys and with more grain, as other scanners would show them",
        type=share,
        default=0.0,
    )
    small: bool = option(
        "let an anomaly that is small in a slice weigh as much as a larger one; finds smaller lesions", default=False
    )


class Batch(NamedTuple):
    """B patches of H x W pixels.

    maps, nll: see `NormalisedEvidence.inputs`.
    place: where they lie, see `evidence.normalised.places`.
    label: (B, H, W), 1 where an anomaly is, else 0.
    counts: (B, H, W), how much a pixel weighs: 0 where an anomaly changed the slice too little to be labelled, else 1. Small
        anomalies may weigh more, see `PatchSettings.small`.
    change: (B, H, W), the slice before planting less the slice, in the networks' intensities.
    """

    maps: Tensor
    nll: Tensor
    place: Tensor
    label: Tensor
    counts: Tensor
    change: Tensor


def cut_patches(
    store: Store,
    count: int,
    context: Sequence[int],
    how: PatchSettings,
    generator: torch.Generator,
    *,
    mirror: bool = False,
) -> Batch:
    """`count` random patches of random slices. Half of them are turned left to right. mirror: whether to add mirror images."""
    members, columns = list(store.volumes.values()), []
    for _ in range(count):
        stored = members[_below(len(members), generator)]
        planted = len(stored.variants) > 1 and _share(generator) >= how.healthy
        variant = 1 + _below(len(stored.variants) - 1, generator) if planted else 0
        columns.append(_patch(stored, variant, tuple(context), how, generator, mirror=mirror))
    return Batch(*(torch.cat(column) for column in zip(*columns)))


@dataclass(frozen=True)
class PatchBatches:
    """All batches of `count` patches, each by the seed that it is drawn with."""

    store: Store
    count: int
    context: tuple[int, ...]
    how: PatchSettings
    mirror: bool = False

    def __getitem__(self, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        return cut_patches(self.store, self.count, self.context, self.how, generator, mirror=self.mirror)


class BatchesAhead:
    """Batches by seed, drawn by other processes while the batch before is trained on.

    A batch whose seed follows the one that was last asked for is there without waiting.

    batches: what is drawn.
    workers: how many processes draw. With 0 each batch is drawn when it is asked for. The batches are the same.
    """

    def __init__(self, batches: PatchBatches, workers: int):
        self.batches, self.workers = batches, workers
        # By seed, what gives its batch next, and after it those of the seeds that follow.
        self.following: dict[int, Iterator[Batch]] = {}

    def batch(self, seed: int) -> Batch:
        if not self.workers:
            return self.batches[seed]
        batches = self.following.pop(seed, None)
        if batches is None:
            loader = DataLoader(
                cast(Dataset[Batch], self.batches),
                batch_size=None,
                sampler=itertools.count(seed),
                num_workers=self.workers,
                prefetch_factor=4,
                pin_memory=torch.cuda.is_available(),
                # The store is not copied.
                multiprocessing_context="fork",
            )
            batches = iter(loader)
        batch = next(batches)
        self.following[seed + 1] = batches
        return batch

    def begin_again(self) -> None:
        """Forget what was drawn ahead, since the store holds other volumes now."""
        self.following.clear()


def _below(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))


def _share(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _patch(
    stored: StoredVolume,
    variant: int,
    context: tuple[int, ...],
    how: PatchSettings,
    generator: torch.Generator,
    *,
    mirror: bool,
) -> Batch:
    evidence, label = stored.variants[variant], stored.labels(variant)
    index = _below(len(label), generator)
    marked = label.any(2).any(1).nonzero()[:, 0]
    if len(marked) and _share(generator) < how.near:
        beside = _below(2 * REACH + 1, generator) - REACH if _share(generator) < 0.2 else 0
        index = min(max(int(marked[_below(len(marked), generator)]) + beside, 0), len(label) - 1)
    box = _box(evidence, label[index], how.patch, generator)
    stride = how.strides[_below(len(how.strides), generator)]
    maps, nll = evidence.inputs(torch.tensor([index]), context, stride, box, mirror=mirror)
    # A slice's rows differ from the healthy variant's only where something was planted.
    own, healthy = (evidence.slices[stored.variants[v].rows[index]] for v in (variant, 0))  # type: ignore[index]
    change = (healthy.float() - own.float())[None, box.rows, box.columns]
    if how.weaker_evidence and _share(generator) < how.weaker_evidence:
        maps, nll = _weaker_evidence(maps, nll, context, generator)
    if how.other_tones and _share(generator) < how.other_tones:
        maps, change = _other_tones(maps, change, context, generator)
    shown = label[index]
    counts = shown | (own == healthy)
    shown, counts = (part[None, box.rows, box.columns].float() for part in (shown, counts))
    place = places(box, label.shape[1:])[None]
    batch = Batch(maps=maps, nll=nll, place=place, label=shown, counts=counts, change=change)
    if _share(generator) < how.warped:
        batch = _warped(batch, generator)
    if how.small:
        batch = batch._replace(counts=batch.counts * small_weights(batch.label))
    if _below(2, generator):
        return batch
    turned = Batch(*(part.flip(-1) for part in batch))
    return turned._replace(place=turned.place * torch.tensor([1.0, -1.0])[:, None, None])


def small_weights(label: Tensor) -> Tensor:
    """How much each pixel weighs so that every anomaly of a slice weighs as much as SMALL_AREA pixels, or more.

    label: (B, H, W), 1 where an anomaly is, else 0. Returns float32 of that shape: 1 to MOST_WEIGHT in anomalies, 1 elsewhere.
    """
    weights = torch.ones_like(label)
    for weight, marked in zip(weights, label.numpy() > 0.5, strict=True):
        parts, count = ndimage.label(marked)
        if count:
            areas = torch.from_numpy(np.bincount(parts.ravel()).astype(np.float32))
            areas[0] = SMALL_AREA
            weight.copy_((SMALL_AREA / areas).clamp(1, MOST_WEIGHT)[torch.from_numpy(parts).long()])
    return weights


def _weaker_evidence(
    maps: Tensor, nll: Tensor, context: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Maps with residuals up to about twice as large or small, and NLL up to about one higher or lower, smoothly over the patch.

    A quarter of the patches gets an NLL that is as usual everywhere. All neighbours are changed alike.
    """
    louder = _smooth(maps.shape[-2:], 0.6, generator).exp()
    channels = residual_channels(context)
    maps = maps.clone()
    maps[:, channels] = (maps[:, channels] * louder).clamp(-8, 8)
    if _share(generator) < 0.25:
        return maps, torch.zeros_like(nll)
    return maps, (nll + _smooth(nll.shape[-2:], 1.0, generator)).clamp(-2, 6)


def _smooth(size: torch.Size, most: float, generator: torch.Generator) -> Tensor:
    """A smooth random field (1, 1, *size) of standard deviation up to `most`."""
    field = torch.randn(1, 1, 4, 4, generator=generator) * most * _share(generator)
    return F.interpolate(field, tuple(size), mode="bicubic", align_corners=True)


def _other_tones(
    maps: Tensor, change: Tensor, context: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Maps with slices and reconstructions of another contrast and brightness, smoothly over the patch, and with grain in slices.

    The grain is in the residuals too, which stay relative to what is usual. Air stays as it is. Each neighbour has its own
    grain. All else is changed alike, the slice before planting too, of which `change` tells.
    """
    count, own = len(context), context.index(0)
    air = torch.tensor(AIR)
    tissue = ~torch.isin(maps[:, :count], air)
    if not tissue.any():
        return maps, change
    maps, size, middle = maps.clone(), maps.shape[-2:], maps[:, :count][tissue].mean()
    mirrored = maps.shape[1] > input_channels(tuple(context))
    contrast, grain = math.exp(0.3 * (2 * _share(generator) - 1)), _share(generator) ** 2
    brighter = _smooth(size, 0.15, generator)

    def in_another_tone(greys: Tensor, tissue: Tensor) -> Tensor:
        return torch.where(tissue, middle + (greys - middle) * contrast + brighter, greys)

    # The slices and the reconstruction.
    shown = [*range(count), 2 * count]
    tissue = torch.cat([tissue, tissue[:, own : own + 1]], 1)
    healthy = (maps[:, own] + change)[:, None]
    maps[:, shown] = in_another_tone(maps[:, shown], tissue)
    change = (in_another_tone(healthy, ~torch.isin(healthy, air)) - maps[:, own : own + 1])[:, 0]
    if mirrored:
        image = maps[:, -2]
        maps[:, -2] = torch.where(torch.isin(image, air), image, middle + (image - middle) * contrast)
    noise = torch.randn(1, count, *size, generator=generator)
    noise = torch.cat([noise, noise[:, own : own + 1]], 1) * tissue
    maps[:, :count] += 0.1 * grain * noise[:, :count]
    if mirrored:
        maps[:, -1] = maps[:, own] - maps[:, -2]
    residuals = residual_channels(context)
    maps[:, residuals] = ((maps[:, residuals] + grain * noise) / math.sqrt(1 + grain**2)).clamp(-8, 8)
    return maps, change


def _warped(batch: Batch, generator: torch.Generator) -> Batch:
    """One patch turned by up to 15 degrees, stretched by up to a fifth, and bent by 2% of its side, as if the body were so."""
    between = lambda low, high: low + (high - low) * _share(generator)  # noqa: E731
    angle, size = math.radians(between(-15, 15)), math.exp(between(-0.2, 0.2))
    across, down = size * between(0.93, 1.07), size * between(0.93, 1.07)
    c, s = math.cos(angle), math.sin(angle)
    shape, codes = batch.label.shape[-2:], batch.nll.shape[-2:]
    affine = torch.tensor([[c * across, -s * across, 0.0], [s * down, c * down, 0.0]])
    grid = F.affine_grid(affine[None], [1, 1, *shape], align_corners=False)
    # In halves of the side.
    bent = 0.04 * torch.randn(1, 2, 4, 4, generator=generator)
    grid = grid + F.interpolate(bent, shape, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    coarse = F.interpolate(grid.permute(0, 3, 1, 2), codes, mode="area").permute(0, 2, 3, 1)

    def take(maps: Tensor, at: Tensor) -> Tensor:
        return F.grid_sample(maps, at, mode="bilinear", padding_mode="border", align_corners=False)

    label = (take(batch.label[None], grid)[0] > 0.5).float()
    counts = (take(batch.counts[None], grid)[0] > 0.99).float()
    return Batch(
        maps=take(batch.maps, grid),
        nll=take(batch.nll, coarse),
        place=take(batch.place, grid),
        label=label,
        counts=torch.maximum(label, counts),
        change=take(batch.change[None], grid)[0],
    )


def _box(evidence: NormalisedEvidence, label: Tensor, share: float, generator: torch.Generator) -> Box:
    """A random patch within the box round the anatomy. Where the slice has an anomaly, most patches show some of it."""
    cells, sides = evidence.nll.shape[-2:], label.shape
    if any(side % places for side, places in zip(sides, cells)):
        return evidence.whole
    marked = label.nonzero()
    at = marked[_below(len(marked), generator)].tolist() if len(marked) and _share(generator) < 0.8 else None
    parts = []
    for axis, (side, cell_count) in enumerate(zip(sides, cells)):
        cell = side // cell_count
        # In codes.
        long = max(1, round(share * cell_count))
        around = (evidence.box.rows, evidence.box.columns)[axis]
        low, high = sorted((around.start // cell, around.stop // cell - long))
        low, high = min(max(low, 0), cell_count - long), min(max(high, 0), cell_count - long)
        first = low + _below(high - low + 1, generator)
        if at is not None:
            first = min(max(at[axis] // cell - _below(long, generator), 0), cell_count - long)
        parts.append(slice(first * cell, (first + long) * cell))
    return Box(*parts)
