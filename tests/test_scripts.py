"""The scripts of a checkout, with imitations of the programs that they call."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT


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
