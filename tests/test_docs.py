"""What README and docs say is so: links lead somewhere, options and commands exist, the Python example runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, mood

from mood_submission.cli import COMMANDS

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "weights" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def command_lines() -> list[tuple[Path, list[str]]]:
    """(page, words) of every line in a block of sh that runs mood-submission, continued lines joined."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "mood-submission":
                    lines.append((page, [word for word in words[1:] if word != "&"]))
    return lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_commands_and_options_exist():
    lines, helps = command_lines(), {}
    assert len(lines) > 10
    for page, words in lines:
        assert words[0] in COMMANDS, (page, words)
        command = words[:2] if words[0] == "train" else words[:1]
        key = " ".join(command)
        if key not in helps:
            helps[key] = mood(key, "--help").stdout
        for option in (word for word in words if word.startswith("--")):
            assert re.search(rf"{option}\b", helps[key]), (page, words, option)


@pytest.mark.slow
def test_the_python_example_runs(blobs, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "case.nii.gz").write_bytes((blobs / "case_0.nii.gz").read_bytes())
    code = example + "\nprint(score, scores.shape, evidence.codes.shape)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "(28, 24, 12)" in run.stdout and "20, 20" in run.stdout


def test_the_readme_is_for_newcomers():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
