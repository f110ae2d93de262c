"""The detector: a U-Net that says for each pixel of a slice how likely an anomaly was planted there.

It reads the slice, its neighbours, and what the VQ-VAE and the prior make of them. It is not in the paper. It is trained on
healthy scans alone, with anomalies planted in them, like the discriminative half of DRAEM (Zavrtanik et al., ICCV 2021) and
DSR (ECCV 2022).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import at_size

# The slices that are read with a slice, as differences of index.
CONTEXT = (-4, -2, -1, 0, 1, 2, 4)
# Channels at the slice's own resolution.
FINE = 8
# The NLL is added after so many poolings, at an eighth of the slice's resolution.
NLL_POOLED = 2
# Settings of earlier versions, whose detectors are no longer read.
EARLIER = ("balanced", "boxed")
# Settings that have other names in older files of this detector.
RENAMED = {"bulk": "ordinary_quantile", "spread": "ordinary_spread_quantile"}


# The channels that a mirror image takes: the image, and the slice less the image.
MIRROR_CHANNELS = 2


def input_channels(context: tuple[int, ...], mirror: bool = False) -> int:
    """How many channels the maps of `NormalisedEvidence.inputs` have.

    They are a slice and a residual for each slice of the context, then the reconstruction, the restoration's residual, the
    position, and with `mirror` what a mirror image takes.
    """
    return 2 * len(context) + 3 + (MIRROR_CHANNELS if mirror else 0)


def residual_channels(context: Sequence[int]) -> list[int]:
    """The indices of the channels that are residuals."""
    count = len(context)
    return [*range(count, 2 * count), 2 * count + 1]


@dataclass(frozen=True)
class DetectorSettings:
    """Sizes of a detector, and how its logits are smoothed.

    widths: channels at each level. The first level has half the slice's resolution, and each further one half of the one before.
    dropout: probability that a channel of the coarsest level is dropped in training.
    along: standard deviation of the smoothing from slice to slice, as a share of the number of slices.
    in_plane: standard deviation of the smoothing within slices, as a share of the slice's side.
    restorations: how many of a slice by default. With 0, the reconstruction stands for a restoration.
    context: the slices that are read with a slice, as differences of index. 0, the slice itself, is one of them.
    ordinary_quantile: the volume's own logits are ordinary up to this quantile. The sample score tells how far the highest
        logits lie above it. So scans with high logits everywhere do not score high. 0 to take the logits as they are.
    ordinary_spread_quantile: a quantile below the other one. The distance between the two is the spread of ordinary logits. The
        sample score then tells how far the highest logits lie above the ordinary quantile plus this spread. So scans whose
        logits vary much do not score high either. 0 to leave the spread out.
    mirror: whether each slice is read with its mirror image, left for right, as brains allow it (see `evidence.symmetry`).
    restores: whether the detector also says how the slice would look without the anomaly. How far that lies from the slice joins
        the logits.
    Raises ValueError for an ordinary_spread_quantile that is not below the ordinary_quantile, and for a context without 0.
    """

    widths: tuple[int, ...] = (32, 64, 96, 128)
    dropout: float = 0.1
    along: float = 0.0
    in_plane: float = 0.005
    restorations: int = 0
    context: tuple[int, ...] = CONTEXT
    ordinary_quantile: float = 0.0
    ordinary_spread_quantile: float = 0.0
    mirror: bool = False
    restores: bool = False

    def __post_init__(self) -> None:
        # JSON gives lists.
        for name in ("widths", "context"):
            object.__setattr__(self, name, tuple(int(c) for c in getattr(self, name)))
        ordinary, lower = self.ordinary_quantile, self.ordinary_spread_quantile
        if lower and not lower < ordinary:
            raise ValueError(
                f"detector: expected an ordinary_spread_quantile below the ordinary_quantile {ordinary}, found {lower}"
            )
        if 0 not in self.context:
            raise ValueError(f"detector: expected a context with the slice itself, 0, found {self.context}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DetectorSettings":
        """The settings in a model file. values: from `dataclasses.asdict`, of this version or of an older one.

        Raises ValueError for settings of an earlier detector.
        """
        if not values.get("context") or ("balanced" in values and not values.get("boxed")):
            raise ValueError("an earlier version's detector, which is not read any more; train one anew")
        return cls(**{RENAMED.get(name, name): value for name, value in values.items() if name not in EARLIER})


def convolution(channels: int, wider: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution, a batch norm and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, wider, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(wider),
        nn.ReLU(inplace=True),
    )


class Detector(nn.Module):
    """A U-Net from maps, NLL and places of a box of slices to logits.

    Most of it works at half the slices' resolution. One layer at their own resolution finds the edges. Skip connections are
    concatenated, not added.
    """

    def __init__(self, settings: DetectorSettings):
        super().__init__()
        self.settings, widths = settings, settings.widths
        channels = input_channels(settings.context, settings.mirror) + 2
        self.fine = convolution(channels, FINE)
        self.stem = nn.Sequential(convolution(channels, widths[0], stride=2), convolution(widths[0], widths[0]))
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
        if settings.restores:
            self.change = nn.Conv2d(2 * FINE, 1, 1)
            self.joined = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Tensor, nll: Tensor, place: Tensor) -> Tensor:
        """Logits (B, H, W), above 0 where a planted anomaly is likelier than not.

        maps, nll: (B, C, H, W) and (B, K, h, w), see `NormalisedEvidence.inputs`.
        place: (B, 2, H, W), see `evidence.normalised.places`.
        """
        return self.logits_and_change(maps, nll, place)[0]

    def logits_and_change(self, maps: Tensor, nll: Tensor, place: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits as of `forward`, and what would have to be added to the slices so that they look healthy, (B, H, W).

        The change is None without the setting `restores`.
        """
        maps = torch.cat([maps, place.to(maps.dtype)], 1)
        x, kept = self.stem(maps), []
        for level, down in enumerate(self.down):
            kept.append(x)
            x = F.max_pool2d(x, 2, ceil_mode=True)
            if level == self.nll_level:
                x = torch.cat([x, at_size(nll.to(x.dtype), x.shape[-2:])], 1)
            x = down(x)
        x = self.drop(x)
        for across, beside, up in zip(kept[::-1], self.beside[::-1], self.up[::-1]):
            x = up(beside(torch.cat([across, at_size(x, across.shape[-2:])], 1)))
        features = self.head[0](torch.cat([self.fine(maps), at_size(self.last(x), maps.shape[-2:])], 1))
        logits: Tensor = self.head[1](features)[:, 0]
        if not self.settings.restores:
            return logits, None
        change: Tensor = self.change(features)[:, 0]
        return logits + self.joined * change.abs(), change


