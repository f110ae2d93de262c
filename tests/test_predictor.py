"""The main job: files in, files out, through the Python API, the command line and the four scripts."""

import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, mood, words_of, write_nifti

from mood_submission import Predictor, load_model
from mood_submission.evidence.restorations import weighted_difference
from mood_submission.methods.paper import smooth
from mood_submission.output.predictions import predict_file
from mood_submission.preprocessing import slices_to_volume
from mood_submission.volumes import read_volume

REGIONS = ("brain", "abdom")


def predict(*words, **kwargs) -> subprocess.CompletedProcess:
    return mood("predict", *words, **kwargs)


@pytest.mark.parametrize("region", REGIONS)
def test_pixel_scores_lie_on_the_input_grid(region, tiny_weights, blobs, tmp_path):
    run = predict(
        "--region",
        region,
        "--task pixel -i",
        blobs,
        "-o",
        tmp_path,
        "--slices",
        4,
        "--restorations",
        2,
        "--weights",
        tiny_weights[region],
    )
    assert run.returncode == 0, run.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in blobs.iterdir())
    for source in blobs.iterdir():
        before, after = nib.load(source), nib.load(tmp_path / source.name)
        scores = after.get_fdata(dtype=np.float32)
        assert after.shape == before.shape and np.array_equal(after.affine, before.affine)
        assert after.get_data_dtype() == np.float32
        assert np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1 and scores.std() > 0


@pytest.mark.parametrize("region, method", [("brain", "paper"), ("abdom", "top")])
def test_sample_scores_are_one_float_a_file(region, method, tiny_weights, blobs, tmp_path):
    run = predict(
        "--region",
        region,
        "--task sample -i",
        blobs,
        "-o",
        tmp_path,
        "--weights",
        tiny_weights[region],
        "--sample-method",
        method,
    )
    assert run.returncode == 0, run.stderr
    assert len(list(tmp_path.iterdir())) == 3
    for source in blobs.iterdir():
        assert 0 <= float((tmp_path / f"{source.name}.txt").read_text()) <= 1


def test_pixel_scores_are_the_published_steps(tiny_weights, blobs):
    """All slices of a volume as large as the network's slices, step by step, without the predictor's shortcuts."""
    model = load_model(tiny_weights["brain"], device="cpu", dtype=torch.float64)
    predictor = Predictor(model, slice_count=5, restorations=3, seed=1)
    volume = read_volume(blobs / "case_0.nii.gz")
    prepared = predictor.prepare(volume)
    codes = model.encode(prepared.slices, prepared.position)
    uniforms = predictor.uniforms("case_0.nii.gz", prepared.indices, codes.shape[1:])
    restored = model.restore(codes, prepared.position, uniforms, model.about.pixel_threshold)
    assert (restored != codes[:, None]).any(), "nothing was replaced: the test would show nothing"
    decoded = torch.stack([model.decode(restored[:, s], prepared.position) for s in range(3)], 1)
    expected = weighted_difference(prepared.slices.double(), decoded, model.about.temperature)
    evidence = predictor.evidence(prepared, restored)
    difference, mean = evidence.weighted_difference, evidence.restored
    assert torch.allclose(difference.double(), expected, atol=1e-6)
    assert torch.allclose(mean.double(), decoded.mean(1), atol=1e-6)
    on_volume = slices_to_volume(smooth(expected).clamp(0, 1), prepared.indices, volume.data.shape, volume.spacing)
    assert np.allclose(predictor.pixel_scores(volume), on_volume, atol=1e-5)


def test_the_published_sample_score_is_the_sum_over_32_slices(tiny_weights, blobs):
    model = load_model(tiny_weights["brain"], device="cpu")
    volume = read_volume(blobs / "case_1.nii.gz")
    predictor = Predictor(model, slice_count=6, sample_method="paper")
    prepared = predictor.prepare(volume)
    nll = model.nll(model.encode(prepared.slices, prepared.position), prepared.position)
    expected = nll[nll > model.about.sample_threshold].sum().item() * 32 / 6 / 2000
    assert predictor.sample_score(volume) == pytest.approx(min(expected, 1), rel=1e-5)


def test_a_volume_scores_the_same_alone_and_among_others(tiny_weights, blobs, tmp_path):
    shutil.copytree(blobs, tmp_path / "all")
    (tmp_path / "one").mkdir()
    shutil.copy(blobs / "case_1.nii.gz", tmp_path / "one")
    for folder in ("all", "one"):
        assert (
            predict(
                "--region abdom --task pixel -i",
                tmp_path / folder,
                "-o",
                tmp_path / f"{folder}_out",
                "--slices",
                3,
                "--restorations",
                2,
                "--weights",
                tiny_weights["abdom"],
            ).returncode
            == 0
        )
    scores = [nib.load(tmp_path / f"{folder}_out" / "case_1.nii.gz").get_fdata() for folder in ("all", "one")]
    assert np.array_equal(*scores)


