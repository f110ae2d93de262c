"""The stages that train on slices: the VQ-VAE, then the prior on its codes; and the VAE that they are compared with."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ...networks.pixelsnail import PixelSNAIL, PixelSNAILSettings, add_weight_norm
from ...networks.vae import VAE, VAESettings, divergence
from ...networks.vqvae import VQVAE, VQVAESettings
from .augment import Augmentation, augment_geometry, augment_intensity
from .cache import SliceData
from .group import ALONE, Group
from .randomise import Randomisation, randomise
from .stage import Parameters, Stage, autocast


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


class VQVAEStage(Stage[SliceData, VQVAE]):
    """L1 reconstruction + codebook + commitment (both mean squared, weight 1), as published. The codebook is kept alive:
    started from encoder outputs, and unused codes are restarted from them until 80% of the budget is spent."""

    name = "vqvae"

    def __init__(
        self,
        settings: VQVAESettings,
        augmentation: Augmentation | Randomisation,
        precision: str,
        restart_every: int = 50,
        group: Group = ALONE,
    ):
        self.model, self.augmentation, self.precision = VQVAE(settings), augmentation, precision
        self.restart_every, self.group = restart_every, group
        self.usage = torch.zeros(settings.codebook_size)  # codes drawn since the last restart
        self.started = False
        self.recent = torch.empty(0)  # encoder outputs of the last batch, (B * h * w, C), for restarts

    def loss(
        self, data: SliceData, index: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        slices, position = augmented_batch(data, index, self.augmentation, generator)
        with autocast(slices, self.precision):
            z_e = self.model.features(slices, position)
        z_e = z_e.float()  # distances need the precision
        self.recent = z_e.detach().movedim(1, -1).flatten(0, -2)
        if not self.started:
            self._restart(torch.ones(len(self.model.codebook), dtype=torch.bool, device=z_e.device))
            self.started = True
        codes = self.model.nearest_codes(z_e.detach())
        z_q = self.model.lookup(codes)
        codebook, commitment = F.mse_loss(z_q, z_e.detach()), F.mse_loss(z_e, z_q.detach())
        with autocast(slices, self.precision):
            reconstruction = self.model.decode_features(z_e + (z_q - z_e).detach(), position)
        l1 = (reconstruction.float() - slices).abs().mean()
        counts = torch.bincount(codes.flatten(), minlength=len(self.usage))
        self.usage = self.usage.to(z_e.device) + counts
        numbers = {"l1": l1, "codebook": codebook, "commitment": commitment}
        return l1 + codebook + commitment, {k: v.detach() for k, v in numbers.items()}

    @torch.no_grad()
    def _restart(self, dead: Tensor) -> None:
        picked = self.recent[torch.randint(len(self.recent), (len(dead),), device=dead.device)]
        self.model.codebook.copy_(torch.where(dead[:, None], picked, self.model.codebook))
        self.group.take_first_ones([self.model.codebook])

    def after_step(self, step: int, progress: float) -> None:
        if step % self.restart_every == 0:
            if progress < 0.8:
                usage = self.group.total(self.usage)
                self._restart(usage < 0.02 * usage.mean())
            self.usage.zero_()

    @torch.inference_mode()
    def validate(self, model: VQVAE, data: SliceData, count: int = 256) -> dict[str, float]:
        model.eval()
        l1, used, total = 0.0, torch.zeros(self.model.settings.codebook_size, device=data.slices.device), 0
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

    def begin_from(self, parameters: Parameters) -> None:
        """The codebook comes with the parameters: it is not started from encoder outputs."""
        super().begin_from(parameters)
        self.started = True


class PriorStage(Stage[SliceData, PixelSNAIL]):
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

    @torch.inference_mode()
    def validate(self, model: PixelSNAIL, data: SliceData, count: int = 192) -> dict[str, float]:
        nll = torch.cat([self.nll(model, data, index) for index in evenly(data, count)])
        low, high = nll_percentiles(nll)
        return {"validation_nll": float(nll.mean()), "nll_p90": low, "nll_p98": high}

    @torch.inference_mode()
    def nll(self, model: PixelSNAIL, data: SliceData, index: Tensor) -> Tensor:
        """NLL of each code (B, h, w) of slices as prediction sees them."""
        model.eval()
        slices, position = data.plain(index)
        with autocast(slices, self.precision):
            codes = self.vqvae.encode(slices, position)
            logits = model(codes, position)
        return F.cross_entropy(logits.float(), codes, reduction="none")


class VAEStage(Stage[SliceData, VAE]):
    """Negative ELBO with a Laplace likelihood of scale 1: a slice's summed L1 + the latent's divergence from the prior."""

    name = "vae"

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

    @torch.inference_mode()
    def validate(self, model: VAE, data: SliceData, count: int = 256) -> dict[str, float]:
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


def nll_percentiles(nll: Tensor) -> tuple[float, float]:
    """90th and 98th percentile: the published choice of lambda_p and lambda_s (section 2)."""
    values = nll.float().flatten().cpu().sort().values
    low, high = (float(values[min(int(share * len(values)), len(values) - 1)]) for share in (0.90, 0.98))
    return low, high
