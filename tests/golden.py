"""Small golden vectors: what networks with parameters made from a seed give. `python tests/golden.py` writes them anew.

They need nothing but this repository, so they are checked in every clone. That they are right is the word of the authors'
own vectors, which tests read from ../shared/reference where that is there: both are checked against one implementation.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mood_submission.networks.pixelsnail import PixelSNAIL, PixelSNAILSettings  # noqa: E402
from mood_submission.networks.vqvae import VQVAE, VQVAESettings  # noqa: E402
from mood_submission.restoration.plain import restore_plain  # noqa: E402

FOLDER = Path(__file__).resolve().parent / "golden"
SIZES = {
    "brain": (VQVAESettings((4, 4, 4, 8), 12, 1), PixelSNAILSettings(12, 8, 1, 1, 7, 2, key_size=4)),
    "abdom": (
        VQVAESettings((4, 4, 4, 4, 8), 12, 1, stem_kernel=3, stem_padding=1),
        PixelSNAILSettings(12, 8, 2, 1, 3, 1, key_size=4),
    ),
}
WHOLE = ("codes", "restored")  # whole numbers
THRESHOLD = 2.5  # nats


def fill(network: nn.Module, seed: int) -> nn.Module:
    """Give a network float64 parameters that depend on the seed and their names' order alone, in evaluation mode."""
    rng = np.random.default_rng(seed)
    state = network.double().state_dict()
    for name in sorted(state):
        if name.endswith("running_var"):
            values = rng.uniform(0.5, 2.0, state[name].shape)
        elif name.endswith("num_batches_tracked"):
            continue
        else:
            values = rng.normal(0.0, 0.3, state[name].shape)
        state[name].copy_(torch.from_numpy(np.asarray(values)))
    return network.eval()


@torch.no_grad()
def compute(region: str) -> dict[str, Tensor]:
    """Inputs and what becomes of them, by name: float64, but for codes, which are int64."""
    vqvae_sizes, prior_sizes = SIZES[region]
    vqvae, prior = fill(VQVAE(vqvae_sizes), 1), fill(PixelSNAIL(prior_sizes), 2)
    rng = np.random.default_rng(3)
    slices = torch.from_numpy(rng.normal(size=(2, 64, 64)))
    position = torch.tensor([[-0.25], [0.4]], dtype=torch.float64)
    features = vqvae.features(slices, position).movedim(1, -1).flatten(0, -2)
    near = rng.choice(len(features), len(vqvae.codebook), replace=False)
    vqvae.codebook.copy_(features[near] * 1.1)  # so that many codes are used
    codes = vqvae.encode(slices, position)
    uniforms = torch.from_numpy(rng.uniform(size=(2, 2, *codes.shape[1:])))
    return {
        "codes": codes,
        "decoded": vqvae.decode(codes, position)[:, ::7, ::7],
        "nll": prior.nll(codes, position),
        "restored": restore_plain(prior, codes, position, uniforms, THRESHOLD),
    }


def stored(region: str) -> dict[str, Tensor]:
    """The golden vectors of a region, as `compute` gives them."""
    values = json.loads((FOLDER / f"{region}.json").read_text())
    return {
        name: torch.tensor(value, dtype=torch.int64 if name in WHOLE else torch.float64)
        for name, value in values.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for region in SIZES:
        values = {name: value.tolist() for name, value in compute(region).items()}  # JSON keeps every bit of a float
        (FOLDER / f"{region}.json").write_text(json.dumps(values) + "\n")
        print(FOLDER / f"{region}.json")
