"""What a detector with context learns from: randomised volumes, varied anomalies, the store, and the detector itself."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mood, write_nifti
from scipy import ndimage

from mood_submission import Predictor, load_model
from mood_submission.evidence.normalised import AIR_LOGIT, Box, NormalisedEvidence, detector_logits, places
from mood_submission.lab.planting.anomalies import CHANGED
from mood_submission.lab.planting.lesions import SPOT_CHANGE
from mood_submission.lab.planting.varied import (
    FURTHER,
    LEAST_CHANGE,
    LEAST_WORTH,
    PASTED,
    TRAINING_KINDS,
    Host,
    plant_varied,
)
from mood_submission.lab.sources import source_of, source_shares
from mood_submission.lab.training.cache import CacheError, build_cache, load_cache
from mood_submission.lab.training.checkpoints import RunError
from mood_submission.lab.training.detector_stage import DetectorStage
from mood_submission.lab.training.patches import (
    MOST_WEIGHT,
    SMALL_AREA,
    BatchesAhead,
    PatchBatches,
    PatchSettings,
    _other_tones,
    _weaker_evidence,
    cut_patches,
    small_weights,
)
from mood_submission.lab.training.plant import check_volumes
from mood_submission.lab.training.randomise import BOLD, RANDOMISATIONS, Randomisation, randomise
from mood_submission.lab.training.run import DataOptions, Slices, SplitOptions
from mood_submission.lab.training.store import Planter, PlantingSettings, Store, fill_store, stored_files
from mood_submission.networks.detector import Detector, DetectorSettings, input_channels, residual_channels
from mood_submission.preprocessing import Preprocessing
from mood_submission.preprocessing.body import body_mask
from mood_submission.volumes import read_volume

CONTEXT = (-2, -1, 0, 1, 2)
TINY = DetectorSettings((4, 6, 8, 8), context=CONTEXT)
STILL = Randomisation(*[0] * 5, 1, *[0] * 17)


def brain_slices(count: int = 12, size: int = 40) -> torch.Tensor:
    """Slices of a mottled ball in air, (count, size, size) in [0, 1]."""
    z, y, x = np.meshgrid(np.linspace(-0.6, 0.6, count), *[np.linspace(-1, 1, size)] * 2, indexing="ij")
    mottled = 0.5 + 0.12 * np.sin(9 * x) * np.cos(8 * y + 3 * z)
    return torch.from_numpy(np.where(x**2 + y**2 + z**2 < 0.7, mottled, 0)).float()


# randomisation


@pytest.mark.parametrize(
    "region, name", [(region, name) for region in RANDOMISATIONS for name in RANDOMISATIONS[region]]
)
@pytest.mark.parametrize("together", [False, True])
def test_randomised_slices_are_slices(region, name, together):
    slices, r = brain_slices(), RANDOMISATIONS[region][name]

    def make():
        return randomise(slices, 40, r, 0.05, torch.Generator().manual_seed(3), together=together)  # noqa: E731

    first = make()
    assert first.shape == slices.shape and 0 <= float(first.min()) and float(first.max()) <= 1
    assert torch.equal(first, make()) and float((first - slices).abs().mean()) > 0.01
    assert not r.floor or ((first == 0) | (first >= 0.05)).all()  # air, or above it


def test_nothing_is_randomised_where_nothing_may_be():
    slices = brain_slices()
    found = randomise(slices, 40, STILL, 0.05, torch.Generator().manual_seed(0))
    assert torch.allclose(found, slices, atol=1e-5)


def test_a_volume_is_changed_as_one():
    one = brain_slices()[6:7].expand(5, -1, -1)
    # These vary from slice to slice in a volume too.
    r = dataclasses.replace(BOLD, noise=0, elastic=0, bias=0, rim=0, cut=0, tissues=0, arteries=0)
    found = randomise(one, 40, r, 0.05, torch.Generator().manual_seed(1), together=True)
    assert torch.allclose(found, found[:1].expand(5, -1, -1), atol=1e-5)
    apart = randomise(one, 40, r, 0.05, torch.Generator().manual_seed(1))
    assert float((apart[0] - apart[1]).abs().mean()) > 0.01


# anomalies


@pytest.fixture(scope="module")
def host() -> Host:
    volume = np.ascontiguousarray(brain_slices(40, 64).numpy()[:, ::-1].transpose(2, 1, 0))
    volume = volume + np.where(
        volume > 0, 0.6 * ndimage.gaussian_filter(np.random.default_rng(0).normal(size=volume.shape), 1), 0
    )
    volume = volume.astype(np.float32).clip(0, 1)
    return Host.of(volume, body_mask(volume), 50.0)


@pytest.mark.parametrize("kind", TRAINING_KINDS)
def test_every_kind_changes_what_its_mask_says(host, kind):
    donor = np.roll(host.volume, 5, 0) * 0.8
    for seed in range(3):
        planted, mask = plant_varied(host, kind, np.random.default_rng(seed), donor)
        assert planted.dtype == np.float32 and 0 <= planted.min() and planted.max() <= 1 and mask.any()
        change = np.abs(planted - host.volume)
        assert change[mask].mean() > 3 * change[~mask].mean() and change[mask].mean() > LEAST_WORTH * LEAST_CHANGE
        near = ndimage.uniform_filter((change > CHANGED).astype(np.float32), 7)
        assert (near[mask] > 0).all()  # nothing is labelled where nothing is to be seen
        assert not mask[~host.body].any() and (change[~host.body] == 0).all()
        again, same = plant_varied(host, kind, np.random.default_rng(seed), donor)
        assert np.array_equal(again, planted) and np.array_equal(same, mask)


@pytest.mark.parametrize("kind", ["mirror", "blur", "shuffle", "foreign", "shift", "swirl", "sharp", "tone"])
def test_what_nobody_could_see_is_not_planted(host, kind):
    """In a body of one grey these change nothing."""
    plain = Host.of(np.where(host.body, 0.5, 0).astype(np.float32), host.body, host.height)
    where, depth = plain.places
    inner = dataclasses.replace(plain, places=(where[depth > 19], np.full(np.count_nonzero(depth > 19), 19.0)))
    with pytest.raises(ValueError, match="would be seen"):
        for seed in range(3):
            plant_varied(inner, kind, np.random.default_rng(seed))


def test_no_kind_and_no_body(host):
    assert set(FURTHER).isdisjoint(PASTED) and len(set(TRAINING_KINDS)) == len(TRAINING_KINDS)
    with pytest.raises(ValueError, match="kind: expected one of"):
        plant_varied(host, "nonsense", np.random.default_rng(0))
    empty = dataclasses.replace(host, body=np.zeros_like(host.body))
    with pytest.raises(ValueError, match="nothing to plant in"):
        plant_varied(empty, "ball", np.random.default_rng(0))


# the detector


def evidence(count: int = 9, size: int = 32) -> NormalisedEvidence:
    make = torch.Generator().manual_seed(0)
    slices, decoded, restored = (torch.rand(count, size, size, generator=make) for _ in range(3))
    return NormalisedEvidence.of(
        slices, decoded, restored, torch.rand(count, 4, 4, generator=make) * 5, torch.rand(count, 1)
    )


def test_a_slice_is_read_with_its_neighbours():
    volume = evidence()
    maps, nll = volume.inputs(torch.tensor([0, 4, 8]), CONTEXT)
    assert maps.shape == (3, input_channels(CONTEXT), 32, 32) and nll.shape == (3, 5, 4, 4)
    for row, index in enumerate((0, 4, 8)):  # the slow obvious version
        for column, offset in enumerate(CONTEXT):
            near = min(max(index + offset, 0), 8)
            residual = (volume.slices[near] - volume.reconstruction[near]) / volume.residual
            assert torch.equal(maps[row, column], volume.slices[near])
            assert torch.allclose(maps[row, 5 + column], residual.clamp(-8, 8))
            assert torch.allclose(
                nll[row, column],
                ((volume.nll[near] - volume.usual) / (volume.high - volume.usual)).clamp(-2, 6),
            )
        assert torch.equal(maps[row, 10], volume.reconstruction[index])
        assert torch.equal(maps[row, 12], volume.position[index].expand(32, 32))
    wide, _ = volume.inputs(torch.tensor([4]), CONTEXT, stride=2)
    assert torch.equal(wide[0, 0], volume.slices[0]) and torch.equal(wide[0, 4], volume.slices[8])


def test_evidence_is_relative_to_the_volume_s_own():
    volume = evidence()
    worse = NormalisedEvidence.of(
        volume.slices,
        volume.slices + 3 * (volume.reconstruction - volume.slices),
        volume.slices + 3 * (volume.restoration - volume.slices),
        2 * volume.nll + 1,
        volume.position,
    )
    for one, other in zip(volume.inputs(torch.arange(9), CONTEXT), worse.inputs(torch.arange(9), CONTEXT)):
        keep = [i for i in range(one.shape[1]) if i != 10]  # all but the reconstruction itself
        assert torch.allclose(
            one[:, keep] if one.shape[1] > 10 else one,
            other[:, keep] if one.shape[1] > 10 else other,
            atol=1e-4,
        )


@pytest.mark.parametrize("size", [160, 40, 38])
def test_a_logit_for_every_pixel_of_a_box_whatever_the_batch(size):
    torch.manual_seed(0)
    detector = Detector(TINY).double().eval()
    maps, nll = torch.rand(3, input_channels(CONTEXT), size, size).double(), torch.rand(3, 5, 5, 5).double()
    place = places(Box(slice(0, size), slice(0, size)), torch.Size((size, size))).expand(3, -1, -1, -1)
    together = detector(maps, nll, place)
    assert together.shape == (3, size, size)
    alone = torch.cat([detector(*(x[i : i + 1] for x in (maps, nll, place))) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-12)


def test_air_round_the_anatomy_is_not_looked_at():
    """Logits in the box are those of the box cut out; outside there is nothing."""
    torch.manual_seed(1)
    slices = torch.zeros(6, 80, 80)
    slices[:, 30:50, 41:60] = torch.rand(6, 20, 19)
    nll = torch.rand(6, 10, 10)
    evidence = NormalisedEvidence.of(slices, slices * 0.9, slices * 0.9, nll, torch.rand(6, 1))
    # Codes are 8 pixels wide.
    assert (evidence.box.rows, evidence.box.columns) == (slice(16, 64), slice(32, 72))
    detector = Detector(TINY).eval()
    with torch.no_grad():
        logits = detector_logits(detector, evidence, torch.arange(6))
        maps, codes = evidence.inputs(torch.arange(6), CONTEXT)
        place = places(evidence.whole, slices.shape[1:])[None, :, 16:64, 32:72].expand(6, -1, -1, -1)
        cut = detector(maps[..., 16:64, 32:72], codes[..., 2:8, 4:9], place)
    assert torch.equal(logits[:, 16:64, 32:72], cut)
    outside = torch.ones(80, 80, dtype=torch.bool)
    outside[16:64, 32:72] = False
    assert (logits[:, outside] == AIR_LOGIT).all() and float(cut.min()) > AIR_LOGIT


def test_a_volume_of_air_alone_has_a_box():
    nothing = torch.zeros(2, 40, 40)
    evidence = NormalisedEvidence.of(nothing, nothing, nothing, torch.zeros(2, 5, 5), torch.zeros(2, 1))
    assert evidence.box == evidence.whole
    assert detector_logits(Detector(TINY).eval(), evidence, torch.arange(2)).isfinite().all()


def test_settings_are_read_under_the_names_that_they_had_in_older_files():
    older = {"widths": [4, 6], "context": [-1, 0, 1], "bulk": 0.9, "spread": 0.7}
    settings = DetectorSettings.from_dict(older)
    assert (settings.ordinary_quantile, settings.ordinary_spread_quantile) == (0.9, 0.7)
    assert DetectorSettings.from_dict(dataclasses.asdict(settings)) == settings


def test_a_context_has_the_slice_itself_in_it():
    with pytest.raises(ValueError, match="context with the slice itself"):
        DetectorSettings(context=(-1, 1))


# the store


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Twelve little heads, 6 mm voxels."""
    folder = tmp_path_factory.mktemp("heads")
    for number in range(12):
        rng = np.random.default_rng(number)
        x, y, z = np.meshgrid(*[np.arange(-n / 2, n / 2) * 6.0 for n in (30, 34, 28)], indexing="ij")
        inside = (x / 66) ** 2 + (y / 82) ** 2 + (z / 64) ** 2 < 1
        data = 0.55 + 0.2 * np.sin(x / 14 + rng.uniform(0, 6)) * np.cos(y / 16) * np.cos(z / 15 + rng.uniform(0, 6))
        write_nifti(
            folder / f"head{number:02d}.nii.gz",
            np.where(inside, data, 0).astype(np.float32),
            np.diag([6, 6, 6, 1.0]),
        )
    return folder


