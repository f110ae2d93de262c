"""A folder of volumes: pipeline, failures of one file, resuming, and a GPU that gives up."""

import gzip
import shutil
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import mood, write_nifti

from mood_submission import Predictor, load_model
from mood_submission.cli.output import Progress
from mood_submission.lab.measuring.benchmark import FreeNetworks
from mood_submission.output.predictions import predict_file, read_prepared
from mood_submission.running import run_folder
from mood_submission.running.run_folder import FolderRun, Outcome, finished, predict_files
from mood_submission.runtime.files import HIDDEN, write_whole
from mood_submission.volumes import Source, read_volume


@pytest.mark.parametrize("task", ["sample", "pixel"])
def test_a_folder_scores_as_its_files_one_by_one(task, tiny_weights, blobs, tmp_path):
    predictor = Predictor(load_model(tiny_weights["abdom"], device="cpu"), slice_count=3, restorations=2)
    files, calls = sorted(blobs.iterdir()), []
    for name in ("folder", "files"):
        (tmp_path / name).mkdir()
    outcomes = predict_files(predictor, files, task, tmp_path / "folder", calls.append)
    assert calls == outcomes and [outcome.file for outcome in outcomes] == files
    for file in files:
        predict_file(predictor, file, task, tmp_path / "files")
    written = sorted((tmp_path / "folder").iterdir())
    assert len(written) == len(files)
    assert all(path.read_bytes() == (tmp_path / "files" / path.name).read_bytes() for path in written)


def test_a_failure_on_any_side_is_one_line_and_the_others_go_on(blobs, tmp_path, monkeypatch):
    files = [
        shutil.copy(blobs / "case_0.nii.gz", tmp_path / f"{name}.nii.gz")
        for name in ("good_0", "unreadable", "too_large", "good_1", "unwritable", "gone", "good_2", "last")
    ]
    files[1].write_bytes(files[1].read_bytes()[:-300])
    files[5].unlink()
    out = tmp_path / "out"
    (out / "unwritable.nii.gz").mkdir(parents=True)
    (out / "last.nii.gz").mkdir()
    predictor = Predictor(FreeNetworks("brain"), slice_count=2, restorations=1)
    compute = predictor.compute

    def small_compute(prepared, task, *more):
        if prepared.path.name == "too_large.nii.gz":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: \n you tried to allocate 8 bytes")
        return compute(prepared, task, *more)

    monkeypatch.setattr(predictor, "compute", small_compute)
    outcomes = predict_files(predictor, files, "pixel", out)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    assert [outcome.file for outcome in failed] == [files[i] for i in (1, 2, 4, 5, 7)]
    assert all(str(outcome.file.name) in outcome.message and "\n" not in outcome.message for outcome in failed)
    assert all(outcome.status == "predicted" and outcome.message == "" for outcome in outcomes if outcome not in failed)
    assert {path.name for path in out.iterdir() if path.is_file()} == {f"good_{i}.nii.gz" for i in range(3)}
    (out / "good_0.nii.gz.txt").mkdir()
    assert predict_files(predictor, files[:1], "sample", out)[0].status == "failed"
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


SOURCES = [Source("nifti", Path(str(i)), ()) for i in range(5)]  # whose files nobody looks for


class Steps:
    """In a run's place for its own steps: what has begun and ended, and waiting for it, without timing."""

    def __init__(self, monkeypatch):
        self.events = {
            (step, moment, i): threading.Event()
            for step in ("read", "compute", "write")
            for moment in ("begun", "ended")
            for i in range(9)
        }
        self.before = {}  # (step, i) -> called in that step
        for step in ("read", "compute", "write"):
            monkeypatch.setattr(FolderRun, step, self.step(step))

    def step(self, step: str):
        def run(_, outcome: Outcome, *__) -> Outcome:
            number = SOURCES.index(outcome.source)
            self.events[step, "begun", number].set()
            self.before.get((step, number), lambda: None)()
            self.events[step, "ended", number].set()
            return outcome

        return run

    def has(self, *event) -> bool:
        return self.events[event].is_set()

    def wait(self, *event) -> None:
        assert self.events[event].wait(60), event


