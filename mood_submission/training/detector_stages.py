"""The stages that train detectors on planted anomalies: of single slices, and of slices with their neighbours."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..evaluation.metrics import average_precision, score_counts
from ..networks.context_detector import ContextDetector, VolumeEvidence
from ..networks.detector import STRIDE, Detector, DetectorSettings, at_size
from ..scoring.learned import soften_logits
from ..synthetic.anomalies import KINDS
from .augment import Augmentation, sampling_grid
from .planted import PlantedData
from .stage import Stage, autocast
from .store import Store


@torch.no_grad()
def expect_rarely(head: nn.Sequential, logit: float) -> None:
    """Let a new network answer `logit` everywhere at first: anomalies are rare."""
    last = head[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    last.bias.fill_(logit)


class DetectorStage(Stage[PlantedData, Detector]):
    """Binary cross-entropy of where anomalies were planted.

    Half of the batches are warped, all of it alike; all are flipped left to right at random. In a share of the slices,
    `unsampled`, the plain reconstruction stands for the restoration: so the detector can do without one.
    """

    name = "detector"
    channels_last_on_cpu = True

    def __init__(self, settings: DetectorSettings, precision: str, unsampled: float = 0.4):
        self.model, self.precision, self.unsampled = Detector(settings), precision, unsampled
        self.augmentation = Augmentation(scale=(-0.1, 0.1), degrees=8, shift=0.05, elastic=0.006)
        expect_rarely(self.model.head, -3.0)

    def loss(
        self, data: PlantedData, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        maps, position = self._augmented(data, index, generator)
        slices, decoded, restored, nll, label = maps.unbind(1)
        skip = torch.rand(len(index), 1, 1, generator=generator, device=maps.device) < self.unsampled
        with autocast(slices, self.precision):
            logits = self.model(slices, decoded, torch.where(skip, decoded, restored), nll, position)
        label = F.avg_pool2d(label[:, None], STRIDE)[:, 0]
        return F.binary_cross_entropy_with_logits(logits.float(), label), {}

    def _augmented(
        self, data: PlantedData, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Slice, reconstruction, restoration, NLL and label of a batch, (B, 5, S, S), and positions."""
        size = data.slices.shape[-2:]
        maps = torch.stack(
            [
                at_size(getattr(data, name)[index].float(), size)
                for name in ("slices", "reconstruction", "restoration", "nll")
            ]
            + [at_size(data.label[index].float() / 255, size)],
            dim=1,
        )
        flip = torch.rand(len(index), 1, 1, 1, generator=generator, device=maps.device) < 0.5
        maps = torch.where(flip, maps.flip(-1), maps)
        if torch.rand(1, generator=generator, device=maps.device) < 0.5:
            grid = sampling_grid(len(index), size[0], self.augmentation, generator)
            maps = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return maps, data.position[index]

    @torch.inference_mode()
    def logits(self, model: Detector, data: PlantedData, field: str = "restoration") -> tuple[Tensor, Tensor]:
        """Logits (N, h, w) and labels, 0 .. 1, of all slices. field: what stands for the restoration."""
        model.eval()
        logits = []
        for index in torch.arange(len(data), device=data.slices.device).split(32):
            inputs = [
                getattr(data, name)[index].float() for name in ("slices", "reconstruction", field, "nll")
            ]
            with autocast(inputs[0], self.precision):
                logits.append(model(*inputs, data.position[index]).float())
        return torch.cat(logits), data.label.float() / 255

    def validate(self, model: Detector, data: PlantedData) -> dict[str, float]:
        """Cross-entropy, and average precision over all places, with the restoration and without."""
        result = {}
        for name, field in (("", "restoration"), ("_unsampled", "reconstruction")):
            logits, label = self.logits(model, data, field)
            result[f"validation_ap{name}"] = places_ap(logits, label)
            result[f"validation_loss{name}"] = float(F.binary_cross_entropy_with_logits(logits, label))
        return result

    def by_kind(self, model: Detector, data: PlantedData) -> dict[str, float]:
        """Average precision over the places of each kind's copies."""
        parts = {kind: data.of_kinds([kind]) for kind in KINDS}
        return {kind: places_ap(*self.logits(model, part)) for kind, part in parts.items() if len(part)}


class ContextStage(Stage[Store, ContextDetector]):
    """Binary cross-entropy of where anomalies were planted, over slices of a store that is filled meanwhile.

    healthy: share of slices of volumes without any anomaly. strides: how far apart a slice's neighbours are taken.
    """

    name = "detector"
    channels_last_on_cpu = True

    def __init__(
        self,
        settings: DetectorSettings,
        precision: str,
        healthy: float = 0.2,
        strides: tuple[int, ...] = (1, 1, 1, 2),
        refresh_every: int = 20,
    ):
        self.model, self.precision = ContextDetector(settings), precision
        self.healthy, self.strides, self.refresh_every = healthy, strides, refresh_every
        self.store: Store | None = None  # what the last batch was drawn from
        expect_rarely(self.model.head, -4.0)

    def loss(
        self, data: Store, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.store = data
        drawn = torch.Generator().manual_seed(generator.initial_seed())
        maps, nll, label = data.batch(
            len(index), self.model.settings.context, self.healthy, self.strides, drawn
        )
        device = next(self.model.parameters()).device
        maps, nll, label = maps.to(device), nll.to(device), label.to(device)
        if self.channels_last_on_cpu or device.type != "cpu":
            maps = maps.to(memory_format=torch.channels_last)
        with autocast(maps, self.precision):
            logits = self.model(maps, nll)
        return F.binary_cross_entropy_with_logits(logits.float(), label), {
            "volumes": torch.tensor(float(len(data)))
        }

    def after_step(self, step: int, progress: float) -> None:
        if step % self.refresh_every == 0 and self.store is not None:
            self.store.refresh()

    @torch.inference_mode()
    def logits(self, model: ContextDetector, evidence: VolumeEvidence, index: Tensor) -> Tensor:
        """Logits of the slices `index` (B,) of a volume, (B, S, S) float32 on the CPU."""
        model.eval()
        device, parts = next(model.parameters()).device, []
        for chunk in index.split(16):
            maps, nll = (x.to(device) for x in evidence.inputs(chunk, self.model.settings.context))
            with autocast(maps, self.precision):
                parts.append(model(maps, nll).float().cpu())
        return torch.cat(parts)

    def validate(self, model: ContextDetector, data: Store) -> dict[str, float]:
        """Cross-entropy and average precision over all pixels of every third slice of volumes with an anomaly, and of the
        same volumes without one: false alarms in healthy slices count as they do in use."""
        parts, labels = [], []
        for stored in data.volumes.values():
            for variant, evidence in enumerate(stored.variants):
                label = stored.labels(variant)
                index = torch.arange(min(1, len(label) - 1), len(label), 3)
                parts.append(self.logits(model, evidence, index)[:, ::2, ::2])
                labels.append(label[index][:, ::2, ::2].float())
        logits, planted = torch.cat(parts), torch.cat(labels)
        return {
            "validation_ap": places_ap(logits, planted),
            "validation_loss": float(F.binary_cross_entropy_with_logits(logits, planted)),
        }


def places_ap(logits: Tensor, label: Tensor) -> float:
    """Average precision over all places, labelled above 0.5; 0 where none is. As float16, as the challenge's evaluation."""
    ap = average_precision(
        *score_counts(soften_logits(logits).half().cpu().numpy(), (label > 0.5).cpu().numpy())
    )
    return float(ap) if math.isfinite(ap) else 0.0
