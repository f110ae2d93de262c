"""The stage that trains a detector on planted anomalies."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...evidence.normalised import NormalisedEvidence, detector_logits
from ...methods.learned import soften_logits
from ...model import Model
from ...model_file import networks_sha256
from ...networks.detector import CONTEXT, Detector, DetectorSettings, fitted_to
from ...runtime.option_types import positive
from ...runtime.options import option
from ..evaluation.metrics import average_precision, score_counts
from ..planting.varied import TRAINING_KINDS
from .checkpoints import RunError, add_to_about
from .patches import BatchesAhead, PatchBatches, PatchSettings
from .plant import check_volumes, planting_model
from .run import Run, RunOptions
from .stage import Stage, autocast
from .store import VALIDATION, Planter, Store, fill_store, store_settings, stored_files

# Detectors are validated on at least so many planted volumes, so that every kind of the benchmark is there. Few healthy volumes
# are planted in several times.
LEAST_VALIDATION = 10
# How much more an anomalous pixel counts where slices are restored.
CHANGED_WEIGHT = 20.0


@torch.no_grad()
def expect_rarely(head: nn.Sequential, logit: float) -> None:
    """Let a new network answer `logit` everywhere at first: anomalies are rare."""
    last = head[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    last.bias.fill_(logit)


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """Options of `train detector`."""

    run: RunOptions
    model: Path = option(
        "model file with the VQ-VAE and the prior that the detector is for", metavar="FILE.safetensors"
    )
    widths: tuple[int, ...] = option("widths of the levels", default=DetectorSettings.widths)
    store: Path = option(
        "the planted volumes that 'mood-submission train plant' puts there, before or meanwhile",
        metavar="FOLDER",
    )
    also: tuple[Path, ...] = option(
        "further stores of the same networks, such as one of small lesions; a volume of any store is drawn as often as another",
        metavar="FOLDER",
        default=(),
    )
    context: tuple[int, ...] = option("slices read with a slice, 0 among them", default=CONTEXT)
    mirror: bool = option(
        "let the detector read each slice's mirror image too, left for right; for brains, of stores planted with midlines",
        default=False,
    )
    restores: bool = option(
        "let the detector say, too, how each slice would look without the anomaly, as evidence for its logits",
        default=False,
    )
    most: int = option("newest volumes of a store that are held in memory", type=positive, default=400)
    patches: PatchSettings
    unseen: tuple[str, ...] = option(
        "kinds of anomaly that are not trained on; the best detector is the one that finds these best",
        choices=TRAINING_KINDS,
        metavar="KIND",
        default=(),
    )
    validations: int = option("how often to validate, evenly over the training", type=positive, default=12)
    validation_volumes: int | None = option(
        "planted volumes that the detector is validated on "
        f"(default: as many as are held out, at least {LEAST_VALIDATION})",
        type=positive,
        metavar="N",
        default=None,
    )
    workers: int = option(
        "processes that draw batches ahead; the batches are the same with any number", metavar="N", default=0
    )

    @property
    def settings(self) -> DetectorSettings:
        """The network's. Raises ValueError for a context without the slice itself."""
        return DetectorSettings(
            self.widths, self.run.dropout, context=self.context, mirror=self.mirror, restores=self.restores
        )


def train_detector(options: DetectorOptions) -> None:
    """Train a detector on a store, which may go on growing.

    Leaves detector.pt, detector.csv and detector_curves.png in the run's folder. The detector is validated on the benchmark's
    anomalies in the held-out volumes. These are planted in the store's folder "validation" where they are not there yet.
    Raises RunError where validation shows none of the unseen kinds.
    """
    from . import plots

    if options.unseen and not set(options.unseen) & set(VALIDATION.kinds):
        raise RunError(
            f"--unseen: expected one of {', '.join(VALIDATION.kinds)} at least, found {', '.join(options.unseen)}"
        )
    run = Run(options.run, slices_on=torch.device("cpu"))
    planted = _planted_with(options, run)
    data = {
        "train": Store(options.store, options.most, options.unseen, further=options.also),
        "validation": Store(options.store / "validation"),
    }
    settings = options.settings
    stage = DetectorStage(settings, run.precision, options.patches, workers=options.workers, unseen=options.unseen)
    about = {"detector": asdict(settings), "patches": asdict(options.patches)} | planted
    trainer = run.trainer(stage, about, data)
    begun = trainer.step
    trainer.train(validations=options.validations)
    # A run that had ended saw what was planted then.
    if run.group.first and trainer.step > begun:
        folders = (options.store, *options.also)
        planted_volumes = {"planted_volumes": sum(len(stored_files(folder)) for folder in folders)}
        for file in (trainer.file, trainer.best_file):
            # A run that ended before its first validation has no best detector.
            if file.exists():
                add_to_about(file, planted_volumes)
        plots.curves(run.out / "detector.csv", run.out / "detector_curves.png")


