"""Slices with anomalies planted in them, and what a finished model makes of them: what a detector is trained on.

Made from cached slices (`cache.py`) alone. One file a volume: a run that was stopped goes on where it was.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..model import Model, networks_sha256
from ..networks.detector import STRIDE
from ..preprocessing import intensity_statistics, normalise
from ..preprocessing.body import body_mask
from ..runtime.files import write_whole
from ..runtime.settings_file import check_settings
from ..synthetic.anomalies import KINDS, plant
from .augment import Augmentation, vary_volume
from .cache import CacheError, SliceData
from .order import BatchOrder

RADII = (0.05, 0.2)  # of what is planted, shares of the field of view: a little more than the benchmark's
CLEAR, AROUND = 6, 4  # slices that are kept of each copy: with an anomaly, and without
VARIED = Augmentation(noise=0.03)
DENSITY = 1 / 3  # of a varied copy's slices that are kept, where that is more


@dataclass
class PlantedData:
    """Slices (N, S, S) with their reconstructions and mean restorations (N, S', S'), float16, NLL (N, h, w) float16,
    position (N, 1), labels (N, S / 2, S / 2) uint8, 255 where a place lies in an anomaly, and the kind (N,), its place in
    `anomalies.KINDS`, of what is planted in the slice's copy."""

    slices: Tensor
    reconstruction: Tensor
    restoration: Tensor
    nll: Tensor
    position: Tensor
    label: Tensor
    kind: Tensor

    def __len__(self) -> int:
        return len(self.slices)

    def filled(self) -> Tensor:
        """All True, (N,) bool: only slices with something in them were kept."""
        return torch.ones(len(self), dtype=torch.bool)

    def order(self, batch: int, seed: int) -> BatchOrder:
        """The batches of a training run."""
        return BatchOrder(self.filled(), batch, seed)

    def joined(self, other: "PlantedData") -> "PlantedData":
        """These slices, then the other's."""
        return PlantedData(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in FIELDS))

    def of_kinds(self, kinds: Sequence[str]) -> "PlantedData":
        """The copies with anomalies of `kinds`."""
        keep = torch.isin(self.kind.cpu(), torch.tensor([KINDS.index(kind) for kind in kinds]))
        return PlantedData(*(getattr(self, name)[keep.to(self.kind.device)] for name in FIELDS))


FIELDS = tuple(PlantedData.__dataclass_fields__)


def make_planted(
    data: SliceData,
    names: Sequence[str],
    model: Model,
    folder: Path,
    copies: int,
    restorations: int,
    seed: int,
    varied: bool = False,
) -> PlantedData:
    """Each volume of `data` in `copies` copies, each with two anomalies of one kind; kinds in turn.

    names: of the volumes in the order of their numbers, for their files in `folder`. restorations: of each slice; with
    none the reconstruction stands for their mean, which takes a third of the time. varied: each copy is deformed and has
    other greys (`vary_volume`), and more slices are kept of tall stacks. Raises CacheError where `folder` holds slices
    that were made otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "networks": networks_sha256(model),
        "precision": model.precision,
        "copies": copies,
        "restorations": restorations,
        "seed": seed,
    } | ({"varied": True} if varied else {})
    check_settings(folder / "settings.json", settings, CacheError)
    numbers, parts = data.volume.unique().tolist(), []
    for i, number in enumerate(tqdm(numbers, desc="planting", unit="volume", disable=None)):
        name, kinds = names[number], [KINDS[(i * copies + copy) % len(KINDS)] for copy in range(copies)]
        if not (folder / f"{name}.npz").exists():
            rng = np.random.default_rng([seed, zlib.crc32(name.encode()), *([1] if varied else [])])
            arrays: dict[str, Any] = _planted_volume(
                data, data.volume == number, model, kinds, restorations, rng, varied
            )
            with write_whole(folder / f"{name}.npz") as out:
                np.savez(out, **arrays)
        with np.load(folder / f"{name}.npz", allow_pickle=False) as stored:
            parts.append({field: torch.from_numpy(stored[field]) for field in FIELDS})
    return PlantedData(
        *(torch.cat([part[field] for part in parts]).to(data.slices.device) for field in FIELDS)
    )


def _planted_volume(
    data: SliceData,
    members: Tensor,
    model: Model,
    kinds: Sequence[str],
    restorations: int,
    rng: np.random.Generator,
    varied: bool,
) -> dict[str, np.ndarray]:
    """Slices of all copies of one volume, as `PlantedData`'s arrays."""
    raw = data.slices[members].cpu().float() / 255  # (Z, y, x), anterior first
    position = data.position[members].cpu()
    chosen = []
    for number, kind in enumerate(kinds):
        slices = raw
        if varied:
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            slices = vary_volume(raw, VARIED, data.preprocessing.foreground_threshold, generator)
        if varied or number == 0:
            volume = np.ascontiguousarray(slices.numpy()[:, ::-1].transpose(2, 1, 0))  # (X, Y, Z)
            body = body_mask(volume)
        planted, mask = volume, np.zeros(volume.shape, bool)
        for _ in range(2):
            try:
                planted, new = plant(planted, kind, rng, RADII, body)
                mask |= new
            except ValueError:  # no place for this one
                pass
        more = max(1.0, DENSITY * len(raw) / (CLEAR + AROUND)) if varied else 1.0
        index = _choose(mask, body, rng, round(CLEAR * more), round(AROUND * more))
        slices, label = _as_network_sees(planted, mask, index, data)
        chosen.append((slices, label, position[index], torch.full((len(index),), KINDS.index(kind))))
    slices, label, position, planted_kind = (torch.cat(columns) for columns in zip(*chosen))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    evidence = _evidence(slices, position, model, restorations, generator)
    return {field: values.cpu().numpy() for field, values in evidence.items()} | {
        "position": position.float().numpy(),
        "label": label.numpy(),
        "kind": planted_kind.numpy(),
    }


