"""Compare scoring methods on healthy held-out volumes: plant anomalies of every kind, score them by every method, and write
one table (table.md, table.json) and a page of examples (examples.png).

Each case's results are kept in RESULTS: a run that was stopped goes on where it was, a VAE can be added later.
"""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from ...about import About
from ...cli.options import add_device, add_names_file, add_region, add_scoring, add_weights, names_in
from ...cli.output import Progress, say, tell
from ...methods import table as table_of_methods
from ...model import Model
from ...model_file import WEIGHTS, load_model, rewrite_about
from ...predictor import Predictor
from ...runtime.files import write_text
from ...runtime.integrity import content_sha256
from ...runtime.names import as_text, in_one_line
from ...runtime.option_types import positive
from ...runtime.settings_file import check_settings
from ...runtime.sources import source_of
from ...volumes import Source, VolumeError, named_volumes
from ..evaluation.comparison import (
    Case,
    Scoring,
    compared_methods,
    model_scores,
    plan,
    run_case,
    table,
    telling_apart,
    to_markdown,
    vae_scores,
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mood-submission compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_region(parser)
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="healthy volumes, not trained "
        "on, of one or several scanners; those whose names begin with the same letters are one source",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="RESULTS", help="folder to write to")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--held-out",
        action="store_true",
        help="only the volumes that the model file names as its "
        "validation and test volumes; with tables of both halves too",
    )
    which.add_argument("--only", nargs="+", metavar="PATTERN", help="only the volumes of these names, such as 'ucla*'")
    add_names_file(which, "only the volumes named there, one a line")
    parser.add_argument(
        "--planted",
        type=positive,
        default=1,
        metavar="N",
        help="anomalies a volume, each in a copy of its own (default: 1)",
    )
    parser.add_argument(
        "--vae",
        type=Path,
        metavar="RUN_DIR",
        help="a run of 'mood-submission train vae', to be in the table too",
    )
    add_weights(parser)
    add_scoring(parser, restorations="0: only methods that need none (default: what the model file says)")
    parser.add_argument(
        "--record",
        action="store_true",
        help="with --held-out: write the average precision of each method on "
        "both halves into the model file's description",
    )
    add_device(parser)
    parser.add_argument("--seed", type=int, default=0, help="of what is planted where (default: 0)")
    args = parser.parse_args(argv)
    if args.record and not args.held_out:
        parser.error("--record is for the model's own held-out volumes: --held-out")
    return args


def halves(args: argparse.Namespace, splits: dict[str, list[str]]) -> dict[str, list[str]]:
    """The names of the validation and test volumes where --held-out asks for them, else nothing."""
    if not args.held_out:
        return {}
    if not (splits.get("validation") and splits.get("test")):
        raise ValueError(
            f"{args.weights or args.region}: expected a model file that names its held-out volumes, found none"
        )
    return {"validation": splits["validation"], "test": splits["test"]}


def write_tables(cases: list[Case], folders: list[Path], parts: dict[str, list[str]], out: Path) -> dict[str, dict]:
    """table.json and table.md: all cases, and those of each part's volumes. Returns the tables by group."""
    sources = {case.volume: source_of(case.volume) for case in cases}
    names = sorted(set(sources.values()))
    parts = parts | (
        {name: [v for v, source in sources.items() if source == name] for name in names} if len(names) > 1 else {}
    )
    groups = {"all volumes": cases} | {
        f"{name} volumes": [c for c in cases if c.volume in members] for name, members in parts.items()
    }
    results = {name: table(members, folders) for name, members in groups.items()}
    write_text(out / "table.json", json.dumps(results, indent=1) + "\n")
    text = "\n".join(
        f"## {name}: {sum(c.kind is None for c in groups[name])} healthy, "
        f"{sum(c.kind is not None for c in groups[name])} with an anomaly\n\n{to_markdown(result)}"
        for name, result in results.items()
    )
    if len(names) > 1:
        text += (
            "\n## Healthy volumes of two sources told apart by their sample scores (area under the curve)\n\n"
            + "\n".join(
                f"- {name}: " + ", ".join(f"{pair} {area:.2f}" for pair, area in pairs.items())
                for name, pairs in telling_apart(cases, folders).items()
            )
            + "\n"
        )
    write_text(out / "table.md", text)
    return results