def test_the_seed_changes_the_draws_and_nothing_else(tiny_weights, blobs):
    model = load_model(tiny_weights["brain"], device="cpu")
    indices = np.array([0, 5])
    first, again, other = (Predictor(model, seed=s, restorations=2).uniforms("a", indices, (4, 4)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(Predictor(model, restorations=2).uniforms("a", indices[1:], (4, 4))[0], first[1])
    assert (first >= 0).all() and (first < 1).all()


def test_one_bad_file_does_not_stop_the_others(tiny_weights, blobs, tmp_path):
    shutil.copytree(blobs, tmp_path / "in")
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"not a volume")
    (tmp_path / "in" / "README.txt").write_text("stray")
    run = predict(
        "--region abdom --task sample -i",
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "--weights",
        tiny_weights["abdom"],
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert sum("bad.nii.gz" in line for line in run.stderr.splitlines()) == 2  # when it happens, and at the end
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.slow
def test_wrong_usage_ends_with_2_and_one_line(tiny_weights, blobs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    good = {
        "--region": "brain",
        "--task": "sample",
        "-i": blobs,
        "-o": tmp_path / "out",
        "--weights": tiny_weights["brain"],
    }
    for change, named in (
        ({"-i": tmp_path / "absent"}, "absent"),
        ({"-i": tmp_path / "empty"}, "empty"),
        ({"-o": tmp_path / "file"}, "file"),
        ({"--weights": tmp_path / "none"}, "none"),
        ({"--region": "abdom"}, "brain"),
        ({"--device": "nonsense"}, "nonsense"),
    ):
        run = predict(*(word for pair in (good | change).items() for word in pair))
        assert run.returncode == 2 and named in run.stderr and run.stderr.count("\n") == 1, run.stderr
    assert predict("--region knee").returncode == 2


def test_a_planted_impulse_is_found_at_its_own_voxel(tiny_weights, tmp_path):
    """The geometry of the whole path: a model that 'restores' everything to a constant scores the impulse highest."""
    model = load_model(tiny_weights["abdom"], device="cpu")
    model.restore = lambda codes, position, uniforms, threshold: codes[:, None]
    model.decode = lambda codes, position: torch.full((len(codes), 160, 160), -1.0)
    data = np.zeros((20, 50, 37), np.float32)
    data[3:8, 9:16, 20:27] = 1
    affine = np.array([[0, 0, -1.5, 10], [-1.2, 0, 0, 5], [0, 3, 0, -7], [0, 0, 0, 1.0]])
    path = write_nifti(tmp_path / "odd.nii.gz", data, affine)
    (tmp_path / "out").mkdir()
    predict_file(Predictor(model, restorations=1), path, "pixel", tmp_path / "out")
    scores = nib.load(tmp_path / "out" / "odd.nii.gz").get_fdata()
    centre = np.array(np.unravel_index(scores.argmax(), scores.shape))
    assert np.abs(centre - (5, 12, 23)).max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(p.name for p in ROOT.glob("run_*.sh")))
def test_the_four_scripts_run_from_anywhere(script, tiny_weights, blobs, tmp_path):
    _, task, region = script.removesuffix(".sh").split("_")
    shutil.copytree(blobs, tmp_path / "in here")
    environment = os.environ | {"PYTHON": sys.executable}
    options = words_of("--slices 3 --restorations 1 --weights", tiny_weights[region])
    run = subprocess.run(
        ["sh", ROOT / script, "in here", "out here", *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    suffix = ".nii.gz" if task == "pixel" else ".nii.gz.txt"
    assert sorted(p.name for p in (tmp_path / "out here").iterdir()) == [f"case_{i}{suffix}" for i in range(3)]
    assert subprocess.run(["sh", ROOT / script], capture_output=True).returncode == 2


def test_evidence_is_computed_once_and_shared_with_its_restorations(tiny_weights, blobs):
    model = load_model(tiny_weights["brain"], device="cpu")
    predictor = Predictor(model, slice_count=3, restorations=2)
    prepared = predictor.prepare(read_volume(blobs / "case_0.nii.gz"))
    calls = []
    for name in ("encode", "nll", "decode"):
        inner = getattr(model, name)
        setattr(model, name, lambda *a, name=name, inner=inner: calls.append(name) or inner(*a))
    evidence = predictor.evidence(prepared)
    assert not calls and evidence.restored is None
    with pytest.raises(ValueError, match="expected restorations, found none"):
        _ = evidence.weighted_difference
    for _ in range(2):
        _ = evidence.nll, evidence.decoded
    assert calls == ["encode", "nll", "decode"]
    drawn = evidence.with_restorations(predictor.restore(prepared, evidence.codes))
    assert drawn.nll is evidence.nll and drawn.decoded is evidence.decoded and drawn.codes is evidence.codes
    assert drawn.restored.shape == evidence.decoded.shape and calls.count("encode") == calls.count("nll") == 1


@pytest.mark.parametrize(
    "budget", [[], pytest.param(["--time-budget", 1000], marks=pytest.mark.slow)], ids=["whole", "in time"]
)
def test_both_tasks_in_one_go_are_each_alone(tiny_weights, blobs, tmp_path, budget):
    words = [
        "--region brain -i",
        blobs,
        "--weights",
        tiny_weights["brain"],
        "--slices 4 --restorations 2",
        *budget,
    ]
    for task in ("sample", "pixel", "both"):
        assert predict(*words, "--task", task, "-o", tmp_path / task).returncode == 0
    apart = [file for task in ("sample", "pixel") for file in (tmp_path / task).iterdir()]
    assert len(apart) == 6 == len(list((tmp_path / "both").iterdir()))
    for file in apart:
        assert (tmp_path / "both" / file.name).read_bytes() == file.read_bytes()
    (tmp_path / "both" / "case_1.nii.gz.txt").unlink()
    again = predict(*words, "--task both --resume --verbose -o", tmp_path / "both")
    assert again.returncode == 0 and again.stderr.count("resumed") == 2, again.stderr