@pytest.fixture(scope="module")
def cache(healthy, tmp_path_factory):
    file = tmp_path_factory.mktemp("cache") / "slices.npz"
    prep = dataclasses.replace(Preprocessing.harmonised("brain"), image_size=40, slice_distance=6.0, resolution=0.0)
    build_cache(healthy, file, prep)
    return file


@pytest.fixture(scope="module")
def planter(cache, tiny_weights):
    return Planter(
        load_cache(cache)[0]["train"],
        load_model(tiny_weights["brain"], "cpu", engine="torch"),
        PlantingSettings(variants=2, seed=5),
    )


def test_a_planted_volume_is_its_healthy_one_but_for_the_slices_that_changed(planter):
    arrays = planter.volume(3)
    again = planter.volume(3)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    depth = arrays["rows"].shape[1]
    assert np.array_equal(arrays["rows"][0], np.arange(depth)) and not arrays["label"][:depth].any()
    kinds = json.loads(str(arrays["kinds"]))
    assert kinds[0] == "" and len(kinds) == len(arrays["rows"]) == len(arrays["scales"]) > 1
    for rows in arrays["rows"][1:]:
        new = rows >= depth
        assert new.any() and np.array_equal(rows[~new], np.flatnonzero(~new))
        assert arrays["label"][rows][new].any()
        assert (np.abs(arrays["slices"][rows[new]] - arrays["slices"][np.flatnonzero(new)]).max((1, 2)) > 0).any()


