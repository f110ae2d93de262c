"""Slices with anomalies planted in them, and what a finished model makes of them: what a detector is trained on.

Made from cached slices (`cache.py`) alone. One file a volume: a run that was stopped goes on where it was.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..anomalies import KINDS, body_mask, plant
from ..detector import STRIDE
from ..model import Model, networks_sha256
from ..preprocessing import intensity_statistics, normalise
from .cache import CacheError, SliceData

RADII = (0.05, 0.2)     # of what is planted, shares of the field of view: a little more than the benchmark's
CLEAR, AROUND = 6, 4    # slices that are kept of each copy: with an anomaly, and without


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
        """(N,) bool, as `SliceData.filled`: all of them were chosen."""
        return torch.ones(len(self), dtype=torch.bool)

    def of_kinds(self, kinds: Sequence[str]) -> "PlantedData":
        """The copies with anomalies of `kinds`."""
        keep = torch.isin(self.kind.cpu(), torch.tensor([KINDS.index(kind) for kind in kinds]))
        return PlantedData(*(getattr(self, name)[keep.to(self.kind.device)] for name in FIELDS))


FIELDS = tuple(PlantedData.__dataclass_fields__)


def make_planted(data: SliceData, names: Sequence[str], model: Model, folder: Path, copies: int, restorations: int,
                 seed: int) -> PlantedData:
    """Each volume of `data` in `copies` copies, each with two anomalies of one kind; kinds in turn.

    names: of the volumes in the order of their numbers, for their files in `folder`. Raises CacheError where that holds
    slices that were made otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "settings.json", {"networks": networks_sha256(model), "precision": model.precision,
                                               "copies": copies, "restorations": restorations, "seed": seed})
    numbers, parts = data.volume.unique().tolist(), []
    for i, number in enumerate(tqdm(numbers, desc="planting", unit="volume", disable=None)):
        name, kinds = names[number], [KINDS[(i * copies + copy) % len(KINDS)] for copy in range(copies)]
        if not (folder / f"{name}.npz").exists():
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            part = folder / f".{name}.part.npz"
            np.savez(part, **_planted_volume(data, data.volume == number, model, kinds, restorations, rng))
            part.replace(folder / f"{name}.npz")
        with np.load(folder / f"{name}.npz", allow_pickle=False) as stored:
            parts.append({field: torch.from_numpy(stored[field]) for field in FIELDS})
    return PlantedData(*(torch.cat([part[field] for part in parts]).to(data.slices.device) for field in FIELDS))


def _check_settings(file: Path, settings: dict) -> None:
    if file.exists() and json.loads(file.read_text()) != settings:
        raise CacheError(f"{file}: expected planted slices of {settings}, found others; choose another folder")
    file.write_text(json.dumps(settings))


def _planted_volume(data: SliceData, members: Tensor, model: Model, kinds: Sequence[str], restorations: int,
                    rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Slices of all copies of one volume, as `PlantedData`'s arrays."""
    raw = data.slices[members].cpu().numpy().astype(np.float32) / 255           # (Z, y, x), anterior first
    volume = np.ascontiguousarray(raw[:, ::-1].transpose(2, 1, 0))              # (X, Y, Z)
    position, body = data.position[members].cpu(), body_mask(volume)
    chosen = []
    for kind in kinds:
        planted, mask = volume, np.zeros(volume.shape, bool)
        for _ in range(2):
            try:
                planted, new = plant(planted, kind, rng, RADII, body)
                mask |= new
            except ValueError:  # no place for this one
                pass
        index = _choose(mask, body, rng)
        slices, label = _as_network_sees(planted, mask, index, data)
        chosen.append((slices, label, position[index], torch.full((len(index),), KINDS.index(kind))))
    slices, label, position, kind = (torch.cat(columns) for columns in zip(*chosen))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    evidence = _evidence(slices, position, model, restorations, generator)
    return {field: values.cpu().numpy() for field, values in evidence.items()} | {
        "position": position.float().numpy(), "label": label.numpy(), "kind": kind.numpy()}


def _choose(mask: np.ndarray, body: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of up to CLEAR slices with an anomaly and up to AROUND with none, of those with a body."""
    inside, present = mask.any((0, 1)), body.any((0, 1))
    picked = [rng.permutation(np.flatnonzero(which))[:count]
              for which, count in ((inside, CLEAR), (~inside & present, AROUND))]
    return np.sort(np.concatenate(picked))


def _as_network_sees(planted: np.ndarray, mask: np.ndarray, index: np.ndarray, data: SliceData
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
def _evidence(slices: Tensor, position: Tensor, model: Model, restorations: int, generator: torch.Generator
              ) -> dict[str, Tensor]:
    """What the model makes of slices, float16 by name. On a CPU decoded in bfloat16, which is precise enough here."""
    codes = model.encode(slices, position)
    nll = model.nll(codes, position)
    uniforms = torch.rand(len(codes), restorations, *codes.shape[1:], generator=generator)
    restored = model.restore(codes, position, uniforms, model.about.pixel_threshold)
    with torch.autocast(model.device.type, torch.bfloat16):
        decoded = model.decode(codes, position)
        mean = torch.stack([model.decode(restored[:, s], position).float() for s in range(restorations)]).mean(0)
    columns = {"slices": slices, "reconstruction": decoded, "restoration": mean, "nll": nll}
    return {name: values.half() for name, values in columns.items()}
