"""The linters, where they are installed: the same as in .pre-commit-config.yaml."""

import importlib.util
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("words", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff_has_nothing_to_say(words):
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed (requirements-dev.txt)")
    run = subprocess.run(
        [sys.executable, "-m", "ruff", *words, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
