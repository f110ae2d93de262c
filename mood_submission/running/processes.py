"""Starts several processes for one folder on this machine, each on its own GPU. torchrun's engine does that."""

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence

import torch

from ..runtime.stopping import leave_signals_alone
from .options import AUTO


def how_many(wanted: int | str, device: str | None, volumes: int) -> int:
    """How many processes to start, at least 1 and at most one for each volume.

    wanted: a number. AUTO for one process for each GPU, or a single one where there is no GPU.
    device: a device that was named. AUTO then means a single process.
    volumes: how many there are.
    """
    if wanted == AUTO:
        wanted = torch.cuda.device_count() if device is None else 1
    return max(1, min(int(wanted), volumes))


def launch(count: int, words: Sequence[str]) -> int:
    """Run `mood-submission WORDS` in `count` processes, which find each other as under torchrun.

    Returns the exit status: 0, or that of the first process that failed, or 130 where they were stopped.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes speak for themselves.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    # torchrun's engine hands these on to the processes.
    leave_signals_alone()
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            # A container may have no name that leads anywhere.
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "mood_submission", *words)
        # That process has said what went wrong.
        except ChildFailedError as error:
            return max(1, error.get_first_failure()[1].exitcode)
        except SignalException:
            return 130
    return 0
