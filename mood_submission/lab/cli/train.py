"""Train a VQ-VAE, then a prior on its codes, on a folder of healthy volumes (or on slices cached from one); then a detector
on both, with anomalies planted in these volumes; or the VAE that they are compared with. Started by torchrun, its processes
train one network together."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ...cli.options import DEVICE_HELP, add_region, positive, shard_option, share
from ...cli.output import say, tell
from ...networks.detector import CONTEXT, DetectorSettings
from ...networks.vae import VAESettings
from ...networks.vqvae import VQVAESettings
from ...preprocessing import Preprocessing
from ...runtime.names import in_one_line
from ..planting.varied import TRAINING_KINDS
from ..training.cache import build_cache
from ..training.group import Group
from ..training.patches import Drawing
from ..training.run import (
    AUGMENTATIONS,
    PUBLISHED_ATTENTION,
    PUBLISHED_CHANNELS,
    Run,
    plant_store,
    train_detector,
    train_prior,
    train_vae,
    train_vqvae,
)
from ..training.store import PlantingSettings
from ..training.trainer import Budget, Schedule


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the default of options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="mood-submission train", description=__doc__)
    stages = top.add_subparsers(dest="stage", required=True)
    for name, (help_text, add_options, _) in STAGES.items():
        add_options(stages.add_parser(name, help=help_text, description=help_text, formatter_class=Defaults))
    return top


# --- the options of each stage ---------------------------------------------------------------------------------------


def _cache_options(cache: argparse.ArgumentParser) -> None:
    _data_options(cache)
    cache.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE.npz", help="cache file to write"
    )


def _vqvae_options(vqvae: argparse.ArgumentParser) -> None:
    _run_options(vqvae, rate=1e-3)
    vqvae.add_argument(
        "--channels", type=int, nargs="+", help="widths of the levels (default: the region's published)"
    )
    vqvae.add_argument("--codebook-size", type=int, default=128, help="number of codes")
    vqvae.add_argument("--res-blocks", type=int, default=2, help="gated residual units a level")
    vqvae.add_argument("--stem-padding", type=int, default=3, help="padding of the first convolution")


def _prior_options(prior: argparse.ArgumentParser) -> None:
    _run_options(prior, rate=4e-4)
    prior.add_argument(
        "--vqvae", type=Path, metavar="RUN_DIR", help="run with the VQ-VAE (default: --out itself)"
    )
    prior.add_argument("--prior-channels", type=int, default=128, help="width of the prior")
    prior.add_argument("--blocks", type=int, default=4, help="blocks of the prior")
    prior.add_argument("--res-blocks", type=int, default=4, help="pairs of residual units a block")
    prior.add_argument(
        "--first-kernel", type=int, help="kernel of the first convolution (default: the region's published)"
    )
    prior.add_argument(
        "--downsample", type=int, help="stride of the attention's grid (default: the region's published)"
    )


def _detector_options(detector: argparse.ArgumentParser) -> None:
    _run_options(detector, rate=1.5e-3)
    add = detector.add_argument
    add(
        "--model",
        type=Path,
        required=True,
        metavar="FILE.safetensors",
        help="model file with the VQ-VAE and the prior that the detector is for",
    )
    add("--widths", type=int, nargs="+", default=DetectorSettings.widths, help="widths of the levels")
    add(
        "--store",
        type=Path,
        metavar="FOLDER",
        required=True,
        help="the planted volumes that 'mood-submission train plant' puts there, before or meanwhile",
    )
    add("--context", type=int, nargs="+", default=CONTEXT, help="slices read with a slice, 0 among them")
    add("--most", type=positive, default=400, help="newest volumes that are held in memory")
    add(
        "--doubted",
        type=share,
        default=0.0,
        help="share of patches whose residuals and NLL are made less telling; helps where volumes to train on are few",
    )
    add(
        "--toned",
        type=share,
        default=0.0,
        help="share of patches that are shown in other greys and with more grain, as other scanners would",
    )
    add(
        "--unseen",
        nargs="+",
        choices=TRAINING_KINDS,
        default=(),
        metavar="KIND",
        help="kinds of anomaly that are not trained on; the best detector is the one that finds these best",
    )
    add("--validations", type=positive, default=12, help="how often to validate, evenly over the training")
    add(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that draw batches ahead; the batches are the same with any number",
    )


def _plant_options(plant: argparse.ArgumentParser) -> None:
    _data_options(plant)
    add = plant.add_argument
    add("--model", type=Path, required=True, metavar="FILE.safetensors", help="VQ-VAE and prior")
    add(
        "--store",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where to; goes on where it was. The slices of a --data FOLDER are cached there too",
    )
    much = plant.add_mutually_exclusive_group(required=True)
    much.add_argument("--count", type=positive, help="volumes that the store is to have had in all")
    much.add_argument("--minutes", type=float, help="plant so long")
    add("--keep", type=positive, help="volumes that are kept, the newest (default: all)")
    add(
        "--shard",
        type=shard_option,
        default=(1, 1),
        metavar="I/N",
        help="be one of N processes that fill the store together (default: 1/1)",
    )
    add("--variants", type=positive, default=PlantingSettings.variants, help="of each volume, with anomalies")
    add("--kinds", nargs="+", choices=TRAINING_KINDS, default=TRAINING_KINDS, help="kinds of anomaly")
    add("--restored", type=share, default=0.0, help="share of volumes that are restored too")
    add("--restorations", type=positive, default=2, help="of each slice of these")
    add("--seed", type=int, default=0, help="of what is planted where")
    _held_out_options(plant)


def _vae_options(vae: argparse.ArgumentParser) -> None:
    _run_options(vae, rate=1e-3)
    vae.add_argument(
        "--channels", type=int, nargs="+", default=VAESettings.channels, help="widths of the levels"
    )
    vae.add_argument("--latent", type=int, default=VAESettings.latent, help="dimensions of the latent")
    vae.add_argument("--res-blocks", type=int, default=2, help="gated residual units a level")
    vae.add_argument(
        "--kl-weight", type=float, default=1.0, help="what the divergence counts beside the summed L1"
    )


def _data_options(options: argparse.ArgumentParser) -> None:
    add_region(options)
    options.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER_OF_NIFTI",
        help="healthy volumes (.nii, .nii.gz), of one or several scanners; or a .npz made by 'mood-submission train cache'",
    )
    options.add_argument(
        "--leave-out",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="volumes not to read, by name: 'ucla*' keeps a scanner unseen",
    )
    options.add_argument(
        "--hold-out",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="volumes for validation, by name, as a new cache notes them; all others are then trained on",
    )
    options.add_argument(
        "--preprocessing",
        choices=("harmonised", "published"),
        default="harmonised",
        help="how volumes become slices: framed, scaled and sharpened alike, or as the paper has it",
    )
    options.add_argument(
        "--max-slices", type=int, metavar="N", help="cache at most N slices a volume, evenly spaced"
    )


def _run_options(options: argparse.ArgumentParser, rate: float) -> None:
    _data_options(options)
    options.add_argument("--out", type=Path, required=True, metavar="RUN_DIR", help="folder of this run")
    budget = options.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="train so long, resumed parts included")
    budget.add_argument("--steps", type=int, help="train so many steps")
    options.add_argument(
        "--resume", action="store_true", help="go on from the run's checkpoint, if it has one"
    )
    options.add_argument(
        "--start-from",
        type=Path,
        metavar="RUN_DIR|FILE.safetensors",
        help="start from another run's weights, or a model file's",
    )
    options.add_argument(
        "--batch", type=positive, default=16, help="slices a step, of all processes together"
    )
    options.add_argument(
        "--accumulate",
        type=positive,
        default=1,
        metavar="N",
        help="take each process's share of a batch in N parts, which needs less memory",
    )
    options.add_argument(
        "--rate", type=float, default=rate, help="highest learning rate of the cosine schedule"
    )
    options.add_argument(
        "--augment",
        choices=AUGMENTATIONS,
        default="mild",
        help="how slices are varied: the paper's set, or domain randomisation",
    )
    options.add_argument("--dropout", type=float, default=0.1, help="probability that a unit drops a channel")
    options.add_argument(
        "--precision", choices=("bf16", "float32"), default="bf16", help="autocast precision"
    )
    options.add_argument("--seed", type=int, default=0, help="of batches, augmentation and initial weights")
    _held_out_options(options)


def _held_out_options(options: argparse.ArgumentParser) -> None:
    """Which volumes are held out, and the device: what training and planting must agree on, and may differ in."""
    options.add_argument(
        "--validation", type=share, default=0.1, help="share of volumes held out for thresholds"
    )
    options.add_argument("--test", type=share, default=0.1, help="share of volumes not looked at at all")
    options.add_argument("--device", help=DEVICE_HELP)


# --- what each stage does --------------------------------------------------------------------------------------------


def _preprocessing(args: argparse.Namespace) -> Preprocessing:
    if args.preprocessing == "published":
        return Preprocessing.published(args.region)
    return Preprocessing.harmonised(args.region)


def _run(args: argparse.Namespace) -> Run:
    group = Group.from_environment()
    device = torch.device(args.device or group.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(args.seed)
    return Run(
        args.region,
        tuple(args.data),
        args.out,
        Budget(args.minutes, args.steps),
        Schedule(
            batch=args.batch,
            rate=args.rate,
            accumulate=args.accumulate,
            precision=args.precision,
            seed=args.seed,
        ),
        device,
        args.resume,
        args.start_from,
        args.validation,
        args.test,
        args.max_slices,
        tuple(args.leave_out),
        tuple(args.hold_out),
        _preprocessing(args),
        args.augment,
        group,
    )


def _cache(args: argparse.Namespace) -> None:
    build_cache(args.data, args.out, _preprocessing(args), args.max_slices, args.leave_out, args.hold_out)


def _vqvae(args: argparse.Namespace) -> None:
    settings = VQVAESettings(
        args.channels or PUBLISHED_CHANNELS[args.region],
        args.codebook_size,
        args.res_blocks,
        stem_padding=args.stem_padding,
        dropout=args.dropout,
    )
    train_vqvae(_run(args), settings)


def _prior(args: argparse.Namespace) -> None:
    attention = {name: value for name in ("first_kernel", "downsample") if (value := getattr(args, name))}
    sizes = {
        "n_channels": args.prior_channels,
        "n_block": args.blocks,
        "n_res_block": args.res_blocks,
        "dropout": args.dropout,
    }
    settings = sizes | PUBLISHED_ATTENTION[args.region] | attention
    train_prior(_run(args), settings, args.vqvae or args.out)


def _detector(args: argparse.Namespace) -> None:
    settings = DetectorSettings(args.widths, args.dropout, context=args.context)
    drawing = Drawing(doubted=args.doubted, toned=args.toned)
    train_detector(
        _run(args),
        settings,
        args.model,
        args.store,
        args.most,
        drawing,
        args.workers,
        args.validations,
        args.unseen,
    )


def _plant(args: argparse.Namespace) -> None:
    run = Run(
        args.region,
        tuple(args.data),
        args.store,
        Budget(args.minutes, args.count),
        Schedule(),
        torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu")),
        validation=args.validation,
        test=args.test,
        max_slices=args.max_slices,
        leave_out=tuple(args.leave_out),
        hold_out=tuple(args.hold_out),
        preprocessing=_preprocessing(args),
    )
    settings = PlantingSettings(
        args.variants,
        tuple(args.kinds),
        restored=args.restored,
        restorations=args.restorations,
        seed=args.seed,
    )
    made = plant_store(run, args.model, args.store, settings, args.count, args.keep, args.shard)
    tell(f"{args.store}: {made} volumes planted")


def _vae(args: argparse.Namespace) -> None:
    settings = VAESettings(
        args.channels,
        args.latent,
        n_res_block=args.res_blocks,
        dropout=args.dropout,
        kl_weight=args.kl_weight,
    )
    train_vae(_run(args), settings)


Options = Callable[[argparse.ArgumentParser], None]
Action = Callable[[argparse.Namespace], None]
STAGES: dict[str, tuple[str, Options, Action]] = {
    "cache": ("only cache the slices, for training on a machine without nibabel", _cache_options, _cache),
    "vqvae": ("train the VQ-VAE", _vqvae_options, _vqvae),
    "prior": ("train the prior", _prior_options, _prior),
    "detector": ("train the detector", _detector_options, _detector),
    "plant": ("fill a store of planted volumes for a detector", _plant_options, _plant),
    "vae": ("train the VAE, for comparison", _vae_options, _vae),
}


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        STAGES[args.stage][2](args)
    except ValueError as error:  # files and settings that are not as expected
        say(f"mood-submission train: {in_one_line(error)}")
        return Group.leave(1)
    except KeyboardInterrupt:
        say("mood-submission train: stopped; --resume goes on from the last checkpoint")
        return Group.leave(130)
    return Group.leave(0)
