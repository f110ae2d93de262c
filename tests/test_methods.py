"""Scoring methods: one that is added from outside is known everywhere, and nothing but the table knows them by name."""

import ast
import dataclasses
import doctest
import importlib
import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, mood

from mood_submission import Predictor, load_model
from mood_submission.about import ModelError
from mood_submission.evidence.evidence import USUAL
from mood_submission.lab.evaluation.further_methods import FURTHER_METHODS
from mood_submission.lab.measuring.calibration import calibrate, calibration_steps
from mood_submission.methods import table, told
from mood_submission.methods.base import Method
from mood_submission.methods.learned import Learned
from mood_submission.model_file import rewrite_about
from mood_submission.running.run_folder import predict_files
from mood_submission.volumes import named_volumes, read_volume


class Bright(Method):
    """How bright pixels are beside the mean of healthy scans: a method that needs nothing but slices and calibration."""

    name = "bright"
    scores = {"sample": "the mean brightness", "pixel": "the brightness of each pixel"}

    def sample(self, evidence):
        return float(self.pixel(evidence).double().mean())

    def pixel(self, evidence):
        usual = evidence.about.method_settings.get("bright", {"usual": 0.0})["usual"]
        return torch.sigmoid(evidence.slices - usual)

    def calibrated(self, about, healthy):
        usual = float(torch.stack([evidence.slices.mean() for evidence in healthy]).mean())
        settings = about.method_settings | {"bright": {"usual": usual}}
        return dataclasses.replace(about, method_settings=settings)


@pytest.fixture
def bright(monkeypatch) -> Bright:
    monkeypatch.setattr(table, "METHODS", dict(table.METHODS))
    return table.register(Bright())


def scored(folder: Path) -> dict[str, np.ndarray | float]:
    return {
        file.name: float(file.read_text()) if file.suffix == ".txt" else nib.load(file).get_fdata()
        for file in folder.iterdir()
    }


def test_predict_takes_a_new_method(bright, tiny_weights, blobs, tmp_path, monkeypatch):
    assert "bright: the brightness of each pixel" in " ".join(mood("predict --help").stdout.split())
    words = ["predict --region brain --task both --device cpu --slices 4 --pixel-method bright -i", blobs]
    words += ["--sample-method bright --weights", tiny_weights["brain"], "-o"]
    run = mood(*words, tmp_path / "out")
    assert run.returncode == 0, run.stderr
    predictor = Predictor(load_model(tiny_weights["brain"], "cpu"), 4)
    found = scored(tmp_path / "out")
    for file in blobs.iterdir():
        prepared = predictor.prepare(read_volume(file))
        pixel = torch.sigmoid(prepared.slices)
        assert found[f"{file.name}.txt"] == pytest.approx(float(pixel.double().mean()), abs=1e-8)
        on_file = prepared.grid.to_file(predictor.to_volume(prepared, pixel))
        assert np.array_equal(found[file.name], on_file)
    monkeypatch.delitem(table.METHODS, "bright")
    run = mood(*words, tmp_path / "other")
    assert run.returncode == 2 and "invalid choice: 'bright'" in run.stderr


def test_the_model_file_keeps_what_a_new_method_stores(bright, tiny_weights, blobs, tmp_path, monkeypatch):
    """What calibration measures of it, and that it is the default; without the method the file is refused in one line."""
    file = tmp_path / "brain.safetensors"
    words = ["calibrate", tiny_weights["brain"], "--data", blobs, "--slices 3 --restorations 0 --device cpu"]
    run = mood(*words, "--pixel-method bright --sample-method bright -o", file)
    assert run.returncode == 0, run.stderr
    model = load_model(file, "cpu")
    assert (model.about.pixel_method, model.about.sample_method) == ("bright", "bright")
    predictor = Predictor(model, 3)
    assert predictor.pixel_method is bright and predictor.sample_method is bright
    prepared = [predictor.prepare(read_volume(path)) for path in sorted(blobs.iterdir())]
    usual = float(torch.stack([p.slices.mean() for p in prepared]).mean())
    assert model.about.method_settings == {"bright": {"usual": usual}}
    assert type(model.about).from_json(model.about.to_json()) == model.about
    pixel = [torch.sigmoid(p.slices - usual) for p in prepared]
    assert torch.equal(predictor.compute(prepared[1], "pixel").pixel, pixel[1])
    assert model.about.healthy_voxels["bright"].volumes == 3
    expected = sorted(float(scores.double().mean()) for scores in pixel)
    assert model.about.healthy_samples["bright"] == pytest.approx(expected, abs=1e-6)
    assert predictor.findings(read_volume(blobs / "case_0.nii.gz")) is not None
    monkeypatch.delitem(table.METHODS, "bright")
    with pytest.raises(ModelError) as error:
        load_model(file)
    assert str(file) in str(error.value) and "found 'bright'" in str(error.value)


