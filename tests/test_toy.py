"""Made-up volumes and the toy cases' files: framing, layout, labels, and what depends on what."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from conftest import mood

from mood_submission.lab.planting import phantoms  # noqa: E402
from mood_submission.lab.planting.anomalies import KINDS  # noqa: E402
from mood_submission.lab.planting.phantoms import abdom_phantom, brain_phantom, brain_template_subject  # noqa: E402
from mood_submission.lab.planting.toy import make_toy  # noqa: E402


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def healthy_folder(folder: Path, names: str, affine: np.ndarray | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        data = brain_phantom(32, np.random.default_rng(ord(name)))
        if affine is not None and affine[0, 0] < 0:
            data = data[::-1]
        nib.Nifti1Image(data, np.diag([6.0, 6, 6, 1]) if affine is None else affine).to_filename(
            folder / f"{name}.nii.gz"
        )
    return folder


@pytest.mark.parametrize("size", [16, 33, 64])
def test_phantoms(size: int) -> None:
    rng = np.random.default_rng(size)
    for volume in (brain_phantom(size, rng), abdom_phantom(size, rng), abdom_phantom(size, rng, depth=2)):
        assert volume.dtype == np.float32 and volume.shape[:2] == (size, size)
        assert volume.min() == 0 and 0.6 < volume.max() <= 1
        assert 0.1 < (volume > 0.02).mean() < 0.7
    with pytest.raises(ValueError, match="size"):
        brain_phantom(8, rng)
    with pytest.raises(ValueError, match="depth"):
        abdom_phantom(32, rng, depth=0)


def test_phantoms_repeat_and_vary() -> None:
    for make in (brain_phantom, abdom_phantom):
        first, again, other = (make(32, np.random.default_rng(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).mean() > 0.005


def test_one_seed_is_one_anatomy_at_every_size() -> None:
    small, large = (brain_phantom(size, np.random.default_rng(3)) > 0 for size in (32, 64))
    overlap = large[::2, ::2, ::2] & small
    assert 2 * overlap.sum() / (large[::2, ::2, ::2].sum() + small.sum()) > 0.9


def test_abdomen_is_smooth_along_z() -> None:
    volume = abdom_phantom(64, np.random.default_rng(0))
    assert np.abs(np.diff(volume, axis=2)).mean() < 0.5 * np.abs(np.diff(volume, axis=0)).mean()


@pytest.mark.slow
def test_template_subjects_look_like_the_training_data() -> None:
    pytest.importorskip("nilearn")
    first, again, other = (brain_template_subject(50, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other)[first > 0].mean() > 0.03
    assert first.dtype == np.float32 and first.min() == 0 and first.max() <= 1
    brain = first > 0
    assert first[brain].min() >= 0.02
    low, high = np.argwhere(brain).min(0), np.argwhere(brain).max(0)
    assert 0.62 < (high[0] - low[0] + 1) / 50 < 0.78  # width about 70% of the cube
    assert abs((low + high)[0] / 2 - 24.5) < 3
    assert 0.13 < brain.mean() < 0.24
    assert 0.5 < np.median(first[brain]) < 0.75


def test_layout_and_labels(tmp_path: Path) -> None:
    records = make_toy("abdom", tmp_path, volumes=5, size=32, seed=1)
    base = tmp_path / "abdom"
    names = {f"toy_{i}" for i in range(5)}
    assert {p.name for p in (base / "toy").iterdir()} == {f"{name}.nii.gz" for name in names}
    assert {p.name for p in (base / "toy_label" / "pixel").iterdir()} == {f"{name}.nii.gz" for name in names}
    assert {p.name for p in (base / "toy_label" / "sample").iterdir()} == {f"{name}.nii.gz.txt" for name in names}
    assert json.loads((base / "toy_label" / "anomalies.json").read_text()) == records
    assert sum(record["kind"] is None for record in records.values()) == 2
    for name in names:
        image = nib.load(base / "toy" / f"{name}.nii.gz")
        label = nib.load(base / "toy_label" / "pixel" / f"{name}.nii.gz")
        assert image.get_data_dtype() == np.float32 and label.get_data_dtype() == np.uint8
        assert image.shape == label.shape == (32, 32, 32)
        np.testing.assert_array_equal(image.affine, label.affine)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        values = np.asarray(label.dataobj)
        assert set(np.unique(values)) <= {0, 1}
        sample = (base / "toy_label" / "sample" / f"{name}.nii.gz.txt").read_text()
        assert sample == f"{int(values.any())}\n"
        assert records[name]["voxels"] == values.sum()
        assert (records[name]["kind"] is not None) == values.any()


def test_kinds_cycle_evenly(tmp_path: Path) -> None:
    kinds = ("add", "blur", "noise")
    records = make_toy("abdom", tmp_path, 8, 16, kinds=kinds, healthy_fraction=0.25)
    counts = [sum(record["kind"] == kind for record in records.values()) for kind in kinds]
    assert counts == [2, 2, 2]


def test_planted_in_a_folders_volumes(tmp_path: Path) -> None:
    source = healthy_folder(tmp_path / "healthy", "abcd")
    (source / "notes.txt").write_text("not a volume")
    records = make_toy("brain", tmp_path / "out", source=source)
    assert set(records) == set("abcd")
    for name, record in records.items():
        old, new = read(source / f"{name}.nii.gz"), read(tmp_path / "out/brain/toy" / f"{name}.nii.gz")
        label = read(tmp_path / "out/brain/toy_label/pixel" / f"{name}.nii.gz") > 0
        np.testing.assert_array_equal(new[~label], old[~label])
        assert label.any() == (record["kind"] is not None)
        if label.any():
            assert (np.abs(new - old)[label] > 0.01).mean() > 0.6


def test_a_case_does_not_depend_on_its_company(tmp_path: Path) -> None:
    source = healthy_folder(tmp_path / "healthy", "abc")
    settings = {"source": source, "kinds": ("noise",), "healthy_fraction": 0.0, "seed": 4}
    make_toy("brain", tmp_path / "all", **settings)
    make_toy("brain", tmp_path / "one", names=["b"], **settings)
    assert [p.name for p in (tmp_path / "one/brain/toy").iterdir()] == ["b.nii.gz"]
    for part in ("toy", "toy_label/pixel"):
        np.testing.assert_array_equal(*(read(tmp_path / run / "brain" / part / "b.nii.gz") for run in ("all", "one")))
    make_toy("brain", tmp_path / "other", names=["b"], **{**settings, "seed": 5})
    toys = [read(tmp_path / run / "brain/toy/b.nii.gz") for run in ("one", "other")]
    assert (toys[0] != toys[1]).any()
    healthy = {"size": 16, "healthy_fraction": 1.0}
    make_toy("abdom", tmp_path / "few", 1, **healthy)
    make_toy("abdom", tmp_path / "many", 3, **healthy)
    np.testing.assert_array_equal(*(read(tmp_path / run / "abdom/toy/toy_0.nii.gz") for run in ("few", "many")))


def test_labels_lie_on_the_files_own_grid(tmp_path: Path) -> None:
    flipped = np.array([[-6.0, 0, 0, 90], [0, 6, 0, -90], [0, 0, 6, -90], [0, 0, 0, 1]])
    settings = {"kinds": ("uniform",), "healthy_fraction": 0.0}
    make_toy("brain", tmp_path / "las", source=healthy_folder(tmp_path / "a", "x", flipped), **settings)
    make_toy("brain", tmp_path / "ras", source=healthy_folder(tmp_path / "b", "x"), **settings)
    for part in ("toy", "toy_label/pixel"):
        las, ras = (nib.load(tmp_path / run / "brain" / part / "x.nii.gz") for run in ("las", "ras"))
        np.testing.assert_array_equal(las.affine, flipped)
        np.testing.assert_array_equal(np.asarray(las.dataobj)[::-1], np.asarray(ras.dataobj))


def test_without_nilearn_brains_are_phantoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("nilearn", "nilearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)  # importing them raises ImportError
    phantoms._template.cache_clear()
    records = make_toy("brain", tmp_path, 2, 32)
    assert {record["origin"] for record in records.values()} == {"brain phantom"}


def test_says_what_is_wrong(tmp_path: Path) -> None:
    source = healthy_folder(tmp_path / "healthy", "ab")
    wrong = [
        ({"region": "leg"}, "region.*'leg'"),
        ({"kinds": ("odd",)}, "kinds.*odd"),
        ({"kinds": ()}, "kinds.*none"),
        ({"healthy_fraction": 2}, "healthy_fraction"),
        ({"volumes": 0}, "volumes"),
        ({"size": 4}, "size"),
        ({"names": ["a"]}, "names"),
        ({"source": source, "size": 64}, "size"),
        ({"source": source, "names": ["z"]}, "healthy.*called z"),
        ({"source": source, "volumes": 3}, "3 volumes or more.*found 2"),
        ({"source": tmp_path}, "found none"),
        ({"source": tmp_path / "nowhere"}, "nowhere"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            make_toy(**{"region": "brain", "out": tmp_path / "out", **change})
    nib.Nifti1Image(np.full((20, 20, 20), 300, np.float32), np.eye(4)).to_filename(source / "a.nii.gz")
    with pytest.raises(ValueError, match=r"a\.nii\.gz.*\[0, 1\].*300"):
        make_toy("brain", tmp_path / "out", source=source)


def test_does_not_mix_with_another_runs_cases(tmp_path: Path) -> None:
    make_toy("abdom", tmp_path, 2, 16, healthy_fraction=1.0)
    make_toy("abdom", tmp_path, 2, 16, healthy_fraction=1.0)  # the same cases again are fine
    with pytest.raises(ValueError, match=r"toy_1\.nii\.gz.*earlier run"):
        make_toy("abdom", tmp_path, 1, 16, healthy_fraction=1.0)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return mood("make-toy", *arguments)


def test_command_line(tmp_path: Path) -> None:
    done = command("--region abdom -o", tmp_path, "--size", 24, "--volumes", 2, "--kinds add")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 abdom cases (abdomen phantom), 1 with an anomaly" in done.stdout
    assert len(list((tmp_path / "abdom" / "toy").iterdir())) == 2


def test_command_line_chooses_by_name(tmp_path: Path) -> None:
    source = healthy_folder(tmp_path / "healthy", "abc")
    (tmp_path / "held_out.txt").write_text("a\nc\n")
    done = command("--region brain -o", tmp_path, "--from", source, "--names-file", tmp_path / "held_out.txt")
    assert (done.returncode, done.stderr) == (0, "")
    assert {p.name for p in (tmp_path / "brain" / "toy").iterdir()} == {"a.nii.gz", "c.nii.gz"}


def test_command_line_errors(tmp_path: Path) -> None:
    usage = command("--region brain -o", tmp_path, "--names a,b")
    assert usage.returncode == 2 and "--from" in usage.stderr
    failed = command("--region brain -o", tmp_path, "--from", tmp_path / "nowhere")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1 and "nowhere" in failed.stderr and "Traceback" not in failed.stderr


def test_all_kinds_are_offered() -> None:
    offered = command("--help").stdout
    assert all(kind in offered for kind in KINDS)
