"""What an engine is: it computes the networks of a model for a few slices at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..networks.detector import DetectorSettings


class EngineError(ValueError):
    """An engine that cannot compute here. The text says why, in one line."""


class EngineWarning(UserWarning):
    """Torch has taken over from an engine that failed while it computed. The text says why, in one line."""


class Engine(Protocol):
    """Computes the networks of one model on one device.

    Slices are (B, H, W), positions (B, 1) in [-0.5, 0.5], codes (B, h, w) int64. Several threads may call it at a time.

    name: one of `runtime.contract.ENGINES`.
    nll_slices: how many slices' codes a thread of a CPU gives to `nll` at a time.
    graphs: the digest of the file of graphs that it computes. None for torch, which has none.
    """

    name: str
    nll_slices: int
    graphs: str | None

    def encode(self, slices: Tensor, position: Tensor) -> Tensor:
        """Codes of slices."""

    def nll(self, codes: Tensor, position: Tensor) -> Tensor:
        """NLL in nats of each code, (B, h, w)."""

    def decode(self, codes: Tensor, position: Tensor) -> Tensor:
        """Slices of codes."""

    def detect(self, maps: Tensor, nll: Tensor, place: Tensor) -> Tensor:
        """Logits (B, H, W), from inputs as of `networks.detector.Detector`. The model must have a detector."""

    def rest(self) -> None:
        """Give back the memory that only computing needs. It is called when a volume is computed."""


@dataclass(frozen=True)
class Detecting:
    """A detector that some engine computes. It is called as a `Detector` is.

    settings: the detector's.
    detect: `Engine.detect`.
    """

    settings: DetectorSettings
    detect: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, maps: Tensor, nll: Tensor, place: Tensor) -> Tensor:
        return self.detect(maps, nll, place)
