"""The stage that trains a detector on planted anomalies."""

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...evidence.normalised import NormalisedEvidence, detector_logits
from ...methods.learned import soften_logits
from ...networks.detector import Detector, DetectorSettings
from ..evaluation.metrics import average_precision, score_counts
from .patches import BatchesAhead, PatchBatches, PatchSettings
from .stage import Stage, autocast
from .store import Store


@torch.no_grad()
def expect_rarely(head: nn.Sequential, logit: float) -> None:
    """Let a new network answer `logit` everywhere at first: anomalies are rare."""
    last = head[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    last.bias.fill_(logit)


class DetectorStage(Stage[Store, Detector]):
    """Where anomalies were planted, over patches of a store that is filled meanwhile: cross-entropy, and the Dice of the whole
    batch, which is not content with "rare everywhere"."""

    name = "detector"
    channels_last_on_cpu = True
    judged_by = "validation_ap"

    def __init__(
        self,
        settings: DetectorSettings,
        precision: str,
        patches: PatchSettings | None = None,
        dice: float = 0.5,
        refresh_every: int = 50,
        workers: int = 0,
        unseen: Collection[str] = (),
    ):
        """workers: processes that draw batches ahead, the same ones that this process would draw; 0 for none.
        unseen: kinds of anomaly that are not trained on; the detector is then judged by these."""
        self.model, self.precision = Detector(settings), precision
        self.patches, self.dice, self.refresh_every = patches or PatchSettings(), dice, refresh_every
        self.store: Store | None = None  # what the last batch was drawn from
        self.ahead: BatchesAhead | None = None
        self.workers, self.unseen = workers, unseen
        if unseen:
            self.judged_by = "unseen_ap"
        expect_rarely(self.model.head, -3.0)

    def loss(
        self, data: Store, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.store is not data:
            context = self.model.settings.context
            self.store = data
            self.ahead = BatchesAhead(PatchBatches(data, len(index), context, self.patches), self.workers)
        assert self.ahead is not None
        device = next(self.model.parameters()).device
        batch = self.ahead.batch(generator.initial_seed())
        maps, nll, place, label, counts = (part.to(device, non_blocking=True) for part in batch)
        if self.channels_last_on_cpu or device.type != "cpu":
            maps = maps.to(memory_format=torch.channels_last)
        with autocast(maps, self.precision):
            logits = self.model(maps, nll, place).float()
        entropy = (F.binary_cross_entropy_with_logits(logits, label, reduction="none") * counts).mean()
        overlap = dice(logits.sigmoid() * counts, label)
        return entropy + self.dice * (1 - overlap), {
            "cross_entropy": entropy.detach(),
            "dice": overlap.detach(),
            "volumes": torch.tensor(float(len(data))),
        }

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
            return torch.cat(
                [detector_logits(model, evidence, chunk).float().cpu() for chunk in index.split(16)]
            )

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
                found[name] = places_ap(
                    torch.cat([parts[i] for i in some]), torch.cat([labels[i] for i in some])
                )
        return found


def dice(probability: Tensor, label: Tensor) -> Tensor:
    """Twice the overlap by the sum of both, over all places together; 1 more in either, so that nothing and nothing agree."""
    return (2 * (probability * label).sum() + 1) / (probability.sum() + label.sum() + 1)


def places_ap(logits: Tensor, label: Tensor) -> float:
    """Average precision over all places, labelled above 0.5; 0 where none is. As float16, as the challenge's evaluation."""
    ap = average_precision(
        *score_counts(soften_logits(logits).half().cpu().numpy(), (label > 0.5).cpu().numpy())
    )
    return float(ap) if math.isfinite(ap) else 0.0
