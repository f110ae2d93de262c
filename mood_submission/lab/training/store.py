"""A store of planted volumes and what a finished model makes of them, renewed while a detector trains on it.

One process plants (`Planter`), another trains (`Store`). A file holds one healthy volume, randomised as a whole, and a few
variants of it with anomalies. The networks work slice by slice. So a file holds only those slices of a variant that changed.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...evidence.evidence import Evidence
from ...evidence.normalised import NormalisedEvidence
from ...evidence.symmetry import Midline, find_midline
from ...model import Model
from ...model_file import networks_sha256
from ...networks.layers import at_size
from ...preprocessing import normalise
from ...preprocessing.body import body_mask
from ...preprocessing.positions import relative_positions
from ...runtime.files import write_whole
from ...runtime.option_types import positive, radius_share, share
from ...runtime.options import option
from ..planting.anomalies import KINDS, plant
from ..planting.varied import PASTED, TRAINING_KINDS, Host, plant_varied
from ..settings_file import check_settings
from ..sources import source_shares
from .cache import CacheError, SliceData
from .randomise import RANDOMISATIONS, randomise

# How volumes are randomised, and how often.
MIXTURE = {None: 0.15, "mild": 0.35, "medium": 0.3, "bold": 0.2}
# The number of anomalies in a variant is drawn from these.
COUNTS = (1, 1, 1, 2, 3)
# A slice whose pixels all differ by less, on the [0, 1] scale, is as it was.
CHANGED = 2e-3


@dataclass(frozen=True)
class PlantingSettings:
    """What is planted.

    variants: how many of each volume, with anomalies.
    kinds: of anomaly, of `varied.TRAINING_KINDS`.
    benchmark: plant one anomaly a variant as `anomalies.plant` does, in volumes that are not randomised. It is for validation.
    restored: share of volumes that are also restored. These are `short` slices high.
    restorations: of each slice of these.
    short: the fewest slices of a part of a volume.
    partial: share of volumes of which only some slices are taken, `short` or more that follow each other, or every second one
        of these. Relative positions are then those of a scan that holds no other slices.
    radii: of anomalies, as shares of the field of view, the lower bound first. None for those of `varied.BANDS`, and for spots
        for `lesions.SPOT_RADII`.
    together: how many anomalies a variant has, or fewer where no place is found for all. None for one of COUNTS.
    seed: of what is planted where.
    Raises ValueError where the lower bound of `radii` is above the higher one.
    """

    variants: int = option("of each volume, with anomalies", type=positive, default=3)
    kinds: tuple[str, ...] = option("kinds of anomaly", choices=TRAINING_KINDS, default=TRAINING_KINDS)
    benchmark: bool = False
    restored: float = option("share of volumes that are restored too", type=share, default=0.0)
    restorations: int = option("of each slice of these", type=positive, default=2)
    short: int = 24
    partial: float = option(
        "share of volumes of which a part is taken, as from a scan that covers less", type=share, default=0.0
    )
    radii: tuple[float, float] | None = option(
        "radii of anomalies, as shares of the field of view; below 0.012 most kinds find no place where they would be seen "
        "(default: of every size, most of them 0.04 to 0.2)",
        nargs=2,
        metavar=("LOW", "HIGH"),
        type=radius_share,
        default=None,
    )
    together: int | None = option(
        "anomalies in each variant, fewer where no place is found for all; a group of spots is one (default: 1, 2 or 3)",
        type=positive,
        metavar="N",
        default=None,
    )
    seed: int = option("of what is planted where", default=0)

    def __post_init__(self) -> None:
        if self.radii and self.radii[0] > self.radii[1]:
            raise ValueError(f"--radii: expected LOW and then HIGH, found {self.radii[0]:g} {self.radii[1]:g}")


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Slices of a volume: their numbers in the cache, (N,) int64, and their relative positions, (N, 1), on the CPU."""

    members: Tensor
    position: Tensor

    def at(self, index: Tensor) -> "_Chosen":
        """Some of them. index: (M,) int64."""
        return _Chosen(self.members[index], self.position[index])


