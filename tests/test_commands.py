"""Every command line that README and docs show runs, in their order, on toy data and with toy networks.

What takes hours is made small on the way: numbers of steps, slices and restorations, sizes of toys and of new networks.
"""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import REFERENCE, Reference, untouched, write_nifti
from test_docs import PAGES, command_lines

from mood_submission.about import About
from mood_submission.cli import main
from mood_submission.findings.thresholds import HealthyVoxels
from mood_submission.lab.training.cache import split_names
from mood_submission.model_file import add_detector, save_model
from mood_submission.networks.detector import CONTEXT, Detector, DetectorSettings
from mood_submission.networks.pixelsnail import PixelSNAIL, PixelSNAILSettings
from mood_submission.networks.vqvae import VQVAE, VQVAESettings
from mood_submission.preprocessing import Preprocessing

pytestmark = pytest.mark.slow

VQVAE_SIZES = VQVAESettings((4, 4, 4, 8), 12, 1)
PRIOR_SIZES = PixelSNAILSettings(12, 8, 1, 1, 7, 2)
NAMES = [f"{source}{number:02}" for source in ("ixi", "novo", "ucla") for number in range(5)] + ["ucla07", "novo15"]
SPLIT = split_names(NAMES[:10], 0.1, 0.1)  # as training has it: ucla* is never trained on
SMALLER = {
    "train vqvae": "--channels 4 4 4 8 --codebook-size 12 --res-blocks 1 --batch 2 --device cpu",
    "train prior": "--prior-channels 8 --blocks 1 --res-blocks 1 --first-kernel 7 --downsample 2 --batch 2 --device cpu",
    "train vae": "--channels 4 4 8 --latent 4 --batch 2 --device cpu",
    "train detector": "--widths 4 6 8 8 --batch 2 --validation-volumes 1 --device cpu",
    "train plant": "--device cpu",
    "compare": "--device cpu",
    "benchmark": "--size 24 --device cpu",
}
AFFINE = np.diag([3.5, 3.5, 14.0, 1.0])  # as large as a brain
NUMBERS = {
    "--slices": "3",
    "--restorations": "1",
    "--size": "24",
    "--volumes": "4",
}


def toy_model(file, region: str):
    """A model file with networks of the toy's sizes and a detector, trained on nothing, that names held-out volumes."""
    torch.manual_seed(0)
    context = CONTEXT if file.stem.endswith("_2") else (-1, 0, 1)  # those are trained on from
    detector = Detector(DetectorSettings((4, 6, 8, 8), context=context))
    about = About(
        region,
        VQVAE_SIZES,
        PRIOR_SIZES,
        Preprocessing.harmonised(region),
        pixel_threshold=2.45,
        sample_threshold=2.4,
        restorations=2,
        healthy_voxels={"learned": HealthyVoxels(1, {"0.01": 0.5}, [0.0, 1.0], [0.2, 0.0])},
        training={"vqvae": {"volumes": SPLIT}},
    )
    save_model(file, VQVAE(VQVAE_SIZES), PixelSNAIL(PRIOR_SIZES), about)
    about = dataclasses.replace(about, detector=detector.settings, sample_method="learned", pixel_method="learned")
    add_detector(file, file, detector, about)


