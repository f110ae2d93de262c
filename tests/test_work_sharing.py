"""Several processes share a folder: dealt out beforehand, or taken from one queue, as torchrun starts them."""

import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch.distributed as dist
from conftest import ROOT, mood, write_nifti

from mood_submission.running.processes import how_many
from mood_submission.running.report import rank_path
from mood_submission.running.work_sharing import longest_first, shard
from mood_submission.volumes import find_volumes


def some_files(folder, sizes):
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        (folder / f"v{number:02}.nii.gz").write_bytes(b"x" * size)
    return find_volumes(folder)


def test_shards_are_all_of_the_volumes_once_and_about_as_large(tmp_path):
    sizes = np.random.default_rng(0).integers(10, 5000, 23)
    files = some_files(tmp_path / "in", sizes)
    for count in (1, 2, 5, 23, 30):
        parts = [shard(files, number, count) for number in range(1, count + 1)]
        assert sorted((source for part in parts for source in part), key=lambda source: source.path) == files
        loads = [sum(source.path.stat().st_size for source in part) for part in parts]
        assert max(loads) - min(loads) <= max(sizes)
        assert parts == [shard(files[::-1], number, count) for number in range(1, count + 1)]
    assert [source.path.stat().st_size for source in longest_first(files)] == sorted(sizes, reverse=True)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Seven little heads of different heights."""
    folder = tmp_path_factory.mktemp("heads")
    for number in range(7):
        rng, depth = np.random.default_rng(number), 10 + 2 * number
        x, y, z = np.mgrid[-1:1:20j, -1:1:24j, -1 : 1 : depth * 1j]
        inside = x**2 + y**2 + z**2 < 0.8
        data = np.where(inside, 0.5 + 0.1 * rng.standard_normal(x.shape), 0).clip(0, 1).astype(np.float32)
        write_nifti(folder / f"head{number}.nii.gz", data)
    return folder


def words_for(heads, weights, out):
    return [
        *("predict", "--region", "brain", "--task", "both", "--device", "cpu", "--slices", "4", "--restorations", "2"),
        *("--weights", str(weights), "-i", str(heads), "-o", str(out)),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone(heads, tiny_weights, tmp_path_factory):
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("alone")
    done = mood(*words_for(heads, tiny_weights["brain"], out))
    assert done.returncode == 0, done.stderr
    return out


def same(one, other) -> None:
    assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in other.iterdir())
    for file in one.iterdir():
        written, wanted = file.read_bytes(), (other / file.name).read_bytes()
        if file.suffix == ".gz":
            assert gzip.decompress(written) == gzip.decompress(wanted), f"{file.name}: other scores"
        assert written == wanted, f"{file.name}: the same scores, packed otherwise"


def test_the_shards_predictions_are_one_process_s(heads, tiny_weights, alone, tmp_path):
    for number in (1, 2, 3):
        done = mood(*words_for(heads, tiny_weights["brain"], tmp_path / "out"), "--shard", f"{number}/3")
        assert done.returncode == 0, done.stderr
    same(tmp_path / "out", alone)
    for wrong in ("0/3", "4/3", "half"):
        assert mood(*words_for(heads, tiny_weights["brain"], tmp_path), "--shard", wrong).returncode == 2


def test_a_process_for_each_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert how_many("auto", None, 9) == 4 and how_many("auto", None, 3) == 3
    assert how_many("auto", "cuda:1", 9) == how_many("auto", "cpu", 9) == 1
    assert how_many(2, "cpu", 9) == 2 and how_many(2, None, 1) == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert how_many("auto", None, 9) == 1


@pytest.mark.slow
def test_predict_starts_its_processes_itself(heads, tiny_weights, alone, tmp_path):
    words = words_for(heads, tiny_weights["brain"], tmp_path / "out")
    report = tmp_path / "report.json"
    done = mood(*words, "--report", report, cwd=tmp_path, env=os.environ | {"MOOD_PROCESSES": "2"})
    assert done.returncode == 0, done.stderr
    same(tmp_path / "out", alone)
    volumes = json.loads(report.read_text())["volumes"]
    assert [v["file"] for v in volumes] == sorted(file.name for file in heads.iterdir())
    # a volume that fails is told in one line, and so is wrong usage, once
    broken = tmp_path / "broken"
    shutil.copytree(heads, broken)
    (broken / "head3.nii.gz").write_bytes(b"no volume")
    (tmp_path / "more").mkdir()
    done = mood(*words_for(broken, tiny_weights["brain"], tmp_path / "more"), "--processes 2", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "elastic" not in done.stderr
    assert done.stderr.count("head3.nii.gz: expected") == 1 and len(list((tmp_path / "more").iterdir())) == 12
    done = mood(*words_for(heads, tmp_path / "none.safetensors", tmp_path), "--processes 2", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_processes_stop_when_the_first_is_told_to(heads, tiny_weights, alone, tmp_path):
    words = words_for(heads, tiny_weights["brain"], tmp_path / "out")
    words[words.index("--restorations") + 1] = "120"
    command = [sys.executable, "-m", "mood_submission", *words, "--processes", "2"]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not any((tmp_path / "out").glob("*.txt")):  # until something is done
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and "Traceback" not in told, told
    left = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert 0 < len(left) < 14 and all(name.endswith((".nii.gz", ".txt")) for name in left)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_of_torchrun_take_volumes_from_one_queue(heads, tiny_weights, alone, tmp_path, count):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    words = words_for(heads, tiny_weights["brain"], tmp_path / "out")
    done = subprocess.run(
        [*command, "-m", "mood_submission", *words, "--report", str(tmp_path / "report.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    same(tmp_path / "out", alone)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["counts"] == {"predicted": 7, "resumed": 0, "failed": 0, "not reached": 0}
    assert sorted(volume["file"] for volume in report["volumes"]) == sorted(f.name for f in heads.iterdir())
    assert [file.name for file in tmp_path.glob("*.json")] == ["report.json"]


@pytest.mark.slow
def test_a_broken_volume_keeps_no_process_from_its_own(heads, tiny_weights, alone, tmp_path):
    """It is the smallest, so its process is done while the others are at work; torchrun ends all when one fails."""
    folder = tmp_path / "in"
    shutil.copytree(heads, folder)
    (folder / "a_broken.nii.gz").write_bytes(b"nothing")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    words = words_for(folder, tiny_weights["brain"], tmp_path / "out")
    done = subprocess.run(
        [*command, "-m", "mood_submission", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and "a_broken.nii.gz" in done.stderr
    same(tmp_path / "out", alone)


AGENT = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}


def start(rank: int, count: int, port: int, words, report, agent=None) -> subprocess.Popen:
    """A process as one starts it by hand, or with AGENT as torchrun does, whose agent keeps the counters at this port."""
    settings = (agent or {}) | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "mood_submission", *words, "--report", str(report)],
        cwd=ROOT,
        env=os.environ | settings,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_processes_that_are_started_by_hand_share_the_volumes(heads, tiny_weights, alone, tmp_path):
    """The first of them keeps the counters, and ends when no volume is left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "out").mkdir()
    words = words_for(heads, tiny_weights["brain"], tmp_path / "out")
    ranks = [start(rank, 2, port, words, tmp_path / "report.json") for rank in range(2)]
    for rank in ranks:
        told = rank.communicate(timeout=180)[1]
        assert rank.returncode == 0, told
    same(tmp_path / "out", alone)


