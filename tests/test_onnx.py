"""ONNX files compute what torch computes, for any number of slices and any box."""

import json
import warnings

import numpy as np
import pytest
import torch
from conftest import mood

from mood_submission import load_model
from mood_submission.lab.onnx_export import OPSET, exported_networks
from mood_submission.model_file import add_detector
from mood_submission.networks.detector import Detector, DetectorSettings

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def exported(tiny_weights, tmp_path_factory):
    """A tiny brain model with a detector, and its ONNX files."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    detector = Detector(DetectorSettings((4, 6, 8), context=(-1, 0, 1)))
    for layer in detector.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_mean, -0.5, 0.5)
    before = load_model(tiny_weights["brain"], "cpu")
    about = type(before.about)(**vars(before.about) | {"detector": detector.settings})
    add_detector(tiny_weights["brain"], folder / "brain.safetensors", detector, about)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = mood("export-onnx", folder / "brain.safetensors", "-o", folder / "out")
    assert done.returncode == 0 and done.stdout.count(" MB") == 4, done.stderr
    return load_model(folder / "brain.safetensors", "cpu"), folder / "out"


@pytest.mark.parametrize("name", ["encoder", "decoder", "prior", "detector"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_onnxruntime_says_what_torch_says(exported, name, count):
    model, folder = exported
    (network,) = [network for network in exported_networks(model) if network.name == name]
    session = ort.InferenceSession(str(folder / f"{name}.onnx"))
    torch.manual_seed(count)
    inputs = []
    for tensor in network.inputs.values():
        more = tensor[torch.arange(count) % len(tensor)].clone()
        inputs.append(more if more.dtype == torch.int64 else more + 0.1 * torch.randn(more.shape))
    if name == "detector" and count == 5:  # another box
        maps, nll, place = inputs
        inputs = [maps[..., 16:96, 8:136], nll[..., 2:12, 1:17], place[..., 16:96, 8:136]]
    with torch.inference_mode():
        expected = network.module(*inputs)
    found = session.run(None, {n: x.numpy() for n, x in zip(network.inputs, inputs)})[0]
    assert found.shape == expected.shape
    if name == "encoder":
        assert np.array_equal(found, expected.numpy())
    else:
        assert np.abs(found - expected.numpy()).max() < 1e-4


def test_files_say_what_they_are(exported):
    model, folder = exported
    for file in folder.glob("*.onnx"):
        stored = onnx.load(file)
        onnx.checker.check_model(stored)
        assert [entry.version for entry in stored.opset_import if entry.domain == ""] == [OPSET]
        told = {entry.key: entry.value for entry in stored.metadata_props}
        assert told["sha256"] == model.sha256
        assert type(model.about).from_json(told["about"]) == model.about
        assert json.loads(told["shapes"])


def test_what_is_no_model_is_one_line(tmp_path):
    (tmp_path / "a.safetensors").write_text("nothing")
    done = mood("export-onnx", tmp_path / "a.safetensors", "-o", tmp_path / "out")
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_a_package_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("mood_submission.lab.cli.export_onnx.NEEDED", ("onnx", "no_such_package"))
    done = mood("export-onnx brain -o", tmp_path / "out")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert done.stderr.count("\n") == 1 and "expected the package no_such_package" in done.stderr
