"""A training run from its options to its folder: slices.npz, vqvae.pt, prior.pt, detector.pt, their logs and pictures."""

import dataclasses
import datetime
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ...methods.paper import top_score
from ...model import Model, load_model, networks_sha256
from ...networks.detector import Detector, DetectorSettings
from ...networks.pixelsnail import PixelSNAIL, PixelSNAILSettings, add_weight_norm, fold_weight_norm
from ...networks.vae import VAE, VAESettings
from ...networks.vqvae import VQVAE, VQVAESettings
from ...preprocessing import Preprocessing
from .augment import Augmentation
from .cache import CacheError, SliceData, build_cache, cache_names, load_cache
from .detector_stage import DetectorStage
from .group import ALONE, Group
from .patches import Drawing
from .randomise import RANDOMISATIONS, Randomisation
from .stage import Data, Network, Parameters, Stage
from .stages import PriorStage, VAEStage, VQVAEStage, evenly, nll_percentiles
from .store import VALIDATION, Planter, PlantingSettings, Store, fill_store, store_settings, stored_files
from .trainer import Budget, Schedule, Trainer, load_checkpoint, save_checkpoint

PUBLISHED_CHANNELS = {"brain": (16, 32, 64, 256), "abdom": (16, 32, 64, 128, 256)}
PUBLISHED_ATTENTION = {
    "brain": {"first_kernel": 7, "downsample": 2},
    "abdom": {"first_kernel": 3, "downsample": 1},
}


AUGMENTATIONS = ("published", "mild", "medium", "bold")


def augmentation_of(region: str, name: str) -> Augmentation | Randomisation:
    """The ranges that a name of AUGMENTATIONS stands for in a region: the paper's set, or a domain randomisation."""
    return Augmentation() if name == "published" else RANDOMISATIONS[region][name]


class RunError(ValueError):
    """A run that cannot be started as asked."""


@dataclass(frozen=True)
class Run:
    """What all stages have in common.

    data: folders of NIfTI volumes, or one cache file made from such. leave_out: patterns of names of volumes not to read.
    hold_out: patterns of names of volumes for validation, instead of the shares `validation` and `test`. preprocessing: how volumes become slices, of a cache that is made anew; None for as published. augment: a name of
    AUGMENTATIONS. group: the processes that train together; what one alone can do, such as reading volumes, the first does.
    """

    region: str
    data: Path | tuple[Path, ...]
    out: Path
    budget: Budget
    schedule: Schedule
    device: torch.device
    resume: bool = False
    start_from: Path | None = None  # another run, or a model file, whose weights to start from
    validation: float = 0.1
    test: float = 0.1
    max_slices: int | None = None
    leave_out: tuple[str, ...] = ()
    hold_out: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    augment: str = "published"
    group: Group = ALONE

    @property
    def folders(self) -> tuple[Path, ...]:
        """What `data` names, as a tuple."""
        return (self.data,) if isinstance(self.data, Path) else tuple(self.data)

    @property
    def cache(self) -> Path:
        """The cache file of this run's slices."""
        return self.folders[0] if self.folders[0].suffix == ".npz" else self.out / "slices.npz"


def plant_store(
    run: Run,
    model_file: Path,
    folder: Path,
    settings: PlantingSettings,
    count: int | None,
    keep: int | None,
    shard: tuple[int, int] = (1, 1),
) -> int:
    """Fill a store for `train_detector`: `count` volumes in all, or for the run's minutes. shard: see `fill_store`. Returns
    how many were made."""
    model = load_model(model_file, run.device, precision="bf16")
    splits, names = _splits(run, torch.device("cpu"))
    _check_volumes(run, names, model, model_file)
    planter = Planter(splits["train"], model, settings, _names_by_number(run))
    return fill_store(planter, folder, count, run.budget.minutes, keep, shard)


