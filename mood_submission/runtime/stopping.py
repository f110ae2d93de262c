"""Stops work where that is safe. Work calls `check_stopped`, which raises after a signal or in a thread of unwanted work."""

import signal
import threading

# What asks a process to end: Ctrl-C, and what containers and batch systems send. Not every system knows both.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))

_this_thread = threading.local()
_asked = threading.Event()


class Stopped(Exception):
    """The result of a thread of `map_in_threads` is no longer wanted."""


def stop_on_signals() -> None:
    """From now on, signals stop work by `ask_to_stop`. Call this in the main thread."""
    for number in SIGNALS:
        signal.signal(number, ask_to_stop)


def leave_signals_alone() -> None:
    """From now on, the system does with signals what it does by default. Call this in the main thread."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


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
