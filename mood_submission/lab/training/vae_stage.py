"""Training the VAE that restoration is compared with."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ...networks.vae import VAE, VAESettings, divergence
from ...runtime.options import option
from .cache import SliceData
from .run import Run, RunOptions
from .slice_stage import SliceStage, held_out


@dataclass(frozen=True, kw_only=True)
class VAEOptions:
    """Options of `train vae`."""

    run: RunOptions
    channels: tuple[int, ...] = option("widths of the levels", default=VAESettings.channels)
    latent: int = option("dimensions of the latent", default=VAESettings.latent)
    res_blocks: int = option("gated residual units a level", default=2)
    kl_weight: float = option("what the divergence counts beside the summed L1", default=1.0)


def train_vae(options: VAEOptions) -> None:
    """Train the VAE. Leaves vae.pt, vae.csv and pictures in the run's folder."""
    from . import plots

    run = Run(options.run)
    settings = VAESettings(
        options.channels,
        options.latent,
        image_size=run.slices.preprocessing.image_size,
        n_res_block=options.res_blocks,
        dropout=options.run.dropout,
        kl_weight=options.kl_weight,
    )
    stage = VAEStage(VAE(settings), run.augmentation, run.precision)
    model = run.trainer(stage, {"vae": asdict(settings)}, run.slices.splits).train().eval()
    if run.group.first:
        plots.curves(run.out / "vae.csv", run.out / "vae_curves.png")
        plots.reconstructions(model, run.slices["validation"], run.out / "vae_pictures.png")


class VAEStage(SliceStage[VAE]):
    """The loss is the negative ELBO with a Laplace likelihood of scale 1: a slice's summed L1 and the latent's divergence."""

    name = "vae"
    watched = "validation_l1"

    def loss(self, data: SliceData, index: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        slices, position = self.batch(data, index, generator)
        with self.autocast(slices):
            mean, log_variance = self.model.encode(slices, position)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            reconstruction = self.model.decode(mean + (log_variance / 2).exp() * noise, position)
        l1 = (reconstruction.float() - slices).abs().mean()
        kl = divergence(mean, log_variance).mean()
        # The learning rates are made for a mean over pixels.
        loss = l1 + self.model.settings.kl_weight * kl / slices[0].numel()
        return loss, {"l1": l1.detach(), "kl": kl.detach()}

    @torch.inference_mode()
    def validate(self, model: VAE, data: SliceData, count: int = 256) -> dict[str, float]:
        model.eval()
        l1, kl, total = 0.0, 0.0, 0
        for slices, position in held_out(data, count):
            with self.autocast(slices):
                mean, log_variance = model.encode(slices, position)
                decoded = model.decode(mean, position)
            l1 += float((decoded.float() - slices).abs().mean()) * len(slices)
            kl += float(divergence(mean, log_variance).sum())
            total += len(slices)
        return {"validation_l1": l1 / total, "validation_kl": kl / total}