def ball(number: int) -> np.ndarray:
    """A mottled ball in air, (40, 40, 10)."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 40, 10)], indexing="ij")
    mottled = 0.5 + 0.2 * np.sin(7 * x + number) * np.cos(6 * y)
    return np.where(x**2 + y**2 + 0.5 * z**2 < 0.8, mottled, 0).astype(np.float32)


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """A folder with all that the pages' command lines take for given."""
    monkeypatch.chdir(tmp_path)
    for folder, names in {
        "IN": NAMES[:2],
        "HEALTHY_FOLDER": NAMES[:3],
        "SITE_A": NAMES[:5],
        "SITE_B": NAMES[5:10],
        "brain_train": NAMES[:5],
        "brain_sites": NAMES[5:],
        "abdom_train": NAMES[:10],
        "abdom_hu": ["acrin001", "acrin013", "kits072", "amos0001", "amos0013"],
    }.items():
        for name in names:
            write_nifti(tmp_path / folder / f"{name}.nii.gz", ball(int(name[-2:])), AFFINE)
    write_nifti(tmp_path / "scan.nii.gz", ball(0), AFFINE)
    for file, names in {
        "IXI_TEST": NAMES[3:5],
        "DS002748_HELD_OUT": NAMES[8:10],
        "EVERY_SECOND_HELD_OUT": SPLIT["validation"] + SPLIT["test"],
        "EIGHT_OF_THE_THRESHOLD_VOLUMES": SPLIT["validation"],
    }.items():
        (tmp_path / file).write_text("\n".join(names) + "\n")
    for name, region in (
        ("brain-0.1", "brain"),
        ("abdom-0.1", "abdom"),
        ("brain", "brain"),
        ("abdom", "abdom"),
        ("BRAIN_2", "brain"),
    ):
        toy_model(tmp_path / f"{name}.safetensors", region)
    if (REFERENCE / "brain_small.npz").exists():  # else there are no published checkpoints to import
        vectors = Reference("brain")
        torch.save(vectors.state("vqvae"), tmp_path / "FEATURES.pt")
        torch.save(vectors.state("prior"), tmp_path / "LATENT.pt")
    return tmp_path


def smaller(words: list[str]) -> list[str]:
    """The words of a command line with toy numbers, and with the toy's weights instead of the shipped ones."""
    command = " ".join(words[: 2 if words[0] == "train" else 1])
    words = list(words)
    for i, word in enumerate(words[:-1]):
        if word == "--minutes" or word == "--steps":
            words[i : i + 2] = ["--count", "2"] if command == "train plant" else ["--steps", "1"]
        elif word == "--hours":
            words[i : i + 2] = ["--quick", "--device=cpu"]
        elif word in NUMBERS and words[i + 1] not in ("0", "all"):
            words[i + 1] = NUMBERS[word]
    if command in ("predict", "compare", "benchmark") and "--weights" not in words:
        region = words[words.index("--region") + 1] if "--region" in words else "brain"
        words += ["--weights", f"{region}.safetensors"]
    if command in ("predict", "compare", "calibrate") and "--slices" not in words:
        words += ["--slices", NUMBERS["--slices"]]
    if "--engines" in words and "--repeats" not in words:
        words += ["--repeats", "1"]
    if command == "train detector" and "--store" not in words:
        return words + "--widths 4 6 8 --batch 2 --device cpu".split()
    if command == "benchmark" and not {"--io", "--profile", "--engines"} & set(words):
        words = [*words, "--naive-places", "1"]
    return words + SMALLER.get(command, "").split()


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page in dict(command_lines())],
    ids=lambda page: page.name,
)
def test_the_command_lines_of_a_page_run_in_their_order(page, sandbox, capsys):
    if page.name == "results-0.1.md":  # there, one folder holds all volumes that the model names
        for name in NAMES[5:10]:
            write_nifti(sandbox / "brain_train" / f"{name}.nii.gz", ball(int(name[-2:])), AFFINE)
    lines = command_lines()
    first_page = {tuple(words): where for where, words in reversed(lines)}
    for where, words in lines:
        # `train all` takes long: the first page that has a line runs it. Recipes of the shipped models take hours;
        # tests/test_train_all.py tells that they are taken.
        if words[:2] == ["train", "all"] and ("--recipe" in words or first_page[tuple(words)] != page):
            continue
        # tests/test_onnx.py exports a toy model with these words, which takes long too.
        if words[0] == "export-onnx":
            continue
        if where == page and (words[0] != "import-reference" or (sandbox / "FEATURES.pt").exists()):
            with untouched():
                status = main(smaller(words))
            assert not status, (words, capsys.readouterr().err)
