"""Stops work where that is safe. Work calls `check_stopped`, which raises after a signal or in a thread of unwanted work."""

import threading

_this_thread = threading.local()
_asked = threading.Event()


class Stopped(Exception):
    """The result of a thread of `map_in_threads` is no longer wanted."""


def ask_to_stop(*_: object) -> None:
    """A handler for signals. After the first, `check_stopped` raises KeyboardInterrupt. The second raises it at once.

    Python's own handler raises it anywhere. There a library may swallow it, or it may be taken for a file's failure.
    """
    if _asked.is_set():
        raise KeyboardInterrupt
    _asked.set()


def check_stopped() -> None:
    """Raises KeyboardInterrupt after `ask_to_stop`. Long work calls this now and then.

    In a thread of `map_in_threads` it raises Stopped instead, also where the thread's result is no longer wanted.
    """
    stop = getattr(_this_thread, "stop", None)
    if stop is None:
        if _asked.is_set():
            raise KeyboardInterrupt
    elif stop.is_set() or _asked.is_set():
        raise Stopped
