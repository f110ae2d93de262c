"""Put a model of one's own in place of the shipped weights of its region, or only look whether that can be done.

usage: take_weights.py MODEL.safetensors [FOLDER]

FOLDER holds the shipped weights and their SHA256SUMS. MODEL.graphs, of mood-submission quantise, is taken along where it lies
beside the model; the region's shipped graphs, which are of other weights, are removed. Prints the model's region. What is no
finished model is refused in one line.
"""

import shutil
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mood_submission.model import Model


def region_of(file: Path) -> str:
    """The region of a finished model. Raises ValueError for what is none, and where graphs of another one lie beside it."""
    if not file.is_file():
        raise ValueError(f"{file}: expected a model file, found {'a folder' if file.is_dir() else 'no such file'}")
    if zipfile.is_zipfile(file):
        raise ValueError(
            f"{file}: expected a model file, found a checkpoint of training; mood-submission export makes one of it"
        )
    if (file.parent / "finished.json").exists() and file.stem in ("networks", "model"):
        raise ValueError(
            f"{file}: expected the model file that train all writes at its end, found one that it leaves on the way"
        )
    # It needs torch, which what is refused above does not wait for.
    from mood_submission import load_model

    model = load_model(file, "cpu")
    about = model.about
    if about.detector is not None and not about.healthy_samples.get(about.sample_method):
        raise ValueError(
            f"{file}: expected a finished model, found a detector of which no healthy scores are measured; run "
            "mood-submission calibrate"
        )
    check_graphs(file, model)
    return about.region


def check_graphs(file: Path, model: "Model") -> None:
    """Raises ValueError where the graphs beside a model are of another one: the image would be slower than told."""
    from mood_submission.engines.base import EngineError
    from mood_submission.engines.choice import graphs_for
    from mood_submission.engines.graphs import INT8, SUFFIX

    graphs = file.with_suffix(SUFFIX)
    if graphs.is_file():
        size = model.about.preprocessing.image_size
        try:
            graphs_for(model.vqvae, model.prior, model.detector, graphs, precision=INT8, image_size=size)
        except EngineError as error:
            raise ValueError(f"{error}; without the file torch computes") from None


def take(file: Path, folder: Path) -> None:
    """Replace a region's weights in a folder, and say so in its SHA256SUMS and its README.md. Raises what `region_of` raises."""
    from mood_submission.engines.graphs import SUFFIX
    from mood_submission.runtime.integrity import SUMS, file_sha256

    name = f"{region_of(file)}.safetensors"
    if not (folder / name).exists():
        raise ValueError(f"{folder}: expected {name} to replace, found none")
    shutil.copyfile(file, folder / name)
    (folder / name).chmod(0o644)
    graphs, shipped = file.with_suffix(SUFFIX), (folder / name).with_suffix(SUFFIX)
    shipped.unlink(missing_ok=True)
    if graphs.is_file():
        shutil.copyfile(graphs, shipped)
        shipped.chmod(0o644)
    digest = file_sha256(folder / name)
    others = [line for line in (folder / SUMS).read_text().splitlines() if line.split()[-1] != name]
    lines = sorted([*others, f"{digest}  {name}"], key=lambda line: line.split()[-1])
    (folder / SUMS).write_text("".join(f"{line}\n" for line in lines))
    card = folder / "README.md"
    if card.exists():
        note = f"**Not the shipped model:** here `{name}` is another one, of sha256 `{digest}`; `load_model` tells its origin."
        card.write_text(f"{note}\n\n{card.read_text('utf-8')}", "utf-8")


def main() -> int:
    """Returns the exit status."""
    if len(sys.argv) not in (2, 3):
        print(f"usage: {sys.argv[0]} MODEL.safetensors [FOLDER]", file=sys.stderr)
        return 2
    file = Path(sys.argv[1])
    try:
        if len(sys.argv) == 3:
            take(file, Path(sys.argv[2]))
        print(region_of(file))
    except ImportError as error:
        where = "set VENV to the environment that mood-submission is installed in, or PYTHON to its Python"
        print(f"take_weights.py: expected the packages of mood-submission, found: {error}; {where}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"take_weights.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
