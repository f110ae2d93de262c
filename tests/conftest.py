"""Shared by the tests: the reference vectors, tiny random models, toy volumes."""

import dataclasses
import io
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT.parent / "shared" / "reference"
sys.path.insert(0, str(ROOT))

from mood_submission import cli  # noqa: E402
from mood_submission.about import About  # noqa: E402
from mood_submission.model import Model  # noqa: E402
from mood_submission.model_file import load_model, rewrite_about, save_model  # noqa: E402
from mood_submission.networks.pixelsnail import PixelSNAIL, PixelSNAILSettings  # noqa: E402
from mood_submission.networks.vqvae import VQVAE, VQVAESettings  # noqa: E402
from mood_submission.preprocessing import Preprocessing  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
# what a shell starts in the background ignores it, and so do its children
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = {
    "brain": (VQVAESettings((4, 4, 4, 8), 12, 1), PixelSNAILSettings(12, 8, 1, 1, 7, 2, key_size=4)),
    "abdom": (VQVAESettings((4, 4, 4, 4, 8), 12, 1), PixelSNAILSettings(12, 8, 1, 1, 3, 1, key_size=4)),
}


# what these test only Linux does: names of any bytes, locks that killed processes leave, /proc, containers
ONLY_LINUX = ("names", "robustness", "docker", "work_sharing", "product_alone", "train_all")
collect_ignore = [] if sys.platform == "linux" else [f"test_{name}.py" for name in ONLY_LINUX]

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do that in another way")

LONGEST = (
    "commands",
    "robustness",
    "training_together",
    "train_all",
    "planting",
    "skull_strip",
    "format_matrix",
    "work_sharing",
    "weights",
    "agreement",
    "sampler",
    "training",
    "report",
    "detector",
    "onnx",
    "threads",
    "product_alone",
)


# The engine that computes wherever a test asks for none: `scripts/test.sh --engine onnx` tries all of them with ONNX Runtime.
# It is what MOOD_ENGINE and load_model are given, and what a model that is made of networks is.
ENGINES_TRIED = {"torch": ("torch", "float32"), "onnx": ("onnx", "float32"), "int8": ("auto", "int8")}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=ENGINES_TRIED, default="torch", help="what computes the networks")


def pytest_configure(config: pytest.Config) -> None:
    engine, precision = ENGINES_TRIED[config.getoption("--engine")]
    if engine != "torch":
        os.environ["MOOD_ENGINE"] = engine
        load_model.__kwdefaults__["engine"] = engine
        Model.__init__.__kwdefaults__.update(engine="onnx", precision=precision)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process waits for another at the end (`scripts/test.sh`)."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


class Reference:
    """One file of test vectors, computed with the authors' implementation in float64."""

    def __init__(self, region: str):
        self.arrays = np.load(REFERENCE / f"{region}_small.npz")
        self.meta = json.loads(str(self.arrays["meta"]))
        self.region = region

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    def state(self, part: str) -> dict[str, torch.Tensor]:
        """State dictionary of "vqvae" or "prior", with the published parameter names."""
        return {name.removeprefix(f"{part}/"): self[name] for name in self.arrays.files if name.startswith(f"{part}/")}


@pytest.fixture
def much_memory(monkeypatch):
    """As much memory and disk as the shipped models' recipes need, whatever else this machine does and holds."""
    monkeypatch.setattr("mood_submission.lab.training.whole.free_memory", lambda device: 64 << 30)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=256 << 30, used=0, free=64 << 30))


@pytest.fixture(scope="session", params=["brain", "abdom"])
def reference(request) -> Reference:
    if not (REFERENCE / f"{request.param}_small.npz").exists():
        pytest.skip("the authors' test vectors are not here (../shared/reference)")
    return Reference(request.param)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory, request) -> dict[str, Path]:
    """Model files of tiny, random networks, one a region."""
    folder = tmp_path_factory.mktemp("weights")
    for region, (vqvae, prior) in TINY.items():
        torch.manual_seed(0)
        network = VQVAE(vqvae)
        network.codebook.data *= 0.1  # as small as an untrained encoder's output, so that many codes are used
        about = About(region, vqvae, prior, Preprocessing.published(region), pixel_threshold=2.45, sample_threshold=2.4)
        file = folder / f"{region}.safetensors"
        save_model(file, network, PixelSNAIL(prior), about)
        if request.config.getoption("--engine") != "torch":
            write_graphs(file)
    return {region: folder / f"{region}.safetensors" for region in TINY}


