"""Several processes train one network together, as torchrun starts them: two and three on the CPU, tiny networks."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, mood, words_of, write_two_sources

from mood_submission.lab.training.cache import build_cache
from mood_submission.lab.training.checkpoints import load_checkpoint
from mood_submission.preprocessing import Preprocessing

pytestmark = pytest.mark.slow

TINY = "--channels 4 4 4 8 --codebook-size 12 --res-blocks 1 --device cpu --dropout 0"
VQVAE = f"train vqvae --region brain {TINY} --precision float32"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    return write_two_sources(tmp_path_factory.mktemp("healthy"), 8)


@pytest.fixture(scope="module")
def cache(healthy, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("cache") / "slices.npz"
    build_cache(healthy, file, Preprocessing.published("brain"))
    return file


def together(count: int, *words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [*command, "-m", "mood_submission", *words_of(*words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def curve(run: Path, stage: str = "vqvae") -> list[dict[str, str]]:
    """The rows of a run's log, without what the clock says."""
    with open(run / f"{stage}.csv") as log:
        return [{k: v for k, v in row.items() if k != "minutes"} for row in csv.DictReader(log)]


def numbers(run: Path, name: str = "loss") -> list[float]:
    return [float(row[name]) for row in curve(run)]


def test_one_process_of_torchrun_trains_as_without(cache, tmp_path):
    words = (VQVAE, "--data", cache, "--steps", 6, "--batch", 4)
    assert mood(*words, "--out", tmp_path / "plain").returncode == 0
    done = together(1, *words, "--out", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    assert curve(tmp_path / "one") == curve(tmp_path / "plain")
    plain, one = (load_checkpoint(tmp_path / run / "vqvae.pt")["model"] for run in ("plain", "one"))
    assert all(torch.equal(plain[name], one[name]) for name in plain)


def test_two_processes_train_as_one_that_takes_its_batches_in_two_parts(cache, tmp_path):
    """The parts are the same slices, varied alike, so only rounding differs; a whole batch at once is varied otherwise."""
    words = (VQVAE, "--data", cache, "--steps", 12, "--batch", 8)
    done = together(2, *words, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert mood(*words, "--out", tmp_path / "parts", "--accumulate", 2).returncode == 0
    assert mood(*words, "--out", tmp_path / "whole").returncode == 0
    two, parts, whole = (numbers(tmp_path / run) for run in ("two", "parts", "whole"))
    assert np.allclose(two, parts, rtol=2e-3)
    assert np.allclose(two[-3:], whole[-3:], rtol=0.15)
    steps = [int(row["step"]) for row in curve(tmp_path / "two")]
    assert steps == sorted(set(steps)) and steps[-1] == 12  # written by one process alone


def test_prior_and_another_number_of_processes_after_a_stop(healthy, tmp_path):
    """They read the volumes once, and three go on where two have stopped."""
    run = tmp_path / "run"
    common = ("--data", healthy, "--out", run, "--batch", 12, "--preprocessing published")
    for count, words in ((2, ("--steps", 3)), (3, ("--steps", 6, "--resume"))):
        done = together(count, VQVAE, *common, *words)
        assert done.returncode == 0, done.stderr
    assert [row["step"] for row in curve(run)][-1] == "6"
    prior = (
        "train prior --region brain --device cpu --prior-channels 8 --blocks 1 --res-blocks 1",
        *common,
        "--steps 2",
    )
    done = together(2, *prior)
    assert done.returncode == 0, done.stderr
    assert {"prior.pt", "prior.csv", "prior_pictures.png"} <= {file.name for file in run.iterdir()}


STARTER = """
import signal, sys
from pathlib import Path
from mood_submission.lab.training.commands import run
from mood_submission.lab.training.step_log import StepLog
signal.signal(signal.SIGTERM, signal.default_int_handler)
run(sys.argv[2:], StepLog(Path(sys.argv[1])), together=2)
"""


def at_work(place: Path) -> dict[int, str]:
    """The processes whose words name a place, by their numbers."""
    listed = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True).stdout.splitlines()
    return {int(line.split()[0]): line for line in listed if str(place) in line}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends with the process that started it")
@pytest.mark.parametrize(
    "whom, number",
    [
        ("the run", "SIGKILL"),
        pytest.param("the run", "SIGTERM", marks=pytest.mark.long),
        pytest.param("torchrun", "SIGKILL", marks=pytest.mark.long),
    ],
)
def test_processes_that_a_run_has_started_end_with_it(whom, number, cache, tmp_path):
    """Killed while they train, with some hundred steps to go: the run that started them, or what torchrun does."""
    words = words_of(VQVAE, "--data", cache, "--steps", 500, "--batch", 4, "--out", tmp_path / "run")
    log = tmp_path / "vqvae.log"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", STARTER, log, *words], env=environment, stderr=subprocess.PIPE)
    while not (log.exists() and '"loss"' in log.read_text()):
        assert run.poll() is None
        time.sleep(0.1)
    others = {pid: line for pid, line in at_work(tmp_path / "run").items() if pid != run.pid}
    torchrun = next((pid for pid, line in others.items() if "launch" in line), run.pid)
    os.kill(run.pid if whom == "the run" else torchrun, getattr(signal, number))
    assert len(others) == 3
    told = run.communicate(timeout=120)[1].decode()
    for _ in range(600):
        if not at_work(tmp_path / "run"):
            break
        time.sleep(0.1)
    assert at_work(tmp_path / "run") == {} and int(curve(tmp_path / "run")[-1]["step"]) < 500
    assert whom == "the run" or "signal 9 ended it; all that it told is in" in told


@pytest.mark.parametrize("status", [0, 3])
def test_processes_end_without_the_shutdown_in_which_threads_of_gloo_abort(status, tmp_path):
    """What they print is whole, the status is kept, and Python's shutdown, which calls what `atexit` holds, is left out."""
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, sys, torch\n"
        "from mood_submission.lab.training.group import Group\n"
        "group = Group.from_environment()\n"
        "atexit.register(print, 'shutdown')\n"
        "group.average([torch.ones(3)])\n"
        "print('done', group.rank, group.count)\n"
        "sys.exit(Group.leave(int(sys.argv[1])))\n"
    )
    ends = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
            "PYTHONPATH": str(ROOT),
        }
    for count in (2, 1):
        started = [
            subprocess.Popen(
                [sys.executable, script, str(status)],
                env=os.environ | place | {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]
        ends += [(process.communicate(timeout=120)[0], process.returncode) for process in started]
    together_0, together_1, alone = ends
    assert [together_0, together_1] == [("done 0 2\n", status), ("done 1 2\n", status)]
    assert alone == ("done 0 1\nshutdown\n", status)


def test_a_batch_that_cannot_be_parted_is_refused_in_one_line(cache, tmp_path):
    wrong = mood(VQVAE, "--data", cache, "--steps", 1, "--batch", 5, "--accumulate", 2, "--out", tmp_path)
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1
    assert "batch: expected a multiple of 2" in wrong.stderr and "found 5" in wrong.stderr
