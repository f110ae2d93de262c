"""What differs between systems: locks, signals, memory, names, GPUs. Each is behind one module, and has a way to do without."""

import ast
import ctypes
import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tomllib
import types
import warnings
from pathlib import Path

import pytest
import torch
from conftest import ONLY_LINUX, ROOT
from test_architecture import MODULES, in_workshop

from mood_submission.running import run_folder
from mood_submission.runtime import devices, files, locks, memory, names, stopping, system_memory
from mood_submission.volumes import read_volume

NEEDS_POSIX = pytest.mark.skipif(os.name == "nt", reason="the half that is tested is not there on Windows")

# --- one module each ------------------------------------------------------------------------------------------------------

# What is not the same on every system, and the one module of the product that knows it.
KNOWN_BY = {
    "runtime.locks": {"fcntl", "msvcrt"},
    "runtime.stopping": {"signal"},
    "runtime.system_memory": {"ctypes", "os.sysconf", "resource"},
    "runtime.names": {"os.fsencode", "os.fsdecode", "os.pathconf"},
}
NOWHERE = {
    "pwd",
    "grp",
    "termios",
    "tty",
    "pty",
    "curses",
    "os.fork",
    "os.forkpty",
    "os.getuid",
    "os.uname",
}
NOWHERE |= {"os.sched_getaffinity", "os.mkfifo", "os.statvfs", "os.killpg", "os.umask", "os.O_NOFOLLOW", "os.O_CLOEXEC"}


def named(source: str) -> set[str]:
    """The modules that a source imports, and the parts of `os` that it names."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
    return found


def test_what_differs_between_systems_is_known_by_one_module():
    assert named("import fcntl\nfrom os import fork\nos.getuid()") == {"fcntl", "os", "os.fork", "os.getuid"}
    known = set().union(*KNOWN_BY.values())
    for name, file in MODULES.items():
        if not in_workshop(name):
            found = named(file.read_text("utf-8")) & (known | NOWHERE)
            assert found == KNOWN_BY.get(name, set()), name


def test_the_systems_and_pythons_that_are_promised_are_those_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    of_python = "Programming Language :: Python :: "
    versions = re.findall(rf"{of_python}(3\.\d+)", "\n".join(project["classifiers"]))
    assert versions[0] == project["requires-python"].removeprefix(">=")
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8")
    assert re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", workflow)[1]) == versions
    for system in ("Linux", "macOS", "Windows"):
        assert re.search(rf"Operating System :: .*{system}", "\n".join(project["classifiers"]), re.I)
        assert system in (ROOT / "README.md").read_text("utf-8")
    assert f"Python {versions[0]} to {versions[-1]}" in (ROOT / "README.md").read_text("utf-8")


# --- the commands where nothing of POSIX is there ---------------------------------------------------------------------------


@pytest.mark.slow
def test_predict_info_report_and_view_need_nothing_of_posix(measured, blobs, tmp_path):
    out, page, found = tmp_path / "out", tmp_path / "page", tmp_path / "findings"
    lines = [
        f"predict --region brain --task both -i {blobs} -o {out} --weights {measured} --slices 4 --restorations 1 "
        f"--findings {found} --html {page} --report {tmp_path / 'run.json'} --device mps --quiet",
        f"predict --region brain --task both -i {blobs} -o {out} --weights {measured} --resume --quiet",
        f"info {blobs / 'case_0.nii.gz'} --region brain",
        f"info {measured}",
        f"report -i {blobs} -p {out} --findings {found} --weights {measured} -o {tmp_path / 'again'}",
        f"view {page}",
    ]
    # Text files are read and written in UTF-8 everywhere, and not in what a system prefers.
    strict = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning:mood_submission"]
    run = subprocess.run(
        [sys.executable, *strict, ROOT / "tests" / "other_desk.py"],
        input="\n".join(lines),
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    told = [line for line in run.stdout.splitlines() if line.startswith("STATUS")]
    assert told == [f"STATUS {line.split()[0]} 0" for line in lines], run.stdout + run.stderr
    assert run.stderr.count("computing on the CPU") == 1 and "Traceback" not in run.stderr
    for case in blobs.iterdir():
        scores = read_volume(out / case.name).data
        assert scores.shape == (28, 24, 12) and 0 <= scores.min() < scores.max() <= 1
        assert 0 < float((out / f"{case.name}.txt").read_text()) <= 1
    assert "case_2.nii.gz" in (tmp_path / "again" / "index.html").read_text("utf-8")
    left = [path for path in tmp_path.rglob("*") if path.name.startswith(files.HIDDEN)]
    assert left == []


@pytest.mark.slow
def test_every_test_that_other_systems_run_is_found_where_nothing_of_posix_is_there():
    """A name that only POSIX has, in the head of one file, would end the whole suite there."""
    ignored = [f"--ignore=tests/test_{name}.py" for name in ONLY_LINUX]
    words = ["--collect-only", "-qq", "-p", "no:cacheprovider", "-m", "not slow and not long", *ignored]
    code = f"import platformdirs, pytest, sys; sys.path.insert(0, 'tests'); import other_desk; other_desk.hide(); sys.exit(pytest.main({words!r}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr


# --- locks ------------------------------------------------------------------------------------------------------------------


def test_without_flock_files_are_whole_and_nobody_s_part_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with files.write_whole(tmp_path / "file") as first:
        first.write(b"first")
        files.write_whole_by_name(tmp_path / "file", lambda name: Path(name).write_bytes(b"second"))
        assert (tmp_path / "file").read_bytes() == b"second"
        # Its writer is killed.
        part = tmp_path / f"{files._beginning(tmp_path / 'file')}0123"
        part.write_bytes(b"half")
    assert (tmp_path / "file").read_bytes() == b"first"
    files.write_text(tmp_path / "file", "third")
    with files.exclusive_lock(tmp_path / "lock"):
        pass
    # What the killed writer left may be a living one's.
    assert sorted(os.listdir(tmp_path)) == [part.name, "file", "lock"]
    assert (tmp_path / "file").read_bytes() == b"third"


def test_without_flock_a_file_is_closed_before_it_is_moved_or_deleted(tmp_path, monkeypatch):
    """Windows moves and deletes no open file."""
    monkeypatch.setattr(locks, "fcntl", None)
    closed, opened = [], []
    replace, unlink = os.replace, Path.unlink
    monkeypatch.setattr(os, "replace", lambda *paths: (closed.append(opened[-1].closed), replace(*paths)))
    monkeypatch.setattr(Path, "unlink", lambda path, **how: (closed.append(opened[-1].closed), unlink(path, **how)))
    with files.write_whole(tmp_path / "file") as file:
        opened.append(file)
    with pytest.raises(KeyError), files.write_whole(tmp_path / "file") as file:
        opened.append(file)
        raise KeyError
    assert closed == [True] * 3 and os.listdir(tmp_path) == ["file"]


class LikeMsvcrt:
    """Windows' locks, by those of this system: one that is taken is an error, and never waited for."""

    LK_NBLCK = 2

    @staticmethod
    def locking(file: int, how: int, count: int) -> None:
        import fcntl

        assert (how, count) == (LikeMsvcrt.LK_NBLCK, 1)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None