class Planter:
    """Makes the store's files, each from its number alone.

    data: on the CPU, wherever the model is.
    model: see `plant.planting_model`.
    settings: what is planted.
    names: of all volumes, by their numbers. With them volumes of small sources are drawn more often (`source_shares`). Without
        them all are drawn alike.
    """

    def __init__(self, data: SliceData, model: Model, settings: PlantingSettings, names: Sequence[str] = ()):
        self.data, self.settings, self.model = data, settings, model
        self.numbers = data.volume.unique().tolist()
        self.shares = source_shares([names[number] for number in self.numbers]) if names else None

    def volume(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of file `number`, as `StoredVolume` reads them."""
        rng = np.random.default_rng([self.settings.seed, number])
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        members, restored = self._chosen(number, rng)
        chosen = self._positioned(members, rng)
        members = chosen.members
        slices = self._randomised(members, rng, generator)
        healthy = np.arange(len(slices))
        parts = [self._evidence(slices, chosen, restored, generator)]
        parts[0]["label"] = torch.zeros(slices.shape, dtype=torch.bool)
        rows, kinds = [healthy], [""]
        for planted, mask, names in self._variants(slices, number, rng):
            differs = (np.abs(planted - slices.numpy()) > CHANGED) | mask
            changed = torch.from_numpy(np.flatnonzero(differs.any((1, 2))))
            new = self._evidence(torch.from_numpy(planted)[changed], chosen.at(changed), restored, generator)
            rows.append(healthy.copy())
            rows[-1][changed.numpy()] = sum(len(part["label"]) for part in parts) + np.arange(len(changed))
            parts.append(new | {"label": torch.from_numpy(mask)[changed]})
            kinds.append(names)
        arrays = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        position = chosen.position
        return {name: array.numpy() for name, array in arrays.items()} | {
            "rows": np.stack(rows),
            "scales": np.array([_scales(arrays, row, position) for row in rows], np.float32),
            "position": position.float().numpy(),
            "kinds": np.array(json.dumps(kinds)),
            "volume": np.array(int(self.data.volume[members[0]])),
            **self._midline(arrays["slices"][: len(members)], position),
        }

    def _midline(self, healthy: Tensor, position: Tensor) -> dict[str, np.ndarray]:
        """The plane that the volume is nearly symmetrical about, of a region that is symmetrical."""
        if not self.data.preprocessing.places_by_anatomy:
            return {}
        return {"midline": np.array(astuple(find_midline(healthy, position)))}

    def _chosen(self, number: int, rng: np.random.Generator) -> tuple[Tensor, bool]:
        """The slices of the healthy volume of file `number`, and whether they are restored. Those that are restored are few."""
        s = self.settings
        in_turn = self.numbers[number % len(self.numbers)]
        members = self._members(in_turn if s.benchmark else int(rng.choice(self.numbers, p=self.shares)))
        restored = rng.random() < s.restored
        if restored and len(members) > s.short:
            start = int(rng.integers(len(members) - s.short + 1))
            members = members[start : start + s.short]
        return members, restored

    def _positioned(self, members: Tensor, rng: np.random.Generator) -> "_Chosen":
        """The slices with their positions. Or some of the slices, with the positions in a scan that holds no others."""
        short, count = self.settings.short, len(members)
        # Nothing is drawn without partial volumes, so that stores made before keep their random numbers.
        if not self.settings.partial or count <= short or rng.random() >= self.settings.partial:
            return _Chosen(members, self.data.position[members].cpu())
        length = int(rng.integers(short, count + 1))
        start = int(rng.integers(count - length + 1))
        step = 2 if length >= 2 * short and rng.random() < 0.4 else 1
        members = members[start : start + length : step]
        position = self.data.position[members].cpu()
        if not self.data.preprocessing.places_by_anatomy:
            position = torch.from_numpy(relative_positions(np.arange(len(members)), len(members)))
        return _Chosen(members, position)

    def _members(self, number: int) -> Tensor:
        return (self.data.volume == number).nonzero()[:, 0]

    def _randomised(self, members: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        prep, raw = self.data.preprocessing, self._raw(members)
        if self.settings.benchmark:
            return raw
        name = list(MIXTURE)[rng.choice(len(MIXTURE), p=list(MIXTURE.values()))]
        if name is None:
            return raw
        how = RANDOMISATIONS[prep.region][name]
        return randomise(raw, prep.image_size, how, prep.foreground_threshold, generator, together=True)

    def _variants(
        self, slices: Tensor, number: int, rng: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
        """Planted slices (Z, S, S), mask (Z, S, S) and kinds of each variant. Variants without a place for any are left out."""
        s = self.settings
        # (X, Y, Z).
        volume = np.ascontiguousarray(slices.numpy()[:, ::-1].transpose(2, 1, 0))
        host = Host.of(volume, body_mask(volume), self._height())
        for v in range(s.variants):
            planted, mask = host.volume, np.zeros(volume.shape, bool)
            names: list[str] = []
            for _ in range(1 if s.benchmark else s.together or int(rng.choice(COUNTS))):
                in_turn = s.kinds[(number * s.variants + v) % len(s.kinds)]
                kind = in_turn if s.benchmark else str(rng.choice(s.kinds))
                try:
                    planted, new = self._planted(replace(host, volume=planted), kind, rng)
                    mask, names = mask | new, [*names, kind]
                # There was no place for this one.
                except ValueError:
                    pass
            if names:
                planted, mask = (np.ascontiguousarray(a.transpose(2, 1, 0)[:, ::-1]) for a in (planted, mask))
                yield planted, mask, "+".join(names)

    def _planted(self, host: Host, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The host's volume with one anomaly, and its mask. Raises ValueError where no place for it is found."""
        if self.settings.benchmark:
            return plant(host.volume, kind, rng, body=host.body)
        donor = self._donor(host.volume.shape, rng) if kind in PASTED else None
        return plant_varied(host, kind, rng, donor, radii=self.settings.radii)

    def _raw(self, members: Tensor) -> Tensor:
        """Slices at the network's size, to which caches of the published preprocessing bring them only here."""
        return at_size(self.data.raw(members).cpu(), (self.data.preprocessing.image_size,) * 2)

    def _height(self) -> float:
        prep = self.data.preprocessing
        if prep.slice_distance:
            return prep.field_of_view / prep.slice_distance
        return len(self.data) / len(self.numbers)

    def _donor(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Another volume of the same height. Beyond its top and bottom, its last slices are repeated."""
        raw = self._raw(self._members(int(rng.choice(self.numbers)))).numpy()
        start = (len(raw) - shape[2]) // 2
        raw = raw[np.clip(np.arange(shape[2]) + start, 0, len(raw) - 1)]
        return raw[:, ::-1].transpose(2, 1, 0)

    @torch.inference_mode()
    def _evidence(
        self, slices: Tensor, chosen: "_Chosen", restored: bool, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """float16 on the CPU, by name: what the model makes of slices (N, S, S) in [0, 1]."""
        data, model, members = self.data, self.model, chosen.members
        x = normalise(slices, data.mean[members], data.std[members], data.preprocessing)
        evidence = Evidence(model, x, chosen.position)
        if restored:
            size = (len(x), self.settings.restorations, *evidence.codes.shape[1:])
            uniforms, threshold = torch.rand(size, generator=generator), model.about.pixel_threshold
            drawn = model.restore(evidence.codes, evidence.position, uniforms, threshold)
            evidence = evidence.with_restorations(drawn)
        maps = {"slices": x, "reconstruction": evidence.decoded, "nll": evidence.nll}
        if evidence.restored is not None:
            maps["restoration"] = evidence.restored
        return {name: values.half().cpu() for name, values in maps.items()}


def _scales(arrays: dict[str, Tensor], rows: np.ndarray, position: Tensor) -> tuple[float, float, float]:
    """What is usual in the variant whose slices stand in `rows` of the arrays."""
    slices, decoded, nll = (arrays[name][rows] for name in ("slices", "reconstruction", "nll"))
    found = NormalisedEvidence.of(slices, decoded, decoded, nll, position)
    return found.residual, found.usual, found.high


def fill_store(
    planter: Planter,
    folder: Path,
    count: int | None,
    *,
    minutes: float | None = None,
    keep: int | None = None,
    shard: tuple[int, int] = (1, 1),
) -> int:
    """Add files to the store.

    count: of files that the store is to have had in all. None for no limit.
    minutes: how long to go on. None for no limit.
    keep: of the newest files, how many are kept. None for all.
    shard: (I, N). This process, one of N that fill the store together, makes every N-th file from the I-th on.
    Returns how many were made. Raises CacheError for a store that was made with other networks or settings.
    """
    first, step = shard[0] - 1, shard[1]
    folder.mkdir(parents=True, exist_ok=True)
    made_with = {"networks": networks_sha256(planter.model), **asdict(planter.settings)}
    if planter.data.preprocessing.places_by_anatomy:
        made_with["midlines"] = True
    check_settings(folder / "settings.json", made_with, CacheError)
    mine = [number for number in map(_number, stored_files(folder)) if number % step == first]
    number = mine[-1] + step if mine else first
    end, made = time.monotonic() + 60 * (minutes or 1e9), 0
    with tqdm(total=count, initial=number, desc="planting", unit="volume", disable=None) as bar:
        while (count is None or number < count) and time.monotonic() < end:
            arrays: dict[str, Any] = planter.volume(number)
            with write_whole(folder / f"{number:06d}.npz") as out:
                np.savez(out, **arrays)
            number, made = number + step, made + 1
            bar.update(step)
            if keep:
                for old in stored_files(folder)[:-keep]:
                    # Another process may have been first.
                    old.unlink(missing_ok=True)
    return made


def store_settings(folder: Path) -> dict:
    """What the store was made with: `PlantingSettings` and `networks`, the sha256 of the VQ-VAE and the prior."""
    return json.loads((folder / "settings.json").read_text("utf-8"))


def stored_files(folder: Path) -> list[Path]:
    """The store's files, oldest first: those called by a number. Another process may take one away at any moment."""
    return sorted((file for file in folder.glob("*.npz") if file.stem.isdecimal()), key=_number)


def count_healthy_only(folder: Path) -> int:
    """How many of the store's volumes show no anomaly in any variant, since no place was found for one."""
    count = 0
    for file in stored_files(folder):
        # Another process may take a file away.
        with suppress(FileNotFoundError), np.load(file, allow_pickle=False) as stored:
            count += not any(json.loads(str(stored["kinds"])))
    return count


def _number(file: Path) -> int:
    return int(file.stem)


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """A file of the store in memory.

    variants: evidence of each, the healthy volume first.
    kinds: of the anomalies in each variant, joined by "+". "" for the healthy volume.
    label: (R, S, S) bool, by row of the evidence.
    volume: the healthy volume's number.
    """

    variants: list[NormalisedEvidence]
    kinds: list[str]
    label: Tensor
    volume: int

    @classmethod
    def read(cls, file: Path) -> "StoredVolume":
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: torch.from_numpy(stored[name]) for name in stored if name != "kinds"}
            kinds = json.loads(str(stored["kinds"]))
        arrays.setdefault("restoration", arrays["reconstruction"])
        variants = []
        for rows, scales in zip(arrays["rows"], arrays["scales"].tolist()):
            position = torch.zeros(len(arrays["slices"]), 1)
            position[rows] = arrays["position"]
            variants.append(
                NormalisedEvidence(
                    slices=arrays["slices"],
                    reconstruction=arrays["reconstruction"],
                    restoration=arrays["restoration"],
                    nll=arrays["nll"],
                    position=position,
                    residual=scales[0],
                    usual=scales[1],
                    high=scales[2],
                    rows=rows,
                    midline=Midline(*arrays["midline"].tolist()) if "midline" in arrays else None,
                )
            )
        return cls(variants, kinds, arrays["label"], int(arrays["volume"]))

    def without(self, kinds: Collection[str]) -> "StoredVolume":
        """The same without the variants that show an anomaly of one of these kinds."""
        kept = [i for i, shown in enumerate(self.kinds) if not set(shown.split("+")) & set(kinds)]
        return replace(self, variants=[self.variants[i] for i in kept], kinds=[self.kinds[i] for i in kept])

    def labels(self, variant: int) -> Tensor:
        """Where the variant's anomalies are, (Z, S, S) bool."""
        return self.label[self.variants[variant].rows]


class Store:
    """The newest files of a folder, in memory. `refresh` reads what has come since.

    folder: of the store.
    most: how many files of a folder are held.
    without: kinds of anomaly. Variants that show one of them are left out.
    further: folders of more stores, whose volumes are held too.
    volumes: by the names of their files, with the folder before it where that is a further one.
    """

    def __init__(self, folder: Path, most: int = 400, without: Collection[str] = (), *, further: Collection[Path] = ()):
        self.folders, self.most, self.without = (folder, *further), most, without
        self.volumes: dict[str, StoredVolume] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self.volumes)

    def order(self, batch: int, seed: int) -> Callable[[int], Tensor]:
        """Indices that say only how many slices a batch has. The slices are drawn from what the store holds at that step."""
        return lambda step: torch.arange(batch)

    def refresh(self) -> bool:
        """Read what has come. Returns whether anything has."""
        before = list(self.volumes)
        held: dict[str, StoredVolume] = {}
        for i, folder in enumerate(self.folders):
            prefix = f"{folder}/" if i else ""
            own = {name: volume for name, volume in self.volumes.items() if name.rpartition("/")[0] == prefix[:-1]}
            for file in stored_files(folder)[-self.most :]:
                self._read(file, prefix + file.name, own)
            held |= dict(list(own.items())[-self.most :])
        self.volumes = held
        return list(held) != before

    def _read(self, file: Path, name: str, own: dict[str, StoredVolume]) -> None:
        """Add a file's volume to those of its folder, unless it is there. A planter that keeps few may take the file away."""
        if name in own:
            return
        try:
            own[name] = StoredVolume.read(file).without(self.without)
        except OSError:
            if file.exists():
                raise


VALIDATION = PlantingSettings(variants=2, kinds=KINDS, benchmark=True)
