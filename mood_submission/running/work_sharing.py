"""How several processes share the volumes of a folder: dealt out beforehand (job arrays), or taken from one queue (torchrun)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from ..runtime.torchrun import Process
from ..volumes import Source

# The counters that the processes share.
TAKEN, DONE, FAILED, FINISHED = (f"mood/{name}" for name in ("taken", "done", "failed", "finished"))


def size_of(source: Source) -> int:
    """Bytes of a volume's file, or of all of a series'; what cannot be looked at counts as nothing."""
    total = 0
    for file in source.files:
        try:
            total += file.stat().st_size
        except OSError:
            pass
    return total


def longest_first(sources: Sequence[Source]) -> list[Source]:
    """By size, so that none of the large ones is begun last; by path where sizes are the same."""
    return sorted(sources, key=lambda source: (-size_of(source), source.path))


def shard(sources: Sequence[Source], number: int, count: int) -> list[Source]:
    """What the process `number` of `count`, from 1 on, does: longest first, dealt out back and forth, so that all have
    about as much."""
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
        """This process; None where it has not been started by torchrun, or alone."""
        process = Process.from_torchrun()
        if process is None:
            return None
        store, _, _ = next(iter(dist.rendezvous("env://")))
        return cls(process.rank, process.local, process.count, store)

    def take(self, sources: Sequence[Source]) -> Iterator[Source]:
        """The volumes that no other process has taken, one whenever it is asked for, longest first. Nobody waits for anybody.

        Each process has found them by itself: what is shared is a place in the queue, which is the same for all.
        """
        queue = longest_first(sources)
        while (taken := self._add(TAKEN, 1)) is not None and taken <= len(queue):
            yield queue[taken - 1]

    def _add(self, counter: str, more: int) -> int | None:
        """None where the process that keeps the counters is gone: torchrun's agent outlives all, but where they were started by
        hand that is the first of them, which ends when nothing is left to take."""
        try:
            return self.store.add(counter, more)
        except RuntimeError:
            return None

    def count_done(self) -> int | None:
        """Add one to how many volumes all processes have done. Returns how many these are; None where nobody knows."""
        return self._add(DONE, 1)

    def count_failed(self, more: int) -> int | None:
        """Add to how many volumes have failed in all processes. Returns how many these are; None where nobody knows."""
        return self._add(FAILED, more)

    def is_last(self) -> bool:
        """To be asked once, at the end: whether all others have ended before."""
        return self._add(FINISHED, 1) == self.count