def fitted_to(parameters: Mapping[str, Tensor], settings: DetectorSettings) -> dict[str, Tensor]:
    """A detector's parameters, for one with `settings` that reads mirror images, restores slices or has wider levels too.

    It answers as before. Parameters that are there come back as they are. What a new network adds to a slice's logits starts
    at 0, also where channels of a wider level start as a new network's: no layer of before reads them yet.
    Raises RuntimeError for wider levels of a detector that reads other maps, or other slices.
    """
    before, wanted = input_channels(settings.context), input_channels(settings.context, mirror=True) + 2
    result = dict(parameters)
    for name in ("fine.0.weight", "stem.0.0.weight"):
        weight = result[name]
        if settings.mirror and weight.shape[1] == wanted - MIRROR_CHANNELS:
            new = weight.new_zeros(weight.shape[0], MIRROR_CHANNELS, *weight.shape[2:])
            result[name] = torch.cat([weight[:, :before], new, weight[:, before:]], 1)
    if settings.restores and "joined" not in result:
        last = result["head.1.weight"]
        result |= {
            "change.weight": torch.zeros_like(last),
            "change.bias": last.new_zeros(1),
            "joined": last.new_zeros(1),
        }
    return _widened(result, settings)


def _widened(parameters: dict[str, Tensor], settings: DetectorSettings) -> dict[str, Tensor]:
    """The parameters of a detector for one with wider levels. Those of one with other levels come back as they are.

    Raises RuntimeError where the wider one reads other maps, or other slices.
    """
    narrow = [len(parameters["stem.0.0.weight"])]
    while (name := f"down.{len(narrow) - 1}.0.0.weight") in parameters:
        narrow.append(len(parameters[name]))
    wide = settings.widths
    if len(narrow) != len(wide) or any(a > b for a, b in zip(narrow, wide)) or narrow == list(wide):
        return parameters
    levels = range(len(wide) - 1)
    # These layers read a level's channels, and then others: of the level below, or such as stay as they are. All others read one
    # level's alone.
    both = {f"beside.{i}.0.weight": (narrow[i], wide[i]) for i in levels}
    fixed = {f"down.{i}.0.0.weight": (narrow[i], wide[i]) for i in levels}
    fixed |= {"fine.0.weight": (0, 0), "stem.0.0.weight": (0, 0)}
    result = Detector(settings).state_dict()
    for name, old in parameters.items():
        new = result.get(name)
        if new is None or new.shape == old.shape:
            # What is not known is for `load_state_dict` to refuse.
            result[name] = old
        elif old.ndim == 1:
            new[: len(old)] = old
        else:
            inputs = old.shape[1]
            used, placed = (both | fixed).get(name, (inputs, new.shape[1]))
            if name in fixed and inputs - used != new.shape[1] - placed:
                raise RuntimeError(
                    f"size mismatch for {name}: a detector that grows reads the same maps and slices as before"
                )
            new[: len(old)] = 0
            new[: len(old), :used] = old[:, :used]
            new[: len(old), placed : placed + inputs - used] = old[:, used:]
    return result
