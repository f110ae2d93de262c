"""Training from a folder of volumes to a model file that predicts: tiny networks, a few steps, killed and resumed."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, mood, words_of, write_two_sources

from mood_submission import load_model
from mood_submission.cli import main
from mood_submission.lab.training.augment import Augmentation, augment_geometry, augment_intensity
from mood_submission.lab.training.cache import (
    CacheError,
    build_cache,
    load_cache,
    pixels_of,
    split_names,
)
from mood_submission.lab.training.checkpoints import load_prior, load_vae, load_vqvae
from mood_submission.lab.training.prior_stage import nll_percentiles
from mood_submission.lab.training.trainer import Budget, Schedule
from mood_submission.lab.training.vqvae_stage import VQVAEStage
from mood_submission.networks.vae import divergence
from mood_submission.networks.vqvae import VQVAESettings
from mood_submission.preprocessing import (
    Preprocessing,
    intensity_statistics,
    normalise,
    relative_positions,
    slice_indices,
    volume_to_slices,
)
from mood_submission.runtime.files import exclusive_lock
from mood_submission.volumes import named_volumes, read_volume, source_at

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """Ten small volumes from two sources."""
    return write_two_sources(tmp_path_factory.mktemp("healthy"), 10)


@pytest.fixture(scope="module")
def cache(healthy, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("cache") / "slices.npz"
    build_cache(healthy, file, Preprocessing.published("brain"))
    return file


TINY_VQVAE = ("--channels", 4, 4, 4, 8, "--codebook-size", 12, "--res-blocks", 1, "--batch", 4)
TINY_PRIOR = ("--prior-channels", 8, "--blocks", 1, "--res-blocks", 1, "--batch", 4)


def test_both_stages_export_a_model_that_predicts(healthy, tmp_path):
    run = tmp_path / "run"
    common = ("--region", "brain", "--data", healthy, "--out", run, "--device", "cpu")
    for stage, sizes in (("vqvae", TINY_VQVAE), ("prior", TINY_PRIOR)):
        done = mood("train", stage, *common, "--steps", 3, *sizes)
        assert done.returncode == 0, done.stderr
        assert {p.name for p in run.glob(f"{stage}*")} == {
            f"{stage}{end}" for end in (".pt", ".csv", "_curves.png", "_pictures.png")
        }
    with open(run / "vqvae.csv") as log:
        rows = list(csv.DictReader(log))
    assert rows[-1]["step"] == "3" and {"l1", "validation_l1", "codes_used", "perplexity"} <= set(rows[0])
    out = tmp_path / "brain.safetensors"
    exported = mood("export", run, "-o", out, "--data", Path("made up"), "--licence CC0-1.0")
    assert exported.returncode == 0, exported.stderr
    model = load_model(out, device="cpu")
    about = model.about
    assert 0 < about.pixel_threshold < about.sample_threshold
    assert about.training["data"] == "made up" and about.training["licence"] == "CC0-1.0"
    assert about.training["prior"]["slices_seen"] == 12 and about.training["vqvae"]["revision"]
    assert not set(about.training["vqvae"]["volumes"]["train"]) & set(about.training["vqvae"]["volumes"]["test"])
    codes = model.encode(torch.zeros(1, 160, 160), torch.zeros(1, 1))
    assert model.nll(codes, torch.zeros(1, 1)).shape == (1, 20, 20)
    again = mood("train vqvae", *common, "--steps", 3, *TINY_VQVAE)
    assert again.returncode == 1 and "--resume" in again.stderr and again.stderr.count("\n") == 1


@pytest.mark.parametrize("flags, precision", [("avx2 avx512_bf16", "bf16"), ("avx2", "float32")])
def test_precision_is_what_the_processor_is_fast_in_and_stands_in_the_run(
    flags, precision, cache, tmp_path, monkeypatch
):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr("mood_submission.runtime.processor.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    seen = set()
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: seen.add(k["enabled"]) or autocast(*a, **k))
    words = ("vqvae --region brain --device cpu --steps 1 --data", cache, "--out", tmp_path / "run", *TINY_VQVAE)
    assert mood("train", *words).returncode == 0
    about = json.loads(torch.load(tmp_path / "run" / "vqvae.pt", weights_only=True)["about"])
    assert about["schedule"]["precision"] == precision and seen == {precision == "bf16"}


def test_vae_is_trained_beside_them(cache, tmp_path):
    words = (
        "vae",
        "--region",
        "brain",
        "--data",
        cache,
        "--out",
        tmp_path,
        "--device",
        "cpu",
        "--batch",
        4,
        "--channels",
        4,
        4,
        4,
        8,
        "--latent",
        6,
        "--res-blocks",
        1,
    )
    done = mood("train", *words, "--steps", 3)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.glob("vae*")} == {
        f"vae{end}" for end in (".pt", ".csv", "_curves.png", "_pictures.png")
    }
    vae, about = load_vae(tmp_path)
    slices, position = torch.randn(2, 160, 160), torch.zeros(2, 1)
    mean, log_variance = vae.encode(slices, position)
    assert mean.shape == log_variance.shape == (2, 6) and about["slices_seen"] == 12
    assert vae.reconstruct(slices, position).shape == slices.shape
    assert torch.equal(vae.reconstruct(slices, position), vae.decode(mean, position))


def test_divergence_is_that_of_two_normal_distributions():
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    own = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(divergence(mean, log_variance), expected, atol=1e-5)


def test_training_starts_from_another_run_or_a_model_file(cache, tmp_path):
    common = ("--region", "brain", "--data", cache, "--device", "cpu", "--rate", 0)
    first = tmp_path / "first"
    for stage, sizes in (("vqvae", TINY_VQVAE), ("prior", TINY_PRIOR)):
        assert mood("train", stage, *common, "--steps", 2, *sizes, "--out", first).returncode == 0
    assert mood("export", first, "-o", tmp_path / "model.safetensors", "--dtype float32").returncode == 0
    expected = load_model(tmp_path / "model.safetensors", device="cpu")
    for source in (first, tmp_path / "model.safetensors"):  # at a rate of 0 the second run ends as it began
        run = tmp_path / f"from_{source.name}"
        for stage, sizes in (("vqvae", TINY_VQVAE), ("prior", TINY_PRIOR)):
            done = mood("train", stage, *common, "--steps", 1, *sizes, "--out", run, "--start-from", source)
            assert done.returncode == 0, done.stderr
        assert torch.equal(load_vqvae(run)[0].codebook, expected.vqvae.codebook)
        prior, about = load_prior(run)
        assert (about["steps"], about["started_from"]["steps"]) == (1, 2) and "volumes" not in about["started_from"]
        for name, value in prior.state_dict().items():
            assert torch.allclose(value, expected.prior.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize(
    "stage, sizes", [("vqvae", ("--channels", 4, 4, 4, 16)), ("vqvae", ("--stem-padding", 0)), ("vae", ())]
)
def test_starting_from_other_sizes_is_refused_in_one_line(cache, tiny_weights, tmp_path, stage, sizes):
    words = ("--region brain --data", cache, "--out", tmp_path / "run", "--device cpu --steps 1", *sizes)
    done = mood("train", stage, *words, "--start-from", tiny_weights["brain"])
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and str(tiny_weights["brain"]) in done.stderr
    assert not (tmp_path / "run" / f"{stage}.pt").exists()


def test_a_run_killed_and_resumed_ends_as_one_that_was_not(cache, tmp_path):
    """Steps 0-3 and 4-7 in two processes against 0-7 in one: the same weights, bit for bit."""
    base = ("vqvae", "--region", "brain", "--data", cache, "--device", "cpu", *TINY_VQVAE)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert mood("train", *base, "--out", whole, "--steps", 8).returncode == 0
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'train.py'\n"
        "from mood_submission.lab.training import trainer\n"
        "inner = trainer.Trainer._step\n"
        "def step(self, *a):\n"
        "    if self.step == 4: self.save(); import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return inner(self, *a)\n"
        "trainer.Trainer._step = step\n"
        f"import runpy; runpy.run_path({str(ROOT / 'scripts' / 'train.py')!r}, run_name='__main__')\n"
    )
    words = [*map(str, base), "--out", str(parts), "--steps 8"]
    assert subprocess.run([sys.executable, "-c", code, *words_of(*words)]).returncode == -signal.SIGKILL
    assert mood("train", *base, "--out", parts, "--steps", 8, "--resume").returncode == 0
    one, two = (torch.load(folder / "vqvae.pt", weights_only=True) for folder in (whole, parts))
    assert one["step"] == two["step"] == 8
    for part in ("model", "average"):
        assert all(torch.equal(value, two[part][name]) for name, value in one[part].items())


def test_a_resumed_run_keeps_the_revision_of_the_code_that_took_its_steps(cache, tmp_path):
    words = ("vqvae --region brain --data", cache, "--out", tmp_path, "--device cpu --resume", *TINY_VQVAE)
    assert mood("train", *words, "--steps", 2).returncode == 0
    stored = torch.load(tmp_path / "vqvae.pt", weights_only=True)
    own = json.loads(stored["about"])["revision"]
    torch.save(
        stored | {"about": json.dumps(json.loads(stored["about"]) | {"revision": "older"})},
        tmp_path / "vqvae.pt",
    )
    # Only a step adds a revision.
    for steps, expected in ((2, "older"), (3, f"older, {own}"), (3, f"older, {own}")):
        assert mood("train", *words, "--steps", steps).returncode == 0
        assert json.loads(torch.load(tmp_path / "vqvae.pt", weights_only=True)["about"])["revision"] == expected


def test_killed_at_any_moment_it_resumes(cache, tmp_path):
    """A kill while a checkpoint is being written leaves the one before it."""
    words = ("vqvae --region brain --data", cache, "--out", tmp_path, "--device cpu --resume", *TINY_VQVAE)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from mood_submission.lab.training import trainer\n"
        "from functools import partialmethod\n"
        "trainer.Trainer.train = partialmethod(trainer.Trainer.train, save_seconds=0)\n"
        f"import runpy; runpy.run_path({str(ROOT / 'scripts' / 'train.py')!r}, run_name='__main__')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words_of(*words), "--steps", "100000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "vqvae.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    step = torch.load(tmp_path / "vqvae.pt", weights_only=True)["step"]
    done = mood("train", *words, "--steps", step + 2)
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "vqvae.pt", weights_only=True)["step"] == step + 2


def test_cached_slices_are_what_prediction_sees(healthy, cache):
    splits, names = load_cache(cache)
    preprocessing = Preprocessing.published("brain")
    data = splits["train"]
    path = healthy / f"{names['train'][0]}.nii.gz"
    volume = read_volume(path)
    indices = slice_indices(volume.data.shape[2])
    rounded = np.round(volume.data * 255) / np.float32(255)  # uint8 in the cache
    expected = normalise(
        volume_to_slices(rounded, volume.spacing, indices, preprocessing),
        *intensity_statistics(volume.data, preprocessing),
        preprocessing,
    )
    index = torch.arange(len(indices))
    slices, position = data.plain(index)
    assert torch.allclose(slices, expected, atol=1e-4)
    assert np.array_equal(position.numpy(), relative_positions(indices, volume.data.shape[2]))


def test_split_is_by_volume_and_source_and_fixed_by_the_names():
    names = [f"kidney_{i}" for i in range(20)] + [f"pancreas_{i}" for i in range(10)]
    split = split_names(names, 0.1, 0.1)
    assert sorted(sum(split.values(), [])) == sorted(names)
    assert split == split_names(names[::-1], 0.1, 0.1)
    for part, counts in (("validation", (2, 1)), ("test", (2, 1)), ("train", (16, 8))):
        assert tuple(sum(n.startswith(s) for n in split[part]) for s in ("kidney", "pancreas")) == counts


def test_named_volumes_are_held_out_and_all_others_are_trained_on(healthy, tmp_path):
    held_out = list(named_volumes(healthy))[3:5]
    words = ("train cache --region brain --data", healthy, "-o", tmp_path / "slices.npz", "--hold-out")
    done = mood(*words, *held_out)
    assert done.returncode == 0, done.stderr
    names = load_cache(tmp_path / "slices.npz")[1]
    assert names["validation"] == held_out and names["test"] == [] and len(names["train"]) == 8
    none = mood(*words, "nobody*")
    assert none.returncode == 1 and "nobody*" in none.stderr and none.stderr.count("\n") == 1


def test_no_volume_is_in_two_splits(cache):
    splits, _ = load_cache(cache)
    members = [set(data.volume.tolist()) for data in splits.values()]
    assert not (members[0] & members[1] or members[0] & members[2] or members[1] & members[2])


def test_what_is_no_device_is_refused_in_one_line(cache, tmp_path):
    done = mood("train vqvae --region brain --data", cache, "--out", tmp_path, "--steps 1 --device nonsense")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "found nonsense" in done.stderr


def test_places_that_cannot_be_written_to_are_told_in_one_line(healthy, cache, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for words in (
        ("train cache --region brain --data", healthy, "-o", tmp_path / "file" / "c.npz"),
        ("train vqvae --region brain --data", cache, "--out", tmp_path / "file", "--steps 1"),
    ):
        done = mood(*words)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and str(tmp_path / "file") in done.stderr


def test_what_is_not_a_cache_is_named(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    for name in ("bad.npz", "absent.npz"):
        with pytest.raises(CacheError, match=name):
            load_cache(tmp_path / name)


def test_slices_stay_in_their_file_and_older_caches_are_read_too(cache, tmp_path, monkeypatch):
    with np.load(cache) as stored:
        arrays = dict(stored) | {"slices": np.load(pixels_of(cache))}
    older = {name: value for name, value in arrays.items() if name != "filled"}
    np.savez_compressed(tmp_path / "oldest.npz", **older)
    np.savez(tmp_path / "older.npz", **arrays)
    with monkeypatch.context() as patch:
        modes = []
        load = np.load
        patch.setattr(np, "load", lambda *a, **k: modes.append(k.get("mmap_mode")) or load(*a, **k))
        splits = load_cache(cache)[0]
        assert modes == [None, "c"]
    assert len({data.slices.data_ptr() for data in splits.values()}) == 1  # nothing is copied
    for split, data in splits.items():
        for file in ("oldest.npz", "older.npz"):
            before = load_cache(tmp_path / file)[0][split]
            index = torch.arange(len(data))
            assert torch.equal(data.raw(index), before.raw(index)) and torch.equal(data.filled, before.filled)
            assert data.order(4, 1)(3).tolist() == before.order(4, 1)(3).tolist()


def test_a_cache_is_refused_beside_another_s_slices_and_without_its_own(cache, tmp_path):
    file = tmp_path / "slices.npz"
    shutil.copy(cache, file)
    with pytest.raises(CacheError, match="slices.npy: expected a slice cache, found no such file"):
        load_cache(file)
    np.save(pixels_of(file), np.load(pixels_of(cache))[:-1])
    with pytest.raises(CacheError, match="slices.npy: expected the .* slices of slices.npz"):
        load_cache(file)


def test_a_broken_volume_is_named_and_left_out_of_the_cache(healthy, tmp_path):
    folder = tmp_path / "volumes"
    shutil.copytree(healthy, folder)
    broken = sorted(folder.iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:100])
    done = mood("train cache --region brain --data", folder, "-o", tmp_path / "slices.npz")
    assert done.returncode == 0 and f"left out: {broken}" in done.stderr
    names = sum(load_cache(tmp_path / "slices.npz")[1].values(), [])
    assert len(names) == 9 and source_at(broken).name not in names
    for file in folder.iterdir():
        file.write_bytes(b"nothing")
    none = mood("train cache --region brain --data", folder, "-o", tmp_path / "none.npz")
    assert none.returncode == 1 and "found none of 10 files readable" in none.stderr


def test_batches_cover_every_filled_slice_once_an_epoch(cache):
    splits, _ = load_cache(cache)
    order = splits["train"].order(4, seed=3)
    drawn = torch.cat([order(step) for step in range(order.length)])[: order.length * 4]
    counts = torch.bincount(drawn, minlength=len(splits["train"]))
    assert (counts[splits["train"].filled] == 4).all()
    assert torch.equal(splits["train"].order(4, seed=3)(7), order(7))  # a function of the step


def test_augmentation_keeps_air_and_is_seeded():
    slices = torch.zeros(4, 40, 40)
    slices[:, 10:30, 8:26] = 0.6
    a = Augmentation()
    one, two = (augment_geometry(slices, 48, a, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (4, 48, 48) and 0 <= one.min() and one.max() <= 0.6 + 1e-6
    assert not torch.allclose(one[0], one[1])
    air = one < 0.05
    changed = augment_intensity(one, air, a, torch.Generator().manual_seed(6))
    assert torch.equal(changed[air], one[air]) and torch.isfinite(changed).all()
    still = Augmentation(scale=(0, 0), degrees=0, shift=0, elastic=0, flip=0)
    assert torch.allclose(augment_geometry(slices, 40, still, torch.Generator()), slices, atol=1e-5)


def test_unused_codes_are_restarted_from_the_data(cache):
    splits, _ = load_cache(cache)
    stage = VQVAEStage(VQVAESettings((4, 4, 4, 8), 12, 1), Augmentation(), "float32", restart_every=1)
    stage.loss(splits["train"], torch.arange(4), torch.Generator())
    with torch.no_grad():
        stage.model.codebook[3:] = 1e6  # codes that nothing is near to
    stage.usage.zero_()
    stage.loss(splits["train"], torch.arange(4), torch.Generator())
    most_used = int(stage.usage.argmax())
    alive = stage.model.codebook[most_used].clone()
    stage.after_step(1, progress=0.5)
    assert (stage.model.codebook.abs() < 1e3).all() and stage.usage.sum() == 0
    assert torch.equal(stage.model.codebook[most_used], alive)
    with torch.no_grad():
        stage.model.codebook[3:] = 1e6
    stage.after_step(2, progress=0.9)  # near the end they are left alone
    assert (stage.model.codebook[3:] == 1e6).all()


def test_schedule_and_budget():
    assert Budget(minutes=2).progress(10**6, 60) == 0.5 and Budget(steps=8).progress(4, 10**6) == 0.5
    schedule = Schedule(rate=1.0, warmup=0.1)
    rates = [schedule.rate_at(p / 100) for p in range(101)]
    assert rates[0] < 0.05 and max(rates) == pytest.approx(1.0) and rates[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:]))


def test_thresholds_are_percentiles():
    low, high = nll_percentiles(torch.arange(1000.0).view(10, 10, 10))
    assert (low, high) == (900, 980)


def test_training_imports_neither_nibabel_nor_simpleitk():
    code = (
        "import sys; sys.modules['nibabel'] = sys.modules['SimpleITK'] = None\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import mood_submission.lab.training.run, mood_submission.lab.training.plots"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_two_processes_never_train_one_network_in_a_folder(cache, tmp_path, monkeypatch):
    """Such as one whose parent was killed, where the system lets it go on, and the one that goes on in its place."""
    monkeypatch.setattr("mood_submission.lab.training.run.PATIENCE", 0.5)
    words = ["train", "vqvae", "--region", "brain", "--data", cache, "--out", tmp_path, "--device", "cpu", *TINY_VQVAE]
    with exclusive_lock(tmp_path / ".vqvae.lock"):
        assert main([*map(str, words), "--steps", "1"]) == 1
    assert not list(tmp_path.glob("vqvae*"))
    assert main([*map(str, words), "--steps", "1"]) == 0
    assert main([*map(str, words), "--steps", "2", "--resume"]) == 0
