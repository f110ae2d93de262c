"""Slices out of volumes and score maps back into them, against slow obvious versions."""

import itertools
import json
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import torch

from mood_submission.preprocessing import (
    Preprocessing,
    frame_of,
    intensity_statistics,
    normalise,
    relative_positions,
    slice_indices,
    slices_to_volume,
    to_unit_range,
    volume_to_slices,
)
from mood_submission.volumes import read_volume, write_volume

BRAIN, ABDOM = Preprocessing.published("brain"), Preprocessing.published("abdom")
CUBIC = (1.0, 1.0, 1.0)


def random_volume(shape, order="F", seed=0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).random(shape), dtype=np.float32, order=order)


def sized(size: int) -> Preprocessing:
    return Preprocessing("brain", image_size=size)


def traced_peak(function) -> int:
    """Bytes that numpy held at most during the call, beyond what it held before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# settings


def test_published_settings():
    assert (BRAIN.intensity, BRAIN.image_size) == ("foreground", 160)
    assert BRAIN.foreground_threshold == 0.05
    assert (ABDOM.intensity, ABDOM.image_size) == ("symmetric", 160)


def test_settings_travel_as_json():
    for prep in (BRAIN, ABDOM, Preprocessing("abdom", 64, "foreground", 0.1, (-100.0, 300.0))):
        assert Preprocessing.from_dict(json.loads(json.dumps(prep.to_dict()))) == prep


def test_settings_that_do_not_fit_are_named():
    values = BRAIN.to_dict()
    with pytest.raises(ValueError, match="colour"):
        Preprocessing.from_dict({**values, "colour": 1})
    del values["image_size"]
    with pytest.raises(ValueError, match="image_size"):
        Preprocessing.from_dict(values)
    for wrong in ({"region": "knee"}, {"intensity": "log"}, {"image_size": 0}, {"hounsfield_window": [3, 1]}):
        with pytest.raises(ValueError, match="preprocessing: expected"):
            Preprocessing.from_dict({**BRAIN.to_dict(), **wrong})


# intensities


@pytest.mark.parametrize("prep", [BRAIN, ABDOM])
def test_data_in_unit_range_is_not_touched(prep):
    data = random_volume((5, 6, 7))
    assert to_unit_range(data, prep) is data
    slightly = data - 1e-5
    assert to_unit_range(slightly, prep) is slightly


def test_hounsfield_window():
    data = np.array([-1024, -160, 40, 240, 3000, -60], dtype=np.float32).reshape(1, 2, 3)
    np.testing.assert_allclose(to_unit_range(data, ABDOM).ravel(), [0, 0, 0.5, 1, 1, 0.25], atol=1e-6)
    assert data.min() == -1024  # the input is left alone


@pytest.mark.parametrize(
    "low,high,prep", [(0, 4000, BRAIN), (-1000, 3000, BRAIN), (-100, 500, ABDOM), (0.0, 1.5, ABDOM)]
)
@pytest.mark.parametrize("order", ["F", "C"])
def test_other_ranges_are_scaled_linearly(low, high, prep, order):
    data = np.asarray(low + (high - low) * random_volume((20, 21, 22)), dtype=np.float32, order=order)
    bottom, top = min(0, data.min()), np.percentile(data[data > 0], 99.9)
    expected = np.clip((data - bottom) / (top - bottom), 0, 1)
    result = to_unit_range(data, prep)
    assert result.dtype == np.float32 and result.min() >= 0 and result.max() <= 1
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert to_unit_range(data, prep, out=data) is data
    np.testing.assert_array_equal(data, result)


@pytest.mark.parametrize("value", [0.0, 0.5, 7.0, -5.0, -1000.0])
@pytest.mark.parametrize("prep", [BRAIN, ABDOM])
def test_constant_volumes_are_safe(value, prep):
    data = np.full((4, 5, 6), value, dtype=np.float32)
    result = to_unit_range(data, prep)
    assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1 and np.ptp(result) == 0
    mean, std = intensity_statistics(result, prep)
    assert torch.isfinite(normalise(torch.from_numpy(result), mean, std, prep)).all()


def test_big_arrays_take_the_percentile_of_a_sample():
    data = random_volume((130, 128, 128)) * 900
    result = to_unit_range(data, BRAIN)
    assert data[result == 1].min() == pytest.approx(899.1, abs=0.5)
    np.testing.assert_array_equal(result, to_unit_range(data, BRAIN))


@pytest.mark.parametrize("order", ["F", "C"])
def test_statistics_are_the_obvious_ones(order):
    data = random_volume((130, 140, 150), order) ** 3  # more than one slab
    foreground = data[data >= 0.05].astype(np.float64)
    assert intensity_statistics(data, BRAIN) == pytest.approx((foreground.mean(), foreground.std()), rel=1e-9)
    assert intensity_statistics(data, ABDOM) == (0.5, 0.5)


def test_statistics_of_odd_volumes():
    assert intensity_statistics(np.zeros((4, 5, 6), np.float32), BRAIN) == (0.0, 1.0)
    mean, std = intensity_statistics(np.full((4, 5, 6), 0.3, np.float32), BRAIN)
    assert mean == pytest.approx(0.3) and std == 1.0
    one = np.zeros((1, 1, 300), np.float32)
    one[0, 0, 7] = 0.5
    assert intensity_statistics(one, BRAIN) == (0.5, 1.0)


def test_normalise_foreground():
    slices = torch.tensor([[[0.0, 0.04, 0.05, 0.3], [0.9, 1.0, 0.049, 0.5]]])
    result = normalise(slices, 0.4, 0.2, BRAIN)
    expected = torch.tensor([[[0.0, 0.0, -1.75, -0.5], [2.5, 3.0, 0.0, 0.5]]])
    torch.testing.assert_close(result, expected)
    assert (result[slices < 0.05] == 0).all()
    batch = slices.expand(3, 2, 4)
    means, stds = torch.tensor([0.1, 0.4, 0.7]), torch.tensor([0.5, 0.2, 0.1])
    result = normalise(batch, means.view(3, 1, 1), stds.view(3, 1, 1), BRAIN)
    for index in range(3):
        torch.testing.assert_close(result[index], normalise(slices[0], float(means[index]), float(stds[index]), BRAIN))


def test_normalise_symmetric():
    slices = torch.tensor([[0.0, 0.5, 1.0]])
    torch.testing.assert_close(normalise(slices, 0.5, 0.5, ABDOM), torch.tensor([[-1.0, 0.0, 1.0]]))


# which slices


def test_slice_indices_as_published():
    np.testing.assert_array_equal(slice_indices(256, 32), np.arange(0, 256, 8))
    np.testing.assert_array_equal(slice_indices(512, 32), np.arange(0, 512, 16))


def test_slice_indices():
    for depth, count in itertools.product(range(1, 70), (1, 2, 7, 32, None)):
        indices = slice_indices(depth, count)
        assert indices.dtype == np.int64 and len(indices) == min(depth, count or depth)
        assert indices[0] == 0 and indices[-1] < depth and (np.diff(indices) > 0).all()
        if count and count <= depth:
            np.testing.assert_array_equal(indices, [i * depth // count for i in range(count)])
    for depth, count in ((0, None), (0, 4), (5, 0), (5, -1)):
        with pytest.raises(ValueError):
            slice_indices(depth, count)


def test_relative_positions():
    positions = relative_positions(np.array([0, 50, 100]), 101)
    assert positions.shape == (3, 1) and positions.dtype == np.float32
    np.testing.assert_allclose(positions[:, 0], [-0.5, 0.0, 0.5])
    np.testing.assert_array_equal(relative_positions(np.array([0]), 1), [[0.0]])


# framing


def test_frame_of_square_slices_pads_nothing():
    for shape, spacing in (
        ((100, 100, 7), CUBIC),
        ((512, 512, 40), (0.7, 0.7, 5.0)),
        ((200, 100, 3), (1.0, 2.0, 1.0)),
    ):
        frame = frame_of(shape, spacing)
        assert (frame.padded_height, frame.padded_width, frame.top, frame.left) == (shape[1], shape[0], 0, 0)


def test_frame_of_pads_to_a_square_in_millimetres():
    frame = frame_of((37, 50, 21), (2.0, 1.0, 3.0))  # 74 x 50 mm
    assert (frame.height, frame.width) == (50, 37)
    assert (frame.padded_height, frame.padded_width, frame.top, frame.left) == (74, 37, 12, 0)
    odd = frame_of((10, 13, 5), CUBIC)
    assert (odd.padded_height, odd.padded_width, odd.top, odd.left) == (13, 13, 0, 1)


def test_frame_of_broken_spacing_is_isotropic():
    expected = frame_of((20, 30, 5), CUBIC)
    for spacing in (
        (0.0, 1.0, 1.0),
        (np.nan, 1.0, 1.0),
        (1.0, -1.0, 1.0),
        (1e-6, 1.0, 1.0),
        (np.inf, 1.0, 1.0),
    ):
        assert frame_of((20, 30, 5), spacing) == expected


# slices out of the volume


def obvious_slices(data, indices):
    """(N, Y, X): transpose to (z, y, x), turn y round, pick."""
    return np.transpose(data, (2, 1, 0))[:, ::-1][indices]


def linear_weights(source: int, target: int) -> np.ndarray:
    """(target, source): each target pixel as a triangle-weighted mean of source pixels, as wide as it has to be."""
    scale = source / target
    width = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source)[None] + 0.5 - centres[:, None]) / width
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(1, keepdims=True)


def test_anterior_is_the_top_row_and_right_the_last_column():
    data = np.zeros((8, 8, 4), np.float32)
    data[7, 7, 2] = 1.0  # right, anterior
    data[0, 7, 2] = 0.5  # left, anterior
    slices = volume_to_slices(data, CUBIC, np.array([2]), sized(8))
    assert slices[0, 0, 7] == 1.0 and slices[0, 0, 0] == 0.5 and slices.sum() == 1.5


@pytest.mark.parametrize("order", ["F", "C"])
def test_same_size_is_no_resampling(order):
    data = random_volume((32, 32, 11), order)
    indices = np.array([0, 3, 10])
    slices = volume_to_slices(data, CUBIC, indices, sized(32))
    assert slices.dtype == torch.float32 and slices.shape == (3, 32, 32)
    np.testing.assert_array_equal(slices.numpy(), obvious_slices(data, indices))


@pytest.mark.parametrize("size", [20, 33, 47, 90])
@pytest.mark.parametrize(
    "shape,spacing", [((47, 47, 5), CUBIC), ((37, 50, 6), (2.0, 1.0, 3.0)), ((50, 31, 4), (0.5, 0.5, 5.0))]
)
def test_slices_equal_the_obvious_version(shape, spacing, size):
    data, indices = random_volume(shape), np.array([0, 2, shape[2] - 1])
    frame = frame_of(shape, spacing)
    padded = np.zeros((3, frame.padded_height, frame.padded_width))
    padded[:, frame.top : frame.top + shape[1], frame.left : frame.left + shape[0]] = obvious_slices(data, indices)
    expected = linear_weights(padded.shape[1], size) @ padded @ linear_weights(padded.shape[2], size).T
    slices = volume_to_slices(data, spacing, indices, sized(size)).numpy()
    np.testing.assert_allclose(slices, expected, atol=2e-5)  # torch's weights are float32
    assert slices.min() >= 0 and slices.max() <= 1


def test_padding_keeps_proportions():
    """A disc in mm stays a disc, whatever the grid."""
    spacing = (1.0, 2.0, 1.0)
    x, y = np.meshgrid((np.arange(60) - 29.5) * 1.0, (np.arange(50) - 24.5) * 2.0, indexing="ij")
    data = np.repeat((np.hypot(x, y) < 25)[..., None], 3, axis=2).astype(np.float32)
    disc = volume_to_slices(data, spacing, np.array([1]), sized(100))[0] > 0.5
    assert abs(int(disc.any(0).sum()) - 50) <= 2 and abs(int(disc.any(1).sum()) - 50) <= 2


def test_chunks_do_not_show():
    data = random_volume((300, 300, 60))
    indices = slice_indices(60)
    together = volume_to_slices(data, CUBIC, indices, sized(40))
    for z in (0, 22, 23, 24, 59):
        torch.testing.assert_close(together[z : z + 1], volume_to_slices(data, CUBIC, np.array([z]), sized(40)))


def test_indices_outside_the_volume():
    for wrong in ([-1], [5], [0, 7]):
        with pytest.raises(ValueError, match="0 to 4"):
            volume_to_slices(np.zeros((8, 8, 5), np.float32), CUBIC, np.array(wrong), sized(8))
    assert volume_to_slices(np.zeros((8, 8, 5), np.float32), CUBIC, np.array([], int), sized(8)).shape == (
        0,
        8,
        8,
    )


# score maps back on the volume


@pytest.mark.parametrize("order", ["F", "C"])
def test_all_slices_at_full_size_are_the_identity(order):
    data = random_volume((48, 48, 19))
    indices = slice_indices(19)
    slices = volume_to_slices(data, CUBIC, indices, sized(48))
    out = np.empty(data.shape, np.float32, order=order)
    assert slices_to_volume(slices, indices, data.shape, CUBIC, out=out) is out
    np.testing.assert_array_equal(out, data)
    np.testing.assert_array_equal(slices_to_volume(slices, indices, data.shape, CUBIC), data)


@pytest.mark.parametrize(
    "indices", [[0, 8, 16, 24], [3, 4, 11, 20], [5], [0, 29], list(range(30)), slice_indices(30, 7)]
)
@pytest.mark.parametrize("shape,spacing,size", [((26, 26, 30), CUBIC, 26), ((37, 50, 30), (1.0, 0.7, 2.0), 40)])
def test_volume_equals_the_obvious_version(indices, shape, spacing, size):
    scores = np.random.default_rng(1).random((len(indices), size, size)).astype(np.float32)
    frame = frame_of(shape, spacing)
    maps = linear_weights(size, frame.padded_height) @ scores @ linear_weights(size, frame.padded_width).T
    maps = maps[:, frame.top : frame.top + shape[1], frame.left : frame.left + shape[0]]
    expected = np.empty(shape)
    for x, y in itertools.product(range(shape[0]), range(shape[1])):
        expected[x, y] = np.interp(np.arange(shape[2]), indices, maps[:, shape[1] - 1 - y, x])
    result = slices_to_volume(torch.from_numpy(scores), np.array(indices), shape, spacing)
    assert result.dtype == np.float32 and result.shape == shape
    np.testing.assert_allclose(result, expected, atol=2e-5)  # torch's weights are float32
    assert result.min() >= scores.min() and result.max() <= scores.max()


def test_unit_scores_stay_in_unit_range():
    """`write_volume` refuses anything above 1, so rounding must not lead out."""
    grids = ((160, (101, 101, 40), CUBIC), (16, (37, 50, 33), (0.9, 0.7, 2.0)), (20, (241, 241, 50), CUBIC))
    for size, shape, spacing in grids:  # 160 to 101 is 2e-7 above 1 without the clamp
        indices = slice_indices(shape[2], 11)
        for scores in (
            torch.ones(11, size, size),
            torch.rand(11, size, size).round(),
            torch.zeros(11, size, size),
        ):
            result = slices_to_volume(scores, indices, shape, spacing)
            assert result.min() >= 0 and result.max() <= 1


def test_score_maps_that_do_not_fit():
    scores, shape = torch.zeros(3, 8, 8), (8, 8, 5)
    for wrong in ([0, 1], [0, 2, 2], [2, 1, 0], [0, 1, 5], []):
        with pytest.raises(ValueError):
            slices_to_volume(scores if wrong else scores[:0], np.array(wrong, int), shape, CUBIC)
    with pytest.raises(ValueError, match="out"):
        slices_to_volume(scores, np.array([0, 1, 2]), shape, CUBIC, out=np.empty((8, 8, 4), np.float32))
    with pytest.raises(ValueError, match="out"):
        slices_to_volume(scores, np.array([0, 1, 2]), shape, CUBIC, out=np.empty(shape))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "SLA", "AIL", "IRP", "PSL"])
def test_an_impulse_comes_back_to_its_own_voxel(tmp_path, codes):
    """Read, slice, put back, write, and look with nibabel only: the brightest voxel is the one planted in the file."""
    shape, zooms, voxel = (37, 50, 21), (1.3, 0.8, 2.0), (30, 11, 5)
    to_ras = np.linalg.inv(nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), shape))
    affine = to_ras @ np.diag([*zooms, 1])
    data = np.zeros(shape, np.float32)
    data[voxel] = 1
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    depth = volume.data.shape[2]
    slices = volume_to_slices(volume.data, volume.spacing, slice_indices(depth), sized(160))
    scores = slices_to_volume(slices, slice_indices(depth), volume.data.shape, volume.spacing)
    write_volume(tmp_path / "pred.nii.gz", scores, volume.grid)
    result = nib.load(tmp_path / "pred.nii.gz")
    assert result.shape == shape and np.array_equal(result.affine, nib.load(tmp_path / "scan.nii.gz").affine)
    found = result.get_fdata()
    assert np.unravel_index(found.argmax(), shape) == voxel and found.max() > 0.2
    corner = np.zeros(shape, bool)
    corner[28:33, 9:14, 3:8] = True
    assert found[~corner].max() < 0.1 * found.max()


# memory


@pytest.mark.parametrize("shape", [(128, 128, 128), (160, 160, 192)])
def test_numpy_holds_little_beside_the_volume(shape):
    chunk = 40 * 2**20 if shape[0] > 128 else 26 * 2**20  # a slab of 2 M voxels as float64, with its mask
    size = 4 * int(np.prod(shape))
    data = random_volume(shape)
    raw = data * 1500 - 500
    indices = slice_indices(shape[2])
    assert traced_peak(lambda: intensity_statistics(data, BRAIN)) < chunk
    assert traced_peak(lambda: to_unit_range(raw, ABDOM)) < size + 2**20
    assert traced_peak(lambda: to_unit_range(raw, ABDOM, out=raw)) < 2**20
    slices = volume_to_slices(data, CUBIC, indices, sized(64))
    assert traced_peak(lambda: volume_to_slices(data, CUBIC, indices, sized(64))) < 17 * 2**20  # the padded slices
    assert traced_peak(lambda: slices_to_volume(slices, indices, shape, CUBIC)) < size + 2**20