@pytest.mark.slow
def test_a_lost_process_s_volumes_are_taken_up_by_resume(heads, tiny_weights, alone, tmp_path):
    """One of three is killed in the middle; the others do what is left, and --resume what it had taken.

    It begins before the others, which could take all of these few volumes on a fast machine.
    """
    counters = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    words, report = words_for(heads, tiny_weights["brain"], tmp_path / "out"), tmp_path / "report.json"
    (tmp_path / "out").mkdir()
    lost = start(2, 3, counters.port, words, report, AGENT)
    mine, end = rank_path(report, 2), time.monotonic() + 120
    while not (mine.exists() and json.loads(mine.read_text())["counts"]["predicted"]):
        assert time.monotonic() < end and lost.poll() is None
        time.sleep(0.02)
    ranks = [*(start(rank, 3, counters.port, words, report, AGENT) for rank in range(2)), lost]
    lost.send_signal(signal.SIGKILL)
    for rank in ranks[:2]:
        assert rank.wait(180) == 0, rank.stderr.read()
    ranks[2].wait()
    for rank in ranks:
        rank.stderr.close()
    there = {file.name for file in (tmp_path / "out").iterdir() if not file.name.startswith(".")}
    assert there <= {file.name for file in alone.iterdir()}
    # it may have been done before it was killed: then the last to finish has merged the reports
    files = [report] if report.exists() else [rank_path(report, rank) for rank in range(3)]
    told = [json.loads(file.read_text())["counts"] for file in files]
    assert sum(counts["predicted"] for counts in told) >= 7 - 3  # being read, scored and written when it was killed
    assert all(counts["failed"] == 0 for counts in told)
    done = mood(*words, "--resume")
    assert done.returncode == 0, done.stderr
    for file in (tmp_path / "out").glob(".part-*"):  # what the killed process was just writing
        file.unlink()
    same(tmp_path / "out", alone)
