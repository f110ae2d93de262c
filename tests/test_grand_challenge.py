"""The command that runs as an algorithm of grand-challenge.org: one case in, its scores out, or one line and status 1."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import mood

from mood_submission import Predictor, load_model
from mood_submission.running.grand_challenge_case import CaseError, region_in_slug
from mood_submission.volumes import read_volume


@pytest.fixture(scope="module")
def scan():
    """A little head, oblique to nothing, 8 mm voxels."""
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[-1:1:16j, -1:1:20j, -1:1:18j]
    voxels = np.where(x**2 + y**2 + z**2 < 0.8, 200 + 30 * rng.standard_normal(x.shape), 0).clip(0)
    image = sitk.GetImageFromArray(voxels.round().astype(np.int16))
    image.SetSpacing((8.0, 8.0, 9.0))
    image.SetOrigin((-70.0, 12.5, 3.0))
    return image


@pytest.fixture
def case(tmp_path, scan):
    """/input with images/brain-mri, and /opt/ml/model, which is empty."""
    folder = tmp_path / "input" / "images" / "brain-mri"
    folder.mkdir(parents=True)
    (tmp_path / "model").mkdir()
    sitk.WriteImage(scan, str(folder / "abc.mha"))
    return tmp_path


def run(case, *more, weights=None):
    if weights is not None:
        (case / "model" / "my.safetensors").write_bytes(weights.read_bytes())
    return mood(
        "grand-challenge",
        "--input",
        case / "input",
        "--output",
        case / "output",
        "--model",
        case / "model",
        *more,
    )


def list_inputs(case, *sockets, name="socket"):
    (case / "input" / "inputs.json").write_text(json.dumps([{"pk": 1, name: socket} for socket in sockets]))


IMAGE = {"slug": "t1-brain-mri", "super_kind": "Image", "relative_path": "images/brain-mri"}


@pytest.mark.parametrize(
    "listed",
    [None, pytest.param("socket", marks=pytest.mark.slow), pytest.param("interface", marks=pytest.mark.slow)],
)
def test_a_case_is_scored_on_its_own_grid(case, scan, tiny_weights, listed):
    if listed:
        list_inputs(case, IMAGE, {"slug": "age", "super_kind": "Value", "relative_path": "age.json"}, name=listed)
    done = run(case, weights=tiny_weights["brain"])
    assert done.returncode == 0, done.stderr
    written = sitk.ReadImage(str(case / "output" / "images" / "anomaly-map" / "abc.mha"))
    assert written.GetPixelID() == sitk.sitkFloat32 and written.GetSize() == scan.GetSize()
    assert np.allclose(written.GetOrigin(), scan.GetOrigin()) and written.GetDirection() == scan.GetDirection()
    scores = sitk.GetArrayFromImage(written)
    assert 0 <= scores.min() < scores.max() <= 1
    score = json.loads((case / "output" / "anomaly-score.json").read_text())
    predictor = Predictor(load_model(tiny_weights["brain"], "cpu"))
    expected = predictor.sample_score(read_volume(case / "input" / "images" / "brain-mri" / "abc.mha"))
    assert score == pytest.approx(expected, abs=1e-6)


def test_slugs_and_region_can_be_set(case, tiny_weights, monkeypatch):
    monkeypatch.setenv("MOOD_PIXEL_SLUG", "heat")
    monkeypatch.setenv("MOOD_SAMPLE_SLUG", "odd")
    monkeypatch.setenv("MOOD_REGION", "brain")
    (case / "input" / "images" / "brain-mri").rename(case / "input" / "images" / "scan")
    done = run(case, weights=tiny_weights["brain"])
    assert done.returncode == 0, done.stderr
    assert (case / "output" / "images" / "heat" / "abc.mha").exists() and (case / "output" / "odd.json").exists()
    monkeypatch.setenv("MOOD_REGION", "liver")
    assert run(case).returncode == 2


@pytest.mark.parametrize(
    "slug, expected",
    [
        ("brain-mri", "brain"),
        ("T1_head", "brain"),
        ("skull-stripped-t1-brain-mri", "brain"),
        ("abdominal-ct", "abdom"),
        ("abdomen", "abdom"),
    ],
)
def test_a_slug_names_a_region_by_its_anatomy(slug, expected):
    assert region_in_slug(slug) == expected


@pytest.mark.parametrize(
    "slug, says",
    [
        ("mri", "expected an input whose slug names the brain or the abdomen"),
        ("prostate-mri", "expected an input whose slug names the brain or the abdomen"),
        ("chest-ct", "expected an input whose slug names the brain or the abdomen"),
        ("head-abdomen", "expected an input whose slug names the brain or the abdomen"),
        ("abdominal-mri", "expected an MRI of the brain or a CT of the abdomen, found mri"),
        ("head-ct", "expected an MRI of the brain or a CT of the abdomen, found ct"),
    ],
)
def test_no_region_is_taken_of_a_modality(slug, says):
    """An MRI may be of any part of the body, and the networks know no CT of a head."""
    with pytest.raises(CaseError, match=f"^{slug}: {says}; say which by MOOD_REGION or --region$"):
        region_in_slug(slug)


@pytest.mark.parametrize(
    "what, says",
    [
        ("no input", "expected one image among the inputs, found none"),
        ("two inputs", "expected one image among the inputs, found brain-mri, other"),
        ("two files", "expected one volume, found 2"),
        ("broken", "expected a readable MetaImage volume"),
        ("no region", "expected an input whose slug names the brain or the abdomen"),
        ("bad list", "inputs.json: expected a list of inputs"),
        ("other model", "expected a model of region brain, found abdom"),
    ],
)
def test_what_fails_is_one_line_and_status_1(case, tiny_weights, what, says):
    images, weights = case / "input" / "images", tiny_weights["brain"]
    if what == "no input":
        (images / "brain-mri" / "abc.mha").unlink()
        (images / "brain-mri").rmdir()
    elif what == "two inputs":
        (images / "other").mkdir()
    elif what == "two files":
        (images / "brain-mri" / "b.mha").write_bytes(b"x")
    elif what == "broken":
        (images / "brain-mri" / "abc.mha").write_bytes(b"x" * 300)
    elif what == "no region":
        (images / "brain-mri").rename(images / "scan")
    elif what == "bad list":
        (case / "input" / "inputs.json").write_text('[{"slug": 3}]')
    elif what == "other model":
        weights = tiny_weights["abdom"]
    done = run(case, weights=weights)
    assert done.returncode == 1 and done.stdout == ""
    # Another engine may be tried than the one that has graphs of these weights: `scripts/test.sh --engine onnx`.
    told = [line for line in done.stderr.splitlines() if "torch computes instead" not in line]
    assert len(told) == 1 and says in told[0], done.stderr
    assert not list((case / "output").rglob("*.*")) if (case / "output").exists() else True
