"""The same head or body looks the same to the networks whatever array, voxel size and grey scale it comes in."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from mood_submission.preprocessing import (
    Preprocessing,
    frame_of,
    harmonise,
    intensity_statistics,
    look,
    normalise,
    relative_positions,
    slice_indices,
    slices_to_volume,
    to_unit_range,
    volume_to_slices,
)
from mood_submission.preprocessing.anatomy import block_means, find_anatomy
from mood_submission.preprocessing.frame import frame_round
from mood_submission.preprocessing.hounsfield import find_scaling

BRAIN, ABDOM = Preprocessing.harmonised("brain"), Preprocessing.harmonised("abdom")
WINDOW = (-160.0, 240.0)


def ellipsoid(shape, centre, radii) -> np.ndarray:
    """0 at the centre, 1 on the surface."""
    grids = np.ogrid[tuple(slice(0, n) for n in shape)]
    return np.sqrt(sum(((g - c) / r) ** 2 for g, c, r in zip(grids, centre, radii)))


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    """A head of 1 mm voxels: grey matter round folded white matter, dark ventricles, air. (190, 210, 170) float32."""
    shape, centre = (190, 210, 170), (94.0, 103.0, 88.0)
    d = ellipsoid(shape, centre, (66.0, 84.0, 62.0))
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    folds = 1.5 * np.sin(x / 4.0) * np.sin(y / 5.0) * np.sin(z / 4.5)
    data = 0.66 + 0.15 * np.tanh(2 * folds + 4 * (0.8 - d)) + 0.03 * np.sin(x / 17.0 + y / 23.0)
    data = np.where(ellipsoid(shape, (94.0, 110.0, 95.0), (16.0, 30.0, 14.0)) < 1, 0.22, data)
    return np.asfortranarray(np.where(d < 1, data, 0.0).astype(np.float32))


def seen(data: np.ndarray, spacing=(1.0, 1.0, 1.0), prep: Preprocessing = BRAIN):
    data, view = harmonise(np.asfortranarray(data, dtype=np.float32), spacing, prep)
    indices = view.indices()
    return volume_to_slices(data, spacing, indices, prep, view=view), view.positions(indices)[:, 0], view


def agree(one, other) -> float:
    """The correlation of slices at the same positions, as near as there are any."""
    (slices, positions, _), (others, places, _) = one, other
    nearest = np.abs(places[None] - positions[:, None]).argmin(1)
    assert np.abs(places[nearest] - positions).max() < 0.015
    return float(np.corrcoef(slices.numpy().ravel(), others.numpy()[nearest].ravel())[0, 1])


def cropped(head: np.ndarray) -> np.ndarray:
    return head[ndimage.find_objects((head > 0).astype(int))[0]]


@pytest.mark.parametrize(
    "change",
    [
        ("cropped to the brain", cropped, 1.0),
        ("padded", lambda h: np.pad(h, ((60, 5), (0, 60), (25, 40))), 1.0),
        ("2 mm", lambda h: block_means(h, (2, 2, 2)), 2.0),
        pytest.param(("0.7 mm", lambda h: ndimage.zoom(h, 1 / 0.7, order=1), 0.7), marks=pytest.mark.slow, id="0.7 mm"),
        ("of another scaling", lambda h: 700 * h, 1.0),
        ("of another contrast", lambda h: h**1.5, 1.0),
    ],
    ids=lambda change: change[0],
)
def test_one_head_in_many_arrays_looks_the_same(head, change):
    _, function, spacing = change
    assert agree(seen(head), seen(function(head), (spacing,) * 3)) > 0.98


@pytest.mark.parametrize("spacing", [1.45, 0.5])
def test_voxel_sizes_that_make_no_brain_s_size_are_taken_to_be_wrong(head, spacing):
    slices, others = seen(head)[0], seen(head, (spacing,) * 3)[0]
    sizes = [np.sqrt((part > 0.1).sum((1, 2)).max()) for part in (slices.numpy(), others.numpy())]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.06)  # the head has 149 mm, a brain is taken to have 154


@pytest.mark.slow
def test_neither_a_rim_nor_a_large_anomaly_moves_the_grey_scale_much(head):
    anatomy = find_anatomy(head, (1.0, 1.0, 1.0))
    tone = seen(head)[2].tone
    brain = head > 0
    rim = head.copy()
    rim[ndimage.binary_dilation(brain, iterations=3) & ~brain] = 1.0
    lump = head.copy()
    inside = ellipsoid(head.shape, (70.0, 110.0, 100.0), (32.0, 36.0, 30.0)) < 1
    assert inside.sum() > 0.08 * brain.sum()
    lump[inside & brain] = 1.0
    levels = np.array([0.3, 0.52, 0.8], np.float32)
    for changed in (rim, lump):
        assert np.abs(seen(changed)[2].tone(levels) - tone(levels)).max() < 0.05
    centre = find_anatomy(lump, (1.0, 1.0, 1.0)).centroid
    assert np.abs(np.subtract(centre, anatomy.centroid)).max() < 1


def test_landmarks_come_to_their_places(head):
    slices, _, _ = seen(head)
    white, grey = BRAIN.landmarks[2], BRAIN.landmarks[0]
    found = slices[10:-10, 50:110, 60:100].flatten()[::7]
    assert abs(float(found.quantile(0.75)) - white) < 0.05 and abs(float(found.quantile(0.25)) - grey) < 0.08


def test_the_brain_is_in_the_middle_and_as_large_as_its_millimetres(head):
    slices, positions, view = seen(head)
    filled = (slices > 0.1).numpy()
    for axis, length in ((1, 168), (2, 132)):  # rows, columns
        places = np.flatnonzero(filled.any(tuple(a for a in range(3) if a != axis)))
        assert abs(places.mean() - 79.5) < 3
        assert abs(len(places) * BRAIN.field_of_view / BRAIN.image_size - length) < 6
    assert view.step == 2 and abs(np.diff(positions) - 2 / 200).max() < 1e-6


def test_slices_that_are_asked_for(head):
    view = seen(head)[2]
    everything = view.indices("all")
    np.testing.assert_array_equal(np.diff(everything), 1)
    assert set(view.indices()) <= set(everything) and len(everything) > 1.9 * len(view.indices())
    assert len(view.indices(7)) == 7 and set(view.indices(7)) <= set(everything)


def test_as_published_every_step_is_off(head):
    prep = Preprocessing.published("brain")
    data, view = harmonise(head, (1.0, 1.0, 1.0), prep)
    assert view.frame == frame_of(head.shape, (1.0, 1.0, 1.0)) and view.tone is None and view.body is None
    assert data is to_unit_range(head, prep)
    indices = view.indices()
    np.testing.assert_array_equal(indices, slice_indices(head.shape[2]))
    np.testing.assert_array_equal(view.positions(indices), relative_positions(indices, head.shape[2]))
    torch.testing.assert_close(
        volume_to_slices(data, (1.0,) * 3, indices[:9], prep, view=view),
        volume_to_slices(data, (1.0,) * 3, indices[:9], prep),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(
    "off, same",
    [
        ({"frame": "array"}, "tone"),
        ({"intensity": "foreground"}, "frame"),
        ({"resolution": 0.0}, "tone"),
        ({"slice_distance": 0.0}, "frame"),
    ],
)
def test_each_step_can_be_switched_off_alone(head, off, same):
    whole, part = look(head, (1.0,) * 3, BRAIN), look(head, (1.0,) * 3, dataclasses.replace(BRAIN, **off))
    assert getattr(whole, same) == getattr(part, same) and whole != part


def test_settings_of_earlier_files_mean_what_they_meant():
    names = ("region", "image_size", "intensity", "foreground_threshold", "hounsfield_window")
    old = {name: Preprocessing.published("brain").to_dict()[name] for name in names} | {"slices": 32}
    assert Preprocessing.from_dict(old) == Preprocessing.published("brain")
    for prep in (BRAIN, ABDOM):
        assert Preprocessing.from_dict(json.loads(json.dumps(prep.to_dict()))) == prep
    with pytest.raises(ValueError, match="missing keys.*intensity"):
        Preprocessing.from_dict({name: value for name, value in old.items() if name != "intensity"})
    for wrong in (
        {"frame": "skull"},
        {"landmarks": (0.5, 0.4, 0.6)},
        {"spread": 0.0},
        {"slice_distance": -1.0},
    ):
        with pytest.raises(ValueError, match="preprocessing: expected"):
            dataclasses.replace(BRAIN, **wrong)


def test_what_is_dark_inside_the_brain_is_no_air(head):
    slices, _, _ = seen(head)
    middle = slices[len(slices) // 2].clone()
    middle[70:80, 60:70] = 0.0
    network = normalise(middle[None], *intensity_statistics(head, BRAIN), BRAIN)[0]
    assert (network[70:80, 60:70] == -BRAIN.centre / BRAIN.spread).all() and (network[:5] == 0).all()


@pytest.mark.parametrize("prep", [BRAIN, ABDOM], ids=["brain", "abdom"])
@pytest.mark.parametrize("name", ["empty", "constant", "noise", "speck", "thin", "one slice", "negative"])
def test_nothing_is_too_odd_to_be_looked_at(prep, name):
    rng = np.random.default_rng(0)
    shapes = {"thin": (1, 40, 30), "one slice": (30, 40, 1)}
    data = rng.random(shapes.get(name, (20, 24, 16))).astype(np.float32)
    if name in ("empty", "constant"):
        data[:] = 0 if name == "empty" else 7
    elif name == "speck":
        data[:] = 0
        data[3, 4, 5] = 1
    elif name == "negative":
        data = data * 100 - 5000
    slices, positions, view = seen(data, (1.0, 2.0, 3.0), prep)
    assert (
        len(slices) == len(positions) >= 1 and torch.isfinite(slices).all() and 0 <= slices.min() <= slices.max() <= 1
    )
    back = slices_to_volume(slices, view.indices(), data.shape, (1.0, 2.0, 3.0), view=view)
    assert back.shape == data.shape and np.isfinite(back).all()


@pytest.mark.slow
def test_what_is_seen_comes_back_to_its_own_voxel(head):
    """A map that is bright round one place of the head is brightest there on the volume's voxels too."""
    padded = np.pad(head, ((40, 3), (0, 30), (11, 0)))
    at = (40 + 70, 120, 11 + 80)
    marked = padded.copy()
    marked[ellipsoid(padded.shape, at, (3, 3, 3)) < 1] = 3.0
    slices, _, view = seen(marked)
    difference = (slices - seen(padded)[0]).abs()
    assert len(slices) == len(difference)
    back = slices_to_volume(difference, view.indices(), padded.shape, (1.0,) * 3, view=view)
    found = ndimage.center_of_mass(back * (back > 0.5 * back.max()))
    assert np.abs(np.subtract(found, at)).max() < 1.5
    assert (back[:, :, at[2]][: max(0, -view.frame.left) or 1] >= 0).all()


