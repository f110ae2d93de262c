"""Stopping where it is safe to: signals and unwanted threads are heard when the work asks for them."""

import threading

_this_thread = threading.local()
_asked = threading.Event()


class Stopped(Exception):
    """Raised in a thread of `map_in_threads` whose result is no longer wanted."""


def ask_to_stop(*_: object) -> None:
    """A handler for signals: `check_stopped` is to raise KeyboardInterrupt. Asked again, it is raised at once.

    Raised just anywhere, as Python's own handler does, it may be lost in a library, or taken for a file's failure.
    """
    if _asked.is_set():
        raise KeyboardInterrupt
    _asked.set()


def check_stopped() -> None:
    """For long work to call now and then. Raises Stopped in a thread of `map_in_threads` whose result is no longer wanted, and
    KeyboardInterrupt elsewhere after `ask_to_stop`."""
    stop = getattr(_this_thread, "stop", None)
    if stop is None:
        if _asked.is_set():
            raise KeyboardInterrupt
    elif stop.is_set() or _asked.is_set():
        raise Stopped
