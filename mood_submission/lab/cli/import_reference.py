"""Turn the published submission's two checkpoints (PyTorch state dictionaries) into a model file."""

import argparse
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from ...about import About
from ...cli.command import run_command
from ...model_file import save_model
from ...networks.checkpoint_names import PublishedCheckpointError, convert_prior, convert_vqvae
from ...networks.pixelsnail import PixelSNAIL
from ...networks.vqvae import VQVAE
from ...preprocessing import Preprocessing
from ...runtime.contract import REGIONS
from ...runtime.options import option
from ...runtime.precision import DTYPES


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """The state dictionary in `file`. It holds tensors only, and nothing in it is executed."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PublishedCheckpointError(f"{file}: expected a PyTorch state dictionary, found: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PublishedCheckpointError(f"{file}: expected a dictionary of tensors, found {type(state).__name__}")
    return state


Network = TypeVar("Network", VQVAE, PixelSNAIL)


def read_network(file: Path, kind: type[Network], convert: Callable[[dict], tuple]) -> Network:
    """The network in `file`, in the precision that it is stored in.

    convert: from the file's state dictionary to the network's settings and parameters.
    Raises PublishedCheckpointError where a parameter is missing, unknown or of another shape.
    """
    state = read_state(file)
    try:
        settings, parameters, *_ = convert(state)
        network = kind(settings).to(next(iter(parameters.values())).dtype)
        missing, unexpected = network.load_state_dict(parameters, strict=False)
    except (PublishedCheckpointError, KeyError, RuntimeError) as error:
        raise PublishedCheckpointError(f"{file}: {' '.join(str(error).split())[:300]}") from None
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise PublishedCheckpointError(
            f"{file}: expected the published parameters, found {len(missing)} missing "
            f"and {len(unexpected)} unknown: {', '.join((missing + unexpected)[:3])}"
        )
    return network


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `import-reference`."""

    features: Path = option("state dictionary of the VQ-VAE", "features", metavar="FEATURES.pt")
    latent: Path = option("state dictionary of the prior", "latent", metavar="LATENT.pt")
    region: str = option(None, choices=REGIONS)
    out: Path = option("model file to write", "-o", "--out", metavar="OUT.safetensors")
    stem_padding: int = option(
        "padding of the VQ-VAE's first convolution: 0 in the published weights, 3 in the authors' later "
        "notebook (default: 0)",
        default=0,
    )
    dtype: str | None = option("store parameters so (default: as they are)", choices=tuple(DTYPES), default=None)


def import_checkpoints(options: ImportOptions) -> list[str]:
    """Write the model file. Returns no lines. Raises PublishedCheckpointError for other checkpoints."""
    vqvae = read_network(options.features, VQVAE, lambda state: convert_vqvae(state, options.stem_padding))
    prior = read_network(options.latent, PixelSNAIL, convert_prior)
    about = About(
        options.region,
        vqvae.settings,
        prior.settings,
        Preprocessing.published(options.region),
        training={"source": "imported from the published submission's checkpoints"},
    )
    save_model(options.out, vqvae, prior, about, DTYPES.get(options.dtype or ""))
    return []


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission import-reference", description=__doc__)
    return run_command(parser, ImportOptions, import_checkpoints, argv)