def test_the_next_is_read_and_the_last_written_while_one_is_computed(tmp_path, monkeypatch):
    steps = Steps(monkeypatch)
    steps.before["compute", 1] = lambda: (steps.wait("read", "ended", 2), steps.wait("write", "begun", 0))
    steps.before["write", 0] = lambda: steps.wait("compute", "ended", 1)  # both at once
    seen = []
    for i in range(5):  # no more than one waits on either side
        steps.before.setdefault(
            ("compute", i),
            lambda i=i: seen.append(
                (steps.has("read", "begun", i + 2), steps.has("write", "ended", i - 2) if i > 1 else True)
            ),
        )
    predict_files(Predictor(FreeNetworks("brain")), SOURCES, "pixel", tmp_path)
    assert seen == [(False, True)] * 4
    assert all(steps.has("write", "ended", i) for i in range(5))


def test_an_interruption_finishes_what_is_being_written_and_begins_nothing(tmp_path, monkeypatch):
    steps, told = Steps(monkeypatch), []
    threads = threading.active_count()

    def interrupt():
        steps.wait("write", "begun", 0)
        raise KeyboardInterrupt

    steps.before["compute", 1] = interrupt
    with pytest.raises(KeyboardInterrupt):
        predict_files(Predictor(FreeNetworks("brain")), SOURCES, "pixel", tmp_path, lambda o: told.append(o.source))
    assert steps.has("write", "ended", 0) and not steps.has("write", "begun", 1) and not steps.has("read", "begun", 3)
    assert threading.active_count() == threads and told == SOURCES[:1]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The files' contents by name, unpacked: the same content was seen to be packed in another way under load."""
    return {
        path.name: gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for path in folder.iterdir()
    }


@pytest.mark.parametrize("task", ["sample", "pixel"])
def test_resumed_is_what_an_uninterrupted_run_gives(task, tiny_weights, blobs, tmp_path):
    predictor = Predictor(load_model(tiny_weights["brain"], device="cpu"), slice_count=3, restorations=2)
    files, whole, part = sorted(blobs.iterdir()), tmp_path / "whole", tmp_path / "part"
    whole.mkdir(), part.mkdir()
    expected = predict_files(predictor, files, task, whole)
    assert [outcome.status for outcome in expected] == ["predicted"] * 3
    ending = ".txt" if task == "sample" else ""
    shutil.copy(whole / f"case_0.nii.gz{ending}", part)
    (part / f"case_1.nii.gz{ending}").write_bytes((whole / f"case_1.nii.gz{ending}").read_bytes()[:-9])  # not whole
    with write_whole(part / f"case_2.nii.gz{ending}"):
        (left,) = (path.name for path in part.iterdir() if path.name.startswith(HIDDEN))
    (part / f"case_2.nii.gz{ending}").unlink()
    (part / left).write_bytes(b"left by a run that was killed")
    outcomes = predict_files(predictor, files, task, part, resume=True)
    assert [outcome.status for outcome in outcomes] == ["resumed", "predicted", "predicted"]
    assert bytes_of(part) == bytes_of(whole)
    assert [outcome.score for outcome in outcomes] == pytest.approx([outcome.score for outcome in expected], rel=1e-8)
    assert [outcome.status for outcome in predict_files(predictor, files, task, part, resume=True)] == ["resumed"] * 3


def test_only_whole_predictions_of_the_volume_count_as_finished(blobs, tmp_path):
    source, out = blobs / "case_0.nii.gz", tmp_path
    volume = read_volume(source)
    scores, affine = np.full(volume.data.shape, 0.5, np.float32), nib.load(source).affine
    scores[2, 3, 4] = 0.75
    for text, score in (
        ("0.25\n", 0.25),
        ("1", 1),
        ("", None),
        ("nan", None),
        ("1.5", None),
        ("0.1 0.2", None),
    ):
        (out / "case_0.nii.gz.txt").write_text(text)
        assert finished(source, "sample", out) == score
    assert finished(source, "pixel", out) is None  # none there
    for bad in (scores[:-1], scores + 1, -scores, np.where(scores > 0.6, np.nan, scores)):
        write_nifti(out / "case_0.nii.gz", bad, affine)
        assert finished(source, "pixel", out) is None
    write_nifti(out / "case_0.nii.gz", scores, affine + np.eye(4))
    assert finished(source, "pixel", out) is None
    write_nifti(out / "case_0.nii.gz", scores, affine)
    assert finished(source, "pixel", out) == 0.75
    assert finished(tmp_path / "gone.nii.gz", "pixel", out) is None


class FailingGpu(FreeNetworks):
    """Says that it is a GPU, and fails when asked to encode."""

    def __init__(self, error: Exception):
        super().__init__("brain")
        self.error, self.device = error, torch.device("cuda")

    def encode(self, slices, position):
        raise self.error

    def on_cpu(self):
        return FreeNetworks("brain")


