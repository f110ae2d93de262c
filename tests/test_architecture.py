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
from mood_submission.cli import COMMANDS, IN_PRODUCT, module_of

PACKAGE = ROOT / "mood_submission"
# The product, from the ground up. Rooms on one floor do not import each other, and no room imports the workshop.
FLOORS = [
    {"version"},
    {"runtime"},
    {"volumes", "preprocessing", "networks"},
    {"restoration", "findings", "engines"},
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
    {"lab.planting", "lab.settings_file", "lab.sources"},
    {"lab.evaluation", "lab.measuring", "lab.onnx_export"},
    {"lab.training", "lab.quantising"},
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
    """(module, imported module, file and line) of every import of this package within it."""
    return [
        (name, other, f"{file.relative_to(ROOT)}:{line}")
        for name, file in MODULES.items()
        for other, line in imported(name, file.read_text(), is_room=file.name == "__init__.py")
    ]


def imported(name: str, source: str, is_room: bool = False) -> list[tuple[str, int]]:
    """(module, line) of what the module `name` of this package imports of it: at the top, within functions, and for type
    checkers alone. What is imported from the package itself, as __version__ may be, is the module "".

    Modules that are imported by a text, by `import_module`, are not among them: see
    `test_the_command_line_alone_imports_by_a_text`.
    """
    found: list[tuple[str, int]] = []
    package = name.split(".") if is_room else name.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE.name]
            found += [(target.partition(".")[2], node.lineno) for target in targets]
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
            found.append((inner if inner in MODULES else target, node.lineno))
    return found