@pytest.mark.slow
def test_compare_has_a_new_method_in_its_table(bright, tiny_weights, blobs, tmp_path):
    words = ["compare --region brain --data", blobs, "--weights", tiny_weights["brain"]]
    words += ["--slices 3 --device cpu -o", tmp_path]
    run = mood(*words, "--restorations 1")
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "table.json").read_text())["all volumes"]
    assert {"bright", "paper", "vq-vae reconstruction"} == set(result["pixel"])
    assert {"bright", "paper", "top"} == set(result["sample"]) and "| bright |" in run.stdout
    del table.METHODS["bright"]
    other = mood(*words, "--restorations 1")  # results of other methods are never mixed
    assert other.returncode == 1 and "methods" in other.stderr and other.stderr.count("\n") == 1


@pytest.mark.parametrize("seconds", [None, 1000.0])
def test_nothing_is_drawn_for_a_method_that_does_not_look(bright, tiny_weights, blobs, tmp_path, seconds):
    model = load_model(tiny_weights["brain"], "cpu")
    model.restore = None
    predictor = Predictor(model, 3, 2, pixel_method="bright")
    (outcome,) = predict_files(predictor, [blobs / "case_0.nii.gz"], "pixel", tmp_path, seconds=seconds)
    assert (outcome.status, outcome.message, outcome.restorations) == ("predicted", "", 0)


def test_what_is_no_method_is_refused(bright, tiny_weights):
    with pytest.raises(ValueError, match="bright: expected a name that no other method has"):
        table.register(Bright())
    for scores in ({}, {"voxel": "of another task"}):
        other = Bright()
        other.name, other.scores = "other", scores
        with pytest.raises(ValueError, match="other: expected scores of the tasks sample or pixel"):
            table.register(other)
    model = load_model(tiny_weights["brain"], "cpu")
    for task, name in (("pixel", "top"), ("sample", "rarity"), ("pixel", "none")):
        with pytest.raises(ModelError, match=f"{task}_method: expected one of .*, found '{name}'"):
            Predictor(model, **{f"{task}_method": name})


def test_the_first_method_that_fits_is_one_that_the_model_has_all_for(tiny_weights, monkeypatch):
    about = load_model(tiny_weights["brain"], "cpu").about
    assert [table.first_that_fits(task, about, None).name for task in ("sample", "pixel")] == [
        "paper",
        "paper",
    ]
    with pytest.raises(ModelError, match="expected at least one restoration, or a model for the method learned"):
        table.first_that_fits("pixel", about, 0)
    monkeypatch.setattr(table, "METHODS", table.METHODS | {"bright": Bright()})
    assert table.first_that_fits("pixel", about, 0).name == "bright"


def test_no_method_is_named_but_in_its_own_file():
    """The one exception: model files of earlier versions that do not say how they score are scored as published."""
    package, named = ROOT / "mood_submission", {}
    own = {*table.METHODS, *(method.name for method in FURTHER_METHODS)}
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and node.value in own:
                named.setdefault(file.relative_to(package).as_posix(), []).append(node.value)
    assert named.pop("about.py") == ["paper", "paper"]
    assert named.pop("lab/evaluation/further_methods.py") == ["vq-vae reconstruction"]
    assert named == {f"methods/{name}.py": [name] for name in table.METHODS}


@pytest.mark.parametrize("unread", [False, True])
def test_help_tells_of_methods_what_the_table_knows(unread, monkeypatch):
    """It reads their files, and asks the table where they cannot be read."""
    known = {name: method.scores for name, method in table.METHODS.items()}
    monkeypatch.delitem(sys.modules, told.TABLE)
    if unread:
        monkeypatch.setattr(told, "_tree", lambda module: ast.parse(""))
    assert list(told.scores_by_name().items()) == list(known.items())


# --- the evidence that methods look at ------------------------------------------------------------------------------