@pytest.mark.parametrize(
    "error, falls_back",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: an illegal\n memory access"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
        (RuntimeError("a bug"), False),
        (KeyError("a bug"), False),
    ],
)
def test_what_a_gpu_fails_at_is_computed_on_the_cpu(error, falls_back, blobs, tmp_path, monkeypatch):
    predictor, plain = Predictor(FailingGpu(error), 2, 1), Predictor(FreeNetworks("brain"), 2, 1)
    monkeypatch.setattr(run_folder, "read_prepared", lambda _, file: read_prepared(plain, file))
    files, out = sorted(blobs.iterdir()), tmp_path / "out"
    out.mkdir(), (tmp_path / "cpu").mkdir()
    outcomes = predict_files(predictor, files, "pixel", out)
    predict_files(plain, files, "pixel", tmp_path / "cpu")
    for outcome in outcomes:
        assert outcome.status == ("predicted" if falls_back else "failed")
        assert str(outcome.file) in outcome.message and "\n" not in outcome.message
        assert not falls_back or outcome.device == "cpu" and outcome.message.endswith("computed on the CPU instead")
    assert bytes_of(out) == (bytes_of(tmp_path / "cpu") if falls_back else {})


def test_what_the_cpu_fails_at_too_is_one_line(blobs, tmp_path, monkeypatch):
    predictor = Predictor(FailingGpu(torch.OutOfMemoryError("CUDA out of memory")), 2, 1)
    plain = Predictor(FreeNetworks("brain"), 2, 1)
    monkeypatch.setattr(run_folder, "read_prepared", lambda _, file: read_prepared(plain, file))
    (tmp_path / "case_0.nii.gz").mkdir()  # so that nothing can be written there
    (outcome,) = predict_files(predictor, [blobs / "case_0.nii.gz"], "pixel", tmp_path)
    assert outcome.status == "failed" and "\n" not in outcome.message
    assert outcome.message.count(str(blobs / "case_0.nii.gz")) >= 1 and "then on the CPU" in outcome.message


def test_a_model_moves_to_the_cpu_from_its_file_or_as_it_is(tiny_weights):
    model = load_model(tiny_weights["brain"], device="cpu")
    slices, position = torch.randn(2, 160, 160, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 1)
    codes = model.encode(slices, position)
    for reread in (model.reread, None):
        model.reread = reread
        other = model.on_cpu()
        assert other is not model and other.device.type == "cpu" and other.vqvae is not model.vqvae
        assert torch.equal(other.encode(slices, position), codes)


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(capsys):
    times = iter([0.0, 10.0, 40.0, 50.0, 400.0])
    with Progress(4, "scoring", every=30, clock=lambda: next(times)) as progress:
        for _ in range(4):
            progress.stage("a volume")
            progress.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["scoring: 2 of 4 volumes, 40 s left", "scoring: 4 of 4 volumes, 0 s left"]
    with Progress(1, "scoring", quiet=True, every=0, clock=lambda: 0.0) as progress:
        progress.update()
    assert capsys.readouterr().err == ""


def test_quiet_and_verbose(tiny_weights, blobs, tmp_path):
    words = [
        "predict --region brain --task sample -i",
        blobs,
        "--weights",
        tiny_weights["brain"],
        "--slices 2 -o",
    ]
    assert mood(*words, tmp_path / "q", "--quiet").stderr == ""
    lines = mood(*words, tmp_path / "v", "--verbose").stderr.splitlines()
    assert len(lines) == 4 and lines[1].startswith("case_0.nii.gz: predicted, score ")
    assert mood(*words, tmp_path / "b", "--quiet --verbose").returncode == 2


@pytest.mark.parametrize(
    "words, found",
    [
        ("--region abdom --task pixel", "expected a model of region abdom, found brain"),
        ("--region brain --task sample --findings F/new", "--findings: expected --task pixel or both, found sample"),
        ("--region brain --task pixel --html P/new --findings F/new", "scores were measured on healthy volumes"),
        ("--region brain --task pixel --report file/r.json", "expected a file to write the report to"),
    ],
)
def test_a_refused_run_leaves_no_folder_that_was_not_there(words, found, tiny_weights, blobs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("F").mkdir()
    run = mood("predict", words, "-i", blobs, "-o O/new --weights", tiny_weights["brain"])
    assert run.returncode == 2 and found in run.stderr and run.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["F", "file"]