@pytest.mark.slow
def test_a_part_of_a_scan_is_placed_as_a_scan_that_holds_no_more(cache, tiny_weights):
    """A brain's anatomy tells where a slice lies, a part or not; an abdomen's slices lie relative to the scan's ends."""
    data, model = load_cache(cache)[0]["train"], load_model(tiny_weights["brain"], "cpu", engine="torch")
    settings = PlantingSettings(variants=1, kinds=("uniform",), short=8, partial=1.0)
    whole = Planter(data, model, dataclasses.replace(settings, partial=0.0))
    seen = set()
    for number in range(6):
        arrays = Planter(data, model, settings).volume(number)
        position, members = arrays["position"], whole._members(int(arrays["volume"]))
        assert 8 // 2 <= len(position) <= len(members)
        known = data.position[members].numpy()
        start = int(np.abs(known - position[0]).argmin())
        step = 1 if len(position) < 2 else int(np.abs(known - position[1]).argmin()) - start
        assert np.allclose(position, known[start :: max(step, 1)][: len(position)])
        seen.add(len(position))
    assert len(seen) > 1
    by_ends = dataclasses.replace(data, preprocessing=dataclasses.replace(data.preprocessing, frame="array"))
    position = Planter(by_ends, model, settings).volume(1)["position"]
    assert np.allclose(position, np.linspace(-0.5, 0.5, len(position))[:, None])


