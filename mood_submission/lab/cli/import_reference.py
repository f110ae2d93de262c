"""Turn the published submission's two checkpoints (PyTorch state dictionaries) into a model file."""

import argparse
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ...cli.options import add_region
from ...model_file import About, save_model
from ...networks.checkpoint_names import PublishedCheckpointError, convert_prior, convert_vqvae
from ...networks.pixelsnail import PixelSNAIL
from ...networks.vqvae import VQVAE
from ...preprocessing import Preprocessing
from ...runtime.precision import DTYPES


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """The state dictionary in `file`; tensors only, nothing in it is executed."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PublishedCheckpointError(
            f"{file}: expected a PyTorch state dictionary, found: {reason}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PublishedCheckpointError(
            f"{file}: expected a dictionary of tensors, found {type(state).__name__}"
        )
    return state


Network = TypeVar("Network", VQVAE, PixelSNAIL)


def read_network(file: Path, kind: type[Network], convert: Callable[[dict], tuple]) -> Network:
    """The network in `file`, in the precision that it is stored in; every parameter must be there and fit."""
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


def import_checkpoints(
    features: Path, latent: Path, region: str, out: Path, stem_padding: int, dtype: torch.dtype | None
) -> None:
    vqvae = read_network(features, VQVAE, lambda state: convert_vqvae(state, stem_padding))
    prior = read_network(latent, PixelSNAIL, convert_prior)
    about = About(
        region,
        vqvae.settings,
        prior.settings,
        Preprocessing.published(region),
        training={"source": "imported from the published submission's checkpoints"},
    )
    save_model(out, vqvae, prior, about, dtype)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission import-reference", description=__doc__)
    parser.add_argument("features", type=Path, metavar="FEATURES.pt", help="state dictionary of the VQ-VAE")
    parser.add_argument("latent", type=Path, metavar="LATENT.pt", help="state dictionary of the prior")
    add_region(parser)
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT.safetensors", help="model file to write"
    )
    parser.add_argument(
        "--stem-padding",
        type=int,
        default=0,
        help="padding of the VQ-VAE's first convolution: 0 in the published weights (the default), "
        "3 in the authors' later notebook",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="store parameters so (default: as they are)")
    args = parser.parse_args(argv)
    try:
        import_checkpoints(
            args.features,
            args.latent,
            args.region,
            args.out,
            stem_padding=args.stem_padding,
            dtype=DTYPES.get(args.dtype),
        )
    except PublishedCheckpointError as error:
        print(f"mood-submission import-reference: {error}", file=sys.stderr)
        return 1
    return 0
