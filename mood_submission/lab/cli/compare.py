"""Compare scoring methods on healthy held-out volumes: plant anomalies of every kind, score them by every method, and write
one table (table.md, table.json) and a page of examples (examples.png).

Each case's results are kept in RESULTS: a run that was stopped goes on where it was, a VAE can be added later.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ...about import About
from ...cli.command import run_command
from ...cli.output import Progress
from ...model import Model
from ...model_file import WEIGHTS, rewrite_about
from ...runtime.contract import REGIONS
from ...runtime.files import write_text
from ...runtime.integrity import content_sha256, file_sha256
from ...runtime.names import as_text
from ...runtime.option_types import positive
from ...runtime.options import option
from ...volumes import Source, VolumeError, named_volumes
from ..evaluation.comparison import (
    Case,
    Scoring,
    compared_methods,
    comparison_table,
    model_scores,
    plan,
    run_case,
    telling_apart,
    to_markdown,
    vae_scores,
)
from ..settings_file import check_settings
from ..sources import source_of
from ..training.checkpoints import load_vae
from ..training.names_file import read_names
from .options import ScoringOptions, weights_option


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `compare`."""

    region: str = option(None, choices=REGIONS)
    data: tuple[Path, ...] = option(
        "healthy volumes, not trained on, of one or several scanners; those whose names begin with the same letters are one "
        "source",
        metavar="FOLDER",
    )
    out: Path = option("folder to write to", "-o", "--out", metavar="RESULTS")
    held_out: bool = option(
        "only the volumes that the model file names as its validation and test volumes; with tables of both halves too",
        default=False,
        not_with="names",
    )
    only: tuple[str, ...] = option(
        "only the volumes of these names, such as 'ucla*'", metavar="PATTERN", default=(), not_with="names"
    )
    names_file: Path | None = option(
        "only the volumes named there, one a line", metavar="FILE", default=None, not_with="names"
    )
    planted: int = option("anomalies a volume, each in a copy of its own", type=positive, metavar="N", default=1)
    vae: Path | None = option(
        "a run of 'mood-submission train vae', to be in the table too", metavar="RUN_DIR", default=None
    )
    weights: Path | None = weights_option()
    scoring: ScoringOptions
    record: bool = option(
        "with --held-out: write the average precision of each method on both halves into the model file's description",
        default=False,
    )
    seed: int = option("of what is planted where (default: 0)", default=0)

    def __post_init__(self) -> None:
        if self.record and not self.held_out:
            raise argparse.ArgumentError(None, "--record is for the model's own held-out volumes: --held-out")

    @property
    def model_file(self) -> Path:
        return self.weights or WEIGHTS / f"{self.region}.safetensors"

    def halves(self, about: About) -> dict[str, list[str]]:
        """The names of the model's validation and test volumes where --held-out asks for them, else nothing."""
        if not self.held_out:
            return {}
        splits = about.training.get("vqvae", {}).get("volumes", {})
        if not (splits.get("validation") and splits.get("test")):
            raise ValueError(
                f"{self.weights or self.region}: expected a model file that names its held-out volumes, found none"
            )
        return {"validation": splits["validation"], "test": splits["test"]}

    def volumes(self, halves: dict[str, list[str]]) -> dict[str, Source]:
        """The volumes to compare on, by name. Raises VolumeError for names that are missing or twice there."""
        names = read_names(self.names_file) if self.names_file else sum(halves.values(), []) or None
        if self.only:
            names = [name for name in named_volumes(self.data) if any(fnmatch(name, p) for p in self.only)]
            if not names:
                found = f"found none called {' or '.join(self.only)}"
                raise VolumeError(f"{', '.join(map(str, self.data))}: expected volumes to compare on, {found}")
        return named_volumes(self.data, names)


