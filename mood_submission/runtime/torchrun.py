"""Reads what torchrun tells a process: its number, how many there are, and so which GPU it has."""

import os
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Process:
    """One of the processes that torchrun has started.

    rank: number of this process, from 0 on.
    local: number of this process among those of its machine, from 0 on.
    count: how many processes there are.
    """

    rank: int
    local: int
    count: int

    @classmethod
    def from_torchrun(cls) -> Self | None:
        """This process, by the environment. None where torchrun has not started it, or has started it alone."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count < 2 or "RANK" not in os.environ or not dist.is_available():
            return None
        rank = int(os.environ["RANK"])
        return cls(rank, int(os.environ.get("LOCAL_RANK", rank)), count)

    @property
    def device(self) -> str | None:
        """The GPU of this process. None where there is no GPU, or no other process."""
        if self.count == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{self.local % torch.cuda.device_count()}"
