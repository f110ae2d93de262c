"""Reads and writes the checkpoints that training leaves, and starts other training from them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ...model_file import load_model
from ...networks.detector import Detector, DetectorSettings
from ...networks.pixelsnail import PixelSNAIL, PixelSNAILSettings, add_weight_norm, fold_weight_norm
from ...networks.vae import VAE, VAESettings
from ...networks.vqvae import VQVAE, VQVAESettings
from ...runtime.files import write_whole
from .stage import Parameters, Stage

AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)


class RunError(ValueError):
    """A run that cannot be started as asked."""


def save_checkpoint(file: Path, content: dict) -> None:
    """Write a checkpoint. A kill leaves the old one or the new one, whole."""
    with write_whole(file) as out:
        torch.save(content, out)


def load_checkpoint(file: Path, device: str | torch.device = "cpu") -> dict:
    """Read a checkpoint. It holds tensors and plain values only: nothing in the file is executed."""
    return torch.load(file, map_location=device, weights_only=True)


def add_to_about(file: Path, more: dict) -> None:
    """Add to what a checkpoint says of itself."""
    stored = load_checkpoint(file)
    save_checkpoint(file, stored | {"about": json.dumps(json.loads(stored["about"]) | more)})


def load_vqvae(folder: Path) -> tuple[VQVAE, dict]:
    """The averaged VQ-VAE of a run, in evaluation mode, and what the run says of itself.

    Raises RunError where the run has none.
    """
    return _load(folder, "vqvae", lambda settings: VQVAE(VQVAESettings(**settings)))


def load_prior(folder: Path) -> tuple[PixelSNAIL, dict]:
    """The averaged prior of a run, its weight norm folded, as `load_vqvae`."""
    prior, about = _load(folder, "prior", lambda s: add_weight_norm(PixelSNAIL(PixelSNAILSettings(**s))))
    return fold_weight_norm(prior).eval(), about


def load_detector(folder: Path, best: bool = False) -> tuple[Detector, dict]:
    """The averaged detector of a run, as `load_vqvae`. best: the one that did best in validation, instead of the last."""
    file = "detector_best" if best else "detector"
    return _load(folder, "detector", lambda s: Detector(DetectorSettings.from_dict(s)), file)


def load_vae(folder: Path) -> tuple[VAE, dict]:
    """The averaged VAE of a run, as `load_vqvae`."""
    return _load(folder, "vae", lambda settings: VAE(VAESettings(**settings)))


def _load(folder: Path, name: str, build: Callable[[dict], AnyNetwork], file: str = "") -> tuple[AnyNetwork, dict]:
    parameters, about = _averaged(folder, file or name)
    network = build(about[name])
    network.load_state_dict(parameters)
    return network.eval(), about


def _averaged(folder: Path, name: str) -> tuple[Parameters, dict]:
    """The averaged parameters of a run's checkpoint, and what it says of itself. Raises RunError without one."""
    file, stage = folder / f"{name}.pt", name.split("_")[0]
    if not file.exists():
        raise RunError(
            f"{file}: expected a trained {name}, found no such file; run mood-submission train {stage} first"
        )
    stored = load_checkpoint(file)
    average = {key.removeprefix("module."): value for key, value in stored["average"].items()}
    del average["n_averaged"]
    return average, json.loads(stored["about"])


def start_from(source: Path, stage: Stage) -> dict:
    """Fill the stage's network with that of a run or of a model file.

    Returns what that says of its training, without the volumes. Raises RunError where the sizes differ.
    """
    try:
        parameters, about = _averaged(source, stage.name) if source.is_dir() else _of_model_file(source, stage)
        stage.begin_from(parameters)
    except RuntimeError as error:
        raise RunError(
            f"{source}: expected a {stage.name} of {stage.model.settings}, found {' '.join(str(error).split())[:300]}"
        ) from None
    return {name: value for name, value in about.items() if name != "volumes"}


def _of_model_file(file: Path, stage: Stage) -> tuple[Parameters, dict]:
    """The parameters of a model file's network as the stage trains them, and what the file says of their training.

    Raises RuntimeError where there is none, or one of other sizes.
    """
    model = load_model(file, "cpu", detector=stage.name == "detector")
    networks = {"vqvae": model.vqvae, "prior": model.prior, "detector": model.detector}
    found = networks.get(stage.name)
    if found is None:
        raise RuntimeError("no such network")
    if not isinstance(found, Detector):
        wanted = dataclasses.replace(stage.model.settings, dropout=found.settings.dropout)
        if found.settings != wanted:
            raise RuntimeError(f"one of {found.settings}")
    if isinstance(found, PixelSNAIL):
        add_weight_norm(found)
    return found.state_dict(), model.about.training.get(stage.name, {})
