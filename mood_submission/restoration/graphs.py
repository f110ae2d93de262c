"""Records steps that do the same work each time as CUDA graphs."""

from collections.abc import Callable

import torch

# From a step and a count to replays of step(0) .. step(count - 1).
Recorder = Callable[[Callable[[int], None], int], list[Callable[[], None]]]


def record_graphs(step: Callable[[int], None], count: int) -> list[Callable[[], None]]:
    """Replays of step(0) .. step(count - 1) as CUDA graphs. Each step runs once before, so that libraries set themselves up.

    Raises RuntimeError where a step cannot be recorded.
    """
    for i in range(count):
        step(i)
    replays, pool = [], None
    for i in range(count):
        graph = torch.cuda.CUDAGraph()
        # Other threads may use CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            step(i)
        # Steps share working memory, since none keeps anything there.
        pool = graph.pool()
        replays.append(graph.replay)
    return replays
