"""Make a model file from one run folder (with both networks), or from a VQ-VAE's and a prior's."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ...model_file import SAMPLE_METHODS, About, save_model
from ...preprocessing import Preprocessing
from ...runtime.precision import DTYPES, STORED
from ..training.checkpoints import RunError, load_prior, load_vqvae


def holding(runs: list[Path], name: str) -> Path:
    """The one run folder that has a checkpoint of that name."""
    found = [run for run in runs if (run / f"{name}.pt").exists()]
    if len(found) != 1:
        raise RunError(f"{', '.join(map(str, runs))}: expected one run with {name}.pt, found {len(found)}")
    return found[0]


def export(runs: list[Path], out: Path, dtype: torch.dtype, sample_method: str, notes: dict) -> About:
    vqvae, vqvae_about = load_vqvae(holding(runs, "vqvae"))
    prior, prior_about = load_prior(holding(runs, "prior"))
    if "measured" not in prior_about:
        raise RunError(
            f"{holding(runs, 'prior') / 'prior.pt'}: expected a finished run with its thresholds, found one "
            f"that was stopped; finish it with --resume"
        )
    measured = prior_about.pop("measured")
    training = {"vqvae": vqvae_about, "prior": prior_about, "validation": measured["validation"]} | notes
    about = About(
        prior_about["region"],
        vqvae.settings,
        prior.settings,
        Preprocessing.from_dict(prior_about["preprocessing"]),
        measured["thresholds"]["pixel"],
        measured["thresholds"]["sample"],
        sample_method,
        **measured["calibration"],
        training=training,
    )
    save_model(out, vqvae, prior, about, dtype)
    return about


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission export", description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folder(s) of mood-submission train"
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE.safetensors", help="model file to write"
    )
    parser.add_argument(
        "--dtype", choices=STORED, default="float16", help="how parameters are stored (default: float16)"
    )
    parser.add_argument(
        "--sample-method",
        choices=SAMPLE_METHODS,
        default="top",
        help="how sample scores are made by default (default: top)",
    )
    parser.add_argument("--data", metavar="TEXT", help="what it was trained on, for the file's metadata")
    parser.add_argument("--licence", metavar="TEXT", help="licence of the weights, for the file's metadata")
    args = parser.parse_args(argv)
    notes = {name: value for name, value in (("data", args.data), ("licence", args.licence)) if value}
    try:
        about = export(args.runs, args.out, DTYPES[args.dtype], args.sample_method, notes)
    except (RunError, ValueError) as error:
        print(f"mood-submission export: {error}", file=sys.stderr)
        return 1
    figures = json.dumps(
        {
            "pixel_threshold": about.pixel_threshold,
            "sample_threshold": about.sample_threshold,
            "sample_scale": about.sample_scale,
            "top_reference": about.top_reference,
        }
    )
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {about.region}, {figures}")
    return 0