def test_small_lesions_are_many_and_small(host):
    counts, sizes = [], []
    for seed in range(12):
        planted, mask = plant_varied(host, "spots", np.random.default_rng(seed))
        labels, count = ndimage.label(mask)
        counts.append(count)
        sizes += ndimage.sum(mask, labels, range(1, count + 1)).tolist()
        assert (np.abs(planted - host.volume)[mask] >= SPOT_CHANGE - 1e-6).all()
    assert max(counts) > 5 and np.median(sizes) < 80


@pytest.mark.parametrize("kind", ["uniform", "ball", "spots"])
@pytest.mark.parametrize("radius", [0.06, 0.12])
def test_anomalies_are_as_large_as_they_are_asked_to_be(host, kind, radius):
    side, spans = host.volume.shape[0], []
    for seed in range(8):
        _, mask = plant_varied(host, kind, np.random.default_rng(seed), radii=(radius, radius))
        labels, _ = ndimage.label(mask)
        boxes = ndimage.find_objects(labels)
        spans += [max(box[0].stop - box[0].start, box[1].stop - box[1].start) for box in boxes if box]
    # Each is stretched by up to 18%, may have lobes and soft edges, and may be cut by the brain's border or joined to the next.
    assert 0.5 < np.median(spans) / (2 * radius * side) < 1.3


def test_a_variant_has_as_many_anomalies_as_it_is_asked_to_have(cache, tiny_weights):
    data, model = load_cache(cache)[0]["train"], load_model(tiny_weights["brain"], "cpu", engine="torch")
    for together in (1, 4):
        settings = PlantingSettings(variants=2, kinds=("uniform", "ball"), radii=(0.05, 0.08), together=together)
        kinds = json.loads(str(Planter(data, model, settings).volume(0)["kinds"]))
        assert kinds[0] == "" and all(len(names.split("+")) == together for names in kinds[1:])
    small, large = (
        Planter(
            data, model, PlantingSettings(variants=3, kinds=("uniform",), radii=(radius, radius), together=1)
        ).volume(0)
        for radius in (0.06, 0.25)
    )
    assert 0 < 4 * small["label"].sum() < large["label"].sum()
    with pytest.raises(ValueError, match="expected LOW and then HIGH, found 0.1 0.05"):
        PlantingSettings(radii=(0.1, 0.05))


def test_volumes_held_out_must_be_new_to_the_networks(cache, healthy, tiny_weights, tmp_path):
    """Other volumes may be trained on. What the networks have seen would look more ordinary than what they have not."""
    model = load_model(tiny_weights["brain"], "cpu", engine="torch")
    names = load_cache(cache)[1]
    options = DataOptions(region="brain", data=(cache,))
    slices = Slices(options, SplitOptions(), tmp_path, torch.device("cpu"))
    for train, wrong in (
        (["other"], False),
        (names["train"], False),
        ([*names["train"], names["validation"][0]], True),
    ):
        model.about = dataclasses.replace(model.about, training={"vqvae": {"volumes": {"train": train}}})
        if wrong:
            with pytest.raises(RunError, match=f"was not trained on, found {names['validation'][0]} among them"):
                check_volumes(slices, model, Path("model.safetensors"))
        else:
            check_volumes(slices, model, Path("model.safetensors"))


def test_restored_volumes_are_short_and_have_restorations(cache, tiny_weights):
    settings = PlantingSettings(variants=1, restored=1.0, restorations=1, short=8)
    planter = Planter(load_cache(cache)[0]["train"], load_model(tiny_weights["brain"], "cpu", engine="torch"), settings)
    arrays = planter.volume(0)
    assert arrays["rows"].shape[1] == 8 and arrays["restoration"].shape == arrays["reconstruction"].shape
    assert (arrays["restoration"] != arrays["reconstruction"]).any()


@pytest.mark.slow
def test_a_store_grows_forgets_and_is_read_as_it_grows(planter, tmp_path):
    assert fill_store(planter, tmp_path, 3) == 3
    store = Store(tmp_path, most=4)
    assert len(store) == 3 and [file.stem for file in stored_files(tmp_path)] == [
        "000000",
        "000001",
        "000002",
    ]
    assert fill_store(planter, tmp_path, 3) == 0 and fill_store(planter, tmp_path, 6, keep=4) == 3
    assert store.refresh()
    assert sorted(store.volumes) == ["000002.npz", "000003.npz", "000004.npz", "000005.npz"]
    batch = cut_patches(store, 8, CONTEXT, PatchSettings(patch=0.6), torch.Generator().manual_seed(0))
    assert batch.maps.shape == (8, input_channels(CONTEXT), 24, 24) and batch.nll.shape == (8, 5, 3, 3)
    assert batch.label.shape == batch.counts.shape == (8, 24, 24) and batch.place.shape == (8, 2, 24, 24)
    assert batch.label.any() and set(batch.label.unique().tolist()) <= {0.0, 1.0}
    again = cut_patches(store, 8, CONTEXT, PatchSettings(patch=0.6), torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(batch, again))
    other = Planter(planter.data, planter.model, dataclasses.replace(planter.settings, kinds=("ball",)))
    with pytest.raises(CacheError, match="expected files made with kinds"):
        fill_store(other, tmp_path, 9)


