"""Shares the volumes of a folder among processes: in fixed shards for job arrays, from one queue under torchrun."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from ..runtime.torchrun import Process
from ..volumes import Source

# The counters that the processes share.
TAKEN, DONE, FAILED, FINISHED = (f"mood/{name}" for name in ("taken", "done", "failed", "finished"))


def size_of(source: Source) -> int:
    """The bytes of a volume's files. Files that cannot be looked at count as 0."""
    total = 0
    for file in source.files:
        try:
            total += file.stat().st_size
        except OSError:
            pass
    return total


def longest_first(sources: Sequence[Source]) -> list[Source]:
    """Volumes by falling size, so that no large one is begun last. Those of one size are sorted by path."""
    return sorted(sources, key=lambda source: (-size_of(source), source.path))


def shard(sources: Sequence[Source], number: int, count: int) -> list[Source]:
    """The volumes of shard `number` of `count`, from 1 on. All shards are about as large.

    The volumes are dealt out longest first, back and forth.
    """
    mine = []
    for i, source in enumerate(longest_first(sources)):
        turn, place = divmod(i, count)
        if (place if turn % 2 == 0 else count - 1 - place) == number - 1:
            mine.append(source)
    return mine


@dataclass(frozen=True)
class Ranks(Process):
    """This process among those that torchrun has started, and the counters that they share."""

    store: "dist.Store"

    @classmethod
    def from_environment(cls) -> "Ranks | None":
        """This process. None where torchrun has not started it, or has started it alone."""
        process = Process.from_torchrun()
        if process is None:
            return None
        store, _, _ = next(iter(dist.rendezvous("env://")))
        return cls(process.rank, process.local, process.count, store)

    def take(self, sources: Sequence[Source]) -> Iterator[Source]:
        """Take volumes that no other process has taken, one at a time, longest first. No process waits for another.

        Each process has found the same volumes. They share only a counter of how many are taken.
        """
        queue = longest_first(sources)
        while (taken := self._add(TAKEN, 1)) is not None and taken <= len(queue):
            yield queue[taken - 1]

    def _add(self, counter: str, more: int) -> int | None:
        """The counter after adding `more`. None where the process that keeps the counters has ended.

        torchrun's agent keeps them, and ends last. Where processes were started by hand, the first of them keeps them, and ends
        when no volume is left.
        """
        try:
            return self.store.add(counter, more)
        except RuntimeError:
            return None

    def count_done(self) -> int | None:
        """Count one more volume as done. Returns how many all processes have done, or None where the counters are gone."""
        return self._add(DONE, 1)

    def count_failed(self, more: int) -> int | None:
        """Count `more` volumes as failed. Returns how many failed in all processes, or None where the counters are gone."""
        return self._add(FAILED, more)

    def is_last(self) -> bool:
        """Whether all other processes have ended before this one. Call this once, at the end."""
        return self._add(FINISHED, 1) == self.count