def room(module: str) -> str:
    """The room that a module stands in: a folder or a file at the top, one level deeper in the workshop."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "lab" else 1])


def in_workshop(module: str) -> bool:
    return module.split(".")[0] == "lab"


def points_upwards(name: str, other: str) -> bool:
    """Whether a module imports from a room that is not below its own. Nothing is below the whole workshop or the package."""
    if name in ENTRANCES or room(name) == room(other):
        return False
    return other in (*ENTRANCES, "lab") or FLOOR[room(other)] >= FLOOR[room(name)]


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """The modules from which arrows lead back to them."""

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        for other in arrows.get(start, set()) - seen:
            seen.add(other)
            if other == goal or reaches(other, goal, seen):
                return True
        return False

    return [name for name in arrows if reaches(name, name, set())]


@pytest.mark.parametrize(
    "name, source, expected",
    [
        ("volumes.grid", "from .files import read_volume", ["volumes.files"]),
        ("volumes.grid", "from . import files, Grid", ["volumes.files", "volumes"]),
        ("volumes.grid", "def f():\n    from ..model import Model", ["model"]),
        (
            "volumes.grid",
            "if TYPE_CHECKING:\n    from ..preprocessing.view import View",
            ["preprocessing.view"],
        ),
        ("volumes.grid", "from .. import __version__", [""]),
        ("volumes.grid", "from .. import lab, model", ["lab", "model"]),
        (
            "lab.cli.train",
            "from ... import __version__\nfrom ..training import run",
            ["", "lab.training.run"],
        ),
        ("model", "from . import __version__", [""]),
        ("model", "import numpy, mood_submission.networks.vqvae as vqvae", ["networks.vqvae"]),
        ("model", "import mood_submission", [""]),
        ("model", "from mood_submission import cli, load_model", ["cli", ""]),
        ("model", "from mood_submission.lab.planting import toy", ["lab.planting.toy"]),
        ("model", "import mood_submission_other\nfrom mood_submissions import x\nfrom os import path", []),
    ],
)
def test_every_form_of_import_is_seen(name, source, expected):
    assert [other for other, _ in imported(name, source)] == expected


def test_a_room_s_own_imports_are_seen():
    found = imported("volumes", "from .grid import Grid\nfrom ..runtime import files", is_room=True)
    assert found == [("volumes.grid", 1), ("runtime.files", 2)]


def test_arrows_and_circles_are_told_apart():
    assert points_upwards("volumes.grid", "preprocessing.view")  # on one floor
    assert points_upwards("volumes.grid", "") and points_upwards("model", "lab")
    assert points_upwards("predictor", "lab.planting.toy")
    assert points_upwards("lab.planting.toy", "lab.training.run")
    assert not points_upwards("lab.training.run", "lab.planting.toy")
    assert not points_upwards("lab.planting.toy", "cli") and not points_upwards("volumes.nifti", "volumes.grid")
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == ["b", "c", "d"]


def test_no_arrow_points_upwards():
    wrong = [f"{where}: {name} imports {other}" for name, other, where in imports() if points_upwards(name, other)]
    assert not wrong, "\n".join(wrong)


def test_the_product_does_not_import_the_workshop():
    wrong = [where for name, other, where in imports() if in_workshop(other) and not in_workshop(name)]
    assert not wrong, "\n".join(wrong)


# What loads modules, or runs code, that no import names.
LOADERS = ("importlib", "runpy", "pkgutil", "imp", "__import__", "exec", "eval")
# What of these loads no module of this package.
HARMLESS = ("importlib.resources", "importlib.util.find_spec")


def loads_by_a_text(source: str) -> bool:
    """Whether a module may load others that it does not name in an import."""
    used: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            used += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            used += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Name):
            used.append(node.id)
    return any(name.split(".")[0] in LOADERS and name not in HARMLESS for name in used)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("from importlib import import_module as load", True),
        ("from importlib import util as u\nu.spec_from_file_location('x', 'x.py')", True),
        ("import importlib.machinery as machinery", True),
        ("from runpy import run_path", True),
        ("import pkgutil as p\np.resolve_name('mood_submission.lab')", True),
        ("exec('from mood_submission import lab')", True),
        ("load = __import__", True),
        ("from importlib import resources\nfrom importlib.util import find_spec\nmodel.eval()", False),
        ("from .importlib import runpy", False),
    ],
)
def test_every_way_to_load_by_a_text_is_seen(source, expected):
    assert loads_by_a_text(source) is expected


def test_the_command_line_alone_imports_by_a_text():
    """`cli/__init__.py` finds a command's module by its name, so that none is imported that is not asked for. It alone names
    the workshop; `tests/test_product_alone.py` runs it where there is none."""
    naming = {
        name
        for name, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if not in_workshop(name) and re.search(r"(^|\.)lab(\.\w+)*$", node.value)
    }
    assert naming == {"cli"}
    assert {name for name, file in MODULES.items() if loads_by_a_text(file.read_text())} == {"cli"}


def test_every_room_has_its_floor_and_comes_along_in_the_wheel():
    assert {room(name) for name in MODULES} - {*ENTRANCES, "lab"} == set(FLOOR)
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    packages = {f"mood_submission.{name}".rstrip(".") for name, file in MODULES.items() if file.name == "__init__.py"}
    assert listed == packages | {"mood_submission.weights"}


def test_modules_form_no_circle():
    """Within a room too."""
    arrows: dict[str, set[str]] = {}
    for name, other, _ in imports():
        if name not in ENTRANCES and other not in ENTRANCES:
            arrows.setdefault(name, set()).add(other)
    assert circles(arrows) == []


def trees() -> list[tuple[Path, ast.Module]]:
    return [(file.relative_to(ROOT), ast.parse(file.read_text())) for file in MODULES.values()]


def test_no_call_has_more_than_five_positional_arguments():
    wrong = [
        f"{file}:{node.lineno}"
        for file, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and len(node.args) > 5
    ]
    assert not wrong, "\n".join(wrong)


def test_no_function_takes_more_than_five_positional_arguments():
    """Besides `self` or `cls`."""
    wrong = []
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
                if len(names) - (names[:1] in (["self"], ["cls"])) > 5:
                    wrong.append(f"{file}:{node.lineno}: {node.name}")
    assert not wrong, "\n".join(wrong)


def test_every_command_has_a_module_and_a_script():
    for command in COMMANDS:
        name = command.replace("-", "_")
        module = module_of(command)
        assert module.removeprefix("mood_submission.") in MODULES
        # run_*.sh are the first one's scripts. The others are younger than scripts/.
        if command not in ("predict", "info", "report", "view"):
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


IMPORTED_BY = """
import contextlib, io, sys
from mood_submission.cli import main
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(line.split())
    print(line.strip(), bool(out.getvalue()), "torch" in sys.modules)
"""


def test_help_does_not_wait_for_torch():
    lines = ["--version", "--help", *(f"{name} --help" for name in IN_PRODUCT)]
    command = [sys.executable, "-c", IMPORTED_BY]
    run = subprocess.run(command, cwd=ROOT, input="\n".join(lines), capture_output=True, text=True)
    assert run.stdout.splitlines() == [f"{line} True False" for line in lines], run.stderr


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
    for file in ("requirements.txt", "requirements-skullstrip.txt", "requirements-onnx.txt"):
        for name, version in pinned.findall((ROOT / file).read_text()):
            name = name.lower().replace("_", "-")
            assert name == "torch" or locked[name] == version, f"{name}: run scripts/lock.sh"
    assert "torch" not in locked  # its hash depends on the build, which the machine decides
