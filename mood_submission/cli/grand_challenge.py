"""Run as an algorithm of grand-challenge.org: one case from /input, its scores to /output.

Writes OUTPUT/images/PIXEL_SLUG/NAME.mha, a score for every voxel on the input's grid, and OUTPUT/SAMPLE_SLUG.json, one number for
the volume; both lie in [0, 1]. Exit status: 0 when both are there, else 1 and one line on standard error.
"""

import argparse
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..about import ModelError
from ..model import Model
from ..model_file import load_model
from ..output.predictions import read_prepared
from ..predictor import Predictor
from ..running.skull_strip import SkullStrip
from ..runtime.contract import BOTH, REGIONS
from ..runtime.files import write_text
from ..runtime.names import in_one_line
from ..volumes import Source, VolumeError, find_volumes, write_volume
from .output import say, tell

WORDS = {"brain": ("brain", "head", "mri", "mr", "t1"), "abdom": ("abdom", "abdomen", "abdominal", "ct")}


class CaseError(ValueError):
    """The inputs are not laid out as grand-challenge lays them out."""


def find_case(folder: Path) -> tuple[str, Source]:
    """The slug of the one image among the inputs, and the volume: as inputs.json says, or else what lies in images/SLUG.

    Raises CaseError, or VolumeError for what is no folder.
    """
    places = _listed(folder / "inputs.json") if (folder / "inputs.json").is_file() else _lying(folder / "images")
    if len(places) != 1:
        found = ", ".join(slug for slug, _ in places) or "none"
        raise CaseError(f"{folder}: expected one image among the inputs, found {found}")
    ((slug, place),) = places
    volumes = find_volumes(place)
    if len(volumes) != 1:
        raise CaseError(f"{place}: expected one volume, found {len(volumes)}")
    return slug, volumes[0]


def _listed(file: Path) -> list[tuple[str, Path]]:
    """What inputs.json lists of images. An entry's description is called a socket, or, in earlier years, an interface."""
    try:
        sockets = [entry.get("socket") or entry["interface"] for entry in json.loads(file.read_text("utf-8"))]
        return [
            (str(socket["slug"]), file.parent / socket["relative_path"])
            for socket in sockets
            if str(socket.get("super_kind", "image")).lower() == "image"
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CaseError(
            f"{file}: expected a list of inputs, each with a socket's slug and relative_path, found {error!r}"
        ) from None


def _lying(images: Path) -> list[tuple[str, Path]]:
    if not images.is_dir():
        return []
    return [(entry.name, entry) for entry in sorted(images.iterdir()) if entry.is_dir()]


def region_of(slug: str) -> str:
    """The region that an input's slug names. Raises CaseError where it names none, or both."""
    words = slug.lower().replace("_", "-").split("-")
    found = [region for region, names in WORDS.items() if any(name in words for name in names)]
    if len(found) != 1:
        raise CaseError(
            f"{slug}: expected an input whose slug names the brain or the abdomen; say which by MOOD_REGION or --region"
        )
    return found[0]


def model_of(region: str, folder: Path) -> Model:
    """The model in a folder, where grand-challenge unpacks what was uploaded beside the image: REGION.safetensors, or the one
    model file there; else the shipped one. Raises ModelError."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    named = [file for file in files if file.stem == region] or files
    if len(named) > 1:
        raise ModelError(f"{folder}: expected one model file, or one called {region}.safetensors, found {len(named)}")
    model = load_model(named[0] if named else region)
    if model.about.region != region:
        raise ModelError(f"{named[0]}: expected a model of region {region}, found {model.about.region}")
    return model


def run(args: argparse.Namespace) -> None:
    slug, source = find_case(args.input)
    model = model_of(args.region or region_of(slug), args.model)
    predictor = Predictor(model, strip=SkullStrip() if model.about.region == "brain" else None)
    prepared = read_prepared(predictor, source)
    scored = predictor.compute(prepared, BOTH, remark=say)
    assert scored.pixel is not None and scored.sample is not None  # both were asked for
    images = args.output / "images" / args.pixel_slug
    images.mkdir(parents=True, exist_ok=True)
    scores = predictor.to_volume(prepared, scored.pixel)
    write_volume(images / f"{source.name}.mha", scores, prepared.grid)
    write_text(args.output / f"{args.sample_slug}.json", json.dumps(scored.sample))
    tell(f"{source.path.name}: sample score {scored.sample:.3f}, highest voxel {float(scores.max()):.3f}")


def main(argv: Sequence[str] | None = None) -> int:
    setting = os.environ.get
    parser = argparse.ArgumentParser(
        prog="mood-submission grand-challenge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--input", type=Path, default=Path("/input"), help="folder with inputs.json or images/SLUG")
    add("--output", type=Path, default=Path("/output"))
    add("--model", type=Path, default=Path("/opt/ml/model"), help="folder that may hold another model file")
    add(
        "--region",
        choices=REGIONS,
        default=setting("MOOD_REGION"),
        help="default: MOOD_REGION, or what the input's slug names",
    )
    add(
        "--pixel-slug",
        default=setting("MOOD_PIXEL_SLUG", "anomaly-map"),
        help="of the output image (default: MOOD_PIXEL_SLUG, or anomaly-map)",
    )
    add(
        "--sample-slug",
        default=setting("MOOD_SAMPLE_SLUG", "anomaly-score"),
        help="of the output number (default: MOOD_SAMPLE_SLUG, or anomaly-score)",
    )
    args = parser.parse_args(argv)
    if args.region not in (None, *REGIONS):
        parser.error(f"MOOD_REGION: expected one of {', '.join(REGIONS)}, found {args.region!r}")
    warnings.simplefilter("ignore")
    try:
        run(args)
    except (CaseError, VolumeError, ModelError, OSError, MemoryError) as error:
        line = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        say(f"mood-submission grand-challenge: {in_one_line(line)}")
        return 1
    return 0
