"""Evidence as a detector reads it: each slice with its neighbours, relative to what is usual in the volume.

Residuals and NLL are larger for some scanners than for others, in the whole volume. So both are scaled by their own quantiles
in the volume, which a small anomaly hardly changes. A large one would change them, and scale itself away. So the quantiles are
taken to be no further from those of healthy volumes than scanners differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..engines.base import Detecting
from ..model import Model
from ..networks.detector import Detector
from ..networks.layers import at_size
from .strangeness import bounded
from .symmetry import Midline, find_midline, mirrored_slice

# The logit outside the box round the anatomy.
AIR_LOGIT = -12.0
# How many pixels of air the box round the anatomy includes.
MARGIN = 8
# Quantiles are taken from every SAMPLED-th pixel along each axis.
SAMPLED = 4


@dataclass(frozen=True)
class Box:
    """A rectangle in all slices of a volume: its rows and its columns."""

    rows: slice
    columns: slice

    def codes(self, maps: Tensor, size: torch.Size) -> Tensor:
        """The part of maps of codes (B, h, w) that lies in the box. size: of the slices, in pixels."""
        spans = []
        for span, places, side in zip((self.rows, self.columns), maps.shape[-2:], size):
            step = max(1, side // places)
            spans.append(slice(0, places) if span == slice(0, side) else slice(span.start // step, span.stop // step))
        return maps[..., spans[0], spans[1]]

    def put(self, maps: Tensor, size: torch.Size, value: float) -> Tensor:
        """Maps (B, height, width) of the box, placed in slices of `size`: (B, *size), with `value` outside the box."""
        if maps.shape[-2:] == size:
            return maps
        whole = maps.new_full((len(maps), *size), value)
        whole[:, self.rows, self.columns] = maps
        return whole


@dataclass(frozen=True, eq=False)
class NormalisedEvidence:
    """The evidence of a volume's slices, in order.

    slices: (N, S, S) in the network's intensities.
    reconstruction: the slices decoded from their codes, (N, S', S').
    restoration: the mean of each slice's restorations, (N, S', S'). Without restorations, the reconstruction.
    nll: of the codes, (N, h, w), in nats.
    position: (N, 1), -0.5 .. 0.5.
    residual: the 75th percentile of |slice - reconstruction| in the anatomy.
    usual, high: the 50th and the 90th percentile of the NLL in the anatomy.
    rows: (Z,) int64, the place in the arrays of each slice of the volume. None for 0, 1, 2 ...
    midline: the plane that the volume is compared with its mirror image in. None where no detector asks for that.
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
    midline: Midline | None = None

    @classmethod
    def of(
        cls,
        slices: Tensor,
        reconstruction: Tensor,
        restoration: Tensor,
        nll: Tensor,
        position: Tensor,
        *,
        ranges: Mapping[str, Sequence[float]] | None = None,
        mirror: bool = False,
    ) -> "NormalisedEvidence":
        """Evidence with its quantiles, from maps as in the class, all on one device.

        ranges: what is usual among healthy volumes (`About.usual`), which bounds the quantiles. None for no bounds.
        mirror: whether the detector compares the volume with its mirror image.
        """
        ranges = ranges or {}
        usual, high = usual_nll(slices, nll)
        spread = bounded(high - usual, ranges.get("likelihood_spread"))
        usual = bounded(usual, ranges.get("likelihood"))
        high = usual + spread
        residual = bounded(usual_residual(slices, reconstruction), ranges.get("residual"))
        return cls(
            slices=slices,
            reconstruction=reconstruction,
            restoration=restoration,
            nll=nll,
            position=position,
            residual=residual,
            usual=usual,
            high=high,
            midline=find_midline(slices, position) if mirror else None,
        )

    def inputs(
        self,
        index: Tensor,
        context: tuple[int, ...],
        stride: int = 1,
        box: Box | None = None,
        *,
        mirror: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """A detector's input for some slices: maps (B, C, S, S) and NLL (B, len(context), h, w).

        index: (B,) int64, the slices' numbers in the volume.
        context: a slice's neighbours, as differences of their numbers. 0 is among them.
        stride: distance of neighbours, in slices. Beyond the volume, its first or last slice is repeated.
        box: the part to read. Its sides are multiples of a code's. None for whole slices.
        mirror: whether the slice's mirror image and the difference to it follow the other maps.
        Raises ValueError for a mirror image of evidence without a midline.
        """
        count = len(self.slices if self.rows is None else self.rows)
        near = (index[:, None] + torch.tensor(context, device=index.device) * stride).clamp(0, count - 1)
        near = near if self.rows is None else self.rows[near]
        box = self.whole if box is None else box

        def take(maps: Tensor, at: Tensor) -> Tensor:
            return torch.unflatten(self._cut(maps, at.flatten(), box), 0, at.shape)

        slices, decoded = take(self.slices, near), take(self.reconstruction, near)
        own = context.index(0)
        restored = take(self.restoration, near[:, own])
        residual = (slices - decoded) / self.residual
        more = torch.stack([decoded[:, own], (slices[:, own] - restored) / self.residual], 1)
        position = self.position[near[:, own]].float()[:, :, None, None].expand(-1, -1, *slices.shape[-2:])
        parts = [slices, residual.clamp(-8, 8), more.clamp(-8, 8), position]
        if mirror:
            image = self._mirrored(index, box)
            parts.append(torch.stack([image, slices[:, own] - image], 1))
        maps = torch.cat(parts, 1)
        nll = box.codes(self.nll[near.flatten()], self.slices.shape[-2:]).float().unflatten(0, near.shape)
        return maps, ((nll - self.usual) / (self.high - self.usual)).clamp(-2, 6)

    def _mirrored(self, index: Tensor, box: Box) -> Tensor:
        """The mirror images of slices `index` (B,) in the box, (B, height, width) float32."""
        if self.midline is None:
            raise ValueError("expected evidence with a midline to mirror slices in, found none")
        images = [mirrored_slice(self.slices, self.rows, self._heights, self.midline, int(number)) for number in index]
        return torch.stack(images)[:, box.rows, box.columns]

    @cached_property
    def _heights(self) -> np.ndarray:
        """The relative positions of the volume's slices, (Z,) float64."""
        position = self.position if self.rows is None else self.position[self.rows]
        heights: np.ndarray = position[:, 0].cpu().double().numpy()
        return heights

    def _cut(self, maps: Tensor, at: Tensor, box: Box) -> Tensor:
        """Maps `at` of (N, S', S') in the box, at the slices' resolution: (len(at), height, width) float32."""
        size = self.slices.shape[-2:]
        if maps.shape[-2:] == size:
            return maps[at][..., box.rows, box.columns].float()
        return at_size(maps[at].float(), size)[..., box.rows, box.columns]

    def to(self, device: torch.device) -> "NormalisedEvidence":
        """The same evidence on a device. The same object where it is there already."""
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
        """The box of whole slices."""
        return Box(*(slice(0, side) for side in self.slices.shape[-2:]))

    @cached_property
    def box(self) -> Box:
        """The box round all anatomy of the volume, with MARGIN pixels of air. Its sides are multiples of a code's."""
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
    """The 75th percentile of |slice - reconstruction| in the anatomy that slices (N, S, S) show. It is above 0."""
    decoded = at_size(reconstruction, slices.shape[-2:])[:, ::SAMPLED, ::SAMPLED].float()
    some = slices[:, ::SAMPLED, ::SAMPLED].float()
    # Air is exactly 0.
    return max(_quantile((some - decoded).abs()[some != 0], 0.75, 1.0), 1e-3)


def usual_nll(slices: Tensor, nll: Tensor) -> tuple[float, float]:
    """The 50th and the 90th percentile of the NLL (N, h, w) in the anatomy that slices (N, S, S) show. The second is larger."""
    anatomy = (slices[:, ::SAMPLED, ::SAMPLED] != 0).float()
    places = F.adaptive_avg_pool2d(anatomy[:, None], (nll.shape[-2], nll.shape[-1]))[:, 0] > 0.5
    usual, high = (_quantile(nll.float()[places], share, default) for share, default in ((0.5, 1.0), (0.9, 3.0)))
    return usual, max(high, usual + 0.1)


def _quantile(values: Tensor, share: float, default: float) -> float:
    """A quantile of the values, or `default` without values."""
    if not values.numel():
        return default
    return float(values.flatten().kthvalue(max(1, round(share * values.numel()))).values)


def places(box: Box, size: torch.Size) -> Tensor:
    """The positions of a box's pixels, down and to the right of the slice's middle: (2, H, W), -1 .. 1."""
    down, right = (torch.linspace(-1, 1, side) for side in size)
    return torch.stack(torch.meshgrid(down[box.rows], right[box.columns], indexing="ij"))


def detector_logits(detector: Detector | Detecting, evidence: NormalisedEvidence, index: Tensor) -> Tensor:
    """The detector's logits (B, S, S) for slices `index` (B,): AIR_LOGIT outside the box round the anatomy."""
    size = evidence.slices.shape[-2:]
    settings = detector.settings
    maps, nll = evidence.inputs(index, settings.context, box=evidence.box, mirror=settings.mirror)
    place = places(evidence.box, size).to(maps.device).expand(len(index), -1, -1, -1)
    return evidence.box.put(detector(maps, nll, place), size, AIR_LOGIT)


def volume_logits(model: Model, evidence: NormalisedEvidence) -> Tensor:
    """The detector's logits (N, S, S) for all slices of a volume, in order.

    evidence: on the model's device, in its dtype.
    Raises ModelError for a model without a detector.
    """
    return model.detect(lambda detector, index: detector_logits(detector, evidence, index), len(evidence.slices))
