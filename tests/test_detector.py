"""The detector: its network, what it is trained on, and the scores made of it, from training to prediction."""

import csv
import dataclasses
import json
import subprocess

import numpy as np
import pytest
import torch
from conftest import mood
from safetensors.torch import load_file, save_file
from scipy import ndimage
from sklearn.metrics import average_precision_score

from mood_submission import Predictor, load_model
from mood_submission.about import ModelError
from mood_submission.evidence.normalised import NormalisedEvidence, volume_logits
from mood_submission.evidence.smoothing import TOP_SHARE, smooth_logits
from mood_submission.lab.training.cache import build_cache, load_cache
from mood_submission.lab.training.checkpoints import load_detector
from mood_submission.lab.training.detector_stage import DetectorStage, dice
from mood_submission.lab.training.mean import mean_detector
from mood_submission.lab.training.store import Planter, PlantingSettings, Store, fill_store
from mood_submission.methods.learned import LOGIT_SCALE, ordinary_logit, sample_of, soften_logits
from mood_submission.model_file import add_detector, networks_sha256
from mood_submission.networks.detector import Detector, DetectorSettings, fitted_to
from mood_submission.preprocessing import Preprocessing
from mood_submission.running.time_budget import compute_within
from mood_submission.volumes import read_volume

pytestmark = pytest.mark.slow

TINY = DetectorSettings((4, 6, 8), context=(-1, 0, 1))


def predict(task, source, out, weights, *words) -> subprocess.CompletedProcess:
    return mood(
        "predict --region brain --task",
        task,
        "-i",
        source,
        "-o",
        out,
        "--weights",
        weights,
        "--slices 4 --device cpu",
        *words,
    )


def inputs(batch: int, size: int, code_side: int = 5, generator: int = 0) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(generator)
    shapes = [(batch, size, size)] * 3 + [(batch, code_side, code_side), (batch, 1)]
    return [torch.rand(*shape, generator=make, dtype=torch.float64) for shape in shapes]


