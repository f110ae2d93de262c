"""CPU work whose results have the same bits for any number of threads.

A sum that several threads share is rounded by how they share it. Here each item is computed whole, by one thread, and
several items at a time.
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
_threads = 1  # what torch had when the outermost `one_thread_each` began


@contextmanager
def one_thread_each() -> Iterator[None]:
    """While open (or as a decorator: while it runs), an operation of torch on the CPU is one thread's work.

    For one thread at a time: others wait. The number of torch's threads is the process's; afterwards it is what it was.
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


def map_in_threads(
    function: Callable[[Item], Output], items: Sequence[Item], most: int | None = None
) -> list[Output]:
    """function(item) of each, in as many threads as torch may use, at most `most`; within `one_thread_each`.

    Where one runs out of memory it is tried again alone. Other exceptions of `function` are raised when the rest are done,
    those of the caller's thread, such as KeyboardInterrupt, when the others have heard of it (see `check_stopped`).
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
            while wait(futures, timeout=1).not_done:
                pass  # a signal that comes as waiting begins is heard only when it ends
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