def train_detector(
    run: Run,
    settings: DetectorSettings,
    model_file: Path,
    folder: Path,
    most: int,
    drawing: Drawing,
    workers: int = 0,
    validations: int = 12,
    unseen: Sequence[str] = (),
) -> None:
    """Train a detector on the store in `folder`, of which the newest `most` volumes are held in memory, while it may go on
    growing; leaves detector.pt, detector.csv and detector_curves.png in `run.out`. Validated on the benchmark's anomalies in
    the held-out volumes, planted in `folder`/validation where they are not yet.

    drawing: how batches are drawn. workers: processes that draw batches ahead. validations: how often to validate. unseen:
    kinds of anomaly that are not trained on, and that the best detector is judged by.
    Raises RunError where validation shows none of the unseen kinds.
    """
    from . import plots

    if unseen and not set(unseen) & set(VALIDATION.kinds):
        raise RunError(
            f"--unseen: expected one of {', '.join(VALIDATION.kinds)} at least, found {', '.join(unseen)}"
        )
    model = load_model(model_file, run.device, precision="bf16")
    splits, names = _splits(run, torch.device("cpu"))
    _check_volumes(run, names, model, model_file)
    held_out = folder / "validation"
    if run.group.first:
        members = splits["validation"].volume.unique()
        fill_store(Planter(splits["validation"], model, VALIDATION), held_out, len(members))
    run.group.wait()
    data = {"train": Store(folder, most, unseen), "validation": Store(held_out)}
    if not len(data["train"]):
        raise RunError(
            f"{folder}: expected planted volumes, found none; run mood-submission train plant first, or beside this"
        )
    stage = DetectorStage(settings, run.schedule.precision, drawing, workers=workers, unseen=unseen)
    planted = store_settings(folder)
    if unseen:
        planted |= {
            "kinds": [kind for kind in planted["kinds"] if kind not in unseen],
            "unseen": list(unseen),
        }
    if planted["networks"] != networks_sha256(model):
        raise RunError(
            f"{folder}: expected volumes planted with the VQ-VAE and prior of {model_file}, found others"
        )
    about = _about(run, splits, names) | {"detector": asdict(settings), "drawing": asdict(drawing)} | planted
    trainer = _trainer(run, stage, data, about)
    trainer.train(validations=validations)
    if not run.group.first:
        return
    _add_to_about(trainer.file, {"planted_volumes": len(stored_files(folder))})
    plots.curves(run.out / "detector.csv", run.out / "detector_curves.png")


def _check_volumes(run: Run, names: dict[str, list[str]], model: Model, model_file: Path) -> None:
    trained = model.about.training.get("vqvae", {}).get("volumes", names)
    if names != trained:
        raise RunError(
            f"{run.cache}: expected the volumes that {model_file} was trained on, split alike, found others"
        )


def train_vqvae(run: Run, settings: VQVAESettings) -> None:
    """Train a VQ-VAE; leaves vqvae.pt, vqvae.csv, vqvae_curves.png and vqvae_pictures.png in `run.out`."""
    from . import plots

    splits, names = _splits(run)
    stage = VQVAEStage(
        settings, augmentation_of(run.region, run.augment), run.schedule.precision, group=run.group
    )
    trainer = _trainer(run, stage, splits, {"vqvae": asdict(settings), **_about(run, splits, names)})
    model = trainer.train().eval()
    if not run.group.first:
        return
    plots.curves(run.out / "vqvae.csv", run.out / "vqvae_curves.png")
    plots.reconstructions(model, splits["validation"], run.out / "vqvae_pictures.png")


def train_prior(run: Run, settings: dict, vqvae_run: Path) -> None:
    """Train a prior on the codes of the VQ-VAE in `vqvae_run`; leaves prior.pt and the like in `run.out`."""
    from . import plots

    vqvae, vqvae_about = load_vqvae(vqvae_run)
    splits, names = _splits(run)
    prior_settings = PixelSNAILSettings(codebook_size=vqvae.settings.codebook_size, **settings)
    stage = PriorStage(
        prior_settings, vqvae, augmentation_of(run.region, run.augment), run.schedule.precision, run.device
    )
    trainer = _trainer(run, stage, splits, {"prior": asdict(prior_settings), **_about(run, splits, names)})
    model = trainer.train()
    if not run.group.first:
        return
    measured = measure(stage, model, splits)
    _add_to_about(trainer.file, {"measured": measured})
    plots.curves(run.out / "prior.csv", run.out / "prior_curves.png")
    plots.restorations(
        vqvae,
        fold_weight_norm(model).eval(),
        splits["validation"],
        measured["thresholds"]["pixel"],
        run.out / "prior_pictures.png",
    )


