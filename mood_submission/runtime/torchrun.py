"""What torchrun says to a process: which one it is, of how many, and which GPU is its own."""

import os
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Process:
    """One of the processes that torchrun has started.

    rank: of this process, from 0 on. local: of this process on its machine. count: of all processes.
    """

    rank: int
    local: int
    count: int

    @classmethod
    def from_torchrun(cls) -> Self | None:
        """What the environment says of this process; None where it has not been started by torchrun, or alone."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count < 2 or "RANK" not in os.environ or not dist.is_available():
            return None
        rank = int(os.environ["RANK"])
        return cls(rank, int(os.environ.get("LOCAL_RANK", rank)), count)

    @property
    def device(self) -> str | None:
        """The GPU of this process; None where there are none, or it is alone and takes what there is."""
        if self.count == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{self.local % torch.cuda.device_count()}"
