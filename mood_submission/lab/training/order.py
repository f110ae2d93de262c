"""Which slices make up the batch of each step."""

import torch
from torch import Tensor


class BatchOrder:
    """Indices of the batch of each step. Filled slices come once an epoch, nearly empty ones once in eight epochs.

    filled: (N,) bool, of each slice.
    batch: slices a step.
    """

    def __init__(self, filled: Tensor, batch: int, seed: int):
        self.filled, self.empty = filled.nonzero()[:, 0], (~filled).nonzero()[:, 0]
        self.batch, self.seed, self.epoch = batch, seed, -1
        self.length = max(len(self.filled) + len(self.empty) // 8, 1)

    def _start_epoch(self, epoch: int) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        some = self.empty[torch.randperm(len(self.empty), generator=generator)[: len(self.empty) // 8]]
        members = torch.cat([self.filled, some])
        self.members = members[torch.randperm(len(members), generator=generator)]
        self.epoch = epoch

    def __call__(self, step: int) -> Tensor:
        """The indices (batch,) int64 of a step, which depend on the seed and the step alone."""
        picked = []
        for i in range(step * self.batch, (step + 1) * self.batch):
            if i // self.length != self.epoch:
                self._start_epoch(i // self.length)
            picked.append(self.members[i % self.length])
        return torch.stack(picked)