def compare(options: CompareOptions) -> list[str]:
    """Write the tables and the page of examples. Returns the table's lines. Raises ValueError, OSError, RuntimeError."""
    predictor = options.scoring.predictor(options.model_file)
    about = predictor.model.about
    halves = options.halves(about)
    volumes = options.volumes(halves)
    cases = plan(list(volumes), options.planted, options.seed)
    scorings: dict[Path, Scoring] = {options.out / "cases": model_scores}
    if options.vae:
        folder = options.out / f"cases_vae_{file_sha256(options.vae / 'vae.pt')[:16]}"
        scorings[folder] = vae_scores(load_vae(options.vae)[0])
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": what_scores(predictor.model),
        "volumes": [as_text(name) for name in volumes],
        "planted": options.planted,
        "slices": options.scoring.slices,
        "restorations": predictor.restorations,
        "methods": [method.name for method in compared_methods()],
        "precision": predictor.model.precision,
        "seed": options.seed,
    }
    # Results of before there were engines have none in their settings.
    if predictor.model.engine.name != "torch":
        settings["engine"] = predictor.model.engine.name
        settings["graphs"] = predictor.model.engine.graphs
    computed = predictor.model.computed
    check_settings(options.out / "settings.json", settings)
    with Progress(len(cases), "comparing", "case") as progress:
        for case in cases:
            progress.stage(case.name)
            for folder, scoring in scorings.items():
                run_case(case, volumes[case.volume], predictor, scoring, folder)
                if predictor.model.computed != computed:
                    # Torch took over while this case was computed, see `EngineWarning`.
                    (folder / f"{case.name}.npz").unlink()
                    raise RuntimeError(
                        f"{case.name}: expected scores by {computed['engine']} in {computed['precision']}, which failed; --engine "
                        "torch measures without it, in another folder"
                    )
            progress.update()
    results = write_tables(cases, list(scorings), halves, options.out)
    # matplotlib is loaded last, so that the tables are written where it is missing.
    from ..evaluation.example_page import examples

    examples(cases, list(scorings), options.out / "examples.png")
    if options.record:
        record(options, predictor.model, about, results)
    return (options.out / "table.md").read_text("utf-8").split("\n")


def what_scores(model: Model) -> str:
    """The digest of everything in a model that scores depend on.

    That is its parameters, and its description without what that says of training and of defaults.
    """
    networks = {"vqvae": model.vqvae, "prior": model.prior, "detector": model.detector}
    tensors = {
        f"{kind}.{name}": value
        for kind, network in networks.items()
        if network is not None
        for name, value in network.state_dict().items()
    }
    detector = model.about.detector and dataclasses.replace(model.about.detector, restorations=0)
    about = dataclasses.replace(model.about, training={}, sample_method="", pixel_method="", detector=detector)
    return content_sha256(tensors, about.to_json())[:16]


def write_tables(
    cases: list[Case], folders: list[Path], halves: dict[str, list[str]], out: Path
) -> dict[str, dict[str, dict]]:
    """Write table.json and table.md: of all cases, of each half of the volumes, and of each source where there are several.

    Returns the tables by group.
    """
    sources = {case.volume: source_of(case.volume) for case in cases}
    names = sorted(set(sources.values())) if len(set(sources.values())) > 1 else []
    members = halves | {name: [volume for volume, source in sources.items() if source == name] for name in names}
    groups = {"all volumes": cases} | {
        f"{name} volumes": [case for case in cases if case.volume in volumes] for name, volumes in members.items()
    }
    results = {name: comparison_table(group, folders) for name, group in groups.items()}
    write_text(out / "table.json", json.dumps(results, indent=1) + "\n")
    text = "\n".join(
        f"## {name}: {sum(case.kind is None for case in groups[name])} healthy, "
        f"{sum(case.kind is not None for case in groups[name])} with an anomaly\n\n{to_markdown(result)}"
        for name, result in results.items()
    )
    if names:
        text += "\n## Healthy volumes of two sources told apart by their sample scores (area under the curve)\n\n"
        for name, pairs in telling_apart(cases, folders).items():
            text += f"- {name}: " + ", ".join(f"{pair} {area:.2f}" for pair, area in pairs.items()) + "\n"
    write_text(out / "table.md", text)
    return results


def record(options: CompareOptions, model: Model, about: About, results: dict[str, dict]) -> None:
    """Write the figures of both halves into the description of the model file. model: as it has computed them."""
    engine = "" if model.engine.name == "torch" else f", engine {model.engine.name}"
    what = (
        f"average precision, mood-submission compare --held-out, seed {options.seed}: each volume healthy and "
        f"{options.planted} x with an anomaly planted, slices {options.scoring.slices or 'by default'}, precision "
        f"{model.precision}{engine}"
    )
    figures = {
        half: {
            task: {name: round(row["ap"], 3) for name, row in methods.items()}
            for task, methods in results[f"{half} volumes"].items()
        }
        for half in ("validation", "test")
    }
    training = about.training | {"comparison": {"what": what} | figures}
    rewrite_about(options.model_file, options.model_file, dataclasses.replace(about, training=training))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission compare", description=__doc__)
    return run_command(parser, CompareOptions, compare, argv, also=(RuntimeError,))
