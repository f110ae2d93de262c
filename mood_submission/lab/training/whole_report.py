"""The page on how well a run of `train all` went: losses, pictures, what healthy volumes score, what is found of what was planted."""

import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...model_file import load_model
from ...runtime.files import write_text
from ...runtime.names import shown
from ..evaluation.comparison import undrawn_name
from .names_file import read_names
from .recipe import Recipe

# Pictures that the steps leave in the run's folder, with what they show.
PICTURES = {
    "vqvae_curves.png": "VQ-VAE: losses",
    "vqvae_pictures.png": "VQ-VAE: held-out slices and their reconstructions",
    "prior_curves.png": "prior: losses",
    "prior_pictures.png": "prior: held-out slices and their restorations",
    "detector_curves.png": "detector: losses, and average precision on held-out volumes",
    "detector_2/detector_curves.png": "second detector: the same",
    "results/examples.png": "planted anomalies in held-out volumes, and what each method makes of them",
}
STYLE = (
    "body{font:16px sans-serif;max-width:70em;margin:2em auto;padding:0 1em}img{max-width:100%}"
    "pre{background:#f4f4f4;padding:1em;overflow:auto}td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:left}"
)


def write_report(folder: Path, model: Path, recipe: Recipe, seconds: Mapping[str, float]) -> Path:
    """Write index.html into a run's folder, which holds the pictures. Returns the page.

    folder: the run's. model: the file that it made. recipe: the run's. seconds: of each step.
    """
    about = load_model(model, "cpu").about
    scores = about.healthy_samples.get(about.sample_method, [])
    names = about.training.get("vqvae", {}).get("volumes", {})
    odd, looked_at = odd_volumes(folder, about.sample_method)
    parts = [
        f"<h1>{html.escape(model.name)}</h1>",
        f"<p>Region {about.region}. Trained on {len(names.get('train', []))} volumes, held out "
        f"{len(names.get('validation', []))} for thresholds and {len(names.get('test', []))} for the test.</p>",
        "<h2>Held-out volumes with planted anomalies</h2>",
        "<p>Measured on the validation volumes, by which the detector's best step was chosen and thresholds were set. No step has "
        "looked at the test volumes: <code>mood-submission compare --only</code> judges by them.</p>",
        _tables(folder / "results" / "table.md"),
        "<h2>Healthy held-out volumes</h2>",
        f"<p>Sample scores ({html.escape(about.sample_method)}), as they were measured for what scores mean, of the slices that "
        f"[calibrate] names: {', '.join(f'{score:.3f}' for score in scores) or 'none'}.</p>",
        f"<p>Volumes that look odd, of {looked_at} that anomalies were planted in: "
        f"{html.escape(', '.join(map(shown, odd))) or 'none'}.</p>",
        "<h2>Pictures</h2>",
        *(
            f'<h3>{html.escape(what)}</h3><img src="{name}" alt="{html.escape(what)}">'
            for name, what in PICTURES.items()
            if (folder / name).exists()
        ),
        "<h2>Time</h2>",
        _table(["step", "minutes"], [[name, f"{value / 60:.1f}"] for name, value in seconds.items()]),
        "<h2>Recipe</h2>",
        f"<pre>{html.escape(recipe.to_toml())}</pre>",
    ]
    page = folder / "index.html"
    write_text(
        page,
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(model.name)}</title><style>{STYLE}</style>"
        + "\n".join(parts)
        + "</html>\n",
    )
    return page


def odd_volumes(folder: Path, method: str) -> tuple[list[str], int]:
    """Healthy held-out volumes that score above the median of planted ones, by name, and how many were looked at.

    method: of scoring samples.
    """
    healthy: dict[str, float] = {}
    planted: list[float] = []
    names = read_names(folder / "held_out.txt")
    for file in sorted((folder / "results" / "cases").glob("*.npz")):
        with np.load(file, allow_pickle=False) as case:
            scores = dict(zip(case["sample_methods"].tolist(), case["sample"].tolist()))
        score = scores.get(method, scores.get(undrawn_name(method)))
        if score is None:
            continue
        if file.stem in names:
            healthy[file.stem] = score
        else:
            planted.append(score)
    return [name for name, score in healthy.items() if planted and score > float(np.median(planted))], len(healthy)


def _tables(file: Path) -> str:
    """The Markdown tables and headings of a file as HTML; other lines as paragraphs."""
    if not file.exists():
        return "<p>none</p>"
    parts: list[str] = []
    rows: list[list[str]] = []
    for line in [*file.read_text("utf-8").splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not all(set(cell) <= set("-:") for cell in cells):
                rows.append(cells)
            continue
        if rows:
            parts.append(_table(rows[0], rows[1:]))
            rows = []
        if line.startswith("#"):
            parts.append(f"<h3>{html.escape(line.strip('# '))}</h3>")
        elif line.strip():
            parts.append(f"<p>{html.escape(line.strip())}</p>")
    return "\n".join(parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + row(head, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"
