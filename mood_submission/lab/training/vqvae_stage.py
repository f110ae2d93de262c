"""Training the VQ-VAE."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...networks.vqvae import VQVAE, VQVAESettings
from ...runtime.options import option
from .augment import Augmentation
from .cache import SliceData
from .group import SINGLE_PROCESS, Group
from .randomise import Randomisation
from .run import Run, RunOptions
from .slice_stage import SliceStage, held_out
from .stage import Parameters

PUBLISHED_CHANNELS = {"brain": (16, 32, 64, 256), "abdom": (16, 32, 64, 128, 256)}


@dataclass(frozen=True, kw_only=True)
class VQVAEOptions:
    """Options of `train vqvae`."""

    run: RunOptions
    channels: tuple[int, ...] | None = option("widths of the levels (default: the region's published)", default=None)
    codebook_size: int = option("number of codes", default=128)
    res_blocks: int = option("gated residual units a level", default=2)
    stem_padding: int = option("padding of the first convolution", default=3)

    @property
    def settings(self) -> VQVAESettings:
        """The network's."""
        return VQVAESettings(
            self.channels or PUBLISHED_CHANNELS[self.run.data.region],
            self.codebook_size,
            self.res_blocks,
            stem_padding=self.stem_padding,
            dropout=self.run.dropout,
        )


def train_vqvae(options: VQVAEOptions) -> None:
    """Train a VQ-VAE. Leaves vqvae.pt, vqvae.csv, vqvae_curves.png and vqvae_pictures.png in the run's folder."""
    from . import plots

    run = Run(options.run)
    stage = VQVAEStage(options.settings, run.augmentation, run.precision, group=run.group)
    trainer = run.trainer(stage, {"vqvae": asdict(options.settings)}, run.slices.splits)
    model = trainer.train().eval()
    if run.group.first:
        plots.curves(run.out / "vqvae.csv", run.out / "vqvae_curves.png")
        plots.reconstructions(model, run.slices["validation"], run.out / "vqvae_pictures.png")


class VQVAEStage(SliceStage[VQVAE]):
    """The loss is as published: L1 of the reconstruction, codebook and commitment, both mean squared with weight 1.

    The codebook starts from encoder outputs. Unused codes start anew from them until 80% of the budget is spent.

    restart_every: steps.
    group: the processes that train together.
    """

    name = "vqvae"
    watched = "validation_l1"

    def __init__(
        self,
        settings: VQVAESettings,
        augmentation: Augmentation | Randomisation,
        precision: str,
        restart_every: int = 50,
        group: Group = SINGLE_PROCESS,
    ):
        super().__init__(VQVAE(settings), augmentation, precision)
        self.restart_every, self.group = restart_every, group
        # How often each code came since the last restart.
        self.usage = torch.zeros(settings.codebook_size)
        # Whether the codebook has started from encoder outputs, and those of the last batch, (B * h * w, C).
        self.started, self.recent = False, torch.empty(0)

    def loss(self, data: SliceData, index: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        slices, position = self.batch(data, index, generator)
        with self.autocast(slices):
            z_e = self.model.features(slices, position)
        # Distances need the precision.
        z_e = z_e.float()
        self.recent = z_e.detach().movedim(1, -1).flatten(0, -2)
        if not self.started:
            self._restart(torch.ones(len(self.model.codebook), dtype=torch.bool, device=z_e.device))
            self.started = True
        codes = self.model.nearest_codes(z_e.detach())
        z_q = self.model.lookup(codes)
        codebook, commitment = F.mse_loss(z_q, z_e.detach()), F.mse_loss(z_e, z_q.detach())
        with self.autocast(slices):
            reconstruction = self.model.decode_features(z_e + (z_q - z_e).detach(), position)
        l1 = (reconstruction.float() - slices).abs().mean()
        counts = torch.bincount(codes.flatten(), minlength=len(self.usage))
        self.usage = self.usage.to(z_e.device) + counts
        numbers = {"l1": l1, "codebook": codebook, "commitment": commitment}
        return l1 + codebook + commitment, {k: v.detach() for k, v in numbers.items()}

    @torch.no_grad()
    def _restart(self, dead: Tensor) -> None:
        """Replace the codes `dead`, (K,) bool, by random encoder outputs of the last batch."""
        picked = self.recent[torch.randint(len(self.recent), (len(dead),), device=dead.device)]
        self.model.codebook.copy_(torch.where(dead[:, None], picked, self.model.codebook))
        self.group.copy_from_first([self.model.codebook])

    def after_step(self, step: int, progress: float) -> None:
        if step % self.restart_every == 0:
            if progress < 0.8:
                usage = self.group.total(self.usage)
                self._restart(usage < 0.02 * usage.mean())
            self.usage.zero_()

    @torch.inference_mode()
    def validate(self, model: VQVAE, data: SliceData, count: int = 256) -> dict[str, float]:
        model.eval()
        l1, total = 0.0, 0
        used = torch.zeros(model.settings.codebook_size, device=data.slices.device)
        for slices, position in held_out(data, count):
            with self.autocast(slices):
                codes = model.encode(slices, position)
                decoded = model.decode(codes, position)
            l1 += float((decoded.float() - slices).abs().mean()) * len(slices)
            used += torch.bincount(codes.flatten(), minlength=len(used))
            total += len(slices)
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
        """The codebook comes with the parameters, and does not start from encoder outputs."""
        super().begin_from(parameters)
        self.started = True
