"""The linters, where they are installed: the same as in .pre-commit-config.yaml."""

import importlib.util
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("words", ["ruff check .", "ruff format --check .", "mypy"])
def test_linters_have_nothing_to_say(words):
    tool, *rest = words.split()
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed (requirements-dev.txt)")
    run = subprocess.run([sys.executable, "-m", tool, *rest], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