def test_a_frame_cuts_and_pads():
    shape = (6, 4, 3)
    data = np.arange(72, dtype=np.float32).reshape(shape, order="F") / 100
    for side, centre in ((8, (2.5, 1.5)), (2, (2.5, 1.5)), (4, (0.0, 3.0)), (3, (5.0, 0.0))):
        frame = frame_round(shape, (1.0, 1.0, 1.0), centre, float(side))
        square = np.zeros((side, side), np.float32)
        for row in range(side):  # the slow obvious version: each pixel of the square by itself
            for column in range(side):
                y, x = shape[1] - 1 - (row - frame.top), column - frame.left
                if 0 <= x < shape[0] and 0 <= y < shape[1]:
                    square[row, column] = data[x, y, 1]
        found = np.zeros_like(square)
        found[frame.inner] = data[:, ::-1, 1].T[frame.seen]
        np.testing.assert_array_equal(found, square)
        middle = ((side - 1) / 2 - frame.left, shape[1] - 1 - ((side - 1) / 2 - frame.top))
        assert np.abs(np.subtract(middle, centre)).max() <= 0.5


def test_block_means():
    data = np.random.default_rng(0).random((7, 5, 6)).astype(np.float32)
    found = block_means(data, (3, 2, 4))
    for i, j, k in np.ndindex(found.shape):
        assert found[i, j, k] == pytest.approx(
            data[3 * i : 3 * i + 3, 2 * j : 2 * j + 2, 4 * k : 4 * k + 4].mean(), rel=1e-5
        )


