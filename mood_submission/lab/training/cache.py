"""The training slices, read once from volumes and kept as uint8 in two files: NAME.npy has the slices, NAME.npz all else.

Training itself reads only these: it needs neither nibabel nor SimpleITK, so it can run on a bare GPU machine. On a CPU the
slices stay in their file, mapped into memory. Only what a step needs is read, so they may be more than memory holds.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...cli.output import Progress, say
from ...preprocessing import Preprocessing, harmonise, intensity_statistics, normalise, volume_to_slices
from ...preprocessing.region import another_region, region_of
from ...runtime.files import write_whole
from ..sources import source_of
from .order import BatchOrder

if TYPE_CHECKING:
    from ...volumes import Source, Volume

SPLITS = ("train", "validation", "test")
# What is cached of each slice beside its pixels.
COLUMNS = ("position", "volume", "mean", "std", "filled")
# So many volumes, evenly spread, show whether all are of another region than the one that is asked for.
SHOW_REGION = 5
# What stands in the line on volumes that show another region than the one that is asked for.
OF_ANOTHER_REGION = "look like another region"


class CacheError(ValueError):
    """A cache file that is missing, unreadable or of another kind than asked for."""


def build_cache(
    folders: Path | Sequence[Path],
    file: Path,
    preprocessing: Preprocessing,
    max_slices: int | None = None,
    *,
    leave_out: Sequence[str] = (),
    hold_out: Sequence[str] = (),
) -> None:
    """Read the volumes of folders, and write their axial slices as uint8.

    The slices have the network's size, or the volumes' own where that is smaller and the array is the frame. One volume is in
    memory at a time. What cannot be read is named on stderr and left out.

    folders: see `volumes.find_volumes`.
    file: the cache, .npz. The slices themselves are written beside it, as .npy.
    preprocessing: how volumes become slices.
    max_slices: the most slices of a volume, evenly spaced. None for those that prediction looks at by default.
    leave_out: patterns of names, such as "ucla*", of volumes that are not read.
    hold_out: patterns of names of the volumes for validation. Where there are any, all others are trained on, and none is kept
        for a test.
    Raises VolumeError for a folder without volumes and where none can be read, CacheError for two volumes of one name, for
    patterns in `hold_out` that no volume has, and where volumes show another region, see `check_region`.
    """
    from ...volumes import VolumeError, read_volume

    sources = _training_volumes([folders] if isinstance(folders, Path) else list(folders), leave_out)
    check_region(sources, preprocessing.region)
    framing = _framing(preprocessing, sources)
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    names: list[str] = []
    shown: list[str | None] = []
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as hidden, open(Path(hidden, "slices"), "wb") as raw:
        with Progress(len(sources), "caching slices") as progress:
            for source in progress.counting(sources):
                try:
                    volume = read_volume(source)
                    slices, values = _slices_of(volume, framing, preprocessing, max_slices)
                except VolumeError as error:
                    say(f"left out: {error}")
                    continue
                shown.append(region_of(volume.data, volume.spacing))
                raw.write(slices.tobytes())
                for name, value in (values | {"volume": np.full(len(slices), np.int32(len(names)))}).items():
                    columns[name].append(value)
                names.append(source.name)
        if not names:
            raise VolumeError(
                f"{sources[0].path.parent}: expected volumes, found none of {len(sources)} files readable"
            )
        _refuse_another_region(shown, sources[-1], preprocessing.region)
        odd = [name for name, region in zip(names, shown) if region not in (None, preprocessing.region)]
        if odd:
            say(
                f"{len(odd)} of {len(names)} volumes {OF_ANOTHER_REGION} than {preprocessing.region} and are taken as "
                f"they are: {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}; --leave-out leaves volumes out"
            )
        arrays: dict[str, Any] = {name: np.concatenate(values) for name, values in columns.items()}
        held_out = [name for name in names if matches(name, hold_out)]
        if hold_out and not held_out:
            raise CacheError(
                f"{sources[0].path.parent}: expected volumes named {', '.join(hold_out)} to hold out, found none"
            )
        about = {"names": names, "preprocessing": preprocessing.to_dict(), "held_out": held_out}
        # Windows opens no file twice.
        raw.close()
        arrays |= {"about": np.array(json.dumps(about))}
        _write(file, arrays, Path(raw.name), framing.image_size)


def check_region(sources: Sequence["Source"], region: str) -> None:
    """Read a few volumes, evenly spread over all, before hours are spent on them.

    Raises CacheError where most of these show a region for sure, and all that do one other region. What cannot be read is named
    later.
    """
    from ...volumes import VolumeError, read_volume

    shown: list[str | None] = []
    places = np.linspace(0, len(sources) - 1, min(SHOW_REGION, len(sources))).round().astype(int)
    for place in places:
        with suppress(VolumeError):
            volume = read_volume(sources[place])
            shown.append(region_of(volume.data, volume.spacing))
    _refuse_another_region(shown, sources[-1], region)


def _refuse_another_region(shown: Sequence[str | None], source: "Source", region: str) -> None:
    """Raises CacheError where most volumes show a region for sure, and all of these one other region.

    shown: their regions. source: the last of them.
    """
    if (other := another_region(shown, region)) is not None:
        raise CacheError(
            f"{source}: expected volumes of region {region}, found that {shown.count(other)} of {len(shown)} that were read look "
            f"like {other}, and none like {region}; pass --region {other}, or --leave-out with the names of those that are not "
            "meant"
        )


def _framing(preprocessing: Preprocessing, sources: "Sequence[Source]") -> Preprocessing:
    """The preprocessing with the side that slices are cached at."""
    from ...volumes import VolumeError, read_volume

    side = preprocessing.image_size
    if preprocessing.frame == "array":
        longest = []
        for source in sources[:3]:
            try:
                longest.append(max(read_volume(source).data.shape[:2]))
            # It is named when its turn comes.
            except VolumeError:
                pass
        side = min(side, max(longest, default=side))
    return dataclasses.replace(preprocessing, image_size=side)


def _slices_of(
    volume: "Volume", framing: Preprocessing, preprocessing: Preprocessing, max_slices: int | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A volume's slices (n, S, S) uint8, and n values of each of COLUMNS but its number."""
    data, view = harmonise(volume.data, volume.spacing, framing)
    mean, std = intensity_statistics(data, preprocessing)
    indices = view.indices(max_slices)
    slices = volume_to_slices(data, volume.spacing, indices, framing, view=view)
    cached = (slices * 255).round().clamp(0, 255).to(torch.uint8)
    return cached.numpy(), {
        "position": view.positions(indices),
        "mean": np.full(len(indices), np.float32(mean)),
        "std": np.full(len(indices), np.float32(std)),
        "filled": _filled(cached, preprocessing).numpy(),
    }


