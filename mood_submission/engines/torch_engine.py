"""The networks computed by torch, on any device."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..networks.detector import Detector
from ..networks.pixelsnail import PixelSNAIL
from ..networks.vqvae import VQVAE

# The prior takes so many slices, since reading its weights costs more than using them on the codes of one slice.
NLL_SLICES = 4


class TorchEngine:
    """See `Engine`.

    vqvae, prior, detector: the networks, on one device and of one dtype.
    bfloat16: whether all but the codes is multiplied in bfloat16, and added in float32.
    """

    name = "torch"
    nll_slices = NLL_SLICES
    graphs: str | None = None

    def __init__(self, vqvae: VQVAE, prior: PixelSNAIL, detector: Detector | None, *, bfloat16: bool = False):
        self.vqvae, self.prior, self.detector, self.bfloat16 = vqvae, prior, detector, bfloat16

    def rest(self) -> None:
        """Torch keeps none on a CPU."""

    def encode(self, slices: Tensor, position: Tensor) -> Tensor:
        return self.vqvae.encode(slices, position)

    def nll(self, codes: Tensor, position: Tensor) -> Tensor:
        return self._scoring(self.prior.nll, codes, position)

    def decode(self, codes: Tensor, position: Tensor) -> Tensor:
        return self._scoring(self.vqvae.decode, codes, position)

    def detect(self, maps: Tensor, nll: Tensor, place: Tensor) -> Tensor:
        assert self.detector is not None
        return self._scoring(self.detector, maps, nll, place)

    def _scoring(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """The function in this engine's precision."""
        if not self.bfloat16:
            return function(*inputs)
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            return function(*inputs).to(self.vqvae.codebook.dtype)
