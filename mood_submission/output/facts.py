"""Describes volumes and model files: facts by name, as `info` prints them."""

import math
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..model import Model
from ..model_file import WEIGHTS, load_model
from ..predictor import Predictor
from ..preprocessing import Preprocessing, View, harmonise
from ..preprocessing.anatomy import block_means, coarse_steps
from ..preprocessing.hounsfield import find_scaling
from ..preprocessing.region import region_of
from ..runtime.contract import REGIONS
from ..runtime.names import as_text, shown
from ..volumes import Volume, VolumeError, read_volume


def facts_of(file: Path, region: str | None, scan: bool = False, device: str | None = None) -> dict[str, Any]:
    """The content of a file, as JSON can hold it.

    file: a volume or a model file, or a region's name for its shipped model.
    region: for a volume, also what the region's preprocessing makes of it. None to leave that out.
    scan: for a volume, also whether it looks like the scans that the region's shipped networks know.
    device: where these run, as for `load_model`.
    Raises VolumeError or ModelError for what is neither, and VolumeError for a scan without a region.
    """
    if str(file) in REGIONS and not file.exists():
        file = WEIGHTS / f"{file}.safetensors"
    if file.suffix == ".safetensors":
        return {"file": as_text(file)} | of_model(load_model(file, "cpu"))
    with warnings.catch_warnings():
        # The notes say what was odd.
        warnings.simplefilter("ignore")
        volume = read_volume(file)
    facts = {"file": as_text(file)} | of_volume(volume, region)
    if scan:
        facts["looks like what the weights know"] = _known(volume, region, device)
    return facts


def of_model(model: Model) -> dict[str, Any]:
    """A model file's content and its description of itself."""
    about = model.about
    parameters = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in (("vqvae", model.vqvae), ("prior", model.prior), ("detector", model.detector))
        if network is not None
    }
    card = {name: value for name, value in about.training.items() if isinstance(value, str)}
    return {
        "kind": "model file",
        "region": about.region,
        "sha256": model.sha256,
        "parameters": parameters,
        **card,
        "preprocessing": about.preprocessing.to_dict(),
        "thresholds": {"pixel": about.pixel_threshold, "sample": about.sample_threshold},
        "default methods": {"sample": about.sample_method, "pixel": about.pixel_method},
        "scores measured on healthy volumes": {name: h.volumes for name, h in about.healthy_voxels.items()},
        "voxel scores that 0.1% of healthy voxels exceed": {
            name: round(h.exceeded["0.001"], 4) for name, h in about.healthy_voxels.items()
        },
    }


def of_volume(volume: Volume, region: str | None) -> dict[str, Any]:
    """A volume's grid and grey values, and what a region's preprocessing makes of it. region: None to leave that out."""
    low, middle, high = (float(v) for v in np.percentile(volume.data[::2, ::2, ::2], (0, 50, 99.8)))
    facts: dict[str, Any] = {
        "kind": "volume",
        "grid": list(volume.grid.shape),
        "orientation": "".join(nib.aff2axcodes(volume.grid.affine_mm)),
        "spacing, mm (right, anterior, superior)": [round(d, 4) for d in volume.spacing],
        "stored as": str(volume.grid.header.get_data_dtype()),
        "grey values: lowest, median, 99.8%": [round(v, 4) for v in (low, middle, high)],
        "voxels that are no numbers": volume.missing,
        "notes": [shown(note) for note in volume.notes],
    }
    facts["looks like"] = region_of(volume.data, volume.spacing) or f"neither {' nor '.join(REGIONS)} for sure"
    if region is None:
        return facts
    prep = Preprocessing.harmonised(region)
    _, view = harmonise(volume.data, volume.spacing, prep)
    facts["seen as"] = _seen(volume, view, prep)
    return facts


def _seen(volume: Volume, view: View, prep: Preprocessing) -> dict[str, Any]:
    """What preprocessing makes of a volume."""
    facts: dict[str, Any] = {
        "region": prep.region,
        "slices": len(view.indices()),
        "from slice": int(view.indices()[0]),
        "to slice": int(view.indices()[-1]),
        "field of view, pixels of the file": [view.frame.padded_width, view.frame.padded_height],
    }
    if prep.region == "abdom":
        scaling = find_scaling(
            block_means(volume.data, coarse_steps(volume.data.shape, volume.spacing)), prep.hounsfield_window
        )
        facts["scaling"] = scaling.kind
        if math.isfinite(scaling.zero):
            facts["Hounsfield units of the lowest and highest value"] = [
                round(scaling.zero),
                round(scaling.one),
            ]
    elif view.tone is not None:
        facts["grey values that become 0.25, 0.5, 0.75"] = [
            round(
                float(np.interp(level, view.tone(greys := np.linspace(0, float(volume.data.max()), 2001)), greys)),
                4,
            )
            for level in (0.25, 0.5, 0.75)
        ]
    return facts


def _known(volume: Volume, region: str | None, device: str | None) -> str:
    """ "yes", or a line on what is strange about the volume."""
    if region is None:
        raise VolumeError("--scan: expected --region, found none")
    predictor = Predictor(load_model(region, device), restorations=0)
    remarks: list[str] = []
    predictor.compute(predictor.prepare(volume), "sample", remarks.append)
    return remarks[0] if remarks else "yes"