def train_vae(run: Run, settings: VAESettings) -> None:
    """Train the VAE that restoration is compared with; leaves vae.pt, vae.csv and pictures in `run.out`."""
    from . import plots

    splits, names = _splits(run)
    settings = dataclasses.replace(settings, image_size=splits["train"].preprocessing.image_size)
    stage = VAEStage(settings, augmentation_of(run.region, run.augment), run.schedule.precision)
    trainer = _trainer(run, stage, splits, {"vae": asdict(settings), **_about(run, splits, names)})
    model = trainer.train().eval()
    if not run.group.first:
        return
    plots.curves(run.out / "vae.csv", run.out / "vae_curves.png")
    plots.reconstructions(model, splits["validation"], run.out / "vae_pictures.png")


def measure(stage: PriorStage, model: PixelSNAIL, splits: dict[str, SliceData]) -> dict:
    """Thresholds and calibration from held-out healthy slices.

    thresholds: lambda_p (90th percentile of the codes' NLL) and lambda_s (98th), as published (section 2).
    sample_scale: what a volume's sum of unlikely NLL (per 32 slices) is divided by: the published 2000, or five times
        the healthy held-out volumes' mean where that is more, so that scores of anomalous volumes stay below 1.
    top_reference: the healthy held-out volumes' mean `top_score`.
    """
    data = splits["validation"]
    index = torch.arange(len(data), device=data.slices.device)
    nll = torch.cat([stage.nll(model, data, part).cpu() for part in index.split(32)])  # (N, h, w)
    pixel, sample = nll_percentiles(nll)
    sums = torch.where(nll > sample, nll, 0).sum((1, 2))
    volumes = data.volume.cpu()
    healthy = [float(sums[volumes == v].mean()) * 32 for v in volumes.unique()]
    tops = [top_score(nll[volumes == v]) for v in volumes.unique()]  # a volume's slices are cached in order
    train = [stage.nll(model, splits["train"], part) for part in evenly(splits["train"], 192)]
    return {
        "thresholds": {"pixel": pixel, "sample": sample},
        "calibration": {
            "sample_scale": max(2000.0, 5 * sum(healthy) / len(healthy)),
            "top_reference": sum(tops) / len(tops),
        },
        "validation": {
            "nll": float(nll.mean()),
            "train_nll": float(torch.cat(train).mean()),
            "volumes": len(healthy),
            "slices": len(nll),
            "healthy_sums_per_32_slices": [round(value, 1) for value in healthy],
            "healthy_tops": [round(top, 3) for top in tops],
        },
    }


def load_vqvae(folder: Path) -> tuple[VQVAE, dict]:
    """The averaged VQ-VAE of a run, in evaluation mode, and what the run says of itself. Raises RunError without one."""
    stored, about = load_stage(folder, "vqvae")
    model = VQVAE(VQVAESettings(**about["vqvae"]))
    model.load_state_dict(_averaged(stored))
    return model.eval(), about


def load_prior(folder: Path) -> tuple[PixelSNAIL, dict]:
    """The averaged prior of a run, weight norm folded, in evaluation mode, and what the run says of itself."""
    stored, about = load_stage(folder, "prior")
    model = add_weight_norm(PixelSNAIL(PixelSNAILSettings(**about["prior"])))
    model.load_state_dict(_averaged(stored))
    return fold_weight_norm(model).eval(), about


def load_detector(folder: Path, best: bool = False) -> tuple[Detector, dict]:
    """The averaged detector of a run, in evaluation mode, and what the run says of itself. Raises RunError without one.

    best: the one that did best on the validation volumes, instead of the last.
    """
    stored, about = load_stage(folder, "detector_best" if best else "detector")
    model = Detector(DetectorSettings.from_dict(about["detector"]))
    model.load_state_dict(_averaged(stored))
    return model.eval(), about


def load_vae(folder: Path) -> tuple[VAE, dict]:
    """The averaged VAE of a run, in evaluation mode, and what the run says of itself. Raises RunError without one."""
    stored, about = load_stage(folder, "vae")
    model = VAE(VAESettings(**about["vae"]))
    model.load_state_dict(_averaged(stored))
    return model.eval(), about


def load_stage(folder: Path, name: str) -> tuple[dict, dict]:
    file = folder / f"{name}.pt"
    if not file.exists():
        raise RunError(
            f"{file}: expected a trained {name}, found no such file; run mood-submission train {name.split('_')[0]} first"
        )
    stored = load_checkpoint(file)
    return stored, json.loads(stored["about"])


