"""Steps that do the same work each time, recorded as CUDA graphs."""

from collections.abc import Callable

import torch

Recorder = Callable[
    [Callable[[int], None], int], list[Callable[[], None]]
]  # (step, count) -> replays of each step


def record_graphs(step: Callable[[int], None], count: int) -> list[Callable[[], None]]:
    """step(0) .. step(count - 1) as CUDA graphs. Each is run once, for libraries to set themselves up, then recorded.

    Raises RuntimeError where a step cannot be recorded.
    """
    for i in range(count):
        step(i)
    replays, pool = [], None
    for i in range(count):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=pool, capture_error_mode="thread_local"
        ):  # other threads read and write
            step(i)
        pool = graph.pool()  # what steps need for themselves, they may share: none keeps anything there
        replays.append(graph.replay)
    return replays