def _planted_with(options: DetectorOptions, run: Run) -> dict:
    """Plant what the detector is validated on. Returns what the store was planted with, without the unseen kinds.

    Raises RunError where the store is empty, or was planted with other networks than the model's, or in other volumes.
    """
    model = planting_model(options.model, run.device)
    check_volumes(run.slices, model, options.model)
    folders = (options.store, *options.also)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise RunError(f"--also: expected each store once, --store among them, found {', '.join(map(str, folders))}")
    planted, *further = (_settings_of(folder, options, model) for folder in folders)
    if run.group.first:
        data = run.slices["validation"]
        count = options.validation_volumes or max(len(data.volume.unique()), LEAST_VALIDATION)
        fill_store(Planter(data, model, VALIDATION), options.store / "validation", count)
    run.group.wait()
    for store in (planted, *further):
        store["kinds"] = [kind for kind in store["kinds"] if kind not in options.unseen]
    if further:
        new = dict.fromkeys(kind for more in further for kind in more["kinds"] if kind not in planted["kinds"])
        planted |= {"kinds": [*planted["kinds"], *new], "also": further}
    return planted | ({"unseen": list(options.unseen)} if options.unseen else {})


def _settings_of(folder: Path, options: DetectorOptions, model: Model) -> dict:
    """What a store was planted with. Raises RunError where it is empty, or not made with these networks or for these options."""
    if not stored_files(folder):
        raise RunError(
            f"{folder}: expected planted volumes, found none; run mood-submission train plant first, or beside this"
        )
    planted = store_settings(folder)
    if options.mirror and not planted.get("midlines"):
        raise RunError(f"{folder}: expected a store planted with midlines for --mirror, found one without")
    if planted["networks"] != networks_sha256(model):
        raise RunError(f"{folder}: expected volumes planted with the VQ-VAE and prior of {options.model}, found others")
    if planted.get("benchmark"):
        raise RunError(f"{folder}: expected a store to train on, found one for validation")
    return planted