def _filled(slices: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Which slices (N, S, S) uint8 have at least 1% of their pixels above the foreground threshold, (N,) bool."""
    threshold = int(preprocessing.foreground_threshold * 255)
    return torch.stack([(s > threshold).float().mean() > 0.01 for s in slices])


def _write(file: Path, arrays: dict[str, Any], raw: Path, side: int) -> None:
    """The arrays to `file`, and the slices, whose bytes `raw` holds, to the .npy beside it.

    An older cache of that name is deleted first. So a kill never leaves the columns of one beside the slices of another.
    """
    slices = np.memmap(raw, np.uint8, "r", shape=(len(arrays["volume"]), side, side))
    file.unlink(missing_ok=True)
    with write_whole(pixels_of(file)) as out:
        np.save(out, slices)
    with write_whole(file) as out:
        np.savez(out, **arrays)


def pixels_of(file: Path) -> Path:
    """Where the slices of a cache lie."""
    return file.with_suffix(".npy")


def _training_volumes(folders: Sequence[Path], leave_out: Sequence[str]) -> "list[Source]":
    from ...volumes import FORMATS, VolumeError, find_volumes

    sources = []
    for folder in folders:
        found = [source for source in find_volumes(folder) if not matches(source.name, leave_out)]
        if not found:
            raise VolumeError(
                f"{folder}: expected {FORMATS}, found none"
                + (f" but those left out ({', '.join(leave_out)})" if leave_out else "")
            )
        sources += found
    names = [source.name for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CacheError(f"{', '.join(map(str, folders))}: expected each volume's name once, found {twice} twice")
    return sources


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a volume's name fits one of the patterns, such as "ucla*"."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def split_names(
    names: list[str], validation: float = 0.1, test: float = 0.1, held_out: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Volumes' names by split, which the names alone decide.

    Names are grouped by source (`source_of`). The first of each group by hash are held out.

    names: of all volumes.
    validation, test: shares of each group. Of a large enough group at least one volume is held out where a share is above 0.
    held_out: where it names any, these are for validation instead, and all others are trained on.
    """
    if held_out:
        rest = sorted(set(names) - set(held_out))
        return {"train": rest, "validation": sorted(held_out), "test": []}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(source_of(name), []).append(name)
    split: dict[str, list[str]] = {name: [] for name in SPLITS}
    for group in groups.values():
        ordered = sorted(group, key=lambda name: hashlib.sha256(os.fsencode(name)).hexdigest())
        n_validation = round(len(group) * validation) or int(validation > 0 and len(group) > 2)
        n_test = round(len(group) * test) or int(test > 0 and len(group) > 3)
        split["validation"] += ordered[:n_validation]
        split["test"] += ordered[n_validation : n_validation + n_test]
        split["train"] += ordered[n_validation + n_test :]
    return {name: sorted(values) for name, values in split.items()}


@dataclass
class SliceData:
    """N cached slices on a device.

    slices: (M, S, S) uint8, these slices and perhaps others.
    rows: (N,) int64, where each slice stands in `slices`.
    position: (N, 1), -0.5 .. 0.5.
    mean, std: (N, 1, 1), the statistics of each slice's volume.
    volume: (N,), the number of each slice's volume.
    filled: (N,) bool, whether a slice shows anatomy.
    preprocessing: how volumes became slices.
    """

    slices: Tensor
    rows: Tensor
    position: Tensor
    mean: Tensor
    std: Tensor
    volume: Tensor
    filled: Tensor
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, index: Tensor) -> Tensor:
        """Slices in [0, 1] at the cached size, (B, S, S) float32."""
        return self.slices[self.rows[index]].float() / 255

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

    def order(self, batch: int, seed: int) -> BatchOrder:
        """The batches of a training run."""
        return BatchOrder(self.filled.cpu(), batch, seed)


