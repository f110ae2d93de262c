"""What is trained, and on what: the base of all stages, and what the trainer asks of data."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

# A network's parameters, as its `state_dict` has them.
Parameters = Mapping[str, Tensor]


class TrainingData(Protocol):
    """Something to take batches from: slices, planted slices, a store of planted volumes."""

    def __len__(self) -> int: ...

    def order(self, batch: int, seed: int) -> Callable[[int], Tensor]:
        """From a step's number to the indices (batch,) of its batch."""


Data = TypeVar("Data", bound=TrainingData)
Network = TypeVar("Network", bound=nn.Module)


class Stage(ABC, Generic[Data, Network]):
    """One network and its loss.

    name: of the stage's files.
    model: the network.
    channels_last_on_cpu: whether that memory format is the faster one on a CPU. On a GPU it always is.
    judged_by: the number of `validate` by which the best averaged model is kept beside the last. Higher is better. None to keep
        the last alone.
    watched: the number of `validate` that tells whether training still gains. lower_is_better: which way it goes then.
    """

    name: str
    model: Network
    channels_last_on_cpu = False
    judged_by: str | None = None
    watched: str
    lower_is_better = True

    @abstractmethod
    def loss(self, data: Data, index: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the batch `index` (B,), and detached numbers for the log."""

    @abstractmethod
    def validate(self, model: Network, data: Data) -> dict[str, float]:
        """Numbers for the log, of the averaged model on held-out data."""

    def goodness(self, numbers: Mapping[str, float]) -> float:
        """How good the network is by the numbers of a validation. Higher is better."""
        value = numbers[self.watched]
        return -value if self.lower_is_better else value

    def after_step(self, step: int, progress: float) -> None:
        """Does what must happen between steps. progress: 0 at the start of training, 1 at its end."""

    def state(self) -> dict:
        """What a checkpoint must hold beside the model's parameters."""
        return {}

    def load_state(self, state: dict) -> None:
        """The inverse of `state`."""

    def begin_from(self, parameters: Parameters) -> None:
        """Start from another network's parameters. Raises RuntimeError where they do not fit."""
        self.model.load_state_dict(parameters)


def autocast(tensor: Tensor, precision: str) -> torch.autocast:
    """Mixed precision on the tensor's device; switched off for float32."""
    return torch.autocast(tensor.device.type, torch.bfloat16, enabled=precision == "bf16")