def test_usual_values_do_not_depend_on_what_was_asked_for_before(measured, blobs):
    model = load_model(measured, "cpu")
    predictor = Predictor(model, slice_count=3, restorations=1)
    prepared = predictor.prepare(read_volume(blobs / "case_0.nii.gz"))
    fresh, used = (predictor.evidence(prepared) for _ in range(2))
    _ = used.nll, used.smoothed
    assert fresh.usual_values() == used.usual_values() and list(used.usual_values()) == list(USUAL)
    assert used.usual_values(["residual"]) == {"residual": fresh.usual_values()["residual"]}
    narrow = {kind: [0.0, 1e-6] for kind in USUAL}
    model.about = dataclasses.replace(model.about, usual=narrow)
    remarks: dict[str, list[str]] = {"sample": [], "pixel": []}
    for task, lines in remarks.items():
        predictor.compute(prepared, task, lines.append)
    assert remarks["sample"] == remarks["pixel"] and "residual" in remarks["sample"][0]


def test_evidence_keeps_what_is_computed_under_another_calibration(measured, blobs):
    model = load_model(measured, "cpu")
    predictor = Predictor(model, slice_count=3, restorations=1)
    evidence = predictor.complete_evidence(predictor.prepare(read_volume(blobs / "case_0.nii.gz")), "pixel")
    about = dataclasses.replace(evidence.about, top_reference=7.0)
    maps, difference = evidence.smoothed, evidence.weighted_difference
    other = evidence.with_calibration(about)
    assert other.about is about and evidence.about is model.about
    assert other.smoothed is maps and other.weighted_difference.data_ptr() == difference.data_ptr()
    assert other.without_restorations().about is about
    assert evidence.strangeness == {}
    narrow = evidence.with_calibration(dataclasses.replace(about, usual={"residual": [0.0, 1e-6]}))
    assert list(narrow.strangeness) == ["residual"] and narrow.with_calibration(about).strangeness == {}
    for name, value in (("temperature", 9.0), ("detector", "another")):
        with pytest.raises(ValueError, match=f"found another {name}"):
            evidence.with_calibration(dataclasses.replace(about, **{name: value}))


def test_a_file_without_settings_of_methods_is_as_earlier_versions_wrote_it(tiny_weights, tmp_path):
    about = load_model(tiny_weights["brain"], "cpu").about
    assert "method_settings" not in json.loads(about.to_json())
    # What an earlier calibration has not measured changes no description.
    measured = json.loads(load_model("abdom", "cpu").about.to_json())["healthy_voxels"]
    assert measured and not any("ordinary" in found for found in measured.values())
    out = tmp_path / "out.safetensors"
    rewrite_about(tiny_weights["brain"], out, dataclasses.replace(about, method_settings={"x": {"y": [1.0]}}))
    assert load_model(out, "cpu").about.method_settings == {"x": {"y": [1.0]}}


@pytest.mark.parametrize(
    "module",
    [
        "methods.base",
        "volumes.discover",
        "volumes.files",
        pytest.param("evidence.evidence", marks=pytest.mark.slow),
        pytest.param("predictor", marks=pytest.mark.slow),
    ],
)
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(f"mood_submission.{module}"))
    assert result.attempted > 1 and result.failed == 0


def test_help_tells_of_methods_that_are_registered_otherwise(tmp_path, monkeypatch):
    """The file of the table is read instead of imported, for speed. What it registers in another way is not passed over."""
    folder = tmp_path / "methods"
    shutil.copytree(Path(told.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(told, "__file__", str(folder / "told.py"))
    plain = (folder / "table.py").read_text()
    assert dict(told._read()) == {name: method.scores for name, method in table.METHODS.items()}
    for changed in (
        plain + "register(Paper())\n",
        plain.replace("(Paper(),", "(PAPER,"),
        plain.replace("(Paper(),", "[Paper(),"),
    ):
        (folder / "table.py").write_text(
            changed.replace("Learned()):", "Learned()]:") if "[Paper" in changed else changed
        )
        with pytest.raises(ValueError):
            list(told._read())


def test_a_method_that_needs_a_detector_does_not_stop_the_calibration_of_a_model_without(
    tiny_weights, blobs, tmp_path, monkeypatch
):
    class Sharp(Learned):
        name = "sharp"

        def calibrated(self, about, healthy):
            raise AssertionError("asked of a model without a detector")

    monkeypatch.setattr(table, "METHODS", dict(table.METHODS))
    table.register(Sharp())
    model = load_model(tiny_weights["brain"], "cpu")
    assert model.about.detector is None
    predictor = Predictor(model, 2, 1)
    steps: list[int] = []
    about = calibrate(predictor, named_volumes(blobs).values(), lambda: steps.append(1))
    assert "sharp" not in about.healthy_voxels and len(steps) == calibration_steps(predictor, 3)
