"""Cases that a score must not get wrong: what they are, that they are the same every time, and their files."""

import json

import nibabel as nib
import numpy as np
import pytest
from conftest import mood

from mood_submission.lab.evaluation.details import Details
from mood_submission.lab.evaluation.metrics import score_counts
from mood_submission.lab.planting.gross import (
    BALL_RADII,
    SERIES,
    SIZES,
    Subject,
    cases_of_each_size,
    gross_cases,
    kinds_of,
)
from mood_submission.lab.planting.phantoms import brain_phantom


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(brain_phantom(64, np.random.default_rng(3)), (3.0, 3.0, 3.0), 5)


def test_kinds_are_those_that_are_made(subject):
    for series, make in SERIES.items():
        assert [case.kind for case in make(subject)] == kinds_of(series)


def test_every_gross_case_is_a_volume_that_differs_where_its_mask_says(subject):
    for case in gross_cases(subject):
        assert case.data.dtype == np.float32 and case.data.shape == subject.data.shape
        assert 0 <= case.data.min() and case.data.max() <= 1
        outside = np.abs(case.data - subject.data)[~case.mask]
        assert outside.max() <= 0.01, case.kind
        assert case.mask.any() == (case.kind is not None)


def test_balls_are_as_large_as_they_say(subject):
    balls = [case for case in gross_cases(subject) if case.kind and case.kind.startswith("ball")]
    assert [case.radius for case in balls] == list(BALL_RADII)
    sizes = [case.mask.sum() for case in balls]
    assert sizes == sorted(sizes)
    assert sizes[1] * 27 == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.1)  # whole within the brain


def test_a_turned_volume_comes_back_after_four_turns(subject):
    """Turned by 90 degrees about the centre of mass: nothing is stretched."""
    for kind in ("turned", "lying"):
        turned = next(case.data for case in gross_cases(subject) if case.kind == kind)
        assert turned.sum() == pytest.approx(subject.data.sum(), rel=0.02)
        assert np.abs(turned - subject.data).max() > 0.1


def test_lesions_lie_in_the_body_and_have_their_size(subject):
    cases = [case for case in cases_of_each_size(subject) if case.kind]
    assert [case.radius for case in cases] == 3 * list(SIZES)
    for case in cases:
        assert not case.mask[~subject.body].any()
        if case.radius == 12.0:
            assert case.mask.sum() * 27 == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.25)
    soft = {case.radius: case for case in cases if case.kind.startswith("soft")}[12.0]
    change = (subject.data - soft.data)[soft.mask]
    assert change.min() >= 0 and change.max() == pytest.approx(subject.contrast, rel=0.05)


@pytest.mark.slow
def test_cases_are_the_same_every_time(subject):
    again = Subject(subject.data.copy(), subject.spacing, subject.seed)
    for make in SERIES.values():
        for one, other in zip(make(subject), make(again)):
            assert np.array_equal(one.data, other.data) and np.array_equal(one.mask, other.mask)


@pytest.mark.slow
def test_the_command_writes_every_case_with_its_label(tmp_path):
    done = mood("make-toy --region brain --gross --size 32 --seed 1 -o", tmp_path)
    assert done.returncode == 0, done.stderr
    both = mood("make-toy --region brain --gross --sizes -o", tmp_path / "both")
    assert both.returncode == 2 and "not allowed with" in both.stderr
    names = [path.name.removesuffix(".nii.gz") for path in sorted((tmp_path / "brain" / "toy").iterdir())]
    records = json.loads((tmp_path / "brain" / "toy_label" / "anomalies.json").read_text())
    assert sorted(records) == names == sorted(f"toy_0_{kind}" if kind else "toy_0" for kind in kinds_of("gross"))
    for name, record in records.items():
        mask = np.asarray(nib.load(tmp_path / "brain" / "toy_label" / "pixel" / f"{name}.nii.gz").dataobj)
        said = (tmp_path / "brain" / "toy_label" / "sample" / f"{name}.nii.gz.txt").read_text()
        assert mask.sum() == record["voxels"] and said == f"{int(record['kind'] is not None)}\n"


@pytest.mark.parametrize("task", ["pixel", "sample"])
def test_figures_by_radius_are_those_of_each_radius_alone(task, tmp_path):
    radii = {"ball_02mm": 2.0, "ball_20mm": 20.0, "soft_05mm": 5.0}
    records = {f"a_{kind}": {"origin": "a.nii.gz", "kind": kind, "radius_mm": r} for kind, r in radii.items()}
    details = Details(task, records | {"a": {"origin": "a.nii.gz", "kind": None, "radius_mm": None}})
    label = np.zeros((12, 12, 12), bool)
    label[3:9, 3:9, 3:9] = True
    # Nothing of the first is found, all of the second, and half of the third with as much that is healthy.
    scores = {"ball_02mm": ~label, "ball_20mm": label, "soft_05mm": np.broadcast_to(np.arange(12) % 2, label.shape)}
    if task == "pixel":
        for kind, found in scores.items():
            found = found.astype(np.float16)
            details.add_pixel(f"a_{kind}.nii.gz", found, label, score_counts(found, label))
            details.add_findings(f"a_{kind}.nii.gz", (found > 0.5).astype(int), label)
        low = label.mean()
        expected = {"ball": [(2.0, low), (20.0, 1.0)], "soft": [(5.0, low)]}
        assert details.tables()["kind, findings recall"]["ball_20mm"] == 1
        assert details.tables()["kind, findings recall"]["ball_02mm"] == 0
    else:
        details.add_sample("a.nii.gz", 0, 0.5)
        for kind, score in (("ball_02mm", 0.25), ("ball_20mm", 0.75), ("soft_05mm", 0.5)):
            details.add_sample(f"a_{kind}.nii.gz", 1, score)
        expected = {"ball": [(2.0, 0.0), (20.0, 1.0)], "soft": [(5.0, 0.5)]}
    curves = details.curves_by_radius()
    assert {kind: [r for r, _ in points] for kind, points in curves.items()} == {"ball": [2, 20], "soft": [5]}
    for kind, points in curves.items():
        assert points == [(radius, pytest.approx(value)) for radius, value in expected[kind]]
    details.plot_by_radius(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="none with a radius in mm"):
        Details(task, {}).plot_by_radius(tmp_path / "none.png")