def write_graphs(file: Path) -> None:
    """Write the graphs of a model file beside it, with ranges of made-up slices."""
    from mood_submission.lab.quantising.make import Examples, make_graphs

    model = load_model(file, "cpu", engine="torch")
    side = model.about.preprocessing.image_size
    slices = torch.rand(4, side, side, generator=torch.Generator().manual_seed(0))
    examples = Examples(slices, torch.linspace(-0.5, 0.5, 4)[:, None], {})
    make_graphs(model, examples).write(file.with_suffix(".graphs"))


def words_of(*arguments: object) -> list[str]:
    """Words of a command line: a string is split at its spaces, anything else (a path, a number) is one word."""
    words: list[str] = []
    for argument in arguments:
        words += argument.split() if isinstance(argument, str) else [str(argument)]
    return words


def mood(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """What `mood-submission` does with such words. Where `options` of subprocess.run are given it runs in a process of its
    own; else within this one, which saves the seconds that importing torch takes."""
    words = words_of(*arguments)
    if options:
        environment = options.pop("env", os.environ) | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "mood_submission", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, **options)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), untouched():
        try:
            status = cli.main(words)
        except SystemExit as stop:  # argparse
            status = stop.code if isinstance(stop.code, int) else 1
        except Exception:
            traceback.print_exc()
            status = 1
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


@contextmanager
def untouched():
    """Leaves behind what a command sets for its whole process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    level = logging.getLogger("nibabel").level
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            yield
        finally:
            logging.getLogger("nibabel").setLevel(level)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def write_two_sources(folder: Path, count: int) -> Path:
    """So many small volumes to train on, mottled balls in air, named by two sources in turn."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (24, 24, 6)], indexing="ij")
    for number in range(count):
        ball = (x**2 + y**2 + 0.3 * z**2 < 0.5) * (0.5 + 0.3 * np.sin(6 * x + number) * np.cos(5 * y))
        write_nifti(folder / f"{'ab'[number % 2]}_{number}.nii.gz", ball.astype(np.float32))
    return folder


@pytest.fixture(scope="session")
def blobs(tmp_path_factory) -> Path:
    """A folder of three smooth little volumes in [0, 1]."""
    folder = tmp_path_factory.mktemp("blobs")
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (28, 24, 12)], indexing="ij")
    for number, radius in enumerate((0.5, 0.6, 0.7)):
        ball = np.clip(1.2 - np.sqrt(x**2 + y**2 + z**2) / radius, 0, 1) * (0.7 + 0.3 * np.sin(9 * x + number))
        write_nifti(folder / f"case_{number}.nii.gz", ball.astype(np.float32), np.diag([2, 2, 4, 1.0]))
    return folder


@pytest.fixture(scope="session")
def measured(tiny_weights, blobs, tmp_path_factory) -> Path:
    """The tiny brain model, calibrated; then made to take all that it sees for findings."""
    out = tmp_path_factory.mktemp("measured") / "brain.safetensors"
    options = "--slices 4 --restorations 1 --device cpu"
    run = mood("calibrate", tiny_weights["brain"], "--data", blobs, "-o", out, options)
    assert run.returncode == 0, run.stderr
    about = load_model(out, device="cpu").about
    voxels = {
        method: dataclasses.replace(found, levels=[0.0, 1.0], false_objects=[0.2, 0.0])
        for method, found in about.healthy_voxels.items()
    }
    rewrite_about(out, out, dataclasses.replace(about, healthy_voxels=voxels, sample_method="top"))
    return out
