"""What `mood-submission info` tells of volumes and of model files."""

import json

import numpy as np
import pytest
from conftest import mood, write_nifti

from mood_submission.lab.planting.phantoms import abdom_phantom, brain_phantom


def test_a_volume_is_described(tmp_path):
    brain = brain_phantom(48, np.random.default_rng(0))
    affine = np.array([[-4.0, 0, 0, 90], [0, 4.0, 0, -90], [0, 0, 4.0, -80], [0, 0, 0, 1]])
    file = write_nifti(tmp_path / "head.nii.gz", brain * 700, affine)
    run = mood("info", file, "--region brain --json")
    told = json.loads(run.stdout)
    assert run.returncode == 0 and told["grid"] == [48, 48, 48] and told["orientation"] == "LAS"
    assert told["spacing, mm (right, anterior, superior)"] == [4.0, 4.0, 4.0] and told["stored as"] == "float32"
    assert 0 < told["seen as"]["from slice"] < told["seen as"]["to slice"] < 48
    greys = told["seen as"]["grey values that become 0.25, 0.5, 0.75"]
    assert greys == sorted(greys) and 0 < greys[0] and greys[2] < 800
    text = mood("info", file).stdout
    assert "orientation: LAS" in text and "seen as" not in text


@pytest.mark.parametrize("scaling, kind", [("units", "hounsfield"), ("wide", "wide")])
def test_a_ct_s_scaling_is_told(tmp_path, scaling, kind):
    units = abdom_phantom(64, np.random.default_rng(0), depth=24) * 400 - 160
    rng = np.random.default_rng(1)
    units = np.where(units <= -159, -1000, units) + rng.normal(0, 8, units.shape)
    data = units if scaling == "units" else ((units + 1000) / 2000).clip(0, 1)
    file = write_nifti(tmp_path / "ct.nii.gz", data.astype(np.float32), np.diag([5.0, 5.0, 4.0, 1.0]))
    told = json.loads(mood("info", file, "--region abdom --json").stdout)
    assert told["seen as"]["scaling"] == kind


def test_a_model_file_is_described(tiny_weights):
    run = mood("info", tiny_weights["brain"])
    assert run.returncode == 0 and "region: brain" in run.stdout and "default methods:" in run.stdout
    told = json.loads(mood("info", tiny_weights["abdom"], "--json").stdout)
    assert told["kind"] == "model file" and len(told["sha256"]) == 64 and told["parameters"]["vqvae"] > 0


def test_what_is_neither_is_told_in_one_line(tmp_path):
    (tmp_path / "x.nii.gz").write_text("no volume")
    (tmp_path / "x.safetensors").write_text("no model")
    for words in ([tmp_path / "x.nii.gz"], [tmp_path / "x.safetensors"], [tmp_path / "none.nii"]):
        run = mood("info", *words)
        assert run.returncode == 1 and run.stderr.count("\n") == 1 and str(words[0]) in run.stderr
