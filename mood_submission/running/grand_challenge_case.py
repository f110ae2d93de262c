"""A case of grand-challenge.org: finds its volume and its region among the inputs, and writes its scores."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

from ..about import ModelError
from ..engines.base import EngineWarning
from ..model import Model
from ..model_file import load_model
from ..output.predictions import read_prepared
from ..predictor import Predictor
from ..runtime.contract import BOTH
from ..runtime.files import write_text
from ..volumes import Source, find_volumes, write_volume
from .skull_strip import SkullStrip

# The words of a slug that name a region.
WORDS = {"brain": ("brain", "head"), "abdom": ("abdom", "abdomen", "abdominal")}
# The words that name a modality which a region's networks do not know.
OTHER_MODALITIES = {"brain": ("ct",), "abdom": ("mri", "mr", "t1", "t2")}


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


def region_in_slug(slug: str) -> str:
    """The region that an input's slug names, by one of WORDS.

    A modality alone names none: an MRI may be of any part of the body. Raises CaseError where the slug names no region, both,
    or one in a modality that its networks do not know.
    """
    words = slug.lower().replace("_", "-").split("-")
    found = [region for region, names in WORDS.items() if any(name in words for name in names)]
    how = "say which by MOOD_REGION or --region"
    if len(found) != 1:
        raise CaseError(f"{slug}: expected an input whose slug names the brain or the abdomen; {how}")
    (region,) = found
    other = [word for word in words if word in OTHER_MODALITIES[region]]
    if other:
        raise CaseError(f"{slug}: expected an MRI of the brain or a CT of the abdomen, found {other[0]}; {how}")
    return region


def model_of(region: str, folder: Path, engine: str) -> Model:
    """The model in a folder, where grand-challenge unpacks what was uploaded beside the image: REGION.safetensors, or the one
    model file there; else the shipped one. engine: see `load_model`. Raises ModelError."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    named = [file for file in files if file.stem == region] or files
    if len(named) > 1:
        raise ModelError(f"{folder}: expected one model file, or one called {region}.safetensors, found {len(named)}")
    model = load_model(named[0] if named else region, engine=engine)
    if model.about.region != region:
        raise ModelError(f"{named[0]}: expected a model of region {region}, found {model.about.region}")
    return model


def score_case(
    inputs: Path,
    output: Path,
    *,
    models: Path,
    region: str | None,
    slugs: tuple[str, str],
    engine: str,
    remark: Callable[[str], object],
) -> str:
    """Score the case and write its two outputs.

    inputs: folder with inputs.json or images/SLUG.
    output: folder for images/PIXEL_SLUG/NAME.mha and SAMPLE_SLUG.json.
    models: see `model_of`.
    region: one of REGIONS. None for the one that the input's slug names.
    slugs: PIXEL_SLUG and SAMPLE_SLUG.
    engine: see `load_model`.
    remark: is called with a line where the volume looks unlike the scans that the weights know, and where another engine computes
        than the one that was asked for.
    Returns a line on the scores. Raises CaseError, VolumeError, ModelError, OSError, MemoryError.
    """
    # What is odd about a volume is no matter for the platform's log. What computes is.
    warnings.simplefilter("ignore")
    warnings.simplefilter("default", EngineWarning)
    slug, source = find_case(inputs)
    model = model_of(region or region_in_slug(slug), models, engine)
    for note in model.notes:
        remark(note)
    predictor = Predictor(model, strip=SkullStrip() if model.about.region == "brain" else None)
    prepared = read_prepared(predictor, source)
    scored = predictor.compute(prepared, BOTH, remark)
    model.rest()
    # Both were asked for.
    assert scored.pixel is not None and scored.sample is not None
    pixel_slug, sample_slug = slugs
    images = output / "images" / pixel_slug
    images.mkdir(parents=True, exist_ok=True)
    scores = predictor.to_volume(prepared, scored.pixel)
    write_volume(images / f"{source.name}.mha", scores, prepared.grid)
    write_text(output / f"{sample_slug}.json", json.dumps(scored.sample))
    return f"{source.path.name}: sample score {scored.sample:.3f}, highest voxel {float(scores.max()):.3f}"
