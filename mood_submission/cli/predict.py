"""mood-submission predict: score every volume of a folder."""

import argparse
import os
import sys
import threading
from collections.abc import Sequence

from tqdm import tqdm

from ..running.options import PredictOptions
from ..runtime.options import add_options, options_of
from ..runtime.stopping import stop_on_signals
from .output import quiet, say


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    # Whoever started this may have closed it.
    sys.stderr = sys.stderr or open(os.devnull, "w")
    # tqdm's own lock is for processes too. It would leave a semaphore in /dev/shm where this process is killed.
    tqdm.set_lock(threading.RLock())
    quiet()
    parser = argparse.ArgumentParser(
        prog="mood-submission predict",
        description="Score every volume of a folder: NIfTI, MetaImage, NRRD, and folders of DICOM files. Exit status: 0 when every "
        "volume has its prediction, 1 when some failed (each named on standard error), 2 for wrong usage.",
    )
    add_options(parser, PredictOptions)
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    try:
        options = options_of(PredictOptions, args)
    # What the environment says is wrong.
    except argparse.ArgumentError as error:
        say(f"mood_submission: {error}")
        return 2
    # Without handlers, the first process of a container ignores these.
    stop_on_signals()
    try:
        # It needs torch, which --help does not wait for.
        from .prediction import predict

        return predict(options, words)
    except KeyboardInterrupt:
        say("mood_submission: stopped")
        return 130