@pytest.mark.slow
def test_a_store_may_hold_those_of_further_folders(planter, tmp_path):
    """Each folder's newest volumes; both grow, and what one folder calls a volume hides none of another's."""
    one, two = tmp_path / "one", tmp_path / "two"
    fill_store(planter, one, 3)
    fill_store(planter, two, 1)
    store = Store(one, most=2, further=[two])
    assert list(store.volumes) == ["000001.npz", "000002.npz", f"{two}/000000.npz"] and not store.refresh()
    fill_store(planter, two, 4)
    assert store.refresh()
    names = ["000001.npz", "000002.npz", f"{two}/000002.npz", f"{two}/000003.npz"]
    assert list(store.volumes) == names and len(store) == 4
    fill_store(planter, one, 5)
    assert store.refresh() and list(store.volumes) == ["000003.npz", "000004.npz", *names[2:]]
    alone = Store(two)
    assert torch.equal(store.volumes[names[3]].label, alone.volumes["000003.npz"].label)


def test_a_store_knows_its_own_volumes(planter, tmp_path):
    """Other files that lie there, such as a cache of slices or what a killed planter left, are none."""
    for name in ("slices.npz", "x000009.npz", ".000009.npz", "000009.npz.old"):
        (tmp_path / name).write_bytes(b"no planted volume")
    for number in (1, 999_999, 1_000_000):  # in the order of their numbers
        (tmp_path / f"{number:06d}.npz").write_bytes(b"")
    assert [file.name for file in stored_files(tmp_path)] == ["000001.npz", "999999.npz", "1000000.npz"]
    for file in stored_files(tmp_path):
        file.unlink()
    assert fill_store(planter, tmp_path, 1) == 1 and list(Store(tmp_path).volumes) == ["000000.npz"]


def test_volumes_that_vanish_while_a_store_is_read_are_passed_over(planter, tmp_path, monkeypatch):
    """A planter that keeps few takes them away; what is there and cannot be read is an error."""
    fill_store(planter, tmp_path, 3)
    load = np.load

    def taking(file, **options):
        if file.name == "000001.npz":
            file.unlink()
        return load(file, **options)

    monkeypatch.setattr(np, "load", taking)
    assert list(Store(tmp_path).volumes) == ["000000.npz", "000002.npz"]
    (tmp_path / "000003.npz").mkdir()
    with pytest.raises(OSError, match="000003"):
        Store(tmp_path)