# CT


@pytest.fixture(scope="module")
def body() -> np.ndarray:
    """An abdomen in Hounsfield units: fat round organs and bone, gas, a table, air. (160, 140, 30) float32, 2.5 mm."""
    rng, shape = np.random.default_rng(1), (160, 140, 30)
    data = np.full(shape, -1000.0)
    trunk = ellipsoid(shape, (78.0, 76.0, 15.0), (66.0, 48.0, 1e9))
    data = np.where(trunk < 1, -103.0, data)
    mottled = 60 * ndimage.gaussian_filter(rng.normal(size=shape), (5, 5, 1), mode="wrap") / 0.045
    data = np.where(ellipsoid(shape, (78.0, 74.0, 15.0), (52.0, 34.0, 1e9)) < 1, 48.0 + mottled, data)
    data = np.where(ellipsoid(shape, (56.0, 80.0, 15.0), (22.0, 18.0, 40.0)) < 1, 95.0, data)
    data = np.where(ellipsoid(shape, (78.0, 52.0, 15.0), (9.0, 9.0, 1e9)) < 1, 420.0, data)
    data = np.where(ellipsoid(shape, (100.0, 92.0, 15.0), (9.0, 7.0, 12.0)) < 1, -850.0, data)
    data[10:150, 8:11] = -250.0
    return np.asfortranarray((data + rng.normal(0, 12, shape)).clip(-1024, 1500).astype(np.float32))


