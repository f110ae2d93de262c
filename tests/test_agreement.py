"""The shipped weights give one scan the same scores whatever crop, voxel size or scaling it comes in."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from mood_submission import Predictor, load_model
from mood_submission.lab.planting.anomalies import plant
from mood_submission.lab.planting.phantoms import brain_phantom
from mood_submission.preprocessing.body import body_mask
from mood_submission.volumes import Volume, read_volume

pytestmark = pytest.mark.slow


def scores(predictor: Predictor, volume: Volume, data: np.ndarray, spacing: tuple) -> tuple[float, np.ndarray]:
    """Sample score and voxels' scores of other data in a volume's place."""
    same = dataclasses.replace(volume, data=np.ascontiguousarray(data, np.float32), spacing=spacing)
    prepared = predictor.prepare(same)
    with predictor.same_bits_for_any_threads():
        evidence = predictor.complete_evidence(prepared, "pixel")
        sample, pixel = predictor.sample(evidence), predictor.pixel(evidence)
    return sample, predictor.to_volume(prepared, pixel)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.fixture(scope="module")
def head(blobs):
    """A made-up head of 2 mm with something bright planted in it, and the scores it has as it is."""
    model = load_model("brain", device="cpu")
    sparse = dataclasses.replace(model.about.preprocessing, slice_distance=4.0)  # for the sake of time
    model.about = dataclasses.replace(model.about, preprocessing=sparse)
    predictor = Predictor(model, restorations=0)
    whole = brain_phantom(100, np.random.default_rng(0))
    data, _ = plant(whole, "uniform", np.random.default_rng(2), (0.1, 0.12), body_mask(whole))
    volume = read_volume(blobs / "case_0.nii.gz")  # whose file and grid nothing here looks at
    return predictor, volume, data, scores(predictor, volume, data, (2.0,) * 3)


def test_the_crop_is_not_seen(head):
    predictor, volume, data, (sample, pixel) = head
    box = ndimage.find_objects((data > 0.05).astype(int))[0]
    cropped = scores(predictor, volume, data[box], (2.0,) * 3)
    assert cropped[0] == pytest.approx(sample, abs=0.02) and correlation(cropped[1], pixel[box]) > 0.98
    padded = scores(predictor, volume, np.pad(data, 15), (2.0,) * 3)
    assert padded[0] == pytest.approx(sample, abs=0.02)
    assert correlation(padded[1][15:-15, 15:-15, 15:-15], pixel) > 0.98


def test_the_scaling_is_not_seen(head):
    predictor, volume, data, (sample, pixel) = head
    scaled = scores(predictor, volume, 1000 * data, (2.0,) * 3)
    assert scaled[0] == pytest.approx(sample, abs=0.02) and correlation(scaled[1], pixel) > 0.98


def test_the_voxel_size_is_hardly_seen(head):
    """Interpolated voxels are softer than measured ones, so this agrees less than the others."""
    predictor, volume, data, (sample, pixel) = head
    fine = ndimage.zoom(data, 2, order=1, grid_mode=True, mode="nearest")
    finer = scores(predictor, volume, fine, (1.0,) * 3)
    blocks = finer[1].reshape(100, 2, 100, 2, 100, 2).mean((1, 3, 5))
    assert finer[0] == pytest.approx(sample, abs=0.04) and correlation(blocks, pixel) > 0.93


def made_up_abdomen(depth: int = 26) -> np.ndarray:
    """A body in HU: fat, organs, bones and gas, mottled; air round it. (X, Y, Z), 4 mm voxels."""
    rng = np.random.default_rng(3)
    x, y, z = np.mgrid[-1:1:90j, -1:1:90j, -1 : 1 : depth * 1j]
    body, inside = (x / 0.9) ** 2 + (y / 0.62) ** 2 < 1, (x / 0.8) ** 2 + (y / 0.52) ** 2 < 1
    mottled = ndimage.gaussian_filter(rng.standard_normal(x.shape), 3)
    mottled /= mottled.std()
    data = np.where(body, -100 + 8 * mottled, -1000.0)
    data = np.where(inside, np.where(mottled > 0.3, 50.0, np.where(mottled < -1.3, -800, -90)), data)
    data = np.where((x + 0.35) ** 2 + (y - 0.05) ** 2 < 0.07, 95.0, data)
    data = np.where(x**2 + (y + 0.3) ** 2 < 0.012, 450.0, data)
    return (data + 10 * rng.standard_normal(x.shape)).clip(-1000, 1200).astype(np.float32)


def test_hounsfield_units_and_a_wide_window_are_one_scan(blobs):
    """As the challenge stores CT: -1000 .. 1000 HU as 0 .. 1; or whatever else an exporter takes."""
    predictor = Predictor(load_model("abdom", device="cpu"), restorations=0)
    volume, data = read_volume(blobs / "case_0.nii.gz"), made_up_abdomen()
    sample, pixel = scores(predictor, volume, data, (4.0,) * 3)
    for low, high in ((-1000, 1000), (-1024, 1976)):
        wide = scores(predictor, volume, ((data - low) / (high - low)).clip(0, 1), (4.0,) * 3)
        assert wide[0] == pytest.approx(sample, abs=0.02) and correlation(wide[1], pixel) > 0.98
