"""Make a model's networks ready for ONNX Runtime, in float32 and int8: writes the file of graphs that lies beside a model file.

Ranges of activations are measured on healthy slices, of each source as many. Volumes that the model was trained on are taken
where --data has them. `predict --engine onnx` then needs the package onnxruntime alone.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...cli.command import run_command
from ...cli.output import Progress
from ...engines.graphs import INT8, SUFFIX
from ...engines.onnx_engine import PACKAGE
from ...methods import table
from ...model import Model
from ...model_file import load_model
from ...predictor import Predictor
from ...preprocessing.region import another_region, region_of
from ...runtime.contract import TASKS
from ...runtime.option_types import positive
from ...runtime.options import option
from ...volumes import Source, named_volumes, read_volume
from ..onnx_export import prepare_exporter
from ..sources import source_of

CACHE = ".npz"


@dataclass(frozen=True, kw_only=True)
class QuantiseOptions:
    """Options of `quantise`."""

    model: str = option("model file, or a region's shipped one: brain, abdom", "model", metavar="MODEL")
    data: tuple[Path, ...] = option(
        "healthy volumes, of one or several scanners, or one slice cache (.npz of train cache)", metavar="FOLDER"
    )
    volumes: int = option("of each source, at most (default: 8)", type=positive, metavar="N", default=8)
    slices: int = option("of each volume, at most (default: 6)", type=positive, metavar="N", default=6)
    out: Path | None = option(
        "file to write (default: beside the model file, where prediction looks for it)",
        "-o",
        "--out",
        metavar=f"FILE{SUFFIX}",
        default=None,
    )


def quantise(options: QuantiseOptions) -> list[str]:
    """Write the file. Returns lines on what was measured. Raises ValueError and OSError."""
    if options.out is not None and options.out.is_dir():
        raise ValueError(f"{options.out}: expected a file to write, found a folder")
    prepare_exporter(PACKAGE)
    # These packages are loaded where they are known to be there.
    from ..quantising.make import Examples, concatenated, differences, make_graphs

    model = load_model(options.model, "cpu")
    assert model.file is not None
    cached = len(options.data) == 1 and options.data[0].suffix == CACHE
    parts, names = (slices_of_cache if cached else slices_of_volumes)(model, options)
    for name, (slices, _) in zip(names, parts):
        if not len(slices) or float(slices.min()) == float(slices.max()):
            raise ValueError(f"{name}: expected a healthy volume to measure ranges on, found nothing in it")
    slices, position = concatenated(parts)
    examples = Examples(slices, position, {"volumes": len(names), "sources": sorted(set(map(source_of, names)))})
    with Progress(3 + (model.detector is not None), "exporting", "network") as progress:

        def begun(network: str) -> None:
            progress.stage(network)
            progress.update()

        graphs = make_graphs(model, examples, begun)
    out = options.out or model.file.with_suffix(SUFFIX)
    out.parent.mkdir(parents=True, exist_ok=True)
    graphs.write(out)
    lines = [
        f"{out}: {out.stat().st_size / 1e6:.2f} MB, measured on {len(slices)} slices of {len(names)} volumes",
        *_what_lacks(names, _trained_on(model)),
    ]
    for precision in ("float32", INT8):
        other = load_model(model.file, "cpu", precision=precision, engine="onnx", graphs=out)
        found = {} if other.notes else differences(model, other, examples)
        lines += [f"{precision}: {note}" for note in other.notes]
        lines += [
            f"{precision}: {name} differs from torch's by {mean:.4g} on average, at most {most:.4g}, on the same slices"
            for name, (mean, most) in found.items()
        ]
    return lines


def _trained_on(model: Model) -> list[str]:
    """The names of the volumes that the VQ-VAE was trained on. None where the model file does not say."""
    names: list[str] = model.about.training.get("vqvae", {}).get("volumes", {}).get("train", [])
    return names


def _what_lacks(names: Sequence[str], trained_on: Sequence[str]) -> list[str]:
    """A line where ranges were measured on volumes of other kinds than those that the model was trained on."""
    if not trained_on:
        return []
    if not set(names) & set(trained_on):
        return ["none of these volumes is one that the model was trained on: its scans may have wider ranges"]
    missing = sorted(set(map(source_of, trained_on)) - set(map(source_of, names)))
    if not missing:
        return []
    return [f"the model was trained on volumes called {', '.join(missing)} too, of which --data has none"]


def _chosen(names: Sequence[str], trained_on: Sequence[str], most: int) -> list[str]:
    """At most so many names of each source, evenly spread: of those that were trained on, or of all where none was."""
    from ..quantising.make import evenly

    known = sorted(set(names) & set(trained_on)) or sorted(names)
    by_source: dict[str, list[str]] = {}
    for name in known:
        by_source.setdefault(source_of(name), []).append(name)
    return [of_one[i] for of_one in by_source.values() for i in evenly(len(of_one), most)]


def slices_of_volumes(model: Model, options: QuantiseOptions) -> tuple[list, list[str]]:
    """Slices and positions of each volume, and the volumes' names. Raises ValueError for volumes of another region."""
    found: dict[str, Source] = named_volumes(options.data)
    names = _chosen(list(found), _trained_on(model), options.volumes)
    sample, pixel = (table.first_that_fits(task, model.about, 0).name for task in TASKS)
    predictor = Predictor(model, options.slices, 0, sample_method=sample, pixel_method=pixel)
    parts, shown = [], []
    with Progress(len(names), "reading") as progress:
        for name in names:
            volume = read_volume(found[name])
            shown.append(region_of(volume.data, volume.spacing))
            prepared = predictor.prepare(volume)
            parts.append((prepared.slices, prepared.position))
            progress.update()
    region = model.about.region
    if (other := another_region(shown, region)) is not None:
        raise ValueError(
            f"{options.data[0]}: expected healthy volumes of region {region}, found that {shown.count(other)} of {len(shown)} look "
            f"like {other}, and none like {region}"
        )
    return parts, names


def slices_of_cache(model: Model, options: QuantiseOptions) -> tuple[list, list[str]]:
    """As `slices_of_volumes`, of the volumes that a cache has to train on. Raises ValueError for a cache of other preprocessing."""
    from ..quantising.make import evenly
    from ..training.cache import cache_names, load_cache

    splits, of_split = load_cache(options.data[0])
    data, every = splits["train"], cache_names(options.data[0])
    if data.preprocessing != model.about.preprocessing:
        raise ValueError(f"{options.data[0]}: expected slices of the model's preprocessing, found others")
    names = _chosen(of_split["train"], _trained_on(model), options.volumes)
    parts, kept = [], []
    for name in names:
        rows = ((data.volume == every.index(name)) & data.filled).nonzero()[:, 0]
        if len(rows):
            parts.append(data.plain(rows[np.array(evenly(len(rows), options.slices))]))
            kept.append(name)
    return parts, kept


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission quantise", description=__doc__)
    return run_command(parser, QuantiseOptions, quantise, argv, also=(RuntimeError,))