def _averaged(stored: dict) -> dict:
    return {
        name.removeprefix("module."): value
        for name, value in stored["average"].items()
        if name != "n_averaged"
    }


def _add_to_about(file: Path, more: dict) -> None:
    stored = load_checkpoint(file)
    stored["about"] = json.dumps(json.loads(stored["about"]) | more)
    save_checkpoint(file, stored)


def _splits(
    run: Run, device: torch.device | None = None
) -> tuple[dict[str, SliceData], dict[str, list[str]]]:
    """The run's slices by split, on its own device where no other is named, and the volumes' names."""
    run.out.mkdir(parents=True, exist_ok=True)
    file = run.cache
    if not file.exists() and run.group.first:
        build_cache(
            run.folders,
            file,
            run.preprocessing or Preprocessing.published(run.region),
            run.max_slices,
            run.leave_out,
            run.hold_out,
        )
    run.group.wait()
    splits, names = load_cache(file, device or run.device, run.validation, run.test)
    region = splits["train"].preprocessing.region
    if region != run.region:
        raise CacheError(f"{file}: expected slices of region {run.region}, found {region}")
    for split in ("train", "validation"):
        if not len(splits[split]):
            raise CacheError(
                f"{file}: expected volumes to hold out for validation, found {sum(map(len, names.values()))} volumes"
            )
    return splits, names


def _names_by_number(run: Run) -> list[str]:
    return cache_names(run.cache)


def _trainer(
    run: Run, stage: Stage[Data, Network], splits: Mapping[str, Data], about: dict
) -> Trainer[Data, Network]:
    file = run.out / f"{stage.name}.pt"
    if file.exists() and not run.resume:
        raise RunError(f"{file}: exists already; continue it with --resume, or choose another --out")
    if run.start_from is not None:
        about = about | {"started_from": _start_from(run.start_from, stage)}
    trainer = Trainer(stage, splits, run.out, run.budget, run.schedule, run.device, about, run.group)
    if file.exists():
        trainer.resume()
    return trainer


def _start_from(source: Path, stage: Stage) -> dict:
    """Fill the stage's network with that of a run or of a model file. Returns what that says of its training, but for the
    volumes. Raises RunError where the sizes differ."""
    try:
        if source.is_dir():
            stored, about = load_stage(source, stage.name)
            stage.begin_from(_averaged(stored))
        else:
            parameters, about = _of_model_file(source, stage)
            stage.begin_from(parameters)
    except RuntimeError as error:
        raise RunError(
            f"{source}: expected a {stage.name} of {stage.model.settings}, found "
            f"{' '.join(str(error).split())[:300]}"
        ) from None
    return {name: value for name, value in about.items() if name != "volumes"}


def _of_model_file(file: Path, stage: Stage) -> tuple[Parameters, dict]:
    """The parameters of a model file's network as the stage trains them, and what the file says of their training.

    Raises RuntimeError where there is none, or one of other sizes.
    """
    model = load_model(file, "cpu", detector=stage.name == "detector")
    networks = {"vqvae": model.vqvae, "prior": model.prior, "detector": model.detector}
    found = networks.get(stage.name)
    if found is None:
        raise RuntimeError("no such network")
    wanted = stage.model.settings
    if not isinstance(found, Detector) and found.settings != dataclasses.replace(
        wanted, dropout=found.settings.dropout
    ):
        raise RuntimeError(f"one of {found.settings}")
    if isinstance(found, PixelSNAIL):
        add_weight_norm(found)
    return found.state_dict(), model.about.training.get(stage.name, {})


def _about(run: Run, splits: dict[str, SliceData], names: dict[str, list[str]]) -> dict:
    return {
        "region": run.region,
        "preprocessing": splits["train"].preprocessing.to_dict(),
        "volumes": names,
        "data": ", ".join(folder.stem for folder in run.folders),
        "augment": run.augment,
        "slices": {name: len(data) for name, data in splits.items()},
        "schedule": asdict(run.schedule),
        "date": datetime.date.today().isoformat(),
        "revision": git_revision(),
        "device": run.device.type,
        "torch": torch.__version__,
    }


def git_revision() -> str:
    """The commit of this code, with "+changes" when files differ from it; "unknown" outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
