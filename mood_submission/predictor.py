"""From files to files: read -> preprocess -> encode -> score or restore -> postprocess -> write."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .model import Model
from .preprocessing import (intensity_statistics, normalise, relative_positions, slice_indices, slices_to_volume,
                            to_unit_range, volume_to_slices)
from .scoring import pixel_score, sample_score, smooth, top_score
from .volumes import Volume, VolumeError, read_volume, write_volume

PUBLISHED_SLICES = 32  # a volume: what the published sum over codes is a sum over
TASKS = ("sample", "pixel")


@dataclass(frozen=True)
class Prepared:
    """A volume's slices as the network takes them: slices (N, S, S), position (N, 1), indices (N,) along z."""

    slices: Tensor
    position: Tensor
    indices: np.ndarray


class Predictor:
    """Scores volumes with a model.

    slices: how many slices of a volume are looked at, evenly spaced; None for all. The published method takes 32.
    restorations: how many a slice; None for what the model file says (published 15).
    sample_method: "paper" or "top" (see `model.About`); None for what the model file says.
    seed: of the restorations' draws. Each slice has its own, made of the seed, the file's name and the slice's index, so
        a volume's scores do not depend on what else is in the folder.
    """

    def __init__(self, model: Model, slices: int | None = None, restorations: int | None = None, seed: int = 0,
                 sample_method: str | None = None):
        self.model, self.slices, self.seed = model, slices, seed
        self.sample_method = sample_method or model.about.sample_method
        self.restorations = model.about.restorations if restorations is None else restorations

    def prepare(self, volume: Volume) -> Prepared:
        preprocessing = self.model.about.preprocessing
        data = to_unit_range(volume.data, preprocessing)
        mean, std = intensity_statistics(data, preprocessing)
        depth = data.shape[2]
        indices = slice_indices(depth, self.slices)
        slices = volume_to_slices(data, volume.spacing, indices, preprocessing, self.model.device)
        return Prepared(normalise(slices, mean, std, preprocessing),
                        torch.from_numpy(relative_positions(indices, depth)), indices)

    def sample_score(self, volume: Volume) -> float:
        """How anomalous the volume is, 0 .. 1."""
        about, prepared = self.model.about, self.prepare(volume)
        nll = self.model.nll(self.model.encode(prepared.slices, prepared.position), prepared.position)
        if self.sample_method == "top":  # monotone, 0.5 for a volume like the healthy ones, never 1
            score = top_score(nll)
            return score / (score + about.top_reference)
        total = float(sample_score(nll, about.sample_threshold).double().sum())  # as published
        return min(total * PUBLISHED_SLICES / len(prepared.indices) / about.sample_scale, 1.0)

    def pixel_scores(self, volume: Volume) -> np.ndarray:
        """How anomalous each voxel is, 0 .. 1: (X, Y, Z) float32 in RAS order."""
        prepared = self.prepare(volume)
        codes = self.model.encode(prepared.slices, prepared.position)
        uniforms = self.uniforms(volume.path.name, prepared.indices, codes.shape[1:])
        restored = self.model.restore(codes, prepared.position, uniforms, self.model.about.pixel_threshold)
        scores = self.compare(prepared, restored)
        return slices_to_volume(smooth(scores).clamp(0, 1), prepared.indices, volume.data.shape, volume.spacing)

    def uniforms(self, name: str, indices: np.ndarray, grid: tuple[int, int]) -> Tensor:
        """(N, S, h, w) in [0, 1), made on the CPU so that they are the same for every device."""
        parts = []
        for index in indices:
            digest = hashlib.sha256(f"{self.seed}/{name}/{index}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            parts.append(torch.rand(self.restorations, *grid, generator=generator))
        return torch.stack(parts)

    def compare(self, prepared: Prepared, restored: Tensor) -> Tensor:
        """Pixel scores (N, S', S') of slices, given their restored codes (N, S, h, w). Few slices at a time: the decoded
        restorations of all would be large. Restorations of a slice that came out alike are decoded once."""
        parts = []
        for chunk in torch.arange(len(restored)).split(8):
            codes, position = restored[chunk], prepared.position[chunk]
            owner = torch.arange(len(chunk), device=codes.device)[:, None].expand(codes.shape[:2])
            rows = torch.cat([owner[..., None], codes.flatten(2)], dim=2).flatten(0, 1)         # (n * S, 1 + h * w)
            unique, back = rows.unique(dim=0, return_inverse=True)
            decoded = self.model.decode(unique[:, 1:].unflatten(1, codes.shape[2:]), position.to(codes.device)[unique[:, 0]])
            restorations = decoded[back].unflatten(0, codes.shape[:2])                           # (n, S, S', S')
            slices = prepared.slices[chunk].to(decoded)
            parts.append(pixel_score(slices, restorations, self.model.about.temperature).float())
        return torch.cat(parts)

    def predict_file(self, source: Path, task: str, out: Path) -> float | None:
        """Predict one file into the folder `out`: NAME.nii.gz for pixel scores, NAME.nii.gz.txt for the sample score.

        Returns the sample score (None for the pixel task). Raises VolumeError where the file is no volume.
        """
        volume = read_volume(source)
        if task == "pixel":
            return write_volume(out / source.name, self.pixel_scores(volume), volume.grid)
        score = self.sample_score(volume)
        write_text(out / f"{source.name}.txt", f"{score:.9g}\n")
        return score

    def predict_files(self, sources: Iterable[Path], task: str, out: Path,
                      report: Callable[[str], None] = print) -> list[Path]:
        """Predict each file; one that fails is reported in one line, and the others go on. Returns those that failed."""
        failed = []
        for source in sources:
            try:
                self.predict_file(source, task, out)
            except (VolumeError, MemoryError, torch.OutOfMemoryError) as error:
                text = " ".join(str(error).split()) or type(error).__name__
                report(text if str(source) in text else f"{source}: {text}")
                failed.append(source)
        return failed


def write_text(path: Path, text: str) -> None:
    """Write beside the final place, then rename, so that `path` is never half written."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.replace(part, path)
