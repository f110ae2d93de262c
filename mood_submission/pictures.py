"""Pictures of results, for people: needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from .comparison import PICTURE, Case

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def examples(cases: Sequence[Case], folder: Path, out: Path, ways: Sequence[str] | None = None) -> None:
    """A page with one row a kind of anomaly, its largest case: the slice with the anomaly outlined, its restorations'
    residual, and each way's pixel scores, on one scale a way. `ways`: some of them, in this order; default: all."""
    rows = {}
    for case in cases:  # sizes come in rising order
        if case.kind is not None:
            rows[case.kind] = case
    pictures = {}
    for kind, case in rows.items():
        with np.load(folder / f"{case.name}.npz", allow_pickle=False) as file:
            names = [*PICTURE, *file["pixel_ways"].tolist()]
            pictures[kind] = dict(zip(names, file["picture"].astype(np.float32)))
    columns = ["slice", "restoration", *(ways or names[len(PICTURE):])]
    brightest = {name: max(float(p[name].max()) for p in pictures.values()) or 1 for name in columns}
    figure, axes = plt.subplots(len(pictures), len(columns), figsize=(1.6 * len(columns), 1.65 * len(pictures)),
                                squeeze=False)
    for (kind, picture), line in zip(pictures.items(), axes):
        for name, axis in zip(columns, line):
            style = {"cmap": "gray"} if name == "slice" else {"cmap": "inferno", "vmin": 0, "vmax": brightest[name]}
            axis.imshow(picture[name], **style)
            if picture["label"].max() > 0.5:
                axis.contour(picture["label"], [0.5], colors="cyan", linewidths=0.6)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{kind}\n{rows[kind].size}", fontsize=7)
    for name, axis in zip(columns, axes[0]):
        axis.set_title("|slice - restoration|" if name == "restoration" else name, fontsize=7)
    figure.tight_layout(pad=0.3)
    figure.savefig(out, dpi=90)
    plt.close(figure)