class DetectorStage(Stage[Store, Detector]):
    """Learns where anomalies were planted, of patches of a store that is filled meanwhile.

    The loss is the cross-entropy and the Dice of the whole batch. Cross-entropy alone is low for "rare everywhere".

    settings: the detector's.
    precision: of `autocast`.
    patches: how they are cut.
    dice: what the Dice counts beside the cross-entropy.
    restoring: what `change_loss` counts beside it, for a detector that restores.
    refresh_every: after so many steps, what has come into the store is read.
    workers: processes that draw batches ahead, see `patches.BatchesAhead`.
    unseen: kinds of anomaly that are not trained on. Where there are any, the best detector is the one that finds these best.
    """

    name = "detector"
    channels_last_on_cpu = True
    judged_by = watched = "validation_ap"
    lower_is_better = False

    def __init__(
        self,
        settings: DetectorSettings,
        precision: str,
        patches: PatchSettings | None = None,
        *,
        dice: float = 0.5,
        restoring: float = 0.2,
        refresh_every: int = 50,
        workers: int = 0,
        unseen: Collection[str] = (),
    ):
        self.model, self.precision = Detector(settings), precision
        self.patches, self.refresh_every = patches or PatchSettings(), refresh_every
        self.dice, self.restoring = dice, restoring
        # What the last batch was drawn from.
        self.store: Store | None = None
        self.ahead: BatchesAhead | None = None
        self.workers, self.unseen = workers, unseen
        if unseen:
            self.judged_by = self.watched = "unseen_ap"
        expect_rarely(self.model.head, -3.0)

    def loss(self, data: Store, index: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if self.store is not data:
            settings = self.model.settings
            self.store = data
            batches = PatchBatches(data, len(index), settings.context, self.patches, settings.mirror)
            self.ahead = BatchesAhead(batches, self.workers)
        assert self.ahead is not None
        device = next(self.model.parameters()).device
        batch = self.ahead.batch(generator.initial_seed())
        maps, nll, place, label, counts, change = (part.to(device, non_blocking=True) for part in batch)
        if self.channels_last_on_cpu or device.type != "cpu":
            maps = maps.to(memory_format=torch.channels_last)
        with autocast(maps, self.precision):
            logits, restored = self.model.logits_and_change(maps, nll, place)
        logits = logits.float()
        entropy = (F.binary_cross_entropy_with_logits(logits, label, reduction="none") * counts).mean()
        overlap = dice(logits.sigmoid(), label, counts)
        loss, measured = entropy + self.dice * (1 - overlap), {}
        if restored is not None:
            amiss = change_loss(restored.float(), change, label * counts)
            loss, measured = loss + self.restoring * amiss, {"change": amiss.detach()}
        return loss, measured | {
            "cross_entropy": entropy.detach(),
            "dice": overlap.detach(),
            "volumes": torch.tensor(float(len(data))),
        }

    def begin_from(self, parameters: Mapping[str, Tensor]) -> None:
        super().begin_from(fitted_to(parameters, self.model.settings))

    def after_step(self, step: int, progress: float) -> None:
        if step % self.refresh_every == 0 and self.store is not None:
            if self.store.refresh() and self.ahead is not None:
                self.ahead.begin_again()

    @torch.inference_mode()
    def logits(self, model: Detector, evidence: NormalisedEvidence, index: Tensor) -> Tensor:
        """Logits of the slices `index` (B,) of a volume, (B, S, S) float32 on the CPU."""
        model.eval()
        evidence = evidence.to(next(model.parameters()).device)
        with autocast(evidence.slices, self.precision):
            return torch.cat([detector_logits(model, evidence, chunk).float().cpu() for chunk in index.split(16)])

    def validate(self, model: Detector, data: Store) -> dict[str, float]:
        """Cross-entropy and average precision over all pixels of every third slice of volumes with an anomaly, and of the
        same volumes without one: false alarms in healthy slices count as they do in use. With kinds that are not trained on,
        average precision of these, and of the others, too."""
        parts, labels, kinds = [], [], []
        for stored in data.volumes.values():
            for variant, evidence in enumerate(stored.variants):
                label = stored.labels(variant)
                index = torch.arange(min(1, len(label) - 1), len(label), 3)
                parts.append(self.logits(model, evidence, index)[:, ::2, ::2])
                labels.append(label[index][:, ::2, ::2].float())
                kinds.append(stored.kinds[variant])
        logits, planted = torch.cat(parts), torch.cat(labels)
        found = {
            "validation_ap": places_ap(logits, planted),
            "validation_loss": float(F.binary_cross_entropy_with_logits(logits, planted)),
        }
        if self.unseen:
            for name, others in (("unseen_ap", True), ("seen_ap", False)):
                some = [i for i, kind in enumerate(kinds) if not kind or (kind in self.unseen) == others]
                found[name] = places_ap(torch.cat([parts[i] for i in some]), torch.cat([labels[i] for i in some]))
        return found


def dice(probability: Tensor, label: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """The Dice of all places together: (2 x overlap + 1) / (sum of both + 1). So it is 1 where both are empty.

    weight: how much each place counts, of the others' shape.
    """
    weighted = weight * probability
    return (2 * (weighted * label).sum() + 1) / (weighted.sum() + (weight * label).sum() + 1)


def change_loss(restored: Tensor, change: Tensor, anomalous: Tensor) -> Tensor:
    """How far a detector's change lies from the one wanted: the mean absolute difference, (B, H, W) each.

    Anomalous pixels are few. So they count CHANGED_WEIGHT times as much. anomalous: 0 elsewhere, there how much a pixel weighs.
    """
    return ((restored - change).abs() * (1 + CHANGED_WEIGHT * anomalous)).mean()


def places_ap(logits: Tensor, label: Tensor) -> float:
    """Average precision over all places, of float16 as the challenge's evaluation has them. 0 where no label is above 0.5."""
    ap = average_precision(*score_counts(soften_logits(logits).half().cpu().numpy(), (label > 0.5).cpu().numpy()))
    return float(ap) if math.isfinite(ap) else 0.0
