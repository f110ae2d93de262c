"""What README and docs say is so: links lead somewhere, options and commands exist, the Python example runs."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, mood
from test_architecture import FLOOR, MODULES, PACKAGE

from mood_submission.cli import COMMANDS
from mood_submission.evidence.evidence import Evidence
from mood_submission.methods.base import Method
from mood_submission.model import Model
from mood_submission.predictor import Predictor
from mood_submission.preprocessing import Preprocessing

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / "weights" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "integrations").glob("*/README.md")),
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


CLASSES = {kind.__name__: kind for kind in (Evidence, Method, Model, Predictor, Preprocessing)}
# Where a path that a page names may begin.
PLACES = (ROOT, PACKAGE, ROOT / "tests")


def what_is_named_and_not_there(text: str) -> list[str]:
    """The names of code, between backticks, that are no name of anything: paths of files (`methods/table.py`), of rooms
    (`methods/`), modules and what is in them (`volumes.read_volume`), parts of the main classes (`Model.encode`)."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [name for name in re.findall(r"`([^`\n]+)`", prose) if is_code(name) and not is_there(name)]


def is_code(name: str) -> bool:
    if re.fullmatch(r"[\w./-]+\.py|([a-z_]+/)+", name):
        return True
    parts = name.split(".")
    return re.fullmatch(r"\w+(\.\w+)+", name) is not None and (
        parts[0] in CLASSES or parts[0] in MODULES or parts[0] == PACKAGE.name
    )


def is_there(name: str) -> bool:
    if "/" in name or name.endswith(".py"):
        return any((place / name).exists() for place in PLACES)
    parts = name.removeprefix(f"{PACKAGE.name}.").split(".")
    if parts[0] in CLASSES:
        return hasattr(CLASSES[parts[0]], parts[1])
    count = max(count for count in range(len(parts) + 1) if ".".join(parts[:count]) in MODULES)
    found = importlib.import_module(".".join([PACKAGE.name, *parts[:count]]))
    for part in parts[count:]:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_pages_name_of_the_package_is_there(page):
    assert what_is_named_and_not_there(page.read_text()) == []


def test_names_of_nothing_are_seen():
    right = (
        "`methods/table.py` `test_docs.py` `lab/planting/` `volumes.read_volume` `Model.encode` `docker/smoke_test.sh`"
    )
    assert what_is_named_and_not_there(right) == []
    wrong = [
        "synthetic/anomalies.py",
        "scoring/",
        "volumes.read_all",
        "Model.guess",
        "mood_submission.scoring",
        "volumes.grid.x",
    ]
    text = " ".join(f"`{name}`" for name in wrong)
    assert what_is_named_and_not_there(f"{text}\n```sh\n`no/such.py`\n```\n`OUT/` `toy.json` `1.2.3`") == wrong


def test_contributing_has_every_room_in_its_table():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = re.findall(r"^\| `([\w/]+?)(?:/|\.py)` \|", text, re.M)
    assert sorted(listed) == sorted(room.replace(".", "/") for room in FLOOR)
    picture = re.search(r"THE PRODUCT(.*?)```", text, re.S)[1]
    assert all(re.search(rf"\b{room.replace('.', '/')}\b", picture) for room in FLOOR)


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
