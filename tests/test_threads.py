"""Results have the same bits for any number of threads, any batch, any company."""

import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch
from conftest import mood

from mood_submission import Predictor, load_model
from mood_submission.running.run_folder import predict_files
from mood_submission.runtime.stopping import Stopped, ask_to_stop, check_stopped
from mood_submission.runtime.threads import map_in_threads, one_thread_each
from mood_submission.volumes import read_volume


@pytest.fixture
def with_threads():
    """with_threads(N): torch has N threads from there on, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_each_keeps_order_and_uses_the_threads_there_are(with_threads):
    with_threads(3)
    all_here = threading.Barrier(3)

    def run(item: int) -> tuple[int, int, bool]:
        all_here.wait(60)  # all three at once, or never
        return item * item, torch.get_num_threads(), torch.is_inference_mode_enabled()

    with one_thread_each():
        assert torch.get_num_threads() == 1
        with one_thread_each():
            assert map_in_threads(run, range(6)) == [(i * i, 1, True) for i in range(6)]
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("threads", [1, 4])
def test_errors_are_raised_and_memory_is_tried_again_alone(threads, with_threads):
    with_threads(threads)
    alone = threading.get_ident()

    def hungry(item: int) -> int:
        if item == 2 and threading.get_ident() != alone:
            raise MemoryError
        return item

    def wrong(item: int) -> int:
        raise KeyError(item)

    with one_thread_each():
        assert map_in_threads(hungry, range(5)) == list(range(5))
        with pytest.raises(KeyError):
            map_in_threads(wrong, range(5))


def test_an_interruption_stops_the_other_threads(with_threads):
    with_threads(2)
    began, ended, heard = threading.Barrier(2), [], threading.Semaphore(0)

    def run(item: int) -> None:
        try:
            began.wait(60)
            if item == 0:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            for _ in range(6000):
                check_stopped()
                time.sleep(0.01)
        except Stopped:
            ended.append(item)
            heard.release()
            raise

    with pytest.raises(KeyboardInterrupt), one_thread_each():
        map_in_threads(run, range(2))
    assert heard.acquire(timeout=30) and heard.acquire(timeout=30)  # a thread that was just starting may be late
    assert sorted(ended) == [0, 1]
    check_stopped()  # this thread is nobody's


@pytest.mark.parametrize("threads", [1, 3])
def test_asked_to_stop_all_threads_do_and_the_caller_is_interrupted(threads, with_threads, monkeypatch):
    """Where it is safe to, not just anywhere; asked twice, at once."""
    monkeypatch.setattr("mood_submission.runtime.stopping._asked", threading.Event())
    with_threads(threads)
    done = []

    def run(item: int) -> None:
        if item == 0:
            ask_to_stop()
        done.append(item)
        for _ in range(6000):
            check_stopped()
            time.sleep(0.01)

    check_stopped()
    with pytest.raises(KeyboardInterrupt), one_thread_each():
        map_in_threads(run, range(9))
    assert 0 in done and len(done) <= threads
    with pytest.raises(KeyboardInterrupt):
        check_stopped()
    with pytest.raises(KeyboardInterrupt):
        ask_to_stop()


@pytest.mark.slow
@pytest.mark.parametrize("region", ["brain", "abdom"])
def test_networks_give_the_same_bits_for_any_threads_and_batch(region, tiny_weights, with_threads):
    generator = torch.Generator().manual_seed(0)
    slices, position = (
        torch.randn(20, 160, 160, generator=generator),
        torch.rand(20, 1, generator=generator) - 0.5,
    )
    results = []
    for threads, batch_size in ((1, None), (2, None), (5, 4), (2, 9)):
        with_threads(threads)
        model = load_model(tiny_weights[region], device="cpu")
        model.batch_size = batch_size
        codes = model.encode(slices, position)
        uniforms = torch.rand(20, 3, *codes.shape[1:], generator=torch.Generator().manual_seed(1))
        restored = model.restore(codes, position, uniforms, 2.45)
        results.append((codes, model.nll(codes, position), restored, model.decode(codes, position)))
        assert (restored != codes[:, None]).any()
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


@pytest.mark.slow
def test_shipped_weights_write_the_same_bytes_for_any_threads(blobs, tmp_path):
    """In fresh processes, whose libraries too have so many threads; scores of both tasks."""
    volume = tmp_path / "in" / "case_1.nii.gz"
    volume.parent.mkdir()
    shutil.copy(blobs / volume.name, volume)
    written = []
    for threads in ("1", "2", "5"):
        out = tmp_path / threads
        libraries = {f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")}
        words = (
            "predict --region brain --task both --slices 5 --restorations 2 -i",
            volume.parent,
            "-o",
            out,
        )
        run = mood(*words, env=os.environ | libraries)
        assert run.returncode == 0, run.stderr
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert len(written[0]) == 2 and written[0] == written[1] == written[2]


def test_the_order_of_files_is_not_seen(tiny_weights, blobs, tmp_path):
    predictor = Predictor(load_model(tiny_weights["abdom"], device="cpu"), slice_count=4, restorations=2)
    files = sorted(blobs.iterdir())
    for name, order in (("there", files), ("back", files[::-1])):
        (tmp_path / name).mkdir()
        predict_files(predictor, order, "pixel", tmp_path / name)
    for file in files:
        assert (tmp_path / "there" / file.name).read_bytes() == (tmp_path / "back" / file.name).read_bytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cpu_and_gpu_agree(blobs):
    """Within what the README promises: sample scores within 1%, pixel scores correlated above 0.99."""
    volume = read_volume(blobs / "case_1.nii.gz")
    cpu, gpu = (Predictor(load_model("brain", device=device), slice_count=8) for device in ("cpu", "cuda"))
    assert gpu.sample_score(volume) == pytest.approx(cpu.sample_score(volume), rel=0.01)
    maps = [predictor.pixel_scores(volume).ravel() for predictor in (cpu, gpu)]
    assert np.corrcoef(*maps)[0, 1] > 0.99
