"""What is trained: the VQ-VAE, then the prior on its codes, then the detector on both; and the VAE for comparison."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..evaluation.metrics import average_precision, score_counts
from ..networks.context_detector import ContextDetector, VolumeEvidence
from ..networks.detector import STRIDE, Detector, DetectorSettings, at_size
from ..networks.pixelsnail import PixelSNAIL, PixelSNAILSettings, add_weight_norm
from ..networks.vae import VAE, VAESettings, divergence
from ..networks.vqvae import VQVAE, VQVAESettings
from ..scoring.learned import soften_logits
from ..synthetic.anomalies import KINDS
from .augment import Augmentation, augment_geometry, augment_intensity, sampling_grid
from .cache import SliceData
from .planted import PlantedData
from .randomise import Randomisation, randomise
from .store import Store


def autocast(tensor: Tensor, precision: str) -> torch.autocast:
    """Mixed precision on the tensor's device; switched off for float32."""
    return torch.autocast(tensor.device.type, torch.bfloat16, enabled=precision == "bf16")


def augmented_batch(
    data: SliceData, index: Tensor, a: Augmentation | Randomisation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Slices (B, S, S) as the network gets them, augmented, and their positions (B, 1)."""
    if isinstance(a, Randomisation):
        prep = data.preprocessing
        x = randomise(data.raw(index), prep.image_size, a, prep.foreground_threshold, generator)
        return data.normalised(index, x), data.position[index]
    warped = augment_geometry(data.raw(index), data.preprocessing.image_size, a, generator)
    x = data.normalised(index, warped)
    background = warped < data.preprocessing.foreground_threshold  # what is air stays exactly air
    return augment_intensity(x, background, a, generator), data.position[index]


def evenly(data: SliceData, count: int) -> list[Tensor]:
    """Batches of `count` slices spread evenly over the data, the same ones each time."""
    count = min(count, len(data))
    return (torch.arange(count, device=data.slices.device) * len(data) // max(count, 1)).split(32)


class VQVAEStage:
    """L1 reconstruction + codebook + commitment (both mean squared, weight 1), as published. The codebook is kept alive:
    started from encoder outputs, and unused codes are restarted from them until 80% of the budget is spent."""

    name = "vqvae"
    channels_last_on_cpu = False

    def __init__(
        self,
        settings: VQVAESettings,
        augmentation: Augmentation | Randomisation,
        precision: str,
        restart_every: int = 50,
    ):
        self.model, self.augmentation, self.precision = VQVAE(settings), augmentation, precision
        self.restart_every = restart_every
        self.usage = torch.zeros(settings.codebook_size)  # codes drawn since the last restart
        self.started = False

    def loss(
        self, data: SliceData, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        slices, position = augmented_batch(data, index, self.augmentation, generator)
        with autocast(slices, self.precision):
            z_e = self.model.features(slices, position)
        z_e = z_e.float()  # distances need the precision
        self.recent = z_e.detach().movedim(1, -1).flatten(0, -2)  # (B * h * w, C), for restarts
        if not self.started:
            self._restart(torch.ones(len(self.model.codebook), dtype=torch.bool, device=z_e.device))
            self.usage, self.started = self.usage.to(z_e.device), True
        codes = self.model.nearest_codes(z_e.detach())
        z_q = self.model.lookup(codes)
        codebook, commitment = F.mse_loss(z_q, z_e.detach()), F.mse_loss(z_e, z_q.detach())
        with autocast(slices, self.precision):
            reconstruction = self.model.decode_features(z_e + (z_q - z_e).detach(), position)
        l1 = (reconstruction.float() - slices).abs().mean()
        counts = torch.bincount(codes.flatten(), minlength=len(self.usage)).to(self.usage)
        self.usage += counts
        numbers = {"l1": l1, "codebook": codebook, "commitment": commitment}
        return l1 + codebook + commitment, {k: v.detach() for k, v in numbers.items()}

    @torch.no_grad()
    def _restart(self, dead: Tensor) -> None:
        picked = self.recent[torch.randint(len(self.recent), (len(dead),), device=dead.device)]
        self.model.codebook.copy_(torch.where(dead[:, None], picked, self.model.codebook))

    def after_step(self, step: int, progress: float) -> None:
        if step % self.restart_every == 0:
            if progress < 0.8:
                self._restart(self.usage < 0.02 * self.usage.mean())
            self.usage.zero_()

    @torch.inference_mode()
    def validate(self, model: nn.Module, data: SliceData, count: int = 256) -> dict[str, float]:
        model.eval()
        l1, used, total = 0.0, torch.zeros(model.settings.codebook_size, device=data.slices.device), 0
        for index in evenly(data, count):
            slices, position = data.plain(index)
            with autocast(slices, self.precision):
                codes = model.encode(slices, position)
                decoded = model.decode(codes, position)
            l1 += float((decoded.float() - slices).abs().mean()) * len(index)
            used += torch.bincount(codes.flatten(), minlength=len(used))
            total += len(index)
        share = used / used.sum()
        return {
            "validation_l1": l1 / total,
            "codes_used": int((used > 0).sum()),
            "perplexity": float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum())),
        }

    def state(self) -> dict:
        return {"usage": self.usage, "started": self.started}

    def load_state(self, state: dict) -> None:
        self.usage, self.started = state["usage"], state["started"]


class PriorStage:
    """Cross-entropy of the codes of augmented slices, encoded as they come by the finished VQ-VAE."""

    name = "prior"
    channels_last_on_cpu = True

    def __init__(
        self,
        settings: PixelSNAILSettings,
        vqvae: VQVAE,
        augmentation: Augmentation | Randomisation,
        precision: str,
        device: torch.device,
    ):
        self.model = add_weight_norm(PixelSNAIL(settings))
        self.vqvae = vqvae.to(device).eval().requires_grad_(False)
        self.augmentation, self.precision = augmentation, precision

    def loss(
        self, data: SliceData, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        slices, position = augmented_batch(data, index, self.augmentation, generator)
        with torch.no_grad(), autocast(slices, self.precision):
            codes = self.vqvae.encode(slices, position)
        with autocast(slices, self.precision):
            logits = self.model(codes, position)
        return F.cross_entropy(logits.float(), codes), {}

    def after_step(self, step: int, progress: float) -> None:
        pass

    @torch.inference_mode()
    def validate(self, model: nn.Module, data: SliceData, count: int = 192) -> dict[str, float]:
        nll = torch.cat([self.nll(model, data, index) for index in evenly(data, count)])
        low, high = nll_percentiles(nll)
        return {"validation_nll": float(nll.mean()), "nll_p90": low, "nll_p98": high}

    @torch.inference_mode()
    def nll(self, model: nn.Module, data: SliceData, index: Tensor) -> Tensor:
        """NLL of each code (B, h, w) of slices as prediction sees them."""
        model.eval()
        slices, position = data.plain(index)
        with autocast(slices, self.precision):
            codes = self.vqvae.encode(slices, position)
            logits = model(codes, position)
        return F.cross_entropy(logits.float(), codes, reduction="none")

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None:
        pass


class DetectorStage:
    """Binary cross-entropy of where anomalies were planted.

    Half of the batches are warped, all of it alike; all are flipped left to right at random. In a share of the slices,
    `unsampled`, the plain reconstruction stands for the restoration: so the detector can do without one.
    """

    name = "detector"
    channels_last_on_cpu = True

    def __init__(self, settings: DetectorSettings, precision: str, unsampled: float = 0.4):
        self.model, self.precision, self.unsampled = Detector(settings), precision, unsampled
        self.augmentation = Augmentation(scale=(-0.1, 0.1), degrees=8, shift=0.05, elastic=0.006)
        with torch.no_grad():  # anomalies are rare
            self.model.head[-1].bias.fill_(-3.0)

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

    def after_step(self, step: int, progress: float) -> None:
        pass

    @torch.inference_mode()
    def logits(
        self, model: nn.Module, data: PlantedData, field: str = "restoration"
    ) -> tuple[Tensor, Tensor]:
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

    def validate(self, model: nn.Module, data: PlantedData) -> dict[str, float]:
        """Cross-entropy, and average precision over all places, with the restoration and without."""
        result = {}
        for name, field in (("", "restoration"), ("_unsampled", "reconstruction")):
            logits, label = self.logits(model, data, field)
            result[f"validation_ap{name}"] = places_ap(logits, label)
            result[f"validation_loss{name}"] = float(F.binary_cross_entropy_with_logits(logits, label))
        return result

    def by_kind(self, model: nn.Module, data: PlantedData) -> dict[str, float]:
        """Average precision over the places of each kind's copies."""
        parts = {kind: data.of_kinds([kind]) for kind in KINDS}
        return {kind: places_ap(*self.logits(model, part)) for kind, part in parts.items() if len(part)}

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None:
        pass


class ContextStage:
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
        self.model, self.precision, self.healthy, self.strides = (
            ContextDetector(settings),
            precision,
            healthy,
            strides,
        )
        self.refresh_every, self.store = refresh_every, None
        with torch.no_grad():  # anomalies are rare
            self.model.head[-1].bias.fill_(-4.0)

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
    def logits(self, model: nn.Module, evidence: VolumeEvidence, index: Tensor) -> Tensor:
        """(B, S, S) of the slices `index` of a volume, float32 on the CPU."""
        model.eval()
        device, parts = next(model.parameters()).device, []
        for chunk in index.split(16):
            maps, nll = (x.to(device) for x in evidence.inputs(chunk, self.model.settings.context))
            with autocast(maps, self.precision):
                parts.append(model(maps, nll).float().cpu())
        return torch.cat(parts)

    def validate(self, model: nn.Module, data: Store) -> dict[str, float]:
        """Cross-entropy and average precision over all pixels of a part of the slices: with an anomaly, and without one."""
        logits, labels = [], []
        for stored in data.volumes.values():
            for variant, evidence in enumerate(stored.variants):
                label = stored.labels(variant)
                index = label.any(2).any(1).nonzero()[::3, 0] if variant else torch.arange(3, len(label), 7)
                if len(index):
                    logits.append(self.logits(model, evidence, index)[:, ::2, ::2])
                    labels.append(label[index][:, ::2, ::2].float())
        logits, label = torch.cat(logits), torch.cat(labels)
        return {
            "validation_ap": places_ap(logits, label),
            "validation_loss": float(F.binary_cross_entropy_with_logits(logits, label)),
        }

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None:
        pass


class VAEStage:
    """Negative ELBO with a Laplace likelihood of scale 1: a slice's summed L1 + the latent's divergence from the prior."""

    name = "vae"
    channels_last_on_cpu = False

    def __init__(self, settings: VAESettings, augmentation: Augmentation | Randomisation, precision: str):
        self.model, self.augmentation, self.precision = VAE(settings), augmentation, precision

    def loss(
        self, data: SliceData, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        slices, position = augmented_batch(data, index, self.augmentation, generator)
        with autocast(slices, self.precision):
            mean, log_variance = self.model.encode(slices, position)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            reconstruction = self.model.decode(mean + (log_variance / 2).exp() * noise, position)
        l1 = (reconstruction.float() - slices).abs().mean()
        kl = divergence(mean, log_variance).mean()
        loss = (
            l1 + self.model.settings.kl_weight * kl / slices[0].numel()
        )  # a mean over pixels: the scale of the rates
        return loss, {"l1": l1.detach(), "kl": kl.detach()}

    def after_step(self, step: int, progress: float) -> None:
        pass

    @torch.inference_mode()
    def validate(self, model: nn.Module, data: SliceData, count: int = 256) -> dict[str, float]:
        model.eval()
        l1, kl, total = 0.0, 0.0, 0
        for index in evenly(data, count):
            slices, position = data.plain(index)
            with autocast(slices, self.precision):
                mean, log_variance = model.encode(slices, position)
                decoded = model.decode(mean, position)
            l1 += float((decoded.float() - slices).abs().mean()) * len(index)
            kl += float(divergence(mean, log_variance).sum())
            total += len(index)
        return {"validation_l1": l1 / total, "validation_kl": kl / total}

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None:
        pass


def places_ap(logits: Tensor, label: Tensor) -> float:
    """Average precision over all places, labelled above 0.5; 0 where none is. As float16, as the challenge's evaluation."""
    ap = average_precision(
        *score_counts(soften_logits(logits).half().cpu().numpy(), (label > 0.5).cpu().numpy())
    )
    return float(ap) if math.isfinite(ap) else 0.0


def nll_percentiles(nll: Tensor) -> tuple[float, float]:
    """90th and 98th percentile: the published choice of lambda_p and lambda_s (section 2)."""
    values = nll.float().flatten().cpu().sort().values
    return tuple(float(values[min(int(share * len(values)), len(values) - 1)]) for share in (0.90, 0.98))