def count_up_as_on_windows(folder: Path) -> None:
    locks.fcntl, locks.msvcrt, locks.TRY_EVERY = None, LikeMsvcrt, 0.001
    for _ in range(20):
        with files.exclusive_lock(folder / ".lock"):
            number = int((folder / "number").read_text())
            (folder / "number").write_text(str(number + 1))


@NEEDS_POSIX
def test_windows_locks_let_one_process_in_at_a_time(tmp_path):
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count_up_as_on_windows, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0] and (tmp_path / "number").read_text() == "40"


# --- memory -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_linux(tmp_path, monkeypatch):
    monkeypatch.setattr(system_memory, "MEMINFO", tmp_path / "none")


def test_windows_is_asked_for_its_free_memory(no_linux, monkeypatch):
    def fill(status) -> int:
        status._obj.available, status._obj.total = 123 << 20, 1 << 40
        return int(status._obj.length == 64)

    kernel = types.SimpleNamespace(GlobalMemoryStatusEx=fill)
    monkeypatch.setattr(ctypes, "windll", types.SimpleNamespace(kernel32=kernel), raising=False)
    assert memory.free_memory(torch.device("cpu")) == 123 << 20


def test_macos_is_asked_for_its_pages(no_linux, monkeypatch):
    monkeypatch.setattr(system_memory, "SYSTEMS", (system_memory._on_macos,))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__, raising=False)
    assert memory.free_memory(torch.device("cpu")) == 500 * 4096


def test_where_no_system_says_it_free_memory_is_assumed(no_linux, monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)
    monkeypatch.delattr(ctypes, "windll", raising=False)
    assert memory.free_memory(torch.device("cpu")) == system_memory.UNKNOWN_BYTES


# --- names and signals ------------------------------------------------------------------------------------------------------


@NEEDS_POSIX
def test_names_that_are_too_long_are_told_on_every_system(tmp_path, monkeypatch):
    assert names.too_long("é" * 127, tmp_path) == ""
    assert names.too_long("é" * 128, tmp_path) == "at most 255 bytes, found 256"
    monkeypatch.delattr(os, "pathconf")
    assert names.too_long("é" * 255, tmp_path) == ""
    assert names.too_long("é" * 256, tmp_path) == "at most 255 characters, found 256"


@NEEDS_POSIX
def test_bytes_of_names_go_there_and_back(monkeypatch):
    for name in (b"scan", b"caf\xe9", "é".encode()):
        assert names.as_bytes(names.of_bytes(name)) == name

    def of_windows(name: bytes) -> str:
        return name.decode("utf-8", "surrogatepass")

    monkeypatch.setattr(os, "fsdecode", of_windows)
    assert names.of_bytes("é".encode()) == "é" and names.of_bytes(b"caf\xe9") == "caf\udce9"


def test_signals_stop_work_and_can_be_left_alone(monkeypatch):
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    try:
        stopping.stop_on_signals()
        assert {signal.getsignal(number) for number in stopping.SIGNALS} == {stopping.ask_to_stop}
        stopping.leave_signals_alone()
        assert {signal.getsignal(number) for number in stopping.SIGNALS} == {signal.SIG_DFL}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert signal.SIGINT in stopping.SIGNALS and signal.SIGTERM in stopping.SIGNALS


# --- Apple's GPUs -----------------------------------------------------------------------------------------------------------


def test_mps_is_the_cpu_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="--device mps: .* found none; computing on the CPU"):
        assert devices.device_named("mps") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert devices.device_named("mps") == torch.device("mps")
        assert devices.device_named("cpu") == devices.device_named(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(RuntimeError):
        devices.device_named("nonsense")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
        NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device"),
        TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"),
    ],
)
def test_what_mps_cannot_compute_is_the_gpu_s_failure(error):
    """So the volume is computed on the CPU instead."""
    assert run_folder.is_gpu_failure(error) and not run_folder.is_gpu_failure(TypeError("no MRI"))
    assert memory.is_out_of_memory(error) == ("out of memory" in str(error))
