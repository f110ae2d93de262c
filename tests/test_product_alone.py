"""The product without its workshop: the wheel, installed with what it needs and no extras, `lab/` deleted, run from elsewhere."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, words_of
from packaging.requirements import Requirement

from mood_submission.cli import COMMANDS, IN_PRODUCT
from mood_submission.volumes import read_volume

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_THE_WORKSHOP = [name for name in COMMANDS if name not in IN_PRODUCT]


def closure(requirements: list[str]) -> set[str]:
    """The names of the packages that pip would install for these requirements, of those that are installed here."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        wanted = {"extra": ""} if not requirement.extras else {"extra": next(iter(requirement.extras))}
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate(wanted)):
            continue
        found.add(requirement.name)
        waiting += [Requirement(line) for line in metadata.requires(requirement.name) or []]
    return found


def link_packages(names: set[str], site: Path) -> None:
    """Make the packages of that name, which are installed here, be installed in `site` too."""
    for name in names:
        package = metadata.distribution(name)
        for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(package.locate_file(top)).resolve())


@dataclass
class Environment:
    """A virtual environment with the product in it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def command(self) -> str:
        return str(self.folder / "bin" / "mood-submission")

    @property
    def site(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    def start(self, command: list[str], cwd: Path, further: Path | None = None) -> subprocess.Popen[str]:
        """A process that finds nothing of the checkout: not by its folder, nor by PYTHONPATH.

        further: a folder of packages that it finds besides those of the environment.
        """
        hidden = ("PYTHONPATH", "PYTHONHOME", "PYTEST_CURRENT_TEST")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        if further is not None:
            environment["PYTHONPATH"] = str(further)
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, cwd: Path, *arguments: object, further: Path | None = None) -> subprocess.CompletedProcess[str]:
        """What `mood-submission` does there with such words, in the folder `cwd`."""
        words = words_of(*arguments)
        with self.start([self.command, *words], cwd, further) as process:
            out, err = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, out, err)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built of a copy: setuptools leaves a build folder beside what it builds.

    The abdomen's weights stay out of it, which would only take as long again.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    left_out = shutil.ignore_patterns("__pycache__", "abdom.safetensors")
    for name in ("mood_submission", "weights"):
        shutil.copytree(ROOT / name, source / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


def pip(*arguments: object) -> None:
    """Run pip, which may ask no index for anything."""
    words = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", *map(str, arguments)]
    run = subprocess.run(words, env=os.environ | {"PIP_NO_INDEX": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def alone(wheel, tmp_path_factory) -> Environment:
    """With what `pip install .` brings. jinja2 is left out, which torch brings: reports are to need their extra."""
    environment = Environment(tmp_path_factory.mktemp("alone") / "venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment.folder], check=True)
    pip("--python", environment.python, "install", "--no-deps", "--no-compile", wheel)
    link_packages(closure(PROJECT["dependencies"]) - {"jinja2"}, environment.site)
    shutil.rmtree(environment.site / "mood_submission" / "lab")
    return environment


@pytest.fixture(scope="module")
def predicted(alone, blobs, tmp_path_factory) -> Path:
    """A folder with one volume, `in`, and what the shipped weights make of it, `out`."""
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "in").mkdir()
    shutil.copy(blobs / "case_0.nii.gz", folder / "in")
    run = alone.run(folder, "predict --region brain --task both -i in -o out --slices 2 --restorations 1 --device cpu")
    assert run.returncode == 0, run.stderr
    return folder


def test_the_environment_is_what_it_says(alone, tmp_path):
    """No checkout, no workshop, no extras: the other tests here would prove nothing with them."""
    extras = {Requirement(line).name for lines in PROJECT["optional-dependencies"].values() for line in lines}
    extras = {"sklearn" if name == "scikit-learn" else name.replace("-", "_") for name in extras}
    extras = extras - {PROJECT["name"].replace("-", "_")} | {"pydicom"}
    assert len(extras) > 12
    code = (
        "import sys\nfrom importlib.util import find_spec\nprint(find_spec('mood_submission').origin)\n"
        "print(*(name for name in sys.argv[1:] if find_spec(name)))"
    )
    with alone.start([str(alone.python), "-c", code, *sorted(extras)], tmp_path) as process:
        out, err = process.communicate()
    file, there = out.split("\n")[:2]
    assert not (Path(file).parent / "lab").exists()
    assert Path(file).is_relative_to(alone.folder) and there == "", (out, err)


def test_both_tasks_are_predicted_with_the_shipped_weights(predicted):
    scores = read_volume(predicted / "out" / "case_0.nii.gz").data
    assert scores.shape == (28, 24, 12) and 0 <= scores.min() < scores.max() <= 1
    assert 0 < float((predicted / "out" / "case_0.nii.gz.txt").read_text()) < 1


def test_info_tells_of_volumes_and_models(alone, predicted):
    with ThreadPoolExecutor(2) as two:
        words = ["info in/case_0.nii.gz", "info brain"]
        volume, model = two.map(lambda words: alone.run(predicted, words), words)
    assert volume.returncode == 0 and "28" in volume.stdout, volume.stderr
    assert model.returncode == 0 and "brain" in model.stdout, model.stderr


def test_grand_challenge_scores_a_case(alone, tiny_weights, tmp_path):
    images = tmp_path / "input" / "images" / "brain-mri"
    images.mkdir(parents=True)
    (tmp_path / "model").mkdir()
    shutil.copy(tiny_weights["brain"], tmp_path / "model")
    z, y, x = np.mgrid[-1:1:16j, -1:1:20j, -1:1:18j]
    head = sitk.GetImageFromArray(np.where(x**2 + y**2 + z**2 < 0.8, 200 + 30 * np.sin(9 * x), 0).astype("f4"))
    head.SetSpacing((8.0, 8.0, 9.0))
    sitk.WriteImage(head, str(images / "abc.mha"))
    run = alone.run(tmp_path, "grand-challenge --input input --output output --model model")
    assert run.returncode == 0, run.stderr
    written = sitk.ReadImage(str(tmp_path / "output" / "images" / "anomaly-map" / "abc.mha"))
    assert written.GetSize() == head.GetSize() and written.GetSpacing() == head.GetSpacing()
    assert 0 < json.loads((tmp_path / "output" / "anomaly-score.json").read_text()) <= 1


def test_a_report_asks_for_its_extra_in_one_line(alone, predicted):
    run = alone.run(predicted, "report -i in -p out -o page")
    assert run.returncode == 1 and run.stdout == ""
    assert re.fullmatch(r"mood-submission report: .*pip install 'mood-submission\[report\]'\n", run.stderr)
    assert not (predicted / "page").exists()


def test_with_its_extra_a_report_is_made_and_viewed(alone, predicted, tmp_path):
    extra, page = tmp_path / "extra", tmp_path / "page"
    extra.mkdir()
    there = closure(PROJECT["dependencies"]) - {"jinja2"}
    link_packages(closure(PROJECT["optional-dependencies"]["report"]) - there, extra)
    run = alone.run(predicted, "report -i in -p out --region brain -o", page, further=extra)
    assert run.returncode == 0 and "case_0.nii.gz" in (page / "index.html").read_text(), run.stderr
    # Whoever looks at a page needs no extra.
    with alone.start([alone.command, "view", str(page)], tmp_path) as process:
        try:
            address = process.stdout.readline().strip()
            with urllib.request.urlopen(address) as answer:
                assert answer.read() == (page / "index.html").read_bytes()
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0 and process.stderr.read() == ""


def test_every_command_of_the_product_has_its_help(alone, tmp_path):
    with ThreadPoolExecutor(2) as two:
        runs = list(two.map(lambda command: alone.run(tmp_path, command, "--help"), IN_PRODUCT))
    for command, run in zip(IN_PRODUCT, runs, strict=True):
        assert run.returncode == 0 and run.stderr == "", run.stderr
        assert run.stdout.startswith(f"usage: mood-submission {command} ")


def test_what_is_not_there_is_told_and_not_listed(alone, tmp_path):
    with ThreadPoolExecutor(2) as two:
        words = ["--help", "prdict", "train vqvae"]
        listed, wrong, missing = two.map(lambda words: alone.run(tmp_path, words), words)
    assert listed.returncode == 0 and listed.stderr == ""
    assert re.findall(r"^  ([\w-]+)  ", listed.stdout, re.M) == [name for name in COMMANDS if name in IN_PRODUCT]
    assert wrong.returncode == 2 and "view" in wrong.stderr
    assert not any(f" {name}" in wrong.stderr for name in OF_THE_WORKSHOP)
    assert missing.returncode == 1 and missing.stdout == ""
    assert missing.stderr == (
        "mood-submission train: expected the workshop (mood_submission/lab), which has this command, found none\n"
    )
