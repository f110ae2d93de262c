"""A run that names no region, and one that is given a single file."""

import json
import threading

import numpy as np
import pytest
from conftest import mood, write_nifti
from format_matrix import affine_of, voxels_of, write_dicom, write_frames
from heads import head_round

from mood_submission import load_model
from mood_submission.cli.output import Progress
from mood_submission.lab.planting.phantoms import abdom_phantom, brain_phantom
from mood_submission.lab.training.cache import CacheError, build_cache, cache_names
from mood_submission.preprocessing import Preprocessing
from mood_submission.preprocessing.region import region_of
from mood_submission.running.options import PredictOptions
from mood_submission.running.region import region_for
from mood_submission.runtime import stopping
from mood_submission.volumes import read_volume, survey

# Voxel sizes in mm that make the phantoms as large as people are.
BRAIN_MM, ABDOM_MM = (4.2, 4.2, 4.2), (8.0, 8.0, 8.0)


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    return brain_phantom(48, np.random.default_rng(0)).astype(np.float32)


@pytest.fixture(scope="module")
def abdom() -> np.ndarray:
    return abdom_phantom(48, np.random.default_rng(0), depth=24).astype(np.float32)


@pytest.mark.parametrize("scale, offset", [(1, 0), (700, 0), (2000, -1000)])
def test_a_brain_and_an_abdomen_are_told_apart_on_any_scale(brain, abdom, scale, offset):
    assert region_of(brain * scale + offset, BRAIN_MM) == "brain"
    assert region_of(abdom * scale + offset, ABDOM_MM) == "abdom"


def test_a_whole_head_is_a_brain(brain):
    head, _ = head_round(brain, BRAIN_MM, np.random.default_rng(1))
    assert region_of(head, BRAIN_MM) == "brain"


def test_what_is_not_sure_is_no_region(brain, abdom):
    middle = brain[:, :, 20:28]
    assert region_of(middle, BRAIN_MM) is None  # cut as an abdomen is, and too small for one
    assert region_of(brain, (1.0, 1.0, 1.0)) is None
    assert region_of(abdom, (2.0, 2.0, 2.0)) is None
    assert region_of(np.pad(abdom, ((0, 0), (0, 0), (4, 4))), ABDOM_MM) is None
    assert region_of(np.zeros((20, 20, 20), np.float32), BRAIN_MM) is None


@pytest.fixture
def shipped(tiny_weights, monkeypatch):
    """Tiny networks as the shipped ones: what is looked at here is the region alone."""

    def load(name, *more, **options):
        return load_model(tiny_weights.get(str(name), name), *more, **options)

    monkeypatch.setattr("mood_submission.running.preparation.load_model", load)


def write(folder, name, data, spacing):
    return write_nifti(folder / f"{name}.nii.gz", data, np.diag([*spacing, 1.0]))


WORDS = "predict --task sample --slices 2 --restorations 1 -i"


@pytest.mark.parametrize("region", ["brain", "abdom"])
def test_a_run_takes_the_region_that_all_volumes_look_like(region, brain, abdom, shipped, tmp_path):
    data, spacing = (brain, BRAIN_MM) if region == "brain" else (abdom, ABDOM_MM)
    for name in ("a", "b"):
        write(tmp_path / "in", name, data, spacing)
    (tmp_path / "in" / "c.nii.gz").write_text("no volume")
    run = mood(WORDS, tmp_path / "in", "-o", tmp_path / "out", "--report", tmp_path / "r.json")
    assert run.returncode == 1 and f"in: region {region}, as it looks" in run.stderr and "c.nii.gz" in run.stderr
    assert json.loads((tmp_path / "r.json").read_text())["options"]["region"] == region
    named = mood(WORDS, tmp_path / "in", "-o", tmp_path / "named", "--region", region)
    assert "as it looks" not in named.stderr
    for name in ("a", "b"):
        assert (tmp_path / "out" / f"{name}.nii.gz.txt").read_text() == (
            tmp_path / "named" / f"{name}.nii.gz.txt"
        ).read_text()


