"""Training the prior on the codes of a finished VQ-VAE, and measuring thresholds with it on held-out slices."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ...about import About
from ...methods.paper import PUBLISHED_SLICES, sample_score
from ...methods.top import top_score
from ...networks.pixelsnail import PixelSNAIL, PixelSNAILSettings, add_weight_norm, fold_weight_norm
from ...networks.vqvae import VQVAE
from ...runtime.option_types import odd, positive
from ...runtime.options import option
from .augment import Augmentation
from .cache import SliceData
from .checkpoints import add_to_about, load_vqvae
from .randomise import Randomisation
from .run import Run, RunOptions
from .slice_stage import SliceStage, evenly

PUBLISHED_KERNEL = {"brain": 7, "abdom": 3}
PUBLISHED_STRIDE = {"brain": 2, "abdom": 1}


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """Options of `train prior`."""

    run: RunOptions
    vqvae: Path | None = option("run with the VQ-VAE (default: --out itself)", metavar="RUN_DIR", default=None)
    prior_channels: int = option("width of the prior", default=128)
    blocks: int = option("blocks of the prior", default=4)
    res_blocks: int = option("pairs of residual units a block", default=4)
    first_kernel: int | None = option(
        "kernel of the first convolution (default: the region's published)", type=odd, default=None
    )
    downsample: int | None = option(
        "stride of the attention's grid (default: the region's published)", type=positive, default=None
    )

    def settings(self, codebook_size: int) -> PixelSNAILSettings:
        """The network's settings, for so many codes."""
        region = self.run.data.region
        return PixelSNAILSettings(
            codebook_size,
            n_channels=self.prior_channels,
            n_block=self.blocks,
            n_res_block=self.res_blocks,
            first_kernel=self.first_kernel or PUBLISHED_KERNEL[region],
            downsample=self.downsample or PUBLISHED_STRIDE[region],
            dropout=self.run.dropout,
        )


def train_prior(options: PriorOptions) -> None:
    """Train a prior on the codes of the run's VQ-VAE. Leaves prior.pt, prior.csv and pictures in the run's folder."""
    from . import plots

    vqvae, _ = load_vqvae(options.vqvae or options.run.out)
    run = Run(options.run)
    settings = options.settings(vqvae.settings.codebook_size)
    stage = PriorStage(settings, vqvae.to(run.device), run.augmentation, run.precision)
    trainer = run.trainer(stage, {"prior": asdict(settings)}, run.slices.splits)
    model = trainer.train()
    if not run.group.first:
        return
    measured = measure(stage, model, run.slices.splits)
    add_to_about(trainer.file, {"measured": measured})
    plots.curves(run.out / "prior.csv", run.out / "prior_curves.png")
    plots.restorations(
        vqvae,
        fold_weight_norm(model).eval(),
        run.slices["validation"],
        run.out / "prior_pictures.png",
        threshold=measured["thresholds"]["pixel"],
    )


class PriorStage(SliceStage[PixelSNAIL]):
    """The loss is the cross-entropy of the codes that the finished VQ-VAE gives augmented slices."""

    name = "prior"
    watched = "validation_nll"
    channels_last_on_cpu = True

    def __init__(
        self, settings: PixelSNAILSettings, vqvae: VQVAE, augmentation: Augmentation | Randomisation, precision: str
    ):
        super().__init__(add_weight_norm(PixelSNAIL(settings)), augmentation, precision)
        self.vqvae = vqvae.eval().requires_grad_(False)

    def loss(self, data: SliceData, index: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        slices, position = self.batch(data, index, generator)
        with torch.no_grad(), self.autocast(slices):
            codes = self.vqvae.encode(slices, position)
        with self.autocast(slices):
            logits = self.model(codes, position)
        return F.cross_entropy(logits.float(), codes), {}

    @torch.inference_mode()
    def validate(self, model: PixelSNAIL, data: SliceData, count: int = 192) -> dict[str, float]:
        nll = torch.cat([self.nll(model, data, index) for index in evenly(data, count)])
        low, high = nll_percentiles(nll)
        return {"validation_nll": float(nll.mean()), "nll_p90": low, "nll_p98": high}

    @torch.inference_mode()
    def nll(self, model: PixelSNAIL, data: SliceData, index: Tensor) -> Tensor:
        """NLL of each code (B, h, w), in nats, of slices without augmentation."""
        model.eval()
        slices, position = data.plain(index)
        with self.autocast(slices):
            codes = self.vqvae.encode(slices, position)
            logits = model(codes, position)
        return F.cross_entropy(logits.float(), codes, reduction="none")


def nll_percentiles(nll: Tensor) -> tuple[float, float]:
    """The 90th and the 98th percentile: the published choice of lambda_p and lambda_s (section 2)."""
    values = nll.float().flatten().cpu().sort().values
    low, high = (float(values[min(int(share * len(values)), len(values) - 1)]) for share in (0.90, 0.98))
    return low, high


def measure(stage: PriorStage, model: PixelSNAIL, splits: dict[str, SliceData]) -> dict:
    """What a model file says of held-out healthy slices.

    Returns
    thresholds: lambda_p and lambda_s, see `nll_percentiles`.
    calibration: `sample_scale`, the published one or five times the volumes' mean where that is more, so that scores of
        anomalous volumes stay below 1; and `top_reference`, the volumes' mean `top_score`.
    validation: figures of training and held-out slices, for the file's metadata.
    """
    data = splits["validation"]
    index = torch.arange(len(data), device=data.slices.device)
    # (N, h, w).
    nll = torch.cat([stage.nll(model, data, batch).cpu() for batch in index.split(32)])
    pixel, sample = nll_percentiles(nll)
    # A volume's slices are cached in order.
    volumes = [nll[data.volume.cpu() == number] for number in data.volume.cpu().unique()]
    healthy = [float(sample_score(volume, sample).mean()) * PUBLISHED_SLICES for volume in volumes]
    tops = [top_score(volume) for volume in volumes]
    train = [stage.nll(model, splits["train"], batch) for batch in evenly(splits["train"], 192)]
    return {
        "thresholds": {"pixel": pixel, "sample": sample},
        "calibration": {
            "sample_scale": max(About.sample_scale, 5 * sum(healthy) / len(healthy)),
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
