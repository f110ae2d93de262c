"""Makes a page of examples of a comparison, with matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from ..planting.anomalies import KINDS
from .comparison import PICTURE, SIZES, Case, load_case

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def examples(cases: Sequence[Case], folders: Sequence[Path], out: Path) -> None:
    """Write a page with a row for each kind of anomaly, of its largest case.

    A row shows the slice, the mean of its restorations, and each method's pixel scores, with the anomaly outlined. Scores of one
    method have one scale in all rows.
    """
    rows: dict[str, Case] = {}
    for size in SIZES:
        rows |= {case.kind: case for case in cases if case.kind is not None and case.size == size}
    pictures: dict[str, dict[str, np.ndarray]] = {}
    for kind in (kind for kind in KINDS if kind in rows):
        pictures[kind] = {}
        outcomes = load_case(rows[kind], folders, ("pixel_methods", "picture"))
        # Where two folders have one name, the first folder's picture stays.
        for stored in outcomes[::-1]:
            pictures[kind] |= dict(
                zip([*PICTURE, *stored["pixel_methods"].tolist()], stored["picture"].astype(np.float32))
            )
    methods = [name for name in next(iter(pictures.values())) if name not in PICTURE]
    columns = ["slice", "restoration", *methods]
    brightest = {name: max(float(p[name].max()) for p in pictures.values()) or 1 for name in columns}
    figure, axes = plt.subplots(
        len(pictures), len(columns), figsize=(1.6 * len(columns), 1.65 * len(pictures)), squeeze=False
    )
    for (kind, picture), line in zip(pictures.items(), axes):
        for name, axis in zip(columns, line):
            style = {"cmap": "inferno", "vmin": 0, "vmax": brightest[name]}
            if name in PICTURE:
                style = {
                    "cmap": "gray",
                    "vmin": float(picture["slice"].min()),
                    "vmax": float(picture["slice"].max()),
                }
            axis.imshow(picture[name], **style)
            if picture["label"].max() > 0.5:
                axis.contour(picture["label"], [0.5], colors="cyan", linewidths=0.6)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{kind}\n{rows[kind].size}", fontsize=7)
    for name, axis in zip(columns, axes[0]):
        axis.set_title(name, fontsize=7)
    figure.tight_layout(pad=0.3)
    figure.savefig(out, dpi=90)
    plt.close(figure)