def test_a_run_that_cannot_tell_is_refused_in_one_line(brain, abdom, blobs, shipped, tmp_path):
    write(tmp_path / "mixed", "a", brain, BRAIN_MM)
    write(tmp_path / "mixed", "b", abdom, ABDOM_MM)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "c.nii").write_text("no volume")
    either, unread = "pass --region brain or abdom", "c.nii: expected a readable NIfTI volume"
    cases = [
        (tmp_path / "mixed", "b.nii.gz", either),
        (blobs, "case_0.nii.gz", either),
        (tmp_path / "none", "", unread),
    ]
    for folder, file, why in cases:
        run = mood(WORDS, folder, "-o", tmp_path / "out")
        assert run.returncode == 2 and run.stderr.count("\n") == 1, run.stderr
        assert str(folder / file) in run.stderr and why in run.stderr
        assert not (tmp_path / "out").exists()


def test_a_run_that_looks_for_its_region_can_be_stopped(blobs, monkeypatch, tmp_path):
    """It reads all volumes for that, which may take hours."""
    options = PredictOptions(task="pixel", input=blobs, output=tmp_path / "out")
    monkeypatch.setattr(stopping, "_asked", threading.Event())
    stopping.ask_to_stop()
    with pytest.raises(KeyboardInterrupt):
        region_for(options, survey(blobs).volumes)


@pytest.mark.parametrize("words, shown", [((), True), (("--quiet",), False)])
def test_a_run_shows_how_many_volumes_it_has_looked_at(words, shown, blobs, monkeypatch, tmp_path):
    """On a terminal by a bar, which has come to the volume that looks like another region."""
    drawn: list[str] = []
    monkeypatch.setattr(Progress, "update", lambda self, done=None: drawn.append(f"{self.what} {self.quiet}"))
    monkeypatch.setattr("mood_submission.running.region.region_of", lambda *_: "brain" if len(drawn) < 2 else "abdom")
    assert mood(WORDS, blobs, "-o", tmp_path / "out", *words).returncode == 2
    assert drawn == [f"looking for the region {not shown}"] * 2


def test_what_looks_like_no_region_is_taken_for_what_the_others_are(brain, blobs, tmp_path):
    """One odd volume does not take the others' scores."""
    for name in ("a", "b", "c"):
        write(tmp_path / "in", name, np.zeros_like(brain) if name == "a" else brain, BRAIN_MM)
    options = PredictOptions(input=tmp_path / "in", output=tmp_path / "out", task=("sample",))
    assert region_for(options, survey(tmp_path / "in").volumes) == "brain"


def test_a_model_file_names_the_region(tiny_weights, blobs, tmp_path):
    run = mood(WORDS, blobs, "-o", tmp_path / "out", "--weights", tiny_weights["abdom"])
    assert run.returncode == 0 and "region abdom, as the model file" in run.stderr, run.stderr


def test_info_says_which_region_a_volume_looks_like(brain, blobs, tmp_path):
    file = write(tmp_path, "head", brain, BRAIN_MM)
    assert json.loads(mood("info", file, "--json").stdout)["looks like"] == "brain"
    told = json.loads(mood("info", blobs / "case_0.nii.gz", "--json").stdout)
    assert told["looks like"] == "neither brain nor abdom for sure"


def test_one_file_is_scored_as_in_its_folder(tiny_weights, blobs, tmp_path):
    words = (WORDS.replace("sample", "both"), blobs / "case_1.nii.gz", "--weights", tiny_weights["brain"])
    run = mood(*words, "-o", tmp_path / "one")
    assert run.returncode == 0, run.stderr
    whole = mood(words[0], blobs, *words[2:], "-o", tmp_path / "all")
    assert whole.returncode == 0, whole.stderr
    written = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert written == ["case_1.nii.gz", "case_1.nii.gz.txt"]
    for name in written:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()


def test_a_file_is_not_overwritten_by_its_scores(tiny_weights, brain, tmp_path):
    file = write(tmp_path, "head", brain, BRAIN_MM)
    before = file.read_bytes()
    run = mood("predict --task pixel -i", file, "-o", tmp_path, "--weights", tiny_weights["brain"])
    assert run.returncode == 2 and "expected another folder for the predictions" in run.stderr
    assert file.read_bytes() == before


def test_a_file_that_is_no_volume_is_refused_in_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("words")
    run = mood("predict --task pixel -i", tmp_path / "notes.txt", "-o", tmp_path / "out")
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "found only notes.txt" in run.stderr