SCALINGS = {
    "wide": lambda hu: ((hu + 1000) / 2000).clip(0, 1),
    "wider": lambda hu: ((hu + 1024) / 4024).clip(0, 1),
    "uint8": lambda hu: np.round(255 * ((hu + 1000) / 2000).clip(0, 1)),
    "narrower": lambda hu: ((hu + 1000) / 1600).clip(0, 1),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_one_body_in_many_scalings_looks_the_same(body, name):
    units, scaled = seen(body, (2.5, 2.5, 4.0), ABDOM), seen(SCALINGS[name](body), (2.5, 2.5, 4.0), ABDOM)
    assert units[2].frame == scaled[2].frame
    assert np.corrcoef(units[0].ravel(), scaled[0].ravel())[0, 1] > 0.995
    assert float((units[0] - scaled[0]).abs().mean()) < 0.01


@pytest.mark.parametrize("largest", [1, 255, 4095])
@pytest.mark.parametrize("first, last", [(-1000, 1000), (-1024, 3071)])
def test_a_usual_line_is_found_exactly(body, largest, first, last):
    """Another patient's fat and muscle have other units: the line that is in use is taken, not the one that fits best."""
    for shift in (-8, 0, 8):  # of fat, muscle and organs, as of another patient's
        units = np.where(body > -150, body + shift, body)
        values = largest * ((units - first) / (last - first)).clip(0, 1)
        coarse = block_means((np.round(values) if largest > 1 else values).astype(np.float32), (1, 1, 1))
        scaling = find_scaling(coarse, WINDOW)
        assert scaling.kind == "wide"
        ends = [first + (last - first) * float(value) / largest for value in (coarse.min(), coarse.max())]
        assert (scaling.zero, scaling.one) == pytest.approx(ends, abs=0.01)


def test_a_line_that_is_not_in_use_is_not_taken_for_one_that_is(body):
    for first, last in ((-1000, 700), (-1000, 1500), (-1024, 2000)):
        coarse = block_means(((body - first) / (last - first)).clip(0, 1).astype(np.float32), (1, 1, 1))
        tone = find_scaling(coarse, WINDOW).tone
        found = tone(np.float32([(units - first) / (last - first) for units in (-103, 48)]))
        assert found == pytest.approx([(160 - 103) / 400, (160 + 48) / 400], abs=0.05)


def test_a_window_is_known_for_one(body):
    for low, high in ((-160, 240), (-150, 250), (-200, 300)):
        scaling = find_scaling(block_means(((body - low) / (high - low)).clip(0, 1), (1, 1, 1)), WINDOW)
        assert scaling.kind == "windowed"
        soft, fat = (scaling.tone(np.float32([(units - low) / (high - low)]))[0] for units in (48.0, -103.0))
        assert abs(soft - (48 + 160) / 400) < 0.06 and abs(fat - (160 - 103) / 400) < 0.08
    assert find_scaling(block_means(body, (1, 1, 1)), WINDOW).kind == "hounsfield"
    assert find_scaling(np.ones((4, 4, 4), np.float32), WINDOW).kind == "unknown"


def test_the_table_and_the_air_are_not_looked_at_and_not_scored(body):
    slices, _, view = seen(body, (2.5, 2.5, 4.0), ABDOM)
    table = np.zeros(body.shape, bool)
    table[10:150, 8:11] = True
    back = slices_to_volume(torch.ones_like(slices), view.indices(), body.shape, (2.5, 2.5, 4.0), view=view)
    assert (back[table] == 0).all() and (back[0] == 0).all() and back[78, 76, 15] == 1
    trunk = ellipsoid(body.shape, (78.0, 76.0, 15.0), (66.0, 48.0, 1e9)) < 1
    assert back[trunk].mean() > 0.995


def test_a_body_fills_its_share_of_the_frame_whatever_the_field_of_view(body):
    air = np.full((260, 300, 30), -1000.0, np.float32)
    air[60:220, 90:230] = body
    # A frame has whole voxels.
    assert agree(seen(body, (2.5, 2.5, 4.0), ABDOM), seen(air, (2.5, 2.5, 4.0), ABDOM)) > 0.97


def test_where_there_is_nothing_to_look_at_nothing_is_scored(head):
    """The score of the last slice that is looked at is not drawn out through the air above the head."""
    data = np.pad(head, ((0, 0), (0, 0), (20, 20)))
    view = look(data, (1.0,) * 3, BRAIN)
    assert 20 <= view.first + 2 and view.end <= data.shape[2] - 18
    indices = view.indices()
    scores = slices_to_volume(torch.ones(len(indices), 40, 40), indices, data.shape, (1.0,) * 3, view=view)
    assert not scores[:, :, : view.first].any() and not scores[:, :, view.end :].any()
    assert scores[:, :, view.first : view.end].any((0, 1)).all()
