"""The processes that train one network together, each on its own part of every batch, as torchrun starts them."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=12)  # that the others wait for one that reads volumes, plants or validates


@dataclass(frozen=True)
class Group:
    """This process among those that train together. One alone exchanges nothing.

    rank: of this process, from 0 on. local: of this process on its machine, which is also its GPU's number. count: of all.
    """

    rank: int = 0
    local: int = 0
    count: int = 1

    @classmethod
    def from_environment(cls) -> "Group":
        """What torchrun says of this process; one alone where it has not been started so. Meets the others on the first call."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count < 2 or not dist.is_available():
            return cls()
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if torch.cuda.is_available():
            torch.cuda.set_device(local % torch.cuda.device_count())
        if not dist.is_initialized():
            # gloo for what lies on the CPU, nccl for what lies on GPUs
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
        return cls(dist.get_rank(), local, count)

    @staticmethod
    def leave(status: int) -> int:
        """End this process with an exit status, where others train beside it; give the status back where it is alone.

        Call it last. A thread of gloo lets go of the tensors that were exchanged, and outlives the group: where it does
        so while Python shuts down, it aborts the process. So the process ends without that shutdown, with all output
        flushed. A process that ends with an error does not wait for the others.
        """
        if dist.is_available() and dist.is_initialized():
            if status == 0:
                dist.destroy_process_group()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status

    @property
    def first(self) -> bool:
        """Whether this process is the one that validates, writes and draws pictures."""
        return self.rank == 0

    @property
    def device(self) -> str | None:
        """The GPU of this process; None where there are none, or it is alone and takes what there is."""
        if self.count == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{self.local % torch.cuda.device_count()}"

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            self.first_ones(0.0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes into each tensor. They travel as one, in float32."""
        if self.count > 1 and tensors:
            flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
            dist.all_reduce(flat)
            for tensor, mean in zip(tensors, (flat / self.count).split([t.numel() for t in tensors])):
                tensor.detach().copy_(mean.view_as(tensor))

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def take_first_ones(self, tensors: Sequence[Tensor]) -> None:
        """Put into each tensor what it holds in the first process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def first_ones(self, number: float) -> float:
        """The number that the first process has."""
        if self.count == 1:
            return number
        shared = torch.tensor(number, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)


ALONE = Group()
