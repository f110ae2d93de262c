"""Batches and memory: what networks ask of a device."""

import pytest
import torch
from conftest import mood

from mood_submission.runtime import memory as device
from mood_submission.runtime import system_memory
from mood_submission.runtime.memory import affordable, free_memory, in_batches
from mood_submission.runtime.precision import exact_float32

CPU = torch.device("cpu")


def test_free_memory_is_a_number_of_bytes():
    assert 1 << 20 < free_memory(CPU) < 1 << 50


@pytest.mark.parametrize("limit_file, used_name", [("memory.max", "anon"), ("memory.limit_in_bytes", "total_rss")])
def test_a_containers_limit_counts(limit_file, used_name, tmp_path, monkeypatch):
    monkeypatch.setattr(system_memory, "CGROUPS", ((tmp_path, limit_file, used_name),))
    (tmp_path / "memory.stat").write_text(f"file 5\n{used_name} 300\n")
    for limit, free in (("1000", 700), ("200", 0)):
        (tmp_path / limit_file).write_text(limit)
        assert free_memory(CPU) == free
    (tmp_path / limit_file).write_text("max")
    assert free_memory(CPU) > 1 << 20


def test_affordable_rows_take_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(device, "free_memory", lambda _: 1000)
    assert affordable(50, CPU) == 10 and affordable(600, CPU) == 1
    monkeypatch.setattr(device, "free_memory", lambda _: 1 << 40)
    assert affordable(1 << 20, CPU) == device.CPU_BYTES >> 20
    assert affordable(1 << 20, torch.device("cuda")) == 1 << 19


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")],
)
def test_batches_are_halved_from_where_memory_runs_out(error):
    done, tried = [], []

    def run(first: int, last: int, size: int) -> None:
        tried.append(size)
        if first >= 5 and size > 2:
            raise error
        done.extend(range(first, last))

    in_batches(run, 12, 5)
    assert done == list(range(12)) and tried == [5, 5, 3, 2, 2, 2, 2]


def test_other_errors_and_a_row_that_does_not_fit_are_raised():
    for error, tried in ((ValueError("no"), [4]), (RuntimeError("no"), [4]), (MemoryError("no"), [4, 2, 1])):
        sizes = []

        def run(first: int, last: int, size: int) -> None:
            sizes.append(size)
            raise error

        with pytest.raises(type(error), match="no"):
            in_batches(run, 9, 4)
        assert sizes == tried


@pytest.mark.parametrize("allowed", [True, False])
def test_exact_float32_puts_back_what_was_set(allowed):
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        with pytest.raises(KeyError), exact_float32():
            assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
            raise KeyError
        assert [backend.allow_tf32 for backend in backends] == [allowed, allowed]
    finally:
        for backend, value in zip(backends, before):
            backend.allow_tf32 = value


def test_a_gpu_that_torch_was_built_without_is_one_line(tiny_weights, blobs, tmp_path, monkeypatch):
    """So says a torch without CUDA, by an error of another class than all others of devices."""

    def refuse(*arguments, **options):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr("mood_submission.model_file.Model", refuse)
    words = "--region brain --task sample --device cuda --weights"
    done = mood("predict", words, tiny_weights["brain"], "-i", blobs, "-o", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "--device cuda: expected a device that is there, found: Torch not compiled with CUDA enabled" in done.stderr
