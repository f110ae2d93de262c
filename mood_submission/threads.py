"""CPU work whose results have the same bits for any number of threads.

A sum that several threads share is rounded by how they share it. Here each item is computed whole, by one thread, and
several items at a time.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

from .device import is_out_of_memory

Item, Result = TypeVar("Item"), TypeVar("Result")
_alone = threading.RLock()
_threads = 1              # what torch had when the outermost `one_thread_each` began
_of_thread = threading.local()


class Stopped(Exception):
    """Raised in a thread of `each` whose result is no longer wanted."""


@contextmanager
def one_thread_each() -> Iterator[None]:
    """While open (or as a decorator: while it runs), an operation of torch on the CPU is one thread's work.

    For one thread at a time: others wait. The number of torch's threads is the process's; afterwards it is what it was.
    """
    global _threads
    with _alone:
        before, outer = torch.get_num_threads(), _threads
        _threads = max(before, outer)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            _threads = outer


def each(function: Callable[[Item], Result], items: Sequence[Item], most: int | None = None) -> list[Result]:
    """function(item) of each, in as many threads as torch may use, at most `most`; within `one_thread_each`.

    Where one runs out of memory it is tried again alone. Other exceptions of `function` are raised when the rest are done,
    those of the caller's thread, such as KeyboardInterrupt, when the others have heard of it (see `check_stopped`).
    """
    threads = min(_threads, len(items), most or len(items))
    if threads <= 1:
        return [function(item) for item in items]
    stop = threading.Event()

    def run(item: Item) -> Result:
        _of_thread.stop = stop
        check_stopped()
        with torch.inference_mode():
            return function(item)

    futures: list[Future[Result]] = []
    try:
        futures.extend(_pool(threads).submit(run, item) for item in items)
        wait(futures)
    except BaseException:
        stop.set()
        wait(futures)
        raise
    results = []
    for item, future in zip(items, futures):
        error = future.exception()
        if error is not None and not is_out_of_memory(error):
            raise error
        results.append(future.result() if error is None else function(item))
    return results


def check_stopped() -> None:
    """For long work to call now and then. Raises Stopped in a thread of `each` whose result is no longer wanted."""
    stop = getattr(_of_thread, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept, since libraries set much up for each new thread. Its threads end with it."""
    return ThreadPoolExecutor(threads, thread_name_prefix="networks", initializer=torch.set_num_threads, initargs=(1,))