def _choose(
    mask: np.ndarray, body: np.ndarray, rng: np.random.Generator, clear: int, around: int
) -> np.ndarray:
    """Indices of up to `clear` slices with an anomaly and up to `around` with none, of those with a body."""
    inside, present = mask.any((0, 1)), body.any((0, 1))
    picked = [
        rng.permutation(np.flatnonzero(which))[:count]
        for which, count in ((inside, clear), (~inside & present, around))
    ]
    return np.sort(np.concatenate(picked))


def _as_network_sees(
    planted: np.ndarray, mask: np.ndarray, index: np.ndarray, data: SliceData
) -> tuple[Tensor, Tensor]:
    """Slices (n, S, S), normalised by the statistics of the volume with its anomaly, and labels (n, S / 2, S / 2)."""
    prep = data.preprocessing
    mean, std = intensity_statistics(planted, prep)
    as_slices = lambda v: torch.from_numpy(np.ascontiguousarray(v[:, ::-1, index].transpose(2, 1, 0)))  # noqa: E731
    x, label = as_slices(planted)[:, None], as_slices(mask.astype(np.float32))[:, None]
    size, half = (prep.image_size,) * 2, (prep.image_size // STRIDE,) * 2
    if x.shape[-2:] != size:
        x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    label = F.interpolate(label, half, mode="bilinear", antialias=True, align_corners=False)
    return normalise(x[:, 0], mean, std, prep), (label[:, 0] * 255).round().to(torch.uint8)


@torch.inference_mode()
def _evidence(
    slices: Tensor, position: Tensor, model: Model, restorations: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """What the model makes of slices, float16 by name. On a CPU decoded in bfloat16, which is precise enough here."""
    codes = model.encode(slices, position)
    nll = model.nll(codes, position)
    with torch.autocast(model.device.type, torch.bfloat16):
        decoded = mean = model.decode(codes, position)
    if restorations:
        uniforms = torch.rand(len(codes), restorations, *codes.shape[1:], generator=generator)
        restored = model.restore(codes, position, uniforms, model.about.pixel_threshold)
        with torch.autocast(model.device.type, torch.bfloat16):
            mean = torch.stack(
                [model.decode(restored[:, s], position).float() for s in range(restorations)]
            ).mean(0)
    columns = {"slices": slices, "reconstruction": decoded, "restoration": mean, "nll": nll}
    return {name: values.half() for name, values in columns.items()}