def test_a_dicom_file_of_many_slices_is_a_volume(tmp_path):
    voxels = voxels_of("int16", (7, 6, 5), seed=1)
    write_frames(tmp_path / "in" / "scan.dcm", voxels, affine_of(np.eye(3)), list(range(5)))
    (source,) = survey(tmp_path / "in" / "scan.dcm").volumes
    assert source.kind == "dicom" and source.files == (tmp_path / "in" / "scan.dcm",)
    assert np.array_equal(read_volume(source).data, read_volume(tmp_path / "in").data)


def test_a_dicom_file_of_one_slice_is_refused_and_its_folder_asked_for(tmp_path):
    """It is one of a series, which is not to be scored as a volume of one slice."""
    write_dicom(tmp_path / "in", voxels_of("int16", (7, 6, 5), seed=1), affine_of(np.eye(3)))
    one = sorted(file for file in (tmp_path / "in").rglob("*") if file.is_file())[0]
    run = mood("predict --task pixel -i", one, "-o", tmp_path / "out")
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "none by itself; name its folder" in run.stderr


def test_training_refuses_volumes_of_another_region(brain, abdom, tmp_path):
    for number in range(4):
        write_nifti(tmp_path / "brains" / f"b{number}.nii.gz", brain, np.diag([*BRAIN_MM, 1]))
    done = mood("train", "cache", "--region", "abdom", "--data", tmp_path / "brains", "-o", tmp_path / "slices.npz")
    assert done.returncode == 1, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.endswith(
        "b3.nii.gz: expected volumes of region abdom, found that 4 of 4 that were read look like brain, and none like "
        "abdom; pass --region brain, or --leave-out with the names of those that are not meant"
    )
    assert not list(tmp_path.glob("slices*"))
    # Fewer than three can be read, and one is nothing for sure.
    for number, data in enumerate((brain, brain, brain[:, :, 20:28])):
        write_nifti(tmp_path / "few" / f"b{number}.nii.gz", data, np.diag([*BRAIN_MM, 1]))
    (tmp_path / "few" / "a.nii.gz").write_text("broken")
    with pytest.raises(CacheError, match="2 of 3 that were read look like brain, and none like abdom"):
        build_cache(tmp_path / "few", tmp_path / "slices.npz", Preprocessing("abdom"))
    assert not list(tmp_path.glob("slices*")) and not list(tmp_path.glob("tmp*"))


@pytest.mark.parametrize("first", ["brain", "abdom"])
def test_the_order_of_names_does_not_decide_whether_volumes_are_taken(brain, abdom, tmp_path, capsys, first):
    for number in range(8):
        data, spacing = (brain, BRAIN_MM) if (number < 5) == (first == "brain") else (abdom, ABDOM_MM)
        write_nifti(tmp_path / "volumes" / f"{number}.nii.gz", data, np.diag([*spacing, 1]))
    build_cache(tmp_path / "volumes", tmp_path / "slices.npz", Preprocessing("brain"))
    assert " of 8 volumes look like another region than brain and are taken as they are: " in capsys.readouterr().err


def test_a_run_that_is_refused_for_its_region_leaves_nothing(brain, tmp_path):
    for number in range(4):
        write_nifti(tmp_path / "brains" / f"b{number}.nii.gz", brain, np.diag([*BRAIN_MM, 1]))
    words = ("--region", "abdom", "--data", tmp_path / "brains", "-o", tmp_path / "m.safetensors")
    done = mood("train all --quick", *words)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "pass --region brain, or" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["brains"]


def test_training_takes_volumes_that_are_no_region_for_sure_and_few_of_another(brain, abdom, tmp_path, capsys):
    volumes = {"a": brain, "b": brain[:, :, 20:28], "c": brain, "d": abdom}
    for name, data in volumes.items():
        write_nifti(tmp_path / "volumes" / f"{name}.nii.gz", data, np.diag([*BRAIN_MM, 1]))
    build_cache(tmp_path / "volumes", tmp_path / "slices.npz", Preprocessing("abdom"))
    assert cache_names(tmp_path / "slices.npz") == list(volumes)
    said = capsys.readouterr().err
    assert "2 of 4 volumes look like another region than abdom and are taken as they are: a, c;" in said
