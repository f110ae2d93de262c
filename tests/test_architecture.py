"""The house: each room imports from the rooms below it alone, and what is said in two places agrees."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT, mood

import mood_submission
from mood_submission.cli import COMMANDS

PACKAGE = ROOT / "mood_submission"
# from the ground up; rooms on one floor do not import each other
FLOORS = [
    {"runtime"},
    {"volumes", "preprocessing", "networks"},
    {"synthetic", "restoration", "findings"},
    {"model_file"},
    {"model", "scoring"},
    {"evidence"},
    {"predictor"},
    {"running"},
    {"evaluation", "report", "onnx_export"},
    {"training"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports() -> list[tuple[str, str, str]]:
    """(room, imported room, file and line) of every import of this package within it."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if len(parts) == 1 and parts[0].startswith("__"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = parts[: len(parts) - node.level]
                targets = [*base, *(node.module or "").split(".")] if node.module else list(base)
                if targets and targets[0]:
                    found.append((parts[0], targets[0], f"{file.relative_to(ROOT)}:{node.lineno}"))
    return found


def test_no_arrow_points_upwards():
    wrong = [
        f"{where}: {room} imports {other}"
        for room, other, where in imports()
        if room != other and FLOOR[other] >= FLOOR[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_has_its_floor_and_comes_along_in_the_wheel():
    rooms = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__", "__main__"} == set(FLOOR)
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    packages = {f"mood_submission.{p.parent.name}" for p in PACKAGE.glob("*/__init__.py")}
    assert listed == packages | {"mood_submission", "mood_submission.weights"}


def test_modules_within_a_room_form_no_circle():
    arrows: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.parse(
            file.read_text()
        ).body:  # imports within functions and for type checkers are no arrows
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                base = name.split(".")[: -node.level]
                arrows.setdefault(name, set()).add(".".join([*base, node.module]))

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        for other in arrows.get(start, set()) - seen:
            seen.add(other)
            if other == goal or reaches(other, goal, seen):
                return True
        return False

    assert not [name for name in arrows if reaches(name, name, set())]


def test_every_command_has_a_module_and_a_script():
    for command in COMMANDS:
        name = command.replace("-", "_")
        assert (PACKAGE / "cli" / f"{name}.py").exists()
        if command not in (
            "predict",
            "info",
            "report",
            "view",
        ):  # run_*.sh are the first one's scripts; the others are younger than scripts/
            assert f"mood_submission.cli.{name}" in (ROOT / "scripts" / f"{name}.py").read_text()


RUN_SCRIPTS = """
import contextlib, io, runpy, sys
path = list(sys.path)
for script in sys.argv[1:]:
    sys.argv, sys.path[:] = [script, "--help"], path  # each finds the package itself
    for name in [name for name in sys.modules if name.startswith("mood_submission")]:
        del sys.modules[name]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    print(script, out.getvalue().splitlines()[0])
"""


@pytest.mark.slow
def test_scripts_are_their_commands(tmp_path):
    """From another folder and with nothing installed, as someone runs them who has just cloned the repository."""
    scripts = sorted((ROOT / "scripts").glob("*.py"))
    command = [sys.executable, "-c", RUN_SCRIPTS, *map(str, scripts)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == len(scripts) > 10
    for script, line in zip(scripts, run.stdout.splitlines()):
        assert line.startswith(f"{script} usage: mood-submission {script.stem.replace('_', '-')} "), line


def test_the_command_line_starts_as_a_process(tmp_path):
    run = mood("--version", cwd=tmp_path)
    assert run.returncode == 0 and run.stdout == f"{mood_submission.__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["predict", "--help"], ["compare", "--help"]])
def test_help_is_there(words):
    run = mood(*words)
    assert run.returncode == 0 and run.stdout and not run.stderr


@pytest.mark.parametrize("words", [[], ["prdict"], ["predict", "--region", "knee"]])
def test_wrong_usage_is_told_in_words(words):
    run = mood(*words)
    assert run.returncode == 2 and "mood-submission" in run.stderr and "Traceback" not in run.stderr


def test_pins_agree_with_the_package_s_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.M))
    least = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in project["dependencies"])
    assert set(pins) == set(least)
    number = lambda version: [int(part) for part in version.split(".")]  # noqa: E731
    assert all(number(pins[name]) >= number(least[name]) for name in least)
    assert project["dynamic"] == ["version"] and re.fullmatch(r"\d+\.\d+\.\d+", mood_submission.__version__)


def test_the_lock_file_has_hashes_and_agrees_with_the_pins():
    pinned = re.compile(r"^([\w-]+)==([\w.]+)", re.M)
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"^(?=\w)", lock, flags=re.M)[1:]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    locked = {name.lower(): version for name, version in pinned.findall(lock)}
    for file in ("requirements.txt", "requirements-skullstrip.txt"):
        for name, version in pinned.findall((ROOT / file).read_text()):
            name = name.lower().replace("_", "-")
            assert name == "torch" or locked[name] == version, f"{name}: run scripts/lock.sh"
    assert "torch" not in locked  # its hash depends on the build, which the machine decides
