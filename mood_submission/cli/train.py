"""Train a VQ-VAE, then a prior on its codes, on a folder of healthy volumes (or on slices cached from one); then a detector
on both, with anomalies planted in these volumes; or the VAE that they are compared with."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..networks.context_detector import CONTEXT, WIDTHS
from ..networks.detector import DetectorSettings
from ..networks.vae import VAESettings
from ..networks.vqvae import VQVAESettings
from ..preprocessing import Preprocessing
from ..synthetic.anomalies import KINDS
from ..synthetic.varied import TRAINING_KINDS
from ..training.cache import build_cache
from ..training.run import (
    AUGMENTATIONS,
    PUBLISHED_ATTENTION,
    PUBLISHED_CHANNELS,
    Planting,
    Run,
    plant_store,
    train_context_detector,
    train_detector,
    train_prior,
    train_vae,
    train_vqvae,
)
from ..training.store import PlantingSettings
from ..training.trainer import Budget, Schedule
from .options import positive


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the default of options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="mood-submission train", description=__doc__)
    stages = top.add_subparsers(dest="stage", required=True)
    cache = stages.add_parser(
        "cache", help="only cache the slices, for training on a machine without nibabel"
    )
    _data_options(cache)
    cache.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE.npz", help="cache file to write"
    )
    vqvae = stages.add_parser("vqvae", help="train the VQ-VAE", formatter_class=Defaults)
    _run_options(vqvae, rate=1e-3)
    vqvae.add_argument(
        "--channels", type=int, nargs="+", help="widths of the levels (default: the region's published)"
    )
    vqvae.add_argument("--codebook-size", type=int, default=128, help="number of codes")
    vqvae.add_argument("--res-blocks", type=int, default=2, help="gated residual units a level")
    vqvae.add_argument("--stem-padding", type=int, default=3, help="padding of the first convolution")
    prior = stages.add_parser("prior", help="train the prior", formatter_class=Defaults)
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
    detector = stages.add_parser("detector", help="train the detector", formatter_class=Defaults)
    _run_options(detector, rate=2e-3)
    detector.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="FILE.safetensors",
        help="model file with the VQ-VAE and the prior that the detector is for",
    )
    detector.add_argument(
        "--widths", type=int, nargs="+", default=DetectorSettings.widths, help="widths of the levels"
    )
    detector.add_argument(
        "--copies", type=int, default=Planting.copies, help="of each volume, with two anomalies each"
    )
    detector.add_argument(
        "--restorations", type=int, default=Planting.restorations, help="of each planted slice"
    )
    detector.add_argument(
        "--varied",
        type=int,
        default=Planting.varied,
        metavar="N",
        help="further copies, deformed and with other greys, not restored: a slice in a third of the time",
    )
    detector.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of anomaly to train on"
    )
    detector.add_argument(
        "--planted",
        type=Path,
        metavar="FOLDER",
        help="planted slices, made there where they are not "
        "yet, for several runs of the same --model, --copies and --varied (default: in the run)",
    )
    detector.add_argument(
        "--store",
        type=Path,
        metavar="FOLDER",
        help="train the detector that reads a slice with its "
        "neighbours, on the volumes that 'mood-submission train plant' puts there, before or meanwhile",
    )
    detector.add_argument(
        "--context", type=int, nargs="+", default=CONTEXT, help="with --store: neighbours, 0 among them"
    )
    detector.add_argument(
        "--most", type=positive, default=400, help="with --store: newest volumes that are held in memory"
    )
    plant = stages.add_parser(
        "plant", help="fill a store of planted volumes for a detector", formatter_class=Defaults
    )
    _data_options(plant)
    plant.add_argument(
        "--model", type=Path, required=True, metavar="FILE.safetensors", help="VQ-VAE and prior"
    )
    plant.add_argument(
        "--store", type=Path, required=True, metavar="FOLDER", help="where to; goes on where it was"
    )
    much = plant.add_mutually_exclusive_group(required=True)
    much.add_argument("--count", type=positive, help="volumes that the store is to have had in all")
    much.add_argument("--minutes", type=float, help="plant so long")
    plant.add_argument("--keep", type=positive, help="volumes that are kept, the newest (default: all)")
    plant.add_argument(
        "--variants", type=positive, default=PlantingSettings.variants, help="of each volume, with anomalies"
    )
    plant.add_argument(
        "--kinds", nargs="+", choices=TRAINING_KINDS, default=TRAINING_KINDS, help="kinds of anomaly"
    )
    plant.add_argument("--restored", type=float, default=0.0, help="share of volumes that are restored too")
    plant.add_argument("--restorations", type=positive, default=2, help="of each slice of these")
    plant.add_argument(
        "--validation", type=float, default=0.1, help="share of volumes held out for thresholds"
    )
    plant.add_argument("--test", type=float, default=0.1, help="share of volumes not looked at at all")
    plant.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there, else cpu)")
    plant.add_argument("--seed", type=int, default=0, help="of what is planted where")
    vae = stages.add_parser("vae", help="train the VAE, for comparison", formatter_class=Defaults)
    _run_options(vae, rate=1e-3)
    vae.add_argument(
        "--channels", type=int, nargs="+", default=VAESettings.channels, help="widths of the levels"
    )
    vae.add_argument("--latent", type=int, default=VAESettings.latent, help="dimensions of the latent")
    vae.add_argument("--res-blocks", type=int, default=2, help="gated residual units a level")
    vae.add_argument(
        "--kl-weight", type=float, default=1.0, help="what the divergence counts beside the summed L1"
    )
    return top


def _data_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--region", choices=("brain", "abdom"), required=True)
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
    options.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there, else cpu)")
    options.add_argument("--batch", type=int, default=16, help="slices a step")
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
    options.add_argument(
        "--validation", type=float, default=0.1, help="share of volumes held out for thresholds"
    )
    options.add_argument("--test", type=float, default=0.1, help="share of volumes not looked at at all")
    options.add_argument("--seed", type=int, default=0, help="of batches, augmentation and initial weights")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    preprocessing = getattr(Preprocessing, args.preprocessing)(args.region)
    try:
        if args.stage == "cache":
            build_cache(args.data, args.out, preprocessing, args.max_slices, args.leave_out)
            return 0
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.manual_seed(args.seed)
        if args.stage == "plant":
            run = Run(
                args.region,
                tuple(args.data),
                args.store,
                Budget(args.minutes, args.count),
                Schedule(),
                device,
                validation=args.validation,
                test=args.test,
                leave_out=tuple(args.leave_out),
                preprocessing=preprocessing,
            )
            settings = PlantingSettings(
                args.variants,
                tuple(args.kinds),
                restored=args.restored,
                restorations=args.restorations,
                seed=args.seed,
            )
            made = plant_store(run, args.model, args.store, settings, args.count, args.keep)
            print(f"{args.store}: {made} volumes planted")
            return 0
        run = Run(
            args.region,
            tuple(args.data),
            args.out,
            Budget(args.minutes, args.steps),
            Schedule(batch=args.batch, rate=args.rate, precision=args.precision, seed=args.seed),
            device,
            args.resume,
            args.start_from,
            args.validation,
            args.test,
            args.max_slices,
            tuple(args.leave_out),
            preprocessing,
            args.augment,
        )
        if args.stage == "vqvae":
            train_vqvae(
                run,
                VQVAESettings(
                    args.channels or PUBLISHED_CHANNELS[args.region],
                    args.codebook_size,
                    args.res_blocks,
                    stem_padding=args.stem_padding,
                    dropout=args.dropout,
                ),
            )
        elif args.stage == "vae":
            train_vae(
                run,
                VAESettings(
                    args.channels,
                    args.latent,
                    n_res_block=args.res_blocks,
                    dropout=args.dropout,
                    kl_weight=args.kl_weight,
                ),
            )
        elif args.stage == "detector" and args.store:
            widths = WIDTHS if tuple(args.widths) == DetectorSettings.widths else args.widths
            train_context_detector(
                run,
                DetectorSettings(widths, args.dropout, context=args.context, restorations=0, balanced=True),
                args.model,
                args.store,
                args.most,
            )
        elif args.stage == "detector":
            train_detector(
                run,
                DetectorSettings(args.widths, args.dropout),
                args.model,
                Planting(
                    args.copies, args.restorations, args.varied, tuple(args.kinds), args.planted, args.seed
                ),
            )
        else:
            attention = {
                name: value for name in ("first_kernel", "downsample") if (value := getattr(args, name))
            }
            sizes = {
                "n_channels": args.prior_channels,
                "n_block": args.blocks,
                "n_res_block": args.res_blocks,
                "dropout": args.dropout,
            }
            train_prior(run, sizes | PUBLISHED_ATTENTION[args.region] | attention, args.vqvae or args.out)
    except ValueError as error:  # files and settings that are not as expected
        print(f"mood-submission train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mood-submission train: stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0