def cache_names(file: Path) -> list[str]:
    """The volumes' names in the order of their numbers."""
    with np.load(file, allow_pickle=False) as stored:
        return json.loads(str(stored["about"]))["names"]


def load_cache(
    file: Path, device: str | torch.device = "cpu", validation: float = 0.1, test: float = 0.1
) -> tuple[dict[str, SliceData], dict[str, list[str]]]:
    """Splits of a cache file as `SliceData`, and the names in each. Raises CacheError when `file` is not a cache."""
    device = torch.device(device)
    try:
        with np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            arrays = {name: torch.from_numpy(stored[name]) for name in COLUMNS if name in stored}
            # Older caches have their slices in the same file.
            pixels = stored["slices"] if "slices" in stored else np.load(pixels_of(file), mmap_mode="c")
        slices = torch.from_numpy(pixels)
    except FileNotFoundError as error:
        raise CacheError(f"{error.filename}: expected a slice cache, found no such file") from None
    # A file of another kind fails in many ways: as zip, by its keys, as JSON.
    except Exception as error:
        raise CacheError(
            f"{file}: expected a slice cache (.npz of mood-submission train cache), found {error!r}"
        ) from None
    if len(slices) != len(arrays["volume"]):
        raise CacheError(
            f"{pixels_of(file)}: expected the {len(arrays['volume'])} slices of {file.name}, found {len(slices)}"
        )
    names = split_names(about["names"], validation, test, about.get("held_out", ()))
    preprocessing = Preprocessing.from_dict(about["preprocessing"])
    if "filled" not in arrays:
        arrays["filled"] = _filled(slices, preprocessing)
    splits = {}
    for split, members in names.items():
        numbers = torch.tensor([about["names"].index(name) for name in members], dtype=torch.int32)
        rows = torch.isin(arrays["volume"], numbers).nonzero()[:, 0]
        chosen = {name: value[rows].to(device) for name, value in arrays.items()}
        # A GPU is given a split's slices all at once. On the CPU all splits share one array.
        moved = device.type != "cpu"
        splits[split] = SliceData(
            slices=slices[rows].to(device) if moved else slices,
            rows=torch.arange(len(rows), device=device) if moved else rows,
            position=chosen["position"],
            mean=chosen["mean"][:, None, None],
            std=chosen["std"][:, None, None],
            volume=chosen["volume"],
            filled=chosen["filled"],
            preprocessing=preprocessing,
        )
    return splits, names
