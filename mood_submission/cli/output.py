"""Lines on standard error, in one piece whatever happens at the same time."""

import contextlib
import logging
import sys
import warnings

from tqdm import tqdm


def say(line: object) -> None:
    """A line on standard error, above a progress bar and in one piece, whatever threads say at the same time.

    Nobody listening, as after `2>&1 | head`, is no reason to stop.
    """
    text = " ".join(str(line).split())
    with contextlib.suppress(OSError), tqdm.external_write_mode(file=sys.stderr):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def quiet() -> None:
    """One line a warning and an error, from us; nibabel's notes on odd headers would only repeat them."""
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)