def chosen(args: argparse.Namespace, parts: dict[str, list[str]]) -> dict[str, Source]:
    """The volumes to compare on, by name. Raises VolumeError for names that are missing or twice there."""
    names = names_in(args.names_file) if args.names_file else sum(parts.values(), []) or None
    if args.only:
        names = [name for name in named_volumes(args.data) if any(fnmatch(name, p) for p in args.only)]
        if not names:
            found = f"found none called {' or '.join(args.only)}"
            raise VolumeError(f"{', '.join(map(str, args.data))}: expected volumes to compare on, {found}")
    return named_volumes(args.data, names)


def record(weights: Path, about: About, args: argparse.Namespace, results: dict[str, dict]) -> None:
    """Write the figures of both halves into the description of the model file."""
    what = (
        f"average precision, mood-submission compare --held-out, seed {args.seed}: each volume healthy and {args.planted} x with "
        f"an anomaly planted, slices {args.slices or 'by default'}, precision {args.precision}"
    )
    figures = {
        half: {
            task: {name: round(row["ap"], 3) for name, row in methods.items()}
            for task, methods in results[f"{half} volumes"].items()
        }
        for half in ("validation", "test")
    }
    training = about.training | {"comparison": {"what": what} | figures}
    rewrite_about(weights, weights, dataclasses.replace(about, training=training))


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def what_scores(model: Model) -> str:
    """The digest of everything in a model that scores depend on.

    That is its parameters, and its description without what that says of training and of defaults.
    """
    networks = {"vqvae": model.vqvae, "prior": model.prior, "detector": model.detector}
    tensors = {
        f"{part}.{name}": value
        for part, network in networks.items()
        if network is not None
        for name, value in network.state_dict().items()
    }
    detector = model.about.detector and dataclasses.replace(model.about.detector, restorations=0)
    about = dataclasses.replace(
        model.about,
        training={},
        sample_method="",
        pixel_method="",
        detector=detector,
    )
    return content_sha256(tensors, about.to_json())[:16]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        weights = args.weights or WEIGHTS / f"{args.region}.safetensors"
        model = load_model(weights, args.device, precision=args.precision)
        predictor = Predictor(
            model,
            args.slices,
            args.restorations,
            sample_method=table_of_methods.first_that_fits("sample", model.about, args.restorations).name,
            pixel_method=table_of_methods.first_that_fits("pixel", model.about, args.restorations).name,
        )
        parts = halves(args, model.about.training.get("vqvae", {}).get("volumes", {}))
        files = chosen(args, parts)
        cases = plan(list(files), args.planted, args.seed)
        scorings: dict[Path, Scoring] = {args.out / "cases": model_scores}
        if args.vae:
            from ..training.checkpoints import load_vae

            folder = args.out / f"cases_vae_{digest(args.vae / 'vae.pt')}"
            scorings[folder] = vae_scores(load_vae(args.vae)[0])
        args.out.mkdir(parents=True, exist_ok=True)
        check_settings(
            args.out / "settings.json",
            {
                "model": what_scores(model),
                "volumes": [as_text(name) for name in files],
                "planted": args.planted,
                "slices": args.slices,
                "restorations": predictor.restorations,
                "methods": [method.name for method in compared_methods()],
                "precision": args.precision,
                "seed": args.seed,
            },
        )
        with Progress(len(cases), "comparing", "case") as progress:
            for case in cases:
                progress.stage(case.name)
                for folder, scoring in scorings.items():
                    run_case(case, files[case.volume], predictor, scoring, folder)
                progress.update()
        results = write_tables(cases, list(scorings), parts, args.out)
        from ..evaluation.example_page import examples

        examples(cases, list(scorings), args.out / "examples.png")
        if args.record:
            record(weights, model.about, args, results)
    except (ValueError, OSError, RuntimeError) as error:
        say(f"mood-submission compare: {in_one_line(error)}")
        return 1
    tell(*(args.out / "table.md").read_text("utf-8").split("\n"))
    return 0
