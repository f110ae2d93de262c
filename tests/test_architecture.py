"""The house: each room imports from the rooms below it alone, and what is said in two places agrees."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, mood

import mood_submission
from mood_submission.cli import COMMANDS, module_of

PACKAGE = ROOT / "mood_submission"
# The product, from the ground up. Rooms on one floor do not import each other, and no room imports the workshop.
FLOORS = [
    {"version"},
    {"runtime"},
    {"volumes", "preprocessing", "networks"},
    {"restoration", "findings"},
    {"about"},
    {"model"},
    {"evidence"},
    {"methods"},
    {"model_file"},
    {"predictor"},
    {"output"},
    {"running"},
    {"cli"},
]
# The workshop: its rooms may import the whole product, and each other downwards.
LAB_FLOORS = [
    {"lab.planting"},
    {"lab.evaluation", "lab.measuring", "lab.onnx_export"},
    {"lab.training"},
    {"lab.cli"},
]
FLOOR = {room: number for number, rooms in enumerate([*FLOORS, *LAB_FLOORS]) for room in rooms}
ENTRANCES = ("", "__main__")  # the package itself and `python -m`: they open doors, and no room is above them


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; the package itself is "", a room is the name of its folder."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imports() -> list[tuple[str, str, str]]:
    """(module, imported module, file and line) of every import of this package within it: at the top, within functions and
    for type checkers alone."""
    found = []
    for name, file in MODULES.items():
        package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        package = [part for part in package if part]
        for node in ast.walk(ast.parse(file.read_text())):
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE.name]
                found += [(name, target.partition(".")[2], where) for target in targets]
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.level:
                base = package[: len(package) - node.level + 1]
                target = ".".join([*base, *filter(None, [node.module])])
            elif (node.module or "").split(".")[0] == PACKAGE.name:
                target = (node.module or "").partition(".")[2]
            else:
                continue
            for alias in node.names:
                inner = f"{target}.{alias.name}".strip(".")
                found.append((name, inner if inner in MODULES else target, where))
    return found


def room(module: str) -> str:
    """The room that a module stands in: a folder or a file at the top, one level deeper in the workshop."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "lab" else 1])


def test_no_arrow_points_upwards():
    wrong = [
        f"{where}: {name} imports {other}"
        for name, other, where in imports()
        if name not in ENTRANCES
        and room(name) != room(other)
        and (other in ENTRANCES or FLOOR[room(other)] >= FLOOR[room(name)])
    ]
    assert not wrong, "\n".join(wrong)


def test_the_product_does_not_import_the_workshop():
    wrong = [
        where for name, other, where in imports() if other.startswith("lab") and not name.startswith("lab")
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_has_its_floor_and_comes_along_in_the_wheel():
    assert {room(name) for name in MODULES} - {*ENTRANCES, "lab"} == set(FLOOR)
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    packages = {
        f"mood_submission.{name}".rstrip(".") for name, file in MODULES.items() if file.name == "__init__.py"
    }
    assert listed == packages | {"mood_submission.weights"}


def test_modules_form_no_circle():
    arrows: dict[str, set[str]] = {}
    for name, other, _ in imports():
        arrows.setdefault(name, set()).add(other)

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        for other in arrows.get(start, set()) - seen - set(ENTRANCES):
            seen.add(other)
            if other == goal or reaches(other, goal, seen):
                return True
        return False

    circles = [name for name in arrows if name not in ENTRANCES and reaches(name, name, set())]
    assert not circles


SHORT_HANDS = (
    "about",
    "evidence",
    "lab.cli.calibrate",
    "lab.cli.compare",
    "lab.evaluation.comparison",
    "lab.evaluation.further_methods",
    "lab.measuring",
    "methods",
    "model",
    "model_file",
    "output.predictions",
    "predictor",
    "restoration",
    "running.time_budget",
)


def test_no_call_has_more_than_five_positional_arguments():
    wrong = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for name, file in MODULES.items()
        if name.startswith(tuple(f"{room}." for room in SHORT_HANDS)) or name in SHORT_HANDS
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and len(node.args) > 5
    ]
    assert not wrong, "\n".join(wrong)


def test_every_command_has_a_module_and_a_script():
    for command in COMMANDS:
        name = command.replace("-", "_")
        module = module_of(command)
        assert module.removeprefix("mood_submission.") in MODULES
        if command not in (
            "predict",
            "info",
            "report",
            "view",
        ):  # run_*.sh are the first one's scripts; the others are younger than scripts/
            assert module in (ROOT / "scripts" / f"{name}.py").read_text()


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
