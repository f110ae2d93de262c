"""Make a picture of volumes beside their pixel scores and labels: a row for each volume, at its most telling slice."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...cli.command import run_command
from ...runtime.names import shown
from ...runtime.option_types import positive
from ...runtime.options import option
from ...volumes import FORMATS, Source, VolumeError, find_volumes, read_volume


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Options of `show`."""

    volumes: Path = option("folder with the volumes", "volumes", metavar="IN")
    predicted: Path = option("folder with their pixel scores", "predicted", metavar="PRED")
    label: Path | None = option("folder with pixel labels, or a toy_label folder", metavar="DIR", default=None)
    out: Path = option("picture to write", "-o", "--out", metavar="PICTURE.png")
    most: int = option("how many volumes to show, at most", type=positive, default=8)


def telling_slice(scores: np.ndarray, label: np.ndarray | None) -> int:
    """Index along z of the slice with most labelled voxels, or else with the highest scores."""
    if label is not None and label.any():
        return int(label.sum((0, 1)).argmax())
    return int(scores.mean((0, 1)).argmax())


@dataclass(frozen=True)
class Row:
    """One volume's pictures of slice z, (y, x) with anterior at the top, by column: "volume", "label", "scores"."""

    pictures: dict[str, np.ndarray]
    z: int


def load_row(source: Source, predicted: Path, labels: Path | None) -> Row:
    """The pictures of one volume. Raises VolumeError where shapes differ."""
    arrays = {"volume": read_volume(source).data, "scores": read_volume(predicted / source.output_name).data}
    if labels is not None:
        arrays["label"] = read_volume(labels / source.output_name).data > 0.5
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise VolumeError(f"{source}: expected scores and label of its shape, found {shapes}")
    z = telling_slice(arrays["scores"], arrays.get("label"))
    return Row({name: array[:, ::-1, z].T for name, array in arrays.items()}, z)


def plot(rows: dict[str, Row], out: Path) -> None:
    """A row of pictures for each volume, by name, as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = [name for name in ("volume", "label", "scores") if name in next(iter(rows.values())).pictures]
    # All rows have one scale, so that they can be compared.
    brightest = max(float(row.pictures["scores"].max()) for row in rows.values()) or 1
    styles: dict[str, dict] = {"scores": {"cmap": "inferno", "vmin": 0, "vmax": brightest}}
    figure, axes = plt.subplots(len(rows), len(columns), figsize=(2.6 * len(columns), 2.6 * len(rows)), squeeze=False)
    for (name, row), line in zip(rows.items(), axes):
        for column, axis in zip(columns, line):
            axis.imshow(row.pictures[column], **styles.get(column, {"cmap": "gray"}))
            axis.set(xticks=[], yticks=[])
            title = column if column != "volume" else shown(f"{name}, z = {row.z}")
            # A name may hold dollars, which are no formula.
            axis.set_title(title, fontsize=8, parse_math=False)
    figure.tight_layout()
    figure.savefig(out, dpi=90)


def show(options: ShowOptions) -> list[str]:
    """Write the picture. Returns its name. Raises VolumeError, OSError."""
    inner = options.label and options.label / "pixel"
    labels = inner if inner and inner.is_dir() else options.label
    sources = find_volumes(options.volumes)[: options.most]
    if not sources:
        raise VolumeError(f"{options.volumes}: expected {FORMATS}, found none")
    rows = {source.name: load_row(source, options.predicted, labels) for source in sources}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    plot(rows, options.out)
    return [str(options.out)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission show", description=__doc__)
    return run_command(parser, ShowOptions, show, argv)
