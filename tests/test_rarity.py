"""How rare evidence is among healthy voxels, and the scores made of that."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import mood
from scipy import ndimage

from mood_submission import Predictor, load_model
from mood_submission.about import ModelError
from mood_submission.evidence.evidence import USUAL
from mood_submission.evidence.rareness import EVIDENCE, EXPONENTS, rarity, rarity_table
from mood_submission.evidence.smoothing import ALONG, IN_PLANE, smooth_evidence, top_mean
from mood_submission.lab.measuring.calibration import calibrate, calibration_steps
from mood_submission.methods.rarity import combined_rarity, soften
from mood_submission.model_file import rewrite_about
from mood_submission.volumes import read_volume


def test_rarity_is_the_logarithm_of_the_share_of_healthy_voxels():
    healthy = np.random.default_rng(0).exponential(size=1_000_000)
    table = rarity_table(healthy)
    assert len(table) == len(EXPONENTS) and (np.diff(table) >= 0).all()
    for value in (0.1, 0.7, 2.3, 5.0, 8.0):
        expected = -np.log10((healthy >= value).mean())
        assert float(rarity(torch.tensor([value]), table)) == pytest.approx(expected, abs=0.02)


def test_beyond_the_table_rarity_rises_as_over_its_last_decade():
    table = rarity_table(np.random.default_rng(0).exponential(size=1_000_000))  # its logarithm is a straight line
    values = torch.tensor([9.2, 15.0, 30.0])
    assert torch.allclose(rarity(values, table), values / np.log(10), rtol=0.1)
    assert torch.isfinite(rarity(torch.tensor([1e20]), table)).all()


@pytest.mark.parametrize("table", [[0.0] * 33, [0.0] * 20 + [1.0] * 13, list(np.linspace(0, 1, 33))])
def test_rarity_never_falls_and_starts_at_0(table):
    values = torch.linspace(-1, 3, 401)
    got = rarity(values, table)
    assert (got.diff() >= 0).all() and got[0] == 0 and got[-1] > 0 and torch.isfinite(got).all()
    assert float(rarity(torch.tensor([table[0]]), table)) == 0


@pytest.mark.parametrize("name", EVIDENCE)
@pytest.mark.parametrize("side", [5, 20, 80])
def test_smoothing_is_scipy_s_gaussian_after_resizing(name, side):
    maps = torch.rand(9, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = 40
    resized = maps.numpy()
    if side > size:
        resized = resized.reshape(9, size, 2, size, 2).mean((2, 4))
    elif side < size:
        resized = torch.nn.functional.interpolate(maps[:, None], (size, size), mode="bilinear")[:, 0].numpy()
    sigmas = (ALONG * 9, IN_PLANE[name] * size, IN_PLANE[name] * size)
    expected = ndimage.gaussian_filter(resized, sigmas, mode="nearest")
    assert np.allclose(smooth_evidence(name, maps, size).numpy(), expected, atol=1e-12)


def test_one_slice_is_smoothed_too():
    assert smooth_evidence("likelihood", torch.ones(1, 4, 4), 8).allclose(torch.ones(1, 8, 8))


def test_combination_is_the_root_of_summed_squares():
    tables = {"restoration": rarity_table(np.arange(1001.0)), "likelihood": rarity_table(np.arange(2001.0))}
    a, b = torch.full((1, 2, 2), 990.0), torch.full((1, 2, 2), 1800.0)  # a share of 0.01 and one of 0.1
    got = combined_rarity({"restoration": a, "likelihood": b}, tables)
    assert torch.allclose(got, torch.full((1, 2, 2), (2.0**2 + 1.0**2) ** 0.5), atol=0.01)


def test_soften_is_monotone_below_1():
    values = torch.linspace(0, 1000, 1001, dtype=torch.float64)
    got = soften(values)
    assert (got.diff() > 0).all() and got[0] == 0 and got[-1] < 1 and got[4] == 0.5


def test_top_mean_takes_the_highest_share():
    maps = torch.arange(10_000.0).reshape(100, 10, 10)[torch.randperm(100)]
    assert top_mean(maps, 0.001) == np.arange(9990, 10_000).mean()
    assert top_mean(torch.tensor([[[3.0]]])) == 3


# --- with a model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated(tiny_weights, blobs, tmp_path_factory):
    """The tiny brain model, calibrated by the script on two of the blobs."""
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "names.txt").write_text("case_0\ncase_1\n")
    run = mood(
        "calibrate",
        tiny_weights["brain"],
        "--data",
        blobs,
        "--names-file",
        folder / "names.txt",
        "--slices 5 --restorations 2 -o",
        folder / "brain.safetensors",
    )
    assert run.returncode == 0, run.stderr
    return folder / "brain.safetensors"


def test_calibration_fills_in_the_tables_and_leaves_the_parameters(calibrated, tiny_weights):
    before, after = (load_model(file, device="cpu") for file in (tiny_weights["brain"], calibrated))
    assert set(after.about.rarity_tables) == set(EVIDENCE)
    assert after.about.pixel_method == "rarity" and after.about.sample_method == before.about.sample_method
    assert after.about.training["calibration"]["volumes"] == 2
    assert after.about.training["calibration"]["precision"] == "float32"
    for part in ("vqvae", "prior"):
        states = [getattr(model, part).state_dict() for model in (before, after)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("before", ["never calibrated", "calibrated"])
def test_calibration_tells_as_many_steps_as_it_takes(before, tiny_weights, calibrated, blobs):
    file = calibrated if before == "calibrated" else tiny_weights["brain"]
    predictor = Predictor(load_model(file, device="cpu"), slice_count=3, restorations=1)
    steps = []
    calibrate(predictor, [blobs / "case_0.nii.gz", blobs / "case_1.nii.gz"], lambda: steps.append(1))
    assert len(steps) == calibration_steps(predictor, 2) > 2


def test_one_volume_is_enough_and_does_not_tell_how_much_looks_differ(tiny_weights, calibrated, blobs, tmp_path):
    (tmp_path / "names.txt").write_text("case_0\n")
    for before in (tiny_weights["brain"], calibrated):
        words = ("--data", blobs, "--names-file", tmp_path / "names.txt", "--slices 5 --restorations 1")
        run = mood("calibrate", before, *words, "-o", tmp_path / "one.safetensors")
        assert run.returncode == 0, run.stderr
        about = load_model(tmp_path / "one.safetensors", device="cpu").about
        assert set(about.usual) == {kind for kind in USUAL if kind != "look"} and not about.typical
        run = mood(
            "predict --region brain --task sample -i",
            blobs,
            "-o",
            tmp_path / "out",
            "--weights",
            tmp_path / "one.safetensors",
        )
        assert run.returncode == 0 and "look" not in run.stderr.replace("looks unlike", ""), run.stderr


def test_scores_are_the_steps_one_by_one(calibrated, blobs):
    model = load_model(calibrated, device="cpu")
    predictor = Predictor(model, slice_count=6, restorations=3)
    volume = read_volume(blobs / "case_2.nii.gz")
    p = predictor.prepare(volume)
    codes = model.encode(p.slices, p.position)
    restored = model.restore(
        codes,
        p.position,
        predictor.uniforms("case_2.nii.gz", p.indices, codes.shape[1:]),
        model.about.pixel_threshold,
    )
    mean = torch.stack([model.decode(restored[:, s], p.position) for s in range(3)]).mean(0)
    maps = {
        "restoration": (p.slices - mean).abs(),
        "reconstruction": (p.slices - model.decode(codes, p.position)).abs(),
        "likelihood": model.nll(codes, p.position),
    }
    rare = {name: rarity(smooth_evidence(name, m, 80), model.about.rarity_tables[name]) for name, m in maps.items()}
    expected = torch.stack(list(rare.values())).norm(dim=0)
    expected = predictor.to_volume(p, expected / (expected + 4))
    scores = predictor.pixel_scores(volume)
    assert np.allclose(scores, expected, atol=1e-5) and 0 <= scores.min() and scores.max() < 1 and scores.std() > 0


@pytest.mark.slow
def test_a_model_without_tables_says_so(tiny_weights, blobs, tmp_path):
    model = load_model(tiny_weights["brain"], device="cpu")
    with pytest.raises(ModelError, match="mood-submission calibrate"):
        Predictor(model, pixel_method="rarity")
    run = mood(
        "predict --region brain --task pixel -i",
        blobs,
        "-o",
        tmp_path,
        "--weights",
        tiny_weights["brain"],
        "--pixel-method rarity",
    )
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "mood-submission calibrate" in run.stderr


def test_calibration_needs_volumes(tiny_weights, tmp_path):
    (tmp_path / "empty").mkdir()
    run = mood("calibrate", tiny_weights["brain"], "--data", tmp_path / "empty", "-o", tmp_path / "out")
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and "empty" in run.stderr
    assert not (tmp_path / "out").exists()


def test_about_survives_the_file(calibrated):
    about = load_model(calibrated, device="cpu").about
    assert about == type(about).from_json(about.to_json())
    assert type(about).from_json(json.dumps(json.loads(about.to_json()) | {"rarity_reference": 3.0})) == about
    older = {k: v for k, v in json.loads(about.to_json()).items() if k not in ("rarity_tables", "pixel_method")}
    assert type(about).from_json(json.dumps(older)) == dataclasses.replace(
        about, rarity_tables={}, pixel_method="paper"
    )


@pytest.mark.slow
def test_a_volume_unlike_the_healthy_ones_is_told_by_name(calibrated, blobs, tmp_path):
    """In the report and on standard error; a volume that the model was calibrated on is not."""
    about = load_model(calibrated, device="cpu").about
    assert set(about.usual) == set(USUAL) and all(low <= high for low, high in about.usual.values())
    narrow = dataclasses.replace(about, usual=about.usual | {"likelihood": [0.0, 0.01]})
    rewrite_about(calibrated, tmp_path / "narrow.safetensors", narrow)
    for weights, strange in ((calibrated, 0), (tmp_path / "narrow.safetensors", 3)):
        words = [
            "--task sample -i",
            blobs,
            "-o",
            tmp_path / f"out{strange}",
            "--weights",
            weights,
            "--slices 5",
        ]
        words += ["--report", tmp_path / f"report{strange}.json", "--device", "cpu"]
        run = mood("predict --region brain", *words)
        assert run.returncode == 0, run.stderr
        report = json.loads((tmp_path / f"report{strange}.json").read_text())
        messages = [volume["message"] for volume in report["volumes"]]
        told = [m for m in messages if "looks unlike the scans that these weights know (likelihood" in m]
        assert len(told) == strange == run.stderr.count("looks unlike")
        assert all(volume["file"] in message for volume, message in zip(report["volumes"], told))