@pytest.mark.slow
def test_planting_from_a_folder_of_volumes(healthy, tiny_weights, tmp_path):
    """The slices are cached in the store, and used again; planters that go on, one beside the other, agree with one alone."""
    store, alone = tmp_path / "store", tmp_path / "alone"
    common = ("train plant --region brain --data", healthy, "--model", tiny_weights["brain"])
    common = (*common, "--variants 1 --max-slices 6 --device cpu")
    for count, made in ((1, 1), (1, 0), (3, 2)):
        done = mood(*common, "--store", store, "--count", count)
        assert done.returncode == 0 and f"{made} volumes planted" in done.stdout, done.stderr
    with np.load(store / "slices.npz") as cache:
        assert len(cache["volume"]) == 6 * 12
    assert [file.name for file in stored_files(store)] == ["000000.npz", "000001.npz", "000002.npz"]
    for part in ("2/2", "1/2"):
        done = mood(*common, "--store", alone, "--count", 3, "--shard", part)
        assert done.returncode == 0, done.stderr
    for one, other in zip(stored_files(store), stored_files(alone), strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_processes_that_fill_a_store_together_make_what_one_makes(planter, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    fill_store(planter, alone, 5)
    assert [fill_store(planter, shared, 5, shard=part) for part in ((2, 2), (1, 2))] == [2, 3]
    assert fill_store(planter, shared, 5, shard=(2, 2)) == 0
    for one, other in zip(stored_files(alone), stored_files(shared), strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_batches_are_the_same_whoever_draws_them(planter, tmp_path):
    fill_store(planter, tmp_path, 2)
    store = Store(tmp_path)
    drawn = PatchBatches(store, 3, CONTEXT, PatchSettings(patch=0.6))
    ahead = BatchesAhead(drawn, workers=2)

    def agree(seed: int) -> bool:
        return all(torch.equal(a, b) for a, b in zip(ahead.batch(seed), drawn[seed], strict=True))

    assert all(agree(seed) for seed in (7, 8, 9, 30, 31))
    fill_store(planter, tmp_path, 3)
    assert store.refresh() and not store.refresh()
    ahead.begin_again()
    assert all(agree(seed) for seed in (32, 33))


def test_a_patch_is_a_part_of_a_slice(planter, tmp_path):
    """It says where it lies; turned left to right, it lies on the other side. What counts is labelled or as it was."""
    fill_store(planter, tmp_path, 2)
    store, found = Store(tmp_path), 0
    slices = {
        (name, v, z): stored.variants[v].inputs(torch.tensor([z]), (0,))[0][0, 0]
        for name, stored in store.volumes.items()
        for v in range(len(stored.variants))
        for z in range(len(stored.labels(v)))
    }
    for seed in range(12):
        patch = cut_patches(
            store,
            1,
            (0,),
            PatchSettings(patch=0.6, strides=(1,), warped=0),
            torch.Generator().manual_seed(seed),
        )
        down, right = (((patch.place[0, axis] + 1) / 2 * 39).round().long() for axis in (0, 1))
        at = [key for key, whole in slices.items() if torch.equal(whole[down, right], patch.maps[0, 0])]
        turned = [key for key, whole in slices.items() if torch.equal(whole[down, 39 - right], patch.maps[0, 0])]
        assert at or turned
        for name, v, z in at[:1] or turned[:1]:
            stored = store.volumes[name]
            columns = right if at else 39 - right
            label = stored.labels(v)[z][down, columns]
            assert torch.equal(patch.label[0] > 0, label)
            as_it_was = slices[name, v, z] == slices[name, 0, z]
            assert torch.equal(patch.counts[0] > 0, label | as_it_was[down, columns])
            found += int(label.sum())
    assert found


def test_a_patch_with_weaker_evidence_differs_in_its_residuals_and_nll_alone(planter, tmp_path):
    fill_store(planter, tmp_path, 2)
    evidence = next(iter(Store(tmp_path).volumes.values())).variants[1]
    maps, nll = evidence.inputs(torch.tensor([3]), CONTEXT)
    less, as_usual = 0, 0
    for seed in range(20):
        weakened, other = _weaker_evidence(maps, nll, CONTEXT, torch.Generator().manual_seed(seed))
        changed = (weakened != maps).any(-1).any(-1)[0].nonzero()[:, 0].tolist()
        assert changed == [c for c in residual_channels(CONTEXT) if maps[0, c].any()]
        assert torch.equal(weakened.sign(), maps.sign()) and weakened.abs().max() <= 8
        less, as_usual = less + int((other - nll).abs().max() > 0.1), as_usual + int(not other.any())
    assert less > 10 and 1 <= as_usual <= 10
    own = CONTEXT.index(0)
    restored = residual_channels(CONTEXT)[-1]
    assert torch.equal(maps[:, restored], maps[:, len(CONTEXT) + own])  # the reconstruction stands in


def test_a_patch_with_other_tones_shows_the_same_in_other_greys(planter, tmp_path):
    fill_store(planter, tmp_path, 2)
    evidence = next(iter(Store(tmp_path).volumes.values())).variants[1]
    maps, _ = evidence.inputs(torch.tensor([3]), CONTEXT)
    count, own, changes = len(CONTEXT), CONTEXT.index(0), []
    air = maps[:, :count] == 0
    none = torch.zeros_like(maps[:, own])
    for seed in range(20):
        toned, change = _other_tones(maps, none, CONTEXT, torch.Generator().manual_seed(seed))
        # The grain is no change, and nothing else was planted.
        assert change.abs().max() < 1e-5
        assert torch.equal(toned[:, -1], maps[:, -1])  # where the slice lies
        assert torch.equal(toned[:, :count] == 0, air)
        assert toned[:, residual_channels(CONTEXT)].abs().max() <= 8
        shown, before = toned[:, own][~air[:, own]], maps[:, own][~air[:, own]]
        assert np.corrcoef(shown, before)[0, 1] > 0.7
        changes.append(float((shown - before).abs().mean()))
    assert max(changes) > 5 * min(changes) > 0


def test_a_patch_knows_the_slice_before_planting(planter, tmp_path):
    fill_store(planter, tmp_path, 2)
    store, changed = Store(tmp_path), 0
    for seed in range(10):
        settings = PatchSettings(strides=(1,), warped=0, healthy=0)
        patch = cut_patches(store, 1, (0,), settings, torch.Generator().manual_seed(seed))
        before = patch.maps[0, 0] + patch.change[0]
        healthy = [stored.variants[0].slices.float() for stored in store.volumes.values()]
        boxes = [
            part.unfold(1, before.shape[0], 1).unfold(2, before.shape[1], 1)
            for part in (*healthy, *(whole.flip(-1) for whole in healthy))
        ]
        assert min(float((box - before).abs().amax((-1, -2)).min()) for box in boxes) < 1e-3
        # Nothing changes in healthy pixels that count.
        untouched = (patch.label == 0) & (patch.counts > 0)
        assert not patch.change[untouched].any()
        changed += int((patch.change[patch.label > 0] != 0).sum())
    assert changed


def test_small_anomalies_weigh_as_much_as_larger_ones():
    label = torch.zeros(2, 40, 40)
    # One of 4 pixels, one of 25, one of 400.
    label[0, 2:4, 2:4] = label[0, 10:15, 2:7] = label[1, 5:25, 5:25] = 1
    weights = small_weights(label)
    assert (weights[label == 0] == 1).all() and (weights[1] == 1).all()
    assert (weights[0, 2:4, 2:4] == MOST_WEIGHT).all() and (weights[0, 10:15, 2:7] == SMALL_AREA / 25).all()


def test_small_anomalies_weigh_more_in_patches_only_when_asked(planter, tmp_path):
    fill_store(planter, tmp_path, 2)
    plain, heavier = (
        cut_patches(Store(tmp_path), 8, (0,), PatchSettings(small=small), torch.Generator().manual_seed(3))
        for small in (False, True)
    )
    assert set(plain.counts.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(heavier.label, plain.label)
    assert torch.equal(heavier.counts, plain.counts * small_weights(plain.label))


def test_a_warped_patch_is_warped_alike(planter, tmp_path):
    """What the maps say of a place still lies where label and place say it does."""
    fill_store(planter, tmp_path, 2)
    store, seen = Store(tmp_path), 0
    for name, stored in store.volumes.items():  # the slices say where they are, and what is planted
        variants = []
        for evidence in stored.variants:
            marks = torch.zeros(evidence.slices.shape)
            marks[stored.label] = 1
            variants.append(dataclasses.replace(evidence, slices=marks + 2))
        store.volumes[name] = dataclasses.replace(stored, variants=variants)
    for seed in range(20):
        settings = PatchSettings(patch=0.8, strides=(1,), warped=1)
        patch = cut_patches(store, 1, (0,), settings, torch.Generator().manual_seed(seed))
        label, shown = patch.label[0] > 0, patch.maps[0, 0] - 2 > 0.5
        assert torch.equal(label, shown) and (patch.counts[0][label] == 1).all()
        assert patch.place.abs().max() <= 1 and patch.place.std() > 0.1
        seen += int(label.any())
    assert seen > 5


@pytest.mark.slow
def test_from_a_store_to_scores(healthy, cache, tiny_weights, tmp_path):
    """Plant, train, go on training, put the detector into the model file, predict."""
    weights, store, run = tiny_weights["brain"], tmp_path / "store", tmp_path / "run"
    common = ("--region", "brain", "--data", cache, "--model", weights, "--store", store)
    planted = mood("train plant", *common, "--count", 3, "--variants", 2)
    assert planted.returncode == 0 and "3 volumes planted" in planted.stdout, planted.stderr
    train = (
        "detector",
        *common,
        "--out",
        run,
        "--widths",
        4,
        6,
        8,
        8,
        "--context",
        *CONTEXT,
        "--batch",
        4,
        "--validation-volumes",
        2,
    )
    assert mood("train", *train, "--steps", 4).returncode == 0
    more = mood("train", *train, "--steps", 6, "--resume")
    assert more.returncode == 0, more.stderr
    rows = (run / "detector.csv").read_text().splitlines()
    assert "validation_ap" in rows[0] and rows[-1].startswith("6,")
    out = tmp_path / "brain.safetensors"
    added = mood("add-detector", run, weights, "-o", out)
    assert added.returncode == 0, added.stderr
    model = load_model(out, "cpu")
    assert model.about.detector.context == CONTEXT and model.about.pixel_method == "learned"
    volume = read_volume(sorted(healthy.iterdir())[0])
    predictor = Predictor(model)
    assert predictor.restorations == 0 and 0 < predictor.sample_score(volume) < 1
    scores = predictor.pixel_scores(volume)
    assert scores.shape == volume.data.shape and scores.max() > scores.min() >= 0
    missing = mood("train", *train, "--steps", 9, "--resume --store", tmp_path / "none")
    assert missing.returncode == 1 and "run mood-submission train plant first" in missing.stderr


def test_gas_may_become_contrast_and_fat_black():
    """The parts of CT randomisation, one at a time."""
    body = torch.full((1, 40, 40), 0.0)
    body[:, 5:35, 5:35] = 0.15  # fat
    body[:, 10:30, 10:30] = 0.5  # organs
    body[:, 18:22, 18:22] = 0.0  # gas
    apply = lambda r: randomise(body, 40, r, 0.05, torch.Generator().manual_seed(0))[0]  # noqa: E731
    filled = apply(dataclasses.replace(STILL, filled=1.0, floor=False))
    assert filled[20, 20] > 0.6 and torch.allclose(filled[12:16, 12:16], body[0, 12:16, 12:16], atol=1e-5)
    seen = [
        randomise(
            body,
            40,
            dataclasses.replace(STILL, window=1.0, floor=False),
            0.05,
            torch.Generator().manual_seed(s),
        )[0]
        for s in range(12)
    ]
    assert all(abs(float(x[14, 14]) - 0.5) < 0.06 for x in seen) and min(float(x[7, 7]) for x in seen) == 0


def test_contrast_medium_comes_and_goes_and_bone_stays():
    body = torch.full((1, 40, 40), 0.5)
    body[:, 10:20, 10:20], body[:, 25:32, 25:32] = 0.7, 0.9
    r = dataclasses.replace(STILL, enhanced=1.0, share=1.0)
    seen = [randomise(body, 40, r, 0.05, torch.Generator().manual_seed(s))[0] for s in range(20)]
    # Relative to organs, since the whole slice gets brighter or darker too.
    vessels, bones = ([float(x[at, at] / x[35, 5]) for x in seen] for at in (14, 28))
    assert min(vessels) < 1.2 and max(vessels) > 1.6
    assert all(1.6 < bone < 2 for bone in bones)


def test_a_thick_slice_shows_its_neighbours():
    slices = torch.zeros(9, 40, 40)
    slices[4, 10:30, 10:30] = 1
    r = dataclasses.replace(STILL, thick=1.2, share=1.0)
    found = randomise(slices, 40, r, 0.05, torch.Generator().manual_seed(2), together=True)
    expected = ndimage.gaussian_filter1d(slices.numpy(), 1, axis=0, mode="nearest")
    assert 0 < found[3, 20, 20] < found[4, 20, 20] < 1 and float(found[:, 20, 20].sum()) == pytest.approx(1, abs=0.1)
    assert np.corrcoef(found[:, 20, 20], expected[:, 20, 20])[0, 1] > 0.9
    # Slices of no volume have no neighbours.
    apart = randomise(slices, 40, r, 0.05, torch.Generator().manual_seed(2))
    assert not apart[[0, 1, 2, 3, 5, 6, 7, 8]].any() and apart[4, 20, 20] > 0.9


def test_a_tissue_gets_another_grey_at_some_places_alike_on_both_sides():
    ramp = torch.linspace(0.1, 0.9, 33)[:, None].expand(33, 40)
    volume = torch.full((7, 40, 40), 0.9)
    volume[:, 4:37] = ramp
    # There is nothing else to change when no share of the other changes has a size. A curve may brighten all by 8%.
    r = dataclasses.replace(STILL, tissues=0.06, share=1.0)
    found = randomise(volume, 40, r, 0.05, torch.Generator().manual_seed(4), together=True)
    factor = found[:, :, :1].amax() / 0.9
    moved = found / factor - volume
    assert torch.allclose(moved, moved.flip(-1), atol=1e-5)
    # Greys in the middle move, otherwise in one column than in another. The darkest and the brightest hardly do.
    assert float(moved[:, 16:24].abs().max()) > 0.02 and float(moved[:, 18].std(-1).max()) > 0.003
    assert float(moved[:, [4, 36, 39]].abs().max()) < 0.01
    order = found[:, 4:37].diff(dim=1)
    assert float(order.min()) > -1e-3
    # Slices of no volume stay as they are.
    apart = randomise(volume, 40, r, 0.05, torch.Generator().manual_seed(4))
    straight = (apart / apart.amax((1, 2), keepdim=True) * 0.9)[:, 6:35]
    assert torch.allclose(straight, volume[:, 6:35], atol=2e-3)


def test_arteries_are_bright_in_clefts_alone_and_on_both_sides():
    """A block of tissue with clefts of fluid in it, in air."""
    volume = torch.zeros(20, 40, 40)
    volume[2:18, 4:36, 4:36] = 0.5
    volume[2:18, 8:32, 10:14] = volume[2:18, 8:32, 26:30] = 0.2
    r = dataclasses.replace(STILL, arteries=1.0)
    seen = [
        randomise(volume, 40, r, 0.05, torch.Generator().manual_seed(seed), together=True) - volume
        for seed in range(12)
    ]
    changed = torch.stack(seen).amax(0)
    assert float(changed.max()) > 0.2 and all(float(change.min()) > -1e-5 for change in seen)
    # Nothing in the air, at the border, or far from fluid.
    assert not changed[volume == 0].any() and float(changed[:, :, 17:23].max()) < 1e-3
    assert float(changed[:, 4:6].max()) < 1e-3
    both = [(float(change[:, :, :20].max()), float(change[:, :, 20:].max())) for change in seen]
    assert all(min(sides) > 0.2 * max(sides) for sides in both if max(sides) > 0.2)
    # Slices of no volume have none.
    assert torch.allclose(randomise(volume, 40, r, 0.05, torch.Generator().manual_seed(0)), volume, atol=1e-5)


def test_a_narrow_field_of_view_and_streaks():
    body = torch.full((6, 40, 40), 0.5)
    narrow = randomise(
        body, 40, dataclasses.replace(STILL, truncated=1.0), 0.05, torch.Generator().manual_seed(0), together=True
    )
    # Whole columns of all slices are gone, at the sides only.
    gone = (narrow == 0).all(0).all(0)
    assert gone.any() and not gone[10:30].any() and torch.allclose(narrow[:, :, ~gone], body[:, :, ~gone])
    streaks = dataclasses.replace(STILL, streaks=0.3, share=2.0)
    found = randomise(body, 40, streaks, 0.05, torch.Generator().manual_seed(0), together=True)
    differs = (found - body).abs()
    assert differs.amax() > 0.02 and float(differs[0, 20].mean()) != pytest.approx(float(differs[1, 20].mean()))


def test_small_sources_are_drawn_more_often_than_their_share():
    names = [f"a{i}" for i in range(16)] + [f"b_{i}" for i in range(4)] + ["0001"]
    shares = source_shares(names)
    assert shares.sum() == pytest.approx(1)
    assert shares[:16].sum() / shares[16:20].sum() == pytest.approx(2)  # roots of 16 and 4
    assert shares[20] == pytest.approx(shares[0] * 4)
    assert [source_of(name) for name in ("ixi012", "kidney_00", "0001")] == ["ixi", "kidney", "numbered"]


def test_false_alarms_in_healthy_slices_count_in_validation(planter, tmp_path, monkeypatch):
    fill_store(planter, tmp_path, 2)
    store, stage = Store(tmp_path), DetectorStage(TINY, "float32")
    labels = {id(e): v.labels(i) for v in store.volumes.values() for i, e in enumerate(v.variants)}

    def perfect(alarms: float):
        def logits(model, evidence, index):
            label = labels[id(evidence)][index].float()
            return label * 8 - 4 + (0 if label.any() else alarms)

        return logits

    monkeypatch.setattr(stage, "logits", perfect(0))
    assert stage.validate(stage.model, store)["validation_ap"] == 1
    monkeypatch.setattr(stage, "logits", perfect(20))  # where nothing is, all is called anomalous
    assert stage.validate(stage.model, store)["validation_ap"] < 0.5
