"""What can be seen of the container without a docker engine: lint, the entrypoint's commands, what is copied."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

import mood_submission

SCRIPTS = sorted([*ROOT.glob("*.sh"), *ROOT.glob("scripts/*.sh"), *ROOT.glob("docker/*.sh"), *ROOT.glob(".ci/*")])


def tool(name: str) -> str:
    """A linter's path: beside this Python, or anywhere."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def test_shell_scripts_pass_shellcheck():
    run = subprocess.run([tool("shellcheck"), *SCRIPTS], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    "script",
    [s for s in SCRIPTS if s.read_text().startswith("#!/bin/sh")],
    ids=lambda s: str(s.relative_to(ROOT)),
)
def test_posix_scripts_parse_in_dash(script):
    run = subprocess.run([tool("dash"), "-n", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_dockerfile_passes_hadolint():
    run = subprocess.run([tool("hadolint"), ROOT / "Dockerfile"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_image_has_the_version_and_nothing_uncopied():
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^ARG VERSION=(.*)$", text, re.M)[1] == mood_submission.__version__
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            # A model of one's own and its graphs are there while its image is built.
            assert line in ("!*.safetensors", "!*.graphs") or (ROOT / line[1:]).exists(), line


@pytest.fixture
def entrypoint(tmp_path):
    """entrypoint(WORD...): its run with a python that only says how it was called, and exits with status 5."""
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 5\n')
    python.chmod(0o755)
    shell = shutil.which("dash") or "sh"

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [shell, ROOT / "docker" / "entrypoint.sh", *words],
            capture_output=True,
            text=True,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )

    return run


@pytest.mark.parametrize("task", ["pixel", "sample"])
@pytest.mark.parametrize("region", ["brain", "abdom"])
def test_entrypoint_predicts_from_and_to_the_mounts(task, region, entrypoint):
    run = entrypoint(task, region, "--slices", "4", "--weights", "a file")
    assert run.returncode == 5 and run.stderr == ""
    assert run.stdout.splitlines() == [
        "-m",
        "mood_submission",
        "predict",
        "--region",
        region,
        "--task",
        task,
        "--input=/mnt/data",
        "--output=/mnt/pred",
        "--slices",
        "4",
        "--weights",
        "a file",
    ]


def test_entrypoint_runs_the_challenges_command(entrypoint):
    run = entrypoint("sh", str(ROOT / "run_pixel_brain.sh"), "/mnt/data", "/mnt/pred")
    assert run.returncode == 5
    assert run.stdout.splitlines()[-2:] == ["--input=/mnt/data", "--output=/mnt/pred"]


def test_entrypoint_runs_programs(entrypoint):
    run = entrypoint("sh", "-c", 'echo "$0 $1"; exit 3', "a b", "c")
    assert (run.returncode, run.stdout) == (3, "a b c\n")
    assert entrypoint("echo", "-n", "a  b").stdout == "a  b"


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_entrypoint_helps(words, entrypoint):
    run = entrypoint(*words)
    assert run.returncode == 0 and run.stdout.startswith("usage: docker run") and "pixel brain" in run.stdout


@pytest.mark.parametrize(
    "words, found",
    [
        (("frobnicate",), "frobnicate"),
        (("--frobnicate",), "--frobnicate"),
        (("pixel",), "nothing"),
        (("sample", "liver"), "liver"),
    ],
)
def test_entrypoint_refuses_what_it_does_not_know(words, found, entrypoint):
    run = entrypoint(*words)
    assert run.returncode == 2 and run.stdout == ""
    assert len(run.stderr.splitlines()) == 1 and run.stderr.endswith(f"found {found}\n")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_run_started_by_the_entrypoint(sent, tiny_weights, blobs, tmp_path):
    """The way from the entrypoint to Python is all exec: the signal goes to the process that was started."""
    run = subprocess.Popen(
        [
            "sh",
            ROOT / "docker" / "entrypoint.sh",
            "sh",
            ROOT / "run_pixel_brain.sh",
            blobs,
            tmp_path,
            "--weights",
            tiny_weights["brain"],
            "--restorations",
            "3000",
        ],
        env=os.environ | {"PYTHON": sys.executable},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert " on c" in run.stderr.readline()
        time.sleep(0.5)  # the networks are at work
        run.send_signal(sent)
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130 and errors.splitlines()[-1] == "mood_submission: stopped"
