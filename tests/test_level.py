"""A scan that shows more of a body than the networks have seen: what lies beyond is not scored, and all else is as without it."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import mood, write_nifti

from mood_submission.about import About, ModelError
from mood_submission.lab.training.level import Scan, train_level, with_range
from mood_submission.model_file import add_level, load_model, save_model
from mood_submission.networks.level import LevelNet, LevelSettings
from mood_submission.networks.pixelsnail import PixelSNAIL, PixelSNAILSettings
from mood_submission.networks.vqvae import VQVAE, VQVAESettings
from mood_submission.predictor import Predictor
from mood_submission.preprocessing import Preprocessing
from mood_submission.preprocessing.known import WITHIN_MM, known_heights, offset_of
from mood_submission.volumes import read_volume

# Millimetres between slices of the test's bodies.
APART = 10.0


def settings() -> tuple[VQVAESettings, PixelSNAILSettings]:
    return VQVAESettings((4, 6, 8, 8), 8, 1), PixelSNAILSettings(8, 8, 1, 1)


@pytest.fixture
def model_file(tmp_path):
    """A model of abdomens, trained on nothing, that knows bodies from -200 to 100 mm."""
    torch.manual_seed(0)
    vqvae, prior = settings()
    about = About(
        "abdom",
        vqvae,
        prior,
        Preprocessing.harmonised("abdom"),
        pixel_threshold=2.45,
        sample_threshold=1.0,
        sample_scale=1e5,
    )
    save_model(tmp_path / "plain.safetensors", VQVAE(vqvae), PixelSNAIL(prior), about)
    file = tmp_path / "model.safetensors"
    add_level(tmp_path / "plain.safetensors", file, LevelNet(LevelSettings(low=-200, high=100)), about)
    return file


def body(slices: int) -> np.ndarray:
    """A CT in Hounsfield units: an oval of tissue with bone in it, in air. (64, 48, slices) float32."""
    x, y = np.ogrid[-1:1:64j, -1:1:48j]
    rng = np.random.default_rng(0)
    oval = (x / 0.8) ** 2 + (y / 0.7) ** 2
    plane = np.where(oval < 1, np.where(oval < 0.8, 50.0, -90.0), -1000.0)
    plane = np.where((x**2 + (y + 0.4) ** 2) < 0.02, 600.0, plane)
    texture = 10 * rng.standard_normal((64, 48, slices))
    return (plane[..., None] + np.where(oval[..., None] < 1, texture, 0)).astype(np.float32)


@pytest.fixture
def scan(tmp_path):
    file = tmp_path / "scans" / "long.nii.gz"
    write_nifti(file, body(60), np.diag([6.0, 6.0, APART, 1.0]))
    return file


def predictor(file, levels, **options) -> Predictor:
    """One whose model tells these levels of the slices that it is shown."""
    model = load_model(file, "cpu")
    model.levels = lambda slices: torch.from_numpy(levels(len(slices)).astype(np.float32))
    return Predictor(model, restorations=1, **options)


def from_thighs(count: int) -> np.ndarray:
    """Levels of slices from 350 mm below the zero, where below -200 and above 100 mm all look alike."""
    return (np.arange(count) * APART - 350).clip(-200, 100)


def most_agreeing(levels, heights) -> int:
    """The most slices that any offset agrees with."""
    offsets = levels - heights
    return max(int((np.abs(offsets - o) <= WITHIN_MM).sum()) for o in np.arange(offsets.min(), offsets.max() + 1, 0.5))


def test_hardly_fewer_slices_agree_with_the_offset_than_with_any_other():
    rng = np.random.default_rng(1)
    for _ in range(20):
        heights = np.arange(60) * 5.0
        levels = np.where(rng.random(60) < 0.6, heights - 137 + 8 * rng.standard_normal(60), rng.uniform(-300, 100, 60))
        offset = offset_of(levels, heights)
        agreeing = int((np.abs(levels - heights - offset) <= WITHIN_MM).sum())
        assert abs(offset + 137) < 15 and agreeing >= most_agreeing(levels, heights) - 2


def test_heights_that_are_known():
    heights = np.arange(60) * APART
    assert known_heights(from_thighs(60), heights, -200, 100) == (120, 480)
    assert known_heights(from_thighs(60)[20:45], heights[:25], -200, 100) == (None, None)
    # The thighs alone, the neck alone.
    assert known_heights(from_thighs(60)[:40], heights[:40], -200, 100) == (120, None)
    assert known_heights(from_thighs(60)[20:], heights[20:], -200, 100) == (None, 480)


def test_what_is_out_of_place_is_not_left_out():
    """A scan whose lower half is put on top of its upper one, one that holds the body twice, and one whose thighs look like a liver."""
    heights = np.arange(60) * APART
    whole = np.linspace(-200, 100, 60)
    rolled = np.roll(whole, 25)
    assert known_heights(rolled, np.arange(60) * 5.1, -200, 100) == (None, None)
    assert known_heights(np.concatenate([whole[::2], whole[::2]]), heights, -200, 100) == (None, None)
    thighs = from_thighs(60)
    thighs[:12] = 40
    assert known_heights(thighs, heights, -200, 100) == (None, 480)


@pytest.mark.parametrize(
    "levels, heights",
    [
        (from_thighs(60)[::-1], np.arange(60) * APART),
        (np.random.default_rng(0).uniform(-200, 100, 60), np.arange(60) * APART),
        (from_thighs(60), np.arange(60) * 1.0),
        (from_thighs(60)[20:25], np.arange(5) * APART),
        (np.full(60, -180.0), np.arange(60) * APART),
        (from_thighs(60) / 2 - 25, np.arange(60) * APART),
        (np.zeros(0), np.zeros(0)),
    ],
    ids=["upside down", "at random", "slices too near", "too few", "all alike", "rising too slowly", "none"],
)
def test_levels_that_are_not_believed(levels, heights):
    assert known_heights(levels, heights, -200, 100) == (None, None)


def test_what_is_not_known_is_not_scored(model_file, scan):
    volume = read_volume(scan)
    at_work = predictor(model_file, from_thighs)
    with pytest.warns(UserWarning, match="shows more of a body than these weights have seen"):
        prepared = at_work.prepare(volume)
    assert list(prepared.indices) == list(range(12, 49))
    assert prepared.position[0] == -0.5 and prepared.position[-1] == 0.5
    (note,) = prepared.notes
    assert str(scan) in note and "slices 12 to 48 of 60, counted from the feet, are scored, all others get 0" in note
    scores = at_work.pixel_scores(volume)
    assert not scores[:, :, :12].any() and not scores[:, :, 49:].any()
    assert (scores[:, :, 12:49].max((0, 1)) > 0).all()


def test_what_is_not_known_has_no_say_in_the_scores(model_file, scan, tmp_path):
    other = body(60)
    other[20:40, 15:30, :10] = 300
    write_nifti(tmp_path / "other" / scan.name, other, np.diag([6.0, 6.0, APART, 1.0]))
    at_work = predictor(model_file, from_thighs)
    one, two = read_volume(scan), read_volume(tmp_path / "other" / scan.name)
    assert at_work.sample_score(one) == at_work.sample_score(two)
    assert np.array_equal(at_work.pixel_scores(one), at_work.pixel_scores(two))
    everywhere = Predictor(load_model(tmp_path / "plain.safetensors", "cpu"), restorations=1)
    assert everywhere.sample_score(one) != everywhere.sample_score(two)


@pytest.mark.parametrize(
    "levels", [lambda n: np.arange(n) * 5.0 - 190, lambda n: from_thighs(n)[::-1]], ids=["all known", "not believed"]
)
def test_else_scores_are_those_of_a_model_without_levels(levels, model_file, scan, tmp_path):
    volume = read_volume(scan)
    if levels(60)[-1] > levels(60)[0]:
        volume = dataclasses.replace(volume, spacing=(6.0, 6.0, 5.0))
    without = Predictor(load_model(tmp_path / "plain.safetensors", "cpu"), restorations=1)
    at_work = predictor(model_file, levels)
    assert at_work.prepare(volume).notes == volume.notes
    assert at_work.sample_score(volume) == without.sample_score(volume)
    assert np.array_equal(at_work.pixel_scores(volume), without.pixel_scores(volume))


def test_a_given_number_of_slices_is_spread_over_what_is_known(model_file, scan):
    indices = predictor(model_file, from_thighs, slice_count=5).prepare(read_volume(scan)).indices
    assert len(indices) == 5 and indices[0] == 12 and indices[-1] <= 48


def widths(low: float, high: float, name: str) -> Scan:
    """A scan of discs that grow with height, from a level of `low` to one of `high` mm."""
    heights = torch.arange(0, high - low + 1, 5.0)
    x = torch.linspace(-1, 1, 80)
    radius = (low + heights + 300) / 800 + 0.15
    return Scan(name, ((x[:, None] ** 2 + x**2).sqrt() < radius[:, None, None]).float() * 0.5, heights)


def test_levels_are_learned_from_distances(model_file):
    scans = [widths(-200, 0, "low"), widths(-60, 100, "high"), widths(-150, 60, "both")]
    how = {"region": "abdom", "threshold": 0.05, "seed": 0}
    network, again = (train_level(scans, LevelSettings(), steps=4, **how) for _ in range(2))
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    network = train_level(scans, LevelSettings(), steps=120, **how)
    # A scan that was not trained on rises by its own length, and lies where its like lie.
    other = widths(-100, 50, "other")
    with torch.no_grad():
        levels, known = network(other.slices), network(widths(-200, 100, "all").slices)
    assert 90 < float(levels[-1] - levels[0]) < 210
    assert torch.allclose(levels, known[20:51], atol=1e-3)
    upside_down = dataclasses.replace(scans[2], slices=scans[2].slices.flip(0))
    taller = dataclasses.replace(scans[0], heights=scans[0].heights * 10)
    known = with_range(network, scans).settings
    assert 200 < known.high - known.low < 420
    assert with_range(network, [*scans, upside_down, taller]).settings == known
    nothing = with_range(network, [taller]).settings
    assert (nothing.low, nothing.high) == (0, 0)


def test_a_level_travels_in_the_model_file(model_file, tmp_path):
    model, plain = load_model(model_file, "cpu"), load_model(tmp_path / "plain.safetensors", "cpu")
    assert model.about.level == LevelSettings(low=-200, high=100) and plain.about.level is None
    slices = torch.rand(5, 80, 80)
    levels = model.levels(slices)
    assert levels.shape == (5,) and levels.dtype == torch.float32
    assert torch.equal(model.on_cpu().levels(slices), levels)
    one_by_one = torch.cat([model.levels(one[None]) for one in slices])
    assert torch.equal(one_by_one, levels)
    with pytest.raises(ModelError, match="add-level"):
        plain.levels(slices)


def test_add_level_writes_a_model_that_tells_levels(model_file, scan, tmp_path):
    for number in range(3):
        write_nifti(
            tmp_path / "few" / f"scan_{number}.nii.gz", body(20 if number else 5), np.diag([6.0, 6.0, 3.0, 1.0])
        )
    out = tmp_path / "out.safetensors"
    done = mood("add-level", tmp_path / "plain.safetensors", "--data", tmp_path / "few", "--steps 2 -o", out)
    assert done.returncode == 0, done.stderr
    assert (
        "scan_0: fewer than 8 slices, left out" in done.stdout and f"{out}: levels of 2 volumes, from " in done.stdout
    )
    model, plain = load_model(out, "cpu"), load_model(tmp_path / "plain.safetensors", "cpu")
    assert model.about.training["level"]["volumes"] == ["scan_1", "scan_2"]
    assert {"date", "revision", "torch"} <= set(model.about.training["level"])
    assert dataclasses.replace(model.about, level=None, training={}) == plain.about
    for name, value in plain.vqvae.state_dict().items():
        assert torch.equal(model.vqvae.state_dict()[name], value)


def test_add_level_refuses_what_it_cannot_learn_from(tiny_weights, model_file, tmp_path):
    write_nifti(tmp_path / "few" / "scan.nii.gz", body(5), np.diag([6.0, 6.0, APART, 1.0]))
    published = mood("add-level", tiny_weights["abdom"], "--data", tmp_path / "few", "-o", tmp_path / "out.safetensors")
    assert published.returncode and "expected a model of harmonised slices" in published.stderr
    short = mood("add-level", model_file, "--data", tmp_path / "few", "-o", tmp_path / "out.safetensors")
    assert short.returncode and "expected scans to learn levels of, found none" in short.stderr
    assert not (tmp_path / "out.safetensors").exists()
