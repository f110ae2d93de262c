"""Runs CPU work in threads so that results have the same bits for any number of threads.

The rounding of a sum depends on how threads share it. So here one thread computes each item whole, and several items are
computed at a time.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

from .memory import is_out_of_memory
from .stopping import _this_thread, check_stopped

Item = TypeVar("Item")
Output = TypeVar("Output")
_one_at_a_time = threading.RLock()
# The number of torch's threads when the outermost `one_thread_each` began.
_threads = 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """While open, one thread computes each of torch's operations on the CPU. It is a context manager and a decorator.

    One thread at a time can have it open, and others wait. It sets the number of torch's threads, which is the whole process's,
    and restores it afterwards.
    """
    global _threads
    with _one_at_a_time:
        before, outer = torch.get_num_threads(), _threads
        _threads = max(before, outer)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            _threads = outer


def map_in_threads(function: Callable[[Item], Output], items: Sequence[Item], most: int | None = None) -> list[Output]:
    """function(item) for each item, in order. Call this within `one_thread_each`.

    An item that runs out of memory is tried again after the others. Another exception of `function` is raised when all items
    are done. An exception in the caller's thread, such as KeyboardInterrupt, is raised when the other threads have stopped (see
    `check_stopped`).

    function: computes one item.
    items: what to compute.
    most: the most threads to use, of as many as torch may. None for no further limit.
    """
    threads = min(_threads, len(items), most or len(items))
    if threads <= 1:
        return [_checked(function, item) for item in items]
    stop = threading.Event()

    def run(item: Item) -> Output:
        _this_thread.stop = stop
        with torch.inference_mode():
            return _checked(function, item)

    with ThreadPoolExecutor(threads, "networks", torch.set_num_threads, (1,)) as pool:
        try:
            futures = [pool.submit(run, item) for item in items]
            # Waiting in turns: a signal that comes as waiting begins is noticed when the turn ends.
            while wait(futures, timeout=1).not_done:
                pass
        except BaseException:
            stop.set()
            raise
    check_stopped()
    results = []
    for item, future in zip(items, futures):
        error = future.exception()
        if error is not None and not is_out_of_memory(error):
            raise error
        results.append(future.result() if error is None else function(item))
    return results


def _checked(function: Callable[[Item], Output], item: Item) -> Output:
    check_stopped()
    return function(item)
