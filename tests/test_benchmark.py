"""The benchmark's figures are there and fit together; what they are is not tested."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import mood, write_nifti

from mood_submission.lab.measuring.engines import SMALL_PARENT

pytestmark = pytest.mark.slow

VOLUME_STEPS = ("read", "prepare", "encode", "nll", "healthy_sampling", "decode", "postprocess", "write")


def benchmark(*words: object) -> subprocess.CompletedProcess:
    return mood("benchmark", *words)


def figures(file: Path, run: subprocess.CompletedProcess) -> dict:
    assert run.returncode == 0, run.stderr
    found = json.loads(file.read_text())
    assert all(name in run.stdout for name in found)
    assert all(math.isfinite(value) and value >= 0 for value in found.values() if isinstance(value, float))
    return found


@pytest.mark.parametrize("region", ["brain", "abdom"])
def test_times_and_ratios(region, tiny_weights, blobs, tmp_path):
    run = benchmark(
        "--region",
        region,
        "--device cpu --slices",
        3,
        "--restorations",
        2,
        "--naive-places",
        2,
        "--weights",
        tiny_weights[region],
        "--volume",
        blobs / "case_0.nii.gz",
        "--json",
        tmp_path / "f",
    )
    found = figures(tmp_path / "f", run)
    assert found["volume_s"] == pytest.approx(sum(found[f"{step}_s"] for step in VOLUME_STEPS))
    for kind in ("", "healthy_"):
        assert found[f"{kind}speedup"] == pytest.approx(found["naive_s"] / found[f"{kind}sampling_s"])
        assert found[f"{kind}over_floor"] == pytest.approx(found[f"{kind}sampling_s"] / found["floor_s"])
    assert found["places"] == {"brain": 400, "abdom": 100}[region] and found["naive_places"] == 2
    assert found["rows"] == 6 and found["slices"] == 3 and found["restorations"] == 2
    assert found["peak_rss_mb"] > 10 and 0 < found["changed"] < 1 and 0 <= found["skipped"] < 0.9


@pytest.mark.parametrize("copies", [0, 2])
def test_a_profile_names_every_stage(copies, blobs, tmp_path):
    run = benchmark(
        "--region brain --device cpu --profile --slices 2 --restorations",
        copies,
        "--volume",
        blobs / "case_0.nii.gz",
        "--json",
        tmp_path / "f",
    )
    found = figures(tmp_path / "f", run)
    stages = {"encode", "NLL", "decode", "detect"} | ({"sample", "decode restorations"} if copies else set())
    assert {name[:-6] for name in found if name.endswith("_gflop")} == stages
    assert {"read_s", "prepare_s", "score_s", "write_s", "matrix_gflops"} <= set(found)
    if copies:  # of two slices, two restorations each
        assert found["sample_gflop"] == pytest.approx(2 * found["NLL_gflop"])
    assert "of matrices" in run.stdout and 0.1 < found["NLL_gflop"] / 2 < 100


def test_reading_and_writing_beside_nibabel(tmp_path):
    # It makes a toy of its own.
    run = benchmark("--region abdom --device cpu --io --size", 24, "--restorations", 2, "--json", tmp_path / "f")
    found = figures(tmp_path / "f", run)
    assert found["io_ratio"] == pytest.approx(found["io_s"] / found["nibabel_s"])
    assert found["slices"] == "all" and found["pipeline_s"] > 0 and found["peak_rss_mb"] > 10


def test_what_cannot_be_measured_is_said_in_one_line(tiny_weights, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no volume")
    good = write_nifti(tmp_path / "good.nii.gz", np.ones((8, 8, 8), np.float32))
    sitk.WriteImage(sitk.ReadImage(str(good)), str(tmp_path / "two.mhd"))
    for words, named in (
        (("--weights", tmp_path / "absent", "--volume", good), "absent"),
        (("--weights", tiny_weights["brain"], "--volume", bad), "bad.nii.gz"),
        (("--device", "nonsense", "--volume", good), "nonsense"),
        (("--engines", "--volume", tmp_path / "two.mhd"), "two.mhd: expected a volume in one file"),
        (("--engines", "--volume", tmp_path / "nowhere.nii.gz"), "nowhere.nii.gz: expected a readable NIfTI volume"),
    ):
        run = benchmark("--region brain", *words)
        assert run.returncode == 1 and named in run.stderr and run.stderr.count("\n") == 1, run.stderr


@pytest.mark.parametrize(
    "words, told",
    [
        ("--io --profile", "expected one of these at most"),
        ("--restorations 0", "expected 1 or more"),
        ("--engines --engine onnx", "--engines measures all of them"),
        ("--engines --precision int8", "expected no --engine and no --precision"),
        ("--io --engine onnx --precision int8", "--io computes no network"),
        ("--repeats 9", "--repeats: expected --engines beside it"),
        ("--engines --naive-places 2", "--naive-places: expected none of --io, --profile, --engines"),
        ("--size 24 --volume v.nii.gz", "--size is the toy's"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(words, told):
    run = benchmark("--region brain", words)
    assert run.returncode == 2 and told in run.stderr and not run.stdout


def test_a_command_s_peak_of_memory_is_its_own_not_that_of_what_measures(tmp_path):
    """Linux counts the memory that a parent had, so a small process stands between."""
    volume = np.ones(50_000_000)
    file = tmp_path / "usage.json"
    nothing = [sys.executable, "-c", "raise SystemExit(3)"]
    subprocess.run([sys.executable, "-c", SMALL_PARENT, str(file), *nothing], check=True)
    status, cpu_seconds, peak = json.loads(file.read_text())
    assert status == 3 and cpu_seconds > 0
    assert peak * (1 if sys.platform == "darwin" else 1024) < volume.nbytes
