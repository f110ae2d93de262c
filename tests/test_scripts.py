"""The scripts of a checkout, with imitations of the programs that they call."""

import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, mood

from mood_submission import load_model
from mood_submission.cli import COMMANDS
from mood_submission.engines.graphs import read_graphs
from mood_submission.model_file import WEIGHTS, rewrite_about
from mood_submission.runtime.integrity import SUMS, file_sha256


def imitate(folder: Path, name: str, text: str) -> Path:
    """A program of that name, a shell script."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return folder


def sh(script: str, *words: object, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The run of a script of scripts/, with `path` before all others on the PATH, and without a desktop but by `environment`."""
    kept = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    env = kept | {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} | environment
    return subprocess.run(
        [ROOT / "scripts" / script, *map(str, words)], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize(
    "system, desktop, opened",
    [
        ("Linux", {"DISPLAY": ":0"}, "xdg-open"),
        ("Linux", {"WAYLAND_DISPLAY": "wayland-0"}, "xdg-open"),
        ("Linux", {}, None),
        ("Linux", {"DISPLAY": ""}, None),
        ("Darwin", {}, "open"),
    ],
)
def test_a_page_is_opened_where_there_is_a_desktop(system, desktop, opened, tmp_path):
    programs = imitate(tmp_path / "bin", "uname", f"echo {system}")
    for name in ("xdg-open", "open"):
        # Names are moved to their place when they are whole.
        imitate(programs, name, f'echo "{name} $1" >"{tmp_path}/part"; mv "{tmp_path}/part" "{tmp_path}/opened"')
    run = sh("open_page.sh", tmp_path / "a page.html", path=programs, **desktop)
    assert run.returncode == 0 and run.stdout == f"Look at {tmp_path / 'a page.html'} in a browser.\n"
    for _ in range(100 if opened else 2):
        if (tmp_path / "opened").exists():
            break
        time.sleep(0.05)
    found = (tmp_path / "opened").read_text() if (tmp_path / "opened").exists() else None
    assert found == (None if opened is None else f"{opened} {tmp_path / 'a page.html'}\n")


def test_the_demo_overwrites_nothing(tmp_path):
    run = sh("demo.sh", tmp_path, path=tmp_path)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and str(tmp_path) in run.stderr


# --- an image with a model of one's own ----------------------------------------------------------------------------------


@pytest.fixture
def take_weights():
    spec = importlib.util.spec_from_file_location("take_weights", ROOT / "docker" / "take_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def docker(tmp_path) -> Path:
    """A folder with a docker that keeps its words, and the model that it was given; it does as `fails` beside it says."""
    return imitate(
        tmp_path / "bin",
        "docker",
        f'''printf "%s\\n" "$@" >"{tmp_path}/words"
for word; do
    case $word in WEIGHTS=*) cp "{ROOT}/${{word#*=}}" "{tmp_path}/given" ;; GRAPHS=*) cp "{ROOT}/${{word#*=}}" "{tmp_path}/graphs" ;; esac
done
[ ! -e "{tmp_path}/fails" ] || exit 7''',
    )


def make_image(docker: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return sh("make_image.sh", *words, path=docker, PYTHON=sys.executable)


@pytest.fixture
def left():
    """left(): what this test has left in the checkout. Whoever else makes an image there is not asked for."""
    before = set(ROOT.glob(".own-*"))
    return lambda: set(ROOT.glob(".own-*")) - before


@pytest.mark.slow
def test_an_image_is_made_of_a_model(tiny_weights, docker, left, tmp_path):
    model = shutil.copy(tiny_weights["abdom"], tmp_path / "my model.safetensors")
    run = make_image(docker, model, "mine:1", "--no-cache")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"mine:1: an image with {model} as the weights of region abdom")
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:3] == ["build", "--no-cache", "--build-arg"] and words[-3:] == ["-t", "mine:1", str(ROOT)]
    assert (tmp_path / "given").read_bytes() == model.read_bytes() and not left()
    assert "computed by torch (mood-submission quantise writes" in run.stdout and not (tmp_path / "graphs").exists()
    (tmp_path / "my model.graphs").write_text("graphs")
    run = make_image(docker, model, "mine:1")
    assert run.returncode == 1 and "my model.graphs: expected" in run.stderr and not left()
    model = shutil.copy(WEIGHTS / "abdom.safetensors", model)
    shutil.copy(WEIGHTS / "abdom.graphs", tmp_path / "my model.graphs")
    run = make_image(docker, model, "mine:1")
    assert run.returncode == 0 and "with its graphs" in run.stdout, run.stderr
    assert (tmp_path / "graphs").read_bytes() == (WEIGHTS / "abdom.graphs").read_bytes() and not left()


@pytest.mark.slow
def test_a_build_that_fails_leaves_nothing(tiny_weights, docker, left, tmp_path):
    (tmp_path / "fails").touch()
    assert make_image(docker, tiny_weights["brain"]).returncode == 7 and not left()
    assert "mood-submission" in (tmp_path / "words").read_text().splitlines()


def test_what_is_no_finished_model_is_refused_in_one_line(take_weights, tiny_weights, monkeypatch, capsys, tmp_path):
    run = tmp_path / "a.run"
    run.mkdir()
    (run / "finished.json").write_text("{}")
    shutil.copy(tiny_weights["brain"], run / "networks.safetensors")
    torch.save({"step": 1}, run / "detector.pt")
    (tmp_path / "words.safetensors").write_text("words")
    wrong = {
        tmp_path / "none.safetensors": "no such file",
        tmp_path / "words.safetensors": "expected a model file",
        run / "detector.pt": "a checkpoint of training",
        run / "networks.safetensors": "one that it leaves on the way",
        run: "a folder",
    }
    for file, found in wrong.items():
        monkeypatch.setattr(sys, "argv", ["take_weights.py", str(file)])
        assert take_weights.main() == 1
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and str(file) in err and found in err


def test_no_image_is_built_of_what_is_refused(docker, left, tmp_path):
    run = make_image(docker, tmp_path / "none.safetensors")
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and "none.safetensors" in run.stderr
    assert not (tmp_path / "words").exists() and not left()
    assert make_image(docker).returncode == 2


def test_sums_stay_true_where_weights_are_replaced(take_weights, tiny_weights, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    for region, file in tiny_weights.items():
        shutil.copy(file, folder / f"{region}.safetensors")
    (folder / "README.md").write_text("# Model card\n")
    sums = [f"{file_sha256(folder / name)}  {name}\n" for name in ("abdom.safetensors", "brain.safetensors")]
    (folder / SUMS).write_text("".join(sums))
    shipped = WEIGHTS / "brain.safetensors"
    about = dataclasses.replace(load_model(shipped, "cpu").about, sample_scale=7.0)
    rewrite_about(shipped, tmp_path / "mine.safetensors", about)
    (folder / "brain.graphs").write_text("of other weights")
    (folder / "abdom.graphs").write_text("of these weights")
    take_weights.take(tmp_path / "mine.safetensors", folder)
    assert not (folder / "brain.graphs").exists() and (folder / "abdom.graphs").read_text() == "of these weights"
    shipped_graphs = read_graphs(WEIGHTS / "brain.graphs")
    cases = (
        ({}, "ranges measured with these weights, found those of others"),
        ({"detector": {}}, "graphs of these networks, found those of networks with other settings"),
    )
    for settings, expected in cases:
        others = dataclasses.replace(shipped_graphs, networks="0" * 64, settings=shipped_graphs.settings | settings)
        others.write(tmp_path / "mine.graphs")
        with pytest.raises(ValueError, match=f"mine.graphs: expected {expected}.* without the file torch"):
            take_weights.take(tmp_path / "mine.safetensors", folder)
    shutil.copy(WEIGHTS / "brain.graphs", tmp_path / "mine.graphs")
    take_weights.take(tmp_path / "mine.safetensors", folder)
    assert (folder / "brain.graphs").read_bytes() == (WEIGHTS / "brain.graphs").read_bytes()
    checked = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count(": OK") == 2
    assert load_model(folder / "brain.safetensors", "cpu").about.sample_scale == 7.0
    assert (folder / "abdom.safetensors").read_bytes() == tiny_weights["abdom"].read_bytes()
    assert file_sha256(tmp_path / "mine.safetensors") in (folder / "README.md").read_text()


def test_a_detector_without_healthy_scores_is_unfinished(take_weights, tmp_path):
    shipped = WEIGHTS / "brain.safetensors"
    assert take_weights.region_of(shipped) == "brain"
    about = dataclasses.replace(load_model(shipped, "cpu").about, healthy_samples={})
    rewrite_about(shipped, tmp_path / "model.safetensors", about)
    with pytest.raises(
        ValueError, match="model.safetensors: expected a finished model, found a detector of which no healthy"
    ):
        take_weights.region_of(tmp_path / "model.safetensors")


# The commands that take no volumes, or serve what others have written.
NOT_MEASURED = {"add-detector", "export", "export-onnx", "import-reference", "view"}


def test_every_command_that_takes_volumes_is_measured_with_options_that_it_has(tmp_path):
    run = sh("measure_commands.sh", "--dry-run", tmp_path / "all", 24, 32, path=tmp_path)
    assert run.returncode == 0 and not run.stderr and not (tmp_path / "all").exists()
    lines = [line.split()[1:] for line in run.stdout.splitlines()]
    assert {words[0] for words in lines} == set(COMMANDS) - NOT_MEASURED
    helps: dict[str, str] = {}
    for words in lines:
        key = " ".join(words[: 2 if words[0] == "train" else 1])
        if key not in helps:
            helps[key] = mood(key, "--help").stdout
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"{option}\b", helps[key]), (words, option)


def test_what_is_measured_stands_in_a_table_and_what_fails_is_told(tmp_path):
    """Of two commands: the others are imitated as failing at once."""
    work = tmp_path / "in one place"
    python = imitate(
        tmp_path / "bin",
        "python",
        f"""
case "$1 $3" in
-c*) exec {sys.executable} "$@" ;;
"-m make-toy") while [ "$1" != -o ]; do shift; done
    mkdir -p "$2/brain/toy" "$2/abdom/toy"; : >"$2/brain/toy/toy_0.nii.gz"; : >"$2/abdom/toy/toy_0.nii.gz" ;;
"-m info") echo told ;;
*) echo wrong >&2; exit 3 ;;
esac""",
    )
    run = sh("measure_commands.sh", work, 24, 32, path=tmp_path, PYTHON=str(python / "python"))
    assert run.returncode == 1 and not run.stderr
    for region, size in (("brain", 24), ("abdom", 32)):
        assert f"{region}, {size} voxels a side:\n\n| command | seconds | peak memory, MiB |" in run.stdout
        assert (work / region / "logs" / "info.log").read_text() == "told\n"
        log = work / region / "logs" / "predict__sample.log"
        assert f"| predict, sample | failed | see {log} |" in run.stdout and log.read_text() == "wrong\n"
    assert len(re.findall(r"^\| info \| \d+\.\d \| \d+ \|$", run.stdout, re.M)) == 2
