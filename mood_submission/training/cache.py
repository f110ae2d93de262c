"""The training slices, read once from NIfTI and kept as uint8 in one .npz file.

Training itself reads only this file: it needs neither nibabel nor SimpleITK, so it can run on a bare GPU machine.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..preprocessing import Preprocessing, harmonise, intensity_statistics, normalise, volume_to_slices
from ..runtime.files import write_whole
from ..runtime.sources import source_of
from .order import BatchOrder

SPLITS = ("train", "validation", "test")


class CacheError(ValueError):
    """A cache file that is missing, unreadable or of another kind than asked for."""


def build_cache(
    folders: Path | Sequence[Path],
    file: Path,
    preprocessing: Preprocessing,
    max_slices: int | None = None,
    leave_out: Sequence[str] = (),
) -> None:
    """Read every volume right in `folders` and write its axial slices as uint8 to `file` (.npz).

    The slices have the network's size, or the volumes' own where that is smaller and the array is the frame. `max_slices`: at
    most so many, evenly spaced, a volume; None for those that prediction looks at by default. leave_out: patterns of names,
    such as "ucla*", of volumes that are not to be read.
    Raises VolumeError for a folder without volumes or a file that is not one, CacheError for two volumes of one name.
    """
    from ..volumes import read_volume, volume_name

    paths = _training_volumes([folders] if isinstance(folders, Path) else list(folders), leave_out)
    side = preprocessing.image_size
    if preprocessing.frame == "array":
        side = min(side, max(max(read_volume(path).data.shape[:2]) for path in paths[:3]))
    framing = dataclasses.replace(preprocessing, image_size=side)
    columns: dict[str, list] = {name: [] for name in ("slices", "position", "volume", "mean", "std")}
    for number, path in enumerate(tqdm(paths, desc="caching slices", unit="volume", disable=None)):
        volume = read_volume(path)
        data, view = harmonise(volume.data, volume.spacing, framing)
        mean, std = intensity_statistics(data, preprocessing)
        indices = view.indices(max_slices)
        slices = volume_to_slices(data, volume.spacing, indices, framing, view=view)
        columns["slices"].append((slices * 255).round().clamp(0, 255).to(torch.uint8).numpy())
        columns["position"].append(view.positions(indices))
        for name, value in (
            ("volume", np.int32(number)),
            ("mean", np.float32(mean)),
            ("std", np.float32(std)),
        ):
            columns[name].append(np.full(len(indices), value))
    arrays: dict[str, Any] = {name: np.concatenate(values) for name, values in columns.items()}
    names = [volume_name(path) for path in paths]
    about = json.dumps({"names": names, "preprocessing": preprocessing.to_dict()})
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(file) as out:
        np.savez_compressed(out, about=np.array(about), **arrays)


def _training_volumes(folders: Sequence[Path], leave_out: Sequence[str]) -> list[Path]:
    from ..volumes import FORMATS, VolumeError, find_volumes, volume_name

    paths = []
    for folder in folders:
        found = [
            path
            for path in find_volumes(folder)
            if not any(fnmatch(volume_name(path), pattern) for pattern in leave_out)
        ]
        if not found:
            raise VolumeError(
                f"{folder}: expected {FORMATS}, found none"
                + (f" but those left out ({', '.join(leave_out)})" if leave_out else "")
            )
        paths += found
    names = [volume_name(path) for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CacheError(
            f"{', '.join(map(str, folders))}: expected each volume's name once, found {twice} twice"
        )
    return paths


def split_names(names: list[str], validation: float, test: float) -> dict[str, list[str]]:
    """Volumes' names by split. Fixed by the names alone, and by source: names are grouped by source (`source_of`),
    ordered by hash within a group, and the first share of each group is held out (at least one, where asked for any).
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(source_of(name), []).append(name)
    split: dict[str, list[str]] = {name: [] for name in SPLITS}
    for group in groups.values():
        ordered = sorted(group, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        n_validation = round(len(group) * validation) or int(validation > 0 and len(group) > 2)
        n_test = round(len(group) * test) or int(test > 0 and len(group) > 3)
        split["validation"] += ordered[:n_validation]
        split["test"] += ordered[n_validation : n_validation + n_test]
        split["train"] += ordered[n_validation + n_test :]
    return {name: sorted(values) for name, values in split.items()}


@dataclass
class SliceData:
    """Cached slices on a device: slices (N, S, S) uint8, position (N, 1), mean and std (N, 1, 1), volume (N,)."""

    slices: Tensor
    position: Tensor
    mean: Tensor
    std: Tensor
    volume: Tensor
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.slices)

    def raw(self, index: Tensor) -> Tensor:
        """Slices in [0, 1] at the cached size, (B, S, S) float32."""
        return self.slices[index].float() / 255

    def normalised(self, index: Tensor, slices: Tensor) -> Tensor:
        """Slices (B, H, W) in [0, 1] -> the network's intensities, with their volumes' statistics."""
        return normalise(slices, self.mean[index], self.std[index], self.preprocessing)

    def plain(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Slices as prediction sees them, (B, S', S') and positions (B, 1): resized, normalised, not augmented."""
        size = self.preprocessing.image_size
        x = self.raw(index)[:, None]
        if x.shape[-1] != size:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        return self.normalised(index, x[:, 0]), self.position[index]

    def filled(self) -> Tensor:
        """Which slices have at least 1% of their pixels above the foreground threshold, (N,) bool."""
        threshold = int(self.preprocessing.foreground_threshold * 255)
        return torch.stack([(s > threshold).float().mean() > 0.01 for s in self.slices])

    def order(self, batch: int, seed: int) -> BatchOrder:
        """The batches of a training run."""
        return BatchOrder(self.filled().cpu(), batch, seed)


def cache_names(file: Path) -> list[str]:
    """The volumes' names in the order of their numbers."""
    with np.load(file, allow_pickle=False) as stored:
        return json.loads(str(stored["about"]))["names"]


def load_cache(
    file: Path, device: str | torch.device = "cpu", validation: float = 0.1, test: float = 0.1
) -> tuple[dict[str, SliceData], dict[str, list[str]]]:
    """Splits of a cache file as `SliceData`, and the names in each. Raises CacheError when `file` is not a cache."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            arrays = {
                name: torch.from_numpy(stored[name])
                for name in ("slices", "position", "volume", "mean", "std")
            }
    except FileNotFoundError:
        raise CacheError(f"{file}: expected a slice cache, found no such file") from None
    except Exception as error:  # zip, key, JSON: whatever a file of another kind gives
        raise CacheError(
            f"{file}: expected a slice cache (.npz of mood-submission train cache), found {error!r}"
        ) from None
    names = split_names(about["names"], validation, test)
    preprocessing = Preprocessing.from_dict(about["preprocessing"])
    splits = {}
    for split, members in names.items():
        numbers = torch.tensor([about["names"].index(name) for name in members], dtype=torch.int32)
        keep = torch.isin(arrays["volume"], numbers)
        chosen = {name: value[keep].to(device) for name, value in arrays.items()}
        splits[split] = SliceData(
            chosen["slices"],
            chosen["position"],
            chosen["mean"][:, None, None],
            chosen["std"][:, None, None],
            chosen["volume"],
            preprocessing,
        )
    return splits, names
