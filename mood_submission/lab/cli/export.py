"""Make a model file from one run folder (with both networks), or from a VQ-VAE's and a prior's."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...about import About
from ...cli.command import run_command
from ...methods import table
from ...methods.top import Top
from ...model_file import save_model
from ...preprocessing import Preprocessing
from ...runtime.options import option
from ...runtime.precision import DTYPES, STORED
from ..training.checkpoints import RunError, load_prior, load_vqvae


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `export`."""

    runs: tuple[Path, ...] = option("run folder(s) of mood-submission train", "runs", metavar="RUN")
    out: Path = option("model file to write", "-o", "--out", metavar="FILE.safetensors")
    dtype: str = option("how parameters are stored", choices=STORED, default="float16")
    sample_method: str = option(
        "how sample scores are made by default", choices=lambda: table.names("sample"), default=Top.name
    )
    data: str | None = option("what it was trained on, for the file's metadata", metavar="TEXT", default=None)
    licence: str | None = option("licence of the weights, for the file's metadata", metavar="TEXT", default=None)


def holding(runs: Sequence[Path], name: str) -> Path:
    """The one run folder that has a checkpoint of that name."""
    found = [run for run in runs if (run / f"{name}.pt").exists()]
    if len(found) != 1:
        raise RunError(f"{', '.join(map(str, runs))}: expected one run with {name}.pt, found {len(found)}")
    return found[0]


def export(options: ExportOptions) -> list[str]:
    """Write the model file. Returns a line on what is in it. Raises RunError for runs that were stopped."""
    vqvae, vqvae_about = load_vqvae(holding(options.runs, "vqvae"))
    prior, prior_about = load_prior(holding(options.runs, "prior"))
    if "measured" not in prior_about:
        raise RunError(
            f"{holding(options.runs, 'prior') / 'prior.pt'}: expected a finished run with its thresholds, found one "
            f"that was stopped; finish it with --resume"
        )
    measured = prior_about.pop("measured")
    notes = {name: value for name in ("data", "licence") if (value := getattr(options, name))}
    training = {"vqvae": vqvae_about, "prior": prior_about, "validation": measured["validation"]}
    about = About(
        region=prior_about["region"],
        vqvae=vqvae.settings,
        prior=prior.settings,
        preprocessing=Preprocessing.from_dict(prior_about["preprocessing"]),
        pixel_threshold=measured["thresholds"]["pixel"],
        sample_threshold=measured["thresholds"]["sample"],
        sample_method=options.sample_method,
        **measured["calibration"],
        training=training | notes,
    )
    save_model(options.out, vqvae, prior, about, DTYPES[options.dtype])
    measured_fields = ("pixel_threshold", "sample_threshold", "sample_scale", "top_reference")
    figures = json.dumps({name: getattr(about, name) for name in measured_fields})
    return [f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, {about.region}, {figures}"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission export", description=__doc__)
    return run_command(parser, ExportOptions, export, argv)
