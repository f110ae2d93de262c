"""The processes that train one network together, as torchrun starts them. Each takes its own part of every batch."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ...runtime.torchrun import Process
from .parents import end_with_parent

# How long the others wait for one process that reads volumes, plants or validates.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Group(Process):
    """This process among those that train together. One alone exchanges nothing.

    Gradients are averaged here and not by DistributedDataParallel. It trains as well, but takes more lines: a stage's loss must
    become a module's `forward`, every part of a batch but the last needs its `no_sync`, and it hands out the first process's
    running statistics where their mean is wanted.
    """

    @classmethod
    def from_environment(cls) -> "Group":
        """What torchrun says of this process, or SINGLE_PROCESS without torchrun. The first call waits for all processes."""
        group = cls.from_torchrun()
        if group is None:
            return SINGLE_PROCESS
        # torchrun ends its processes, unless it is killed at once.
        end_with_parent()
        if group.device is not None:
            torch.cuda.set_device(group.device)
        if not dist.is_initialized():
            # gloo carries what lies on the CPU, nccl what lies on GPUs.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
        return group

    @staticmethod
    def leave(status: int) -> int:
        """End this process with an exit status where others train beside it. Returns the status where it is alone.

        Call it last. A thread of gloo outlives the group and frees the tensors that were exchanged. It aborts the process
        where it does so while Python shuts down. So the process ends without that shutdown, with all output flushed. A
        process that ends with an error does not wait for the others.
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
        """Whether this is the process that validates, and writes files and pictures."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until the first process has come here."""
        self.from_first(0.0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put into each tensor its mean over all processes. The tensors are sent as one, in float32."""
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

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Put into each tensor the values that it has in the first process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def from_first(self, number: float) -> float:
        """The number that the first process has passed here."""
        if self.count == 1:
            return number
        shared = torch.tensor(number, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)


SINGLE_PROCESS = Group(rank=0, local=0, count=1)