def test_smoothing_is_scipy_s_gaussian():
    logits = torch.randn(20, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for along in (0.05, 0.0):
        settings = DetectorSettings(along=along, in_plane=0.03)
        expected = ndimage.gaussian_filter(logits.numpy(), (along * 20, 0.03 * 40, 0.03 * 40), mode="nearest")
        assert np.allclose(smooth_logits(logits, settings).numpy(), expected, atol=1e-12)
    assert smooth_logits(torch.ones(1, 4, 4), DetectorSettings()).allclose(torch.ones(1, 4, 4))


def test_scores_rise_within_0_and_1_as_float16_too():
    scores = soften_logits(torch.arange(-20.0, 16.0, 0.25)).half().numpy()
    assert (np.diff(scores) > 0).all() and 0 < scores[0] and scores[-1] < 1
    maps = torch.arange(8000.0).reshape(20, 20, 20)[torch.randperm(20)] / 1000
    plain = DetectorSettings()
    assert sample_of(maps, plain) == pytest.approx(1 / (1 + np.exp(-np.arange(7996, 8000).mean() / 1000 / 4)))
    assert round(TOP_SHARE * 8000) == 4
    assert sample_of(maps, plain) < sample_of(maps + 0.1, plain)


# --- what it is trained on -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(blobs, tmp_path_factory):
    file = tmp_path_factory.mktemp("cache") / "slices.npz"
    build_cache(blobs, file, Preprocessing.published("brain"))
    return file


@pytest.fixture(scope="module")
def store(cache, tiny_weights, tmp_path_factory):
    """Planted volumes."""
    splits, _ = load_cache(cache, "cpu", 0, 0)
    folder = tmp_path_factory.mktemp("store")
    planter = Planter(splits["train"], load_model(tiny_weights["brain"], "cpu"), PlantingSettings(variants=2))
    fill_store(planter, folder, 2)
    return Store(folder)


def test_the_loss_falls(store):
    torch.manual_seed(0)
    stage = DetectorStage(TINY, "float32")
    optimiser = torch.optim.Adam(stage.model.parameters(), 1e-2)

    def loss_of_some() -> float:
        """Of the same patches each time, which differ much from each other."""
        with torch.no_grad():
            return float(stage.loss(store, torch.arange(16), torch.Generator().manual_seed(99))[0])

    before = loss_of_some()
    for step in range(30):
        loss, told = stage.loss(store, torch.arange(4), torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss = float(loss.detach())
        assert float(told["cross_entropy"] + stage.dice * (1 - told["dice"])) == pytest.approx(loss)
    assert loss_of_some() < 0.8 * before
    measured = stage.validate(stage.model, store)
    assert 0 < measured["validation_ap"] <= 1 and 0 < measured["validation_loss"]
    logits, labels = [], []
    for stored in store.volumes.values():
        for variant, evidence in enumerate(stored.variants):
            index = torch.arange(min(1, len(stored.labels(variant)) - 1), len(stored.labels(variant)), 3)
            logits.append(stage.logits(stage.model, evidence, index)[:, ::2, ::2])
            labels.append(stored.labels(variant)[index][:, ::2, ::2])
    expected = average_precision_score(torch.cat(labels).flatten(), torch.cat(logits).flatten())
    assert measured["validation_ap"] == pytest.approx(expected, rel=0.02)


def test_dice_is_the_overlap_of_all_places_together():
    label = torch.tensor([[0.0, 1, 1, 0], [0, 0, 0, 1]])
    assert float(dice(label, label)) == 1 and float(dice(torch.zeros(2, 4), torch.zeros(2, 4))) == 1
    assert float(dice(torch.full((2, 4), 0.5), label)) == pytest.approx((2 * 1.5 + 1) / (4 + 3 + 1))


def test_weights_of_the_dice_stand_for_places_seen_so_often():
    probability, label = torch.tensor([0.2, 0.9, 0.4]), torch.tensor([0.0, 1.0, 1.0])
    twice = dice(torch.tensor([0.2, 0.9, 0.9, 0.4]), torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert float(dice(probability, label, torch.tensor([1.0, 2.0, 1.0]))) == pytest.approx(float(twice))


def test_a_detector_that_restores_learns_the_slice_before_planting(store):
    torch.manual_seed(0)
    stage = DetectorStage(dataclasses.replace(TINY, restores=True), "float32", restoring=1.0)
    optimiser = torch.optim.Adam(stage.model.parameters(), 1e-2)
    changes = []
    for _ in range(40):
        # The same patches each time.
        loss, told = stage.loss(store, torch.arange(4), torch.Generator().manual_seed(1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        changes.append(float(told["change"]))
    assert changes[-1] < 0.7 * changes[0]
    assert stage.model.joined.item() != 0


def test_a_detector_that_begins_to_restore_answers_as_before():
    torch.manual_seed(0)
    plain, restoring = Detector(TINY).eval(), Detector(dataclasses.replace(TINY, restores=True)).eval()
    restoring.load_state_dict(fitted_to(plain.state_dict(), restoring.settings))
    maps, place = torch.randn(2, 9, 40, 40), torch.randn(2, 2, 40, 40)
    nll = torch.randn(2, 3, 5, 5)
    logits, change = restoring.logits_and_change(maps, nll, place)
    assert torch.equal(logits, plain(maps, nll, place)) and change is not None and not change.any()
    assert torch.equal(restoring(maps, nll, place), logits) and plain.logits_and_change(maps, nll, place)[1] is None
    # How far the slice lies from the restored one counts as far as `joined` says.
    restoring.joined.data.fill_(2)
    restoring.change.bias.data.fill_(-3)
    assert torch.allclose(restoring(maps, nll, place), logits + 6, atol=1e-5)
    mean = mean_detector([plain, restoring])
    assert mean.settings == restoring.settings
    assert torch.allclose(mean(maps, nll, place), logits + 1.5, atol=1e-5)


@pytest.mark.parametrize("widths", [(4, 6, 12), (7, 9, 11), (4, 8, 8)])
@pytest.mark.parametrize("more", [{}, {"mirror": True, "restores": True}])
def test_a_detector_with_wider_levels_answers_as_before(widths, more):
    torch.manual_seed(0)
    narrow = Detector(TINY).eval()
    for module in narrow.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    wide = Detector(dataclasses.replace(TINY, widths=widths, **more)).eval()
    wide.load_state_dict(fitted_to(narrow.state_dict(), wide.settings))
    maps, nll, place = torch.randn(2, 9, 40, 40), torch.randn(2, 3, 5, 5), torch.randn(2, 2, 40, 40)
    read = torch.cat([maps, torch.randn(2, 2, 40, 40)], 1) if more else maps
    before = narrow(maps, nll, place)
    assert before.std() > 0.01
    assert torch.allclose(wide(read, nll, place), before, atol=1e-5)
    # What is new learns, since what reads it gets a gradient.
    wide(read, nll, place).square().sum().backward()
    for i, (a, b) in enumerate(zip(TINY.widths, widths)):
        if a < b:
            reader = wide.last if i == 0 else wide.beside[i - 1]
            assert reader[0].weight.grad[:, -(b - a) :].any()


@pytest.mark.parametrize(
    "before, after, found",
    [
        ({"widths": (4, 6, 12)}, {}, "size mismatch"),
        ({}, {"widths": (4, 5, 12)}, "size mismatch"),
        ({}, {"widths": (4, 6, 8, 8)}, "Missing key"),
        ({}, {"widths": (4, 6, 12), "context": (-2, -1, 0, 1, 2)}, "size mismatch"),
        ({"mirror": True}, {"widths": (4, 6, 12)}, "size mismatch"),
        ({"restores": True}, {"widths": (4, 6, 12)}, "Unexpected key"),
    ],
)
def test_a_detector_that_would_lose_something_or_read_something_else_is_refused(before, after, found):
    one, other = (Detector(dataclasses.replace(TINY, **more)) for more in (before, after))
    with pytest.raises(RuntimeError, match=found):
        other.load_state_dict(fitted_to(one.state_dict(), other.settings))


# --- from training to prediction -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detecting(tiny_weights, cache, tmp_path_factory):
    """The tiny brain model with a detector, trained by the script in two parts."""
    folder = tmp_path_factory.mktemp("detecting")
    held_out = "--validation 0.34 --test 0 --device cpu"
    common = ("--region brain --data", cache, "--model", tiny_weights["brain"], "--store", folder / "store")
    planted = mood("train plant", *common, "--count 2 --variants 2 --kinds uniform noise", *held_out.split())
    assert planted.returncode == 0, planted.stderr
    words = (
        "detector",
        *common,
        "--out",
        folder / "run",
        "--widths 4 6 --context -1 0 1 --batch 2",
        held_out,
    )
    for steps, more in ((2, ()), (4, ("--resume",))):
        run = mood("train", *words, "--steps", steps, *more)
        assert run.returncode == 0, run.stderr
    assert {file.name for file in (folder / "run").glob("detector*")} == {
        "detector.pt",
        "detector_best.pt",
        "detector.csv",
        "detector_curves.png",
    }
    added = mood(
        "add-detector",
        folder / "run",
        tiny_weights["brain"],
        "-o",
        folder / "brain.safetensors",
        "--along",
        0.1,
    )
    assert added.returncode == 0, added.stderr
    return folder / "brain.safetensors"


def test_the_file_says_what_the_detector_was_trained_on_and_keeps_the_rest(detecting, tiny_weights):
    before, after = load_model(tiny_weights["brain"], "cpu"), load_model(detecting, "cpu")
    assert before.detector is None and after.about.detector == dataclasses.replace(TINY, widths=(4, 6), along=0.1)
    assert networks_sha256(before) == networks_sha256(after)
    about = after.about
    assert about.pixel_method == about.sample_method == "learned"
    assert about.training["detector"]["kinds"] == ["uniform", "noise"]
    assert about.training["detector"]["steps"] == 4 and about.training["detector"]["planted_volumes"] == 2
    assert about == type(about).from_json(about.to_json())
    older = {name: value for name, value in json.loads(before.about.to_json()).items() if name != "detector"}
    assert type(about).from_json(json.dumps(older)) == before.about


@pytest.mark.parametrize("settings", [{"widths": [4, 6]}, {"widths": [4], "context": [0], "balanced": True}])
def test_an_earlier_version_s_detector_is_one_line(detecting, tmp_path, settings):
    tensors, about = load_file(detecting), json.loads(load_model(detecting, "cpu").about.to_json())
    save_file(tensors, tmp_path / "old.safetensors", {"about": json.dumps(about | {"detector": settings})})
    with pytest.raises(ModelError, match="old.safetensors: .* found: an earlier version's detector") as error:
        load_model(tmp_path / "old.safetensors", "cpu")
    assert "\n" not in str(error.value)
    older, whole = (
        load_model(tmp_path / "old.safetensors", "cpu", detector=False),
        load_model(detecting, "cpu"),
    )
    assert older.detector is None and networks_sha256(older) == networks_sha256(whole)


def test_training_starts_from_a_file_with_an_earlier_version_s_detector(detecting, cache, tmp_path):
    tensors, about = load_file(detecting), json.loads(load_model(detecting, "cpu").about.to_json())
    old = {"detector": {"widths": [4, 6]}, "training": {}}
    save_file(tensors, tmp_path / "old.safetensors", {"about": json.dumps(about | old)})
    sizes = about["vqvae"]
    run = mood(
        "train vqvae --region brain --data", cache, "--out", tmp_path / "run", "--start-from", tmp_path / "old.safetensors",
        "--channels", *sizes["channels"], "--codebook-size", sizes["codebook_size"], "--res-blocks", sizes["n_res_block"],
        "--steps 1 --batch 2 --device cpu --validation 0.34 --test 0",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_a_detector_is_trained_further(detecting, cache, tmp_path):
    words = (
        "detector --region brain --data", cache, "--model", detecting, "--store", detecting.parent / "store",
        "--context -1 0 1 --batch 2 --device cpu --validation 0.34 --test 0 --rate 0",
    )  # fmt: skip
    small = "--widths 4 6 --steps"
    expected = load_model(detecting, "cpu").detector.head[1].weight
    for source in (detecting.parent / "run", detecting):
        run = mood("train", *words, small, 1, "--start-from", source, "--out", tmp_path / source.name)
        assert run.returncode == 0, run.stderr
        detector, about = load_detector(tmp_path / source.name)
        assert about["started_from"]["steps"] == 4
        assert torch.allclose(detector.head[1].weight, expected, atol=1e-6)
    resumed = mood("train", *words, small, 2, "--resume --out", tmp_path / source.name)
    assert resumed.returncode == 0, resumed.stderr
    about = load_detector(tmp_path / source.name)[1]
    assert (about["steps"], about["started_from"]["steps"]) == (2, 4)
    start = ("--steps 1 --start-from", detecting, "--out")
    run = mood("train", *words, "--widths 4 5", *start, tmp_path / "narrower")
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and str(detecting) in run.stderr
    run = mood("train", *words, "--widths 4 8", *start, tmp_path / "wider")
    assert run.returncode == 0, run.stderr
    assert load_detector(tmp_path / "wider")[0].settings.widths == (4, 8)


def test_the_best_detector_is_kept_beside_the_last(detecting, cache, tmp_path):
    run_folder, model = tmp_path / "run", tmp_path / "model.safetensors"
    words = (
        "train detector --region brain --data", cache, "--model", detecting, "--store", detecting.parent / "store",
        "--widths 4 6 --context -1 0 1 --batch 2 --device cpu --validation 0.34 --test 0 --rate 3e-2 --validations 4",
        "--out", run_folder, "--resume --steps",
    )  # fmt: skip
    for steps in (4, 8):  # a resumed run knows how good the best was
        assert mood(*words, steps).returncode == 0
        with open(run_folder / "detector.csv", newline="") as file:
            rows = [(float(row["validation_ap"]), int(row["step"])) for row in csv.DictReader(file)]
        (best, about), (_, last) = (load_detector(run_folder, best) for best in (True, False))
        assert about["steps"] == max(rows, key=lambda row: row[0])[1] and last["steps"] == steps
        assert about["planted_volumes"] == last["planted_volumes"] == 2
    done = mood("add-detector", run_folder, detecting, "-o", model, "--best")
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_model(model, "cpu").detector.head[1].weight, best.head[1].weight)
    (run_folder / "detector_best.pt").unlink()  # of a run of an earlier version
    done = mood("add-detector", run_folder, detecting, "-o", model, "--best")
    assert done.returncode == 1 and "expected a trained detector_best, found no such file" in done.stderr


def test_the_mean_of_two_runs_and_a_file(detecting, cache, tmp_path):
    """Each parameter is the mean; the file says of what."""
    start = detecting.parent / "run"
    words = (
        "train detector --region brain --data", cache, "--model", detecting, "--store", detecting.parent / "store",
        "--batch 2 --device cpu --validation 0.34 --test 0 --validations 1 --steps 2 --start-from", start, "--widths 4 6",
    )  # fmt: skip
    for seed in (1, 2):
        done = mood(*words, "--context -1 0 1 --seed", seed, "--out", tmp_path / str(seed))
        assert done.returncode == 0, done.stderr
    out, add = tmp_path / "model.safetensors", ("add-detector", tmp_path / "1", detecting)
    done = mood(*add, "--mean-with", tmp_path / "2", detecting, "-o", out)
    assert done.returncode == 0, done.stderr
    parts = [load_detector(tmp_path / seed)[0] for seed in "12"] + [load_model(detecting, "cpu").detector]
    mean = load_model(out, "cpu")
    for name, found in mean.detector.state_dict().items():
        if found.is_floating_point():
            values = torch.stack([part.state_dict()[name] for part in parts])
            assert torch.allclose(found, values.mean(0), rtol=1e-6, atol=1e-8), name
    about = mean.about.training["detector"]
    assert [part["schedule"]["seed"] for part in (about, *about["mean_with"])] == [1, 2, 0]
    refused = mood(*add, "--mean-with", tmp_path / "none", "-o", tmp_path / "not")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "detector.pt" in refused.stderr
    wide = Detector(dataclasses.replace(parts[0].settings, widths=(4, 8)))
    with pytest.raises(ValueError, match="same widths and context"):
        mean_detector([parts[0], wide])


def test_a_detector_learns_of_several_stores(detecting, cache, tmp_path):
    """Its metadata tells of all. Each must be there, and of the same networks."""
    plant = (
        "train plant --region brain --data",
        cache,
        "--device cpu --validation 0.34 --test 0 --count 2 --variants 1",
    )
    done = mood(
        *plant, "--model", detecting, "--store", tmp_path / "small", "--kinds spots --radii 0.02 0.1 --together 2"
    )
    assert done.returncode == 0, done.stderr
    words = (
        "train detector --region brain --data", cache, "--model", detecting, "--store", detecting.parent / "store",
        "--widths 4 6 --context -1 0 1 --batch 2 --device cpu --validation 0.34 --test 0 --validations 1 --steps 2",
    )  # fmt: skip
    done = mood(*words, "--also", tmp_path / "small", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    _, about = load_detector(tmp_path / "run")
    assert {"spots", "uniform", "noise"} <= set(about["kinds"]) and about["planted_volumes"] > 2
    assert [(further["kinds"], further["radii"], further["together"]) for further in about["also"]] == [
        (["spots"], [0.02, 0.1], 2)
    ]
    with open(tmp_path / "run" / "detector.csv", newline="") as file:
        volumes = [float(row["volumes"]) for row in csv.DictReader(file)]
    assert volumes[-1] == about["planted_volumes"] == len(Store(detecting.parent / "store")) + 2
    store = detecting.parent / "store"
    for also, found in (
        ([tmp_path / "none"], f"{tmp_path / 'none'}: expected planted volumes, found none"),
        ([tmp_path / "small", tmp_path / "small"], "--also: expected each store once"),
        ([store], "--also: expected each store once"),
        ([store / "validation"], f"{store / 'validation'}: expected a store to train on, found one for validation"),
    ):
        done = mood(*words, "--also", *also, "--out", tmp_path / "other")
        assert done.returncode == 1 and found in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = mood(*words[:-1], words[-1].replace("--steps 2", "--steps 3"), "--resume --out", tmp_path / "run")
    assert done.returncode == 1 and "expected the further stores (--also) that it was trained on" in done.stderr
    done = mood(*words, "--resume --out", tmp_path / "run")
    assert done.returncode == 0 and load_detector(tmp_path / "run")[1] == about  # no step was left


def test_planting_tells_where_nothing_could_be_planted(detecting, cache, tmp_path):
    plant = "train plant --region brain --device cpu --validation 0.34 --test 0 --count 1 --variants 1 --kinds uniform"
    done = mood(plant, "--data", cache, "--model", detecting, "--store", tmp_path, "--radii 0.0001 0.0001")
    assert done.returncode == 0 and "1 volumes planted; in 1 of the store's nothing was" in done.stderr + done.stdout


def test_kinds_that_are_not_trained_on_choose_the_best(detecting, cache, tmp_path):
    stored = detecting.parent / "store"
    words = (
        "train detector --region brain --data", cache, "--model", detecting, "--store", stored, "--out", tmp_path,
        "--widths 4 6 --context -1 0 1 --batch 2 --device cpu --validation 0.34 --test 0 --rate 3e-2 --validations 4",
        "--steps 4 --unseen uniform",
    )  # fmt: skip
    done = mood(*words)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "detector.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert all(0 < row["unseen_ap"] <= 1 and 0 < row["seen_ap"] <= 1 for row in rows)
    _, about = load_detector(tmp_path, best=True)
    assert about["steps"] == max(rows, key=lambda row: row["unseen_ap"])["step"]
    assert about["kinds"] == ["noise"] and about["unseen"] == ["uniform"]
    shown = [kind for volume in Store(stored, without=["uniform"]).volumes.values() for kind in volume.kinds]
    every = [kind for volume in Store(stored).volumes.values() for kind in volume.kinds]
    assert shown == [kind for kind in every if "uniform" not in kind] and len(shown) < len(every)
    done = mood(*words[:-1], "--steps 4 --unseen texture swirl")  # which validation does not show
    assert done.returncode == 1 and "--unseen: expected one of uniform, add," in done.stderr


def test_scores_are_the_steps_one_by_one(detecting, blobs):
    model = load_model(detecting, "cpu")
    predictor = Predictor(model, slice_count=6, restorations=3)
    volume = read_volume(blobs / "case_2.nii.gz")
    p = predictor.prepare(volume)
    codes = model.encode(p.slices, p.position)
    nll, decoded = model.nll(codes, p.position), model.decode(codes, p.position)
    restored = model.restore(
        codes,
        p.position,
        predictor.uniforms("case_2.nii.gz", p.indices, codes.shape[1:]),
        model.about.pixel_threshold,
    )
    mean = torch.stack([model.decode(restored[:, s], p.position) for s in range(3)]).mean(0)
    logits = smooth_logits(
        volume_logits(model, NormalisedEvidence.of(p.slices, decoded, mean, nll, p.position)),
        model.about.detector,
    )
    expected = predictor.to_volume(p, torch.sigmoid(logits / 4))
    scores = predictor.pixel_scores(volume)
    assert np.allclose(scores, expected, atol=1e-6) and 0 < scores.min() and scores.max() < 1 and scores.std() > 0
    unsampled = smooth_logits(
        volume_logits(model, NormalisedEvidence.of(p.slices, decoded, decoded, nll, p.position)),
        model.about.detector,
    )
    top = float(unsampled.flatten().topk(max(1, round(TOP_SHARE * unsampled.numel()))).values.mean())
    assert predictor.sample_score(volume) == pytest.approx(1 / (1 + np.exp(-top / 4)), abs=1e-6)


def test_without_restorations_nothing_is_drawn(detecting, blobs, tmp_path, monkeypatch):
    model = load_model(detecting, "cpu")
    volume = read_volume(blobs / "case_2.nii.gz")
    p = Predictor(model, slice_count=9).prepare(volume)
    codes = model.encode(p.slices, p.position)
    nll, decoded = model.nll(codes, p.position), model.decode(codes, p.position)
    expected = smooth_logits(
        volume_logits(model, NormalisedEvidence.of(p.slices, decoded, decoded, nll, p.position)),
        model.about.detector,
    )
    monkeypatch.setattr(model, "restore", None)
    predictor = Predictor(model, slice_count=9, restorations=0)
    assert torch.allclose(predictor.compute(p, "pixel").pixel, torch.sigmoid(expected / 4), atol=1e-6)
    within = compute_within(predictor, p, "pixel", 1e6)
    assert torch.equal(within.scored.pixel, predictor.compute(p, "pixel").pixel) and within.restorations == 0
    assert len(compute_within(predictor, p, "pixel", 1e-6).prepared.indices) == 8
    with pytest.raises(ModelError, match="restoration for the method paper, found 0"):
        Predictor(model, restorations=0, pixel_method="paper")
    run = predict("pixel", blobs, tmp_path, detecting, "--restorations 0 --pixel-method paper")
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "restoration" in run.stderr
    run = predict("pixel", blobs, tmp_path, detecting, "--restorations 0 --report", tmp_path / "report.json")
    assert run.returncode == 0, run.stderr
    assert {volume["restorations"] for volume in json.loads((tmp_path / "report.json").read_text())["volumes"]} == {0}


def test_a_detector_brings_its_default_number_of_restorations(detecting, tmp_path):
    assert Predictor(load_model(detecting, "cpu")).restorations == 0
    added = mood(
        "add-detector",
        detecting.parent / "run",
        detecting,
        "-o",
        tmp_path / "brain.safetensors",
        "--restorations",
        7,
    )
    assert added.returncode == 0, added.stderr
    model = load_model(tmp_path / "brain.safetensors", "cpu")
    assert Predictor(model).restorations == 7 and Predictor(model, restorations=4).restorations == 4
    assert Predictor(model, pixel_method="paper").restorations == 15


def test_the_command_line_takes_the_methods(detecting, blobs, tmp_path):
    for task, ending in (("pixel", ""), ("sample", ".txt")):
        run = predict(task, blobs, tmp_path / task, detecting, "--restorations 2")
        assert run.returncode == 0, run.stderr
        assert {file.name for file in (tmp_path / task).iterdir()} == {f"case_{i}.nii.gz{ending}" for i in range(3)}


def test_another_model_s_detector_is_refused(detecting, tiny_weights, tmp_path):
    run = mood("add-detector", detecting.parent / "run", tiny_weights["abdom"], "-o", tmp_path / "out.safetensors")
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and "trained with others" in run.stderr
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("option", ["pixel_method", "sample_method"])
def test_a_model_without_a_detector_says_so(tiny_weights, option):
    model = load_model(tiny_weights["brain"], "cpu")
    with pytest.raises(ModelError, match="train detector"):
        Predictor(model, **{option: "learned"})
    with pytest.raises(ModelError, match="detector"):
        volume_logits(model, NormalisedEvidence.of(*(x.float() for x in inputs(1, 160, 20))))


def test_the_cpu_copy_has_the_detector_too(detecting):
    model = load_model(detecting, "cpu")
    maps = [x.float() for x in inputs(2, 160, 20)]
    model.reread = None
    assert torch.equal(
        volume_logits(model.on_cpu(), NormalisedEvidence.of(*maps)),
        volume_logits(model, NormalisedEvidence.of(*maps)),
    )


def test_parameters_too_large_for_half_precision_are_refused(detecting, tmp_path):
    model = load_model(detecting, "cpu")
    model.detector.fine[1].running_var.fill_(1e5)
    with pytest.raises(ValueError, match="running_var"):
        add_detector(detecting, tmp_path / "out", model.detector, model.about, torch.float16)
    add_detector(detecting, tmp_path / "out", model.detector, model.about)
    assert float(load_model(tmp_path / "out", "cpu").detector.fine[1].running_var[0]) == 1e5


def test_a_volume_s_scores_do_not_depend_on_the_others_in_the_folder(detecting, blobs, tmp_path):
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "case_1.nii.gz").write_bytes((blobs / "case_1.nii.gz").read_bytes())
    for task, ending in (("pixel", ""), ("sample", ".txt")):
        for source in (blobs, tmp_path / "alone"):
            run = predict(task, source, tmp_path / task / source.name, detecting, "--restorations 2")
            assert run.returncode == 0, run.stderr
        one, other = (
            tmp_path / task / source.name / f"case_1.nii.gz{ending}" for source in (blobs, tmp_path / "alone")
        )
        assert one.read_bytes() == other.read_bytes()


QUANTILES = ((0.0, 0.0), (0.9, 0.0), (0.9, 0.6))


def test_a_large_anomaly_does_not_score_lower_than_a_small_one():
    """The ordinary logits of a volume count as far as healthy volumes have such."""
    quiet = torch.randn(6, 40, 40, generator=torch.Generator().manual_seed(0)) / 2 - 6
    settings = DetectorSettings(ordinary_quantile=0.95, ordinary_spread_quantile=0.76)
    healthy = [ordinary_logit(quiet, settings) - 0.5, ordinary_logit(quiet, settings) + 0.5]
    scores = {bounds: [] for bounds in (None, tuple(healthy))}
    for side in (4, 8, 16, 24, 32):
        planted = quiet.clone()
        planted[:, :side, :side] += 9
        for bounds, found in scores.items():
            found.append(sample_of(planted, settings, bounds))
    bounded = scores[tuple(healthy)]
    assert min(scores[None][-2:]) < sample_of(quiet, settings) + 0.1  # a large one hides itself without bounds
    assert all(later > earlier - 0.02 for earlier, later in zip(bounded, bounded[1:]))
    assert min(bounded) > sample_of(quiet, settings, healthy) + 0.3
    assert sample_of(quiet, settings, healthy) == sample_of(quiet, settings)
    assert sample_of(quiet, settings, healthy, strange=3.0) > sample_of(quiet, settings, healthy) + 0.1


def test_what_is_high_all_over_does_not_score_high():
    logits = torch.randn(6, 40, 40, generator=torch.Generator().manual_seed(0)) - 3
    planted = logits.clone()
    planted[2, 10:14, 10:14] += 8
    plain, level, width = (DetectorSettings(ordinary_quantile=a, ordinary_spread_quantile=b) for a, b in QUANTILES)
    assert sample_of(logits + 2, plain) > sample_of(logits, plain)
    assert sample_of(logits + 2, level) == pytest.approx(sample_of(logits, level), abs=1e-6)
    assert sample_of(planted, level) > sample_of(logits, level) + 0.1
    # one scan's logits spread twice as wide as another's: its highest are as far above its own ordinary ones in its own measure
    high, low = np.quantile(logits[:, ::2, ::2].numpy(), (0.9, 0.6))
    highest = logits.flatten().sort().values[-5:].mean()  # of 9600
    assert sample_of(logits, width) == pytest.approx(
        float(torch.sigmoid((highest - high - (high - low)) / LOGIT_SCALE)), abs=1e-6
    )
    rise = [sample_of(2 * logits, settings) - sample_of(logits, settings) for settings in (level, width)]
    assert rise[1] < 0.8 * rise[0]
    assert sample_of(planted, width) > sample_of(logits, width) + 0.1
    with pytest.raises(
        ValueError, match="expected an ordinary_spread_quantile below the ordinary_quantile 0.9, found 0.95"
    ):
        DetectorSettings(ordinary_quantile=0.9, ordinary_spread_quantile=0.95)


def test_both_tasks_in_one_go_score_as_each_alone_with_a_detector_too(detecting, blobs, tmp_path):
    """The sample score is made without restorations, also where the pixel scores have some."""
    for task in ("sample", "pixel", "both"):
        run = predict(task, blobs, tmp_path / task, detecting, "--restorations 2")
        assert run.returncode == 0, run.stderr
    for file in (tmp_path / "both").iterdir():
        task = "sample" if file.suffix == ".txt" else "pixel"
        assert (tmp_path / task / file.name).read_bytes() == file.read_bytes()


def test_a_detector_s_scores_are_measured_apart_from_the_rarity_tables(detecting, blobs, tmp_path):
    out = tmp_path / "out.safetensors"
    words = ("calibrate", detecting, "--data", blobs, "-o", out, "--slices 4 --device cpu --restorations")
    assert mood(*words, 1).returncode == 0
    before = load_model(out, "cpu").about
    assert mood("calibrate", out, "--data", blobs, *words[4:5], out, *words[6:], 0).returncode == 0
    after = load_model(out, "cpu").about
    assert set(before.healthy_voxels) == {"paper", "rarity", "learned"} == set(after.healthy_voxels)
    assert after.rarity_tables == before.rarity_tables
    assert after.training["calibration"] == before.training["calibration"]
    assert after.training["healthy_scores"]["restorations"] == 0
