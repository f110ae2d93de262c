"""Properties that hold for any volume: reading and writing lose nothing, preparing and going back fit together."""

import gzip
import string
import tempfile
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_volumes import DTYPES, ORIENTATIONS, oriented_affine, save

from mood_submission import Predictor
from mood_submission.lab.measuring.benchmark import FreeNetworks
from mood_submission.volumes import VolumeError, read_grid, read_volume, write_volume

shapes = st.tuples(*[st.integers(1, 9)] * 3)
zooms = st.tuples(*[st.floats(0.1, 10)] * 3)
scalings = st.tuples(st.floats(-1e3, 1e3).filter(lambda x: abs(x) > 1e-3), st.floats(-1e4, 1e4))
names = st.text(string.ascii_letters + string.digits + " -_.äß脳$'\"`;&|", min_size=1, max_size=30).map(
    lambda s: f"x{s}"
)
endings = st.sampled_from([".nii", ".nii.gz", ".NII", ".Nii.Gz"])
affines = st.builds(oriented_affine, st.sampled_from(ORIENTATIONS), zooms)
seeds = st.integers(0, 2**32 - 1)


def load(path: Path) -> nib.Nifti1Image:
    """With nibabel, which wants endings in lower or in upper case."""
    content = path.read_bytes()
    return nib.Nifti1Image.from_bytes(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@settings(deadline=None, max_examples=150)
@given(shapes, st.sampled_from(DTYPES), scalings, affines, names, endings, seeds)
def test_what_is_read_is_what_was_stored(shape, dtype, scaling, affine, name, ending, seed):
    """Each voxel, at its place in the world, with slope and intercept: as nibabel's own, slower way has it."""
    raw = np.random.default_rng(seed).integers(-100 if np.dtype(dtype).kind != "u" else 0, 100, shape).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder) / f"{name}{ending}", raw, affine, *scaling)
        volume = read_volume(path)
        expected = nib.as_closest_canonical(load(path))
        np.testing.assert_allclose(volume.data, expected.get_fdata(), rtol=1e-6, atol=1e-3 * abs(scaling[0]))
        np.testing.assert_allclose(volume.spacing, expected.header.get_zooms(), rtol=1e-5)
        assert volume.data.dtype == np.float32 and volume.missing == 0 and volume.notes == ()
        assert read_grid(path).shape == shape


@settings(deadline=None, max_examples=150)
@given(shapes, st.sampled_from(DTYPES), affines, names, endings, seeds)
def test_what_is_written_is_read_again_on_the_same_grid(shape, dtype, affine, name, ending, seed):
    with tempfile.TemporaryDirectory() as folder:
        grid = read_volume(save(Path(folder) / "scan.nii", np.zeros(shape, dtype), affine, 2.0, 1.0)).grid
        scores = np.random.default_rng(seed).random(grid.ras_shape, dtype=np.float32)
        out = Path(folder) / f"{name}{ending}"
        write_volume(out, scores, grid)
        again = read_volume(out)
        np.testing.assert_array_equal(again.data, scores)
        np.testing.assert_array_equal(load(out).affine, load(Path(folder) / "scan.nii").affine)
        assert again.grid.shape == shape and load(out).get_data_dtype().newbyteorder("=") == np.float32
        assert sorted(path.name for path in Path(folder).iterdir()) == sorted(["scan.nii", out.name])


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    affines,
    st.floats(-1e30, 1e30),
    st.floats(1e-30, 1e30),
    seeds,
    st.sampled_from(["brain", "abdom"]),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_any_volume_has_scores_for_each_voxel(shape, affine, least, span, seed, region, slices):
    """Whatever its shape and values, and whatever else: finite scores in [0, 1] on its own grid."""
    raw = (np.random.default_rng(seed).random(shape) * span + least).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        volume = read_volume(save(Path(folder) / "scan.nii", raw, affine))
        predictor = Predictor(FreeNetworks(region), slice_count=slices, restorations=1)
        prepared = predictor.prepare(volume)
        assert prepared.slices.isfinite().all() and len(prepared.indices) == min(slices or 40, volume.data.shape[2])
        scores = predictor.pixel_scores(volume)
        assert scores.shape == volume.data.shape and np.isfinite(scores).all()
        assert scores.min() >= 0 and scores.max() <= 1


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=600), endings)
def test_any_bytes_are_read_or_refused(content, ending):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{ending}"
        path.write_bytes(content)
        with pytest.raises(VolumeError, match="expected .* found"):
            read_volume(path)
