"""Translates the parameter names of the published checkpoints.

The two files hold state dictionaries: the VQ-VAE's and the prior's. The prior's holds the VQ-VAE's again, under
`feature_extractor_model.`. Sizes are read off the tensors.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .pixelsnail import PixelSNAILSettings
from .vqvae import VQVAESettings

State = Mapping[str, Tensor]

UNUSED = ("rest_of_filter", "mask", "start_mask", "num_batches_tracked", "background")
# From published names to ours, applied in this order.
PRIOR_NAMES = (
    (r"^ini_conv\.", "first."),
    (r"\.v_resblocks\.", ".vertical."),
    (r"\.h_resblocks\.", ".horizontal."),
    (r"\.causal_attention\.(query|key|value)\.0\.", r".attention.\1.unit."),
    (r"\.causal_attention\.(query|key|value)\.1\.linear\.", r".attention.\1.linear."),
    (r"\.out_resblock\.", ".out."),
    (r"(conv1|conv1_aux|conv2|^out)\.conv\.", r"\1."),
)


class PublishedCheckpointError(ValueError):
    """A state dictionary that is not one of the published submission's."""


def convert_vqvae(state: State, stem_padding: int = 0) -> tuple[VQVAESettings, dict[str, Tensor]]:
    """Settings and parameters of a `VQVAE`.

    state: the published state dictionary of the VQ-VAE.
    stem_padding: the only size that the tensors do not show. 0 in the published weights, 3 in the later notebook.
    Raises PublishedCheckpointError for other names or sizes than the published ones.
    """
    try:
        stem, codebook = state["Q.0.weight"], state["codebook.embedding.weight"]
    except KeyError as error:
        raise PublishedCheckpointError(f"expected the published VQ-VAE's parameters, found no {error}") from None
    # The strided convolutions.
    downs = sorted(
        int(name.split(".")[1])
        for name, value in state.items()
        if re.fullmatch(r"Q\.[1-9]\d*\.weight", name) and value.ndim == 4
    )
    if not downs:
        raise PublishedCheckpointError("expected strided convolutions Q.N.weight of 4 axes, found none")
    settings = VQVAESettings(
        channels=(stem.shape[0], *(state[f"Q.{i}.weight"].shape[0] for i in downs)),
        codebook_size=codebook.shape[0],
        n_res_block=downs[0] - 2,
        stem_kernel=stem.shape[-1],
        stem_padding=stem_padding,
    )
    renamed = {_vqvae_name(name): value for name, value in state.items() if name.split(".")[-1] not in UNUSED}
    return settings, renamed


def _vqvae_name(name: str) -> str:
    name = re.sub(r"^Q\.", "encoder.", re.sub(r"^P\.", "decoder.", name))
    return "codebook" if name == "codebook.embedding.weight" else name


def convert_prior(state: State) -> tuple[PixelSNAILSettings, dict[str, Tensor], tuple[int, int]]:
    """Settings of a `PixelSNAIL`, its parameters with weight norm folded, and the size (h, w) of its grids.

    state: the published state dictionary of the prior.
    Raises PublishedCheckpointError for other names or sizes than the published ones.
    """
    state = {name: value for name, value in state.items() if not name.startswith("feature_extractor_model.")}
    try:
        channels, codebook_size, taps = state["ini_conv.weight"].shape
        key_size = state["blocks.0.causal_attention.query.1.linear.bias"].shape[0]
        downsample = state["blocks.0.upsample.weight"].shape[-1]
        height, width = state["background"].shape[-2:]
    except KeyError as error:
        raise PublishedCheckpointError(f"expected the published prior's parameters, found no {error}") from None
    settings = PixelSNAILSettings(
        codebook_size=codebook_size,
        n_channels=channels,
        n_block=_count(state, r"blocks\.(\d+)\."),
        n_res_block=_count(state, r"blocks\.0\.v_resblocks\.(\d+)\."),
        first_kernel=_kernel_of(taps),
        downsample=downsample,
        key_size=key_size,
    )
    return settings, _fold(_rename_prior(state)), (height, width)


def _count(state: State, pattern: str) -> int:
    return 1 + max(int(found.group(1)) for name in state if (found := re.match(pattern, name)))


def _kernel_of(taps: int) -> int:
    """The kernel k that has `taps` places before its centre: k * (k // 2) + k // 2."""
    for kernel in range(3, 33, 2):
        if kernel * (kernel // 2) + kernel // 2 == taps:
            return kernel
    raise PublishedCheckpointError(f"expected a masked convolution's 4, 12, 24 ... taps, found {taps}")


def _rename_prior(state: State) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        if name.split(".")[-1] in UNUSED:
            continue
        for pattern, replacement in PRIOR_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _fold(state: State) -> dict[str, Tensor]:
    """Fold weight norm: weight = g * v / |v|, with a norm for each output channel."""
    folded = {name: value for name, value in state.items() if not name.endswith(("weight_g", "weight_v"))}
    for name, v in state.items():
        if name.endswith("weight_v"):
            norm = torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)
            folded[name.removesuffix("_v")] = v * (state[name.removesuffix("_v") + "_g"] / norm)
    return folded
