"""The comparison of scoring methods: what is planted, the table's arithmetic, and the script from end to end."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import mood
from sklearn.metrics import average_precision_score

from mood_submission import Predictor, load_model
from mood_submission.lab.evaluation.comparison import SIZES, Case, comparison_table, make, plan, to_markdown
from mood_submission.lab.evaluation.metrics import VALUES, score_counts
from mood_submission.lab.planting.anomalies import KINDS
from mood_submission.lab.training.checkpoints import save_checkpoint
from mood_submission.model_file import rewrite_about
from mood_submission.networks.vae import VAE, VAESettings

pytestmark = pytest.mark.slow


def test_every_kind_and_size_comes_equally_often():
    cases = plan([f"v{i:02}" for i in range(30)], planted=1, seed=0)
    assert len(cases) == 60 and sum(case.kind is None for case in cases) == 30
    assert sorted((c.kind, c.size) for c in cases if c.kind) == sorted((k, s) for k in KINDS for s in SIZES)
    assert len({case.name for case in cases}) == 60


def test_what_is_planted_depends_on_volume_kind_size_and_seed_alone(tiny_weights, blobs):
    first, again, other = (
        plan(["a", "b"], 2, seed=0),
        plan(["b", "a"], 2, seed=0),
        plan(["a", "b"], 2, seed=1),
    )
    assert first == again and first[1] != other[1]
    predictor = Predictor(load_model(tiny_weights["brain"], device="cpu"))
    case = Case("case_0", "uniform", "large", 7)
    (one, mask), (two, _) = (make(case, blobs / "case_0.nii.gz", predictor) for _ in range(2))
    healthy, nothing = make(Case("case_0"), blobs / "case_0.nii.gz", predictor)
    assert np.array_equal(one.data, two.data) and mask.any() and not nothing.any()
    assert np.array_equal(one.data[~mask], healthy.data[~mask]) and (one.data[mask] != healthy.data[mask]).any()


def test_the_table_is_average_precision_with_healthy_volumes_counted_as_often(tmp_path):
    rng = np.random.default_rng(0)
    cases = plan(["a", "b", "c"], planted=2, seed=0)
    pixel, sample, labels, weights = [], [], [], []
    for case in cases:
        scores, mask = (
            rng.random((4, 5, 6)).astype(np.float16),
            rng.random((4, 5, 6)) < (0.2 if case.kind else 0),
        )
        value = float(rng.random()) + (0.3 if case.kind else 0)
        np.savez(
            tmp_path / f"{case.name}.npz",
            pixel=score_counts(scores, mask)[None],
            pixel_methods=np.array(["method"]),
            sample=np.array([value]),
            sample_methods=np.array(["method"]),
        )
        pixel.append((scores.ravel(), mask.ravel(), np.full(120, 1 if case.kind else 2)))
        sample.append(value)
        labels.append(case.kind is not None)
        weights.append(1 if case.kind else 2)
    result = comparison_table(cases, [tmp_path], resamples=50)
    scores, mask, times = (np.concatenate(parts) for parts in zip(*pixel))
    expected = average_precision_score(mask, scores, sample_weight=times)
    assert result["pixel"]["method"]["ap"] == pytest.approx(expected)
    assert result["sample"]["method"]["ap"] == pytest.approx(
        average_precision_score(labels, sample, sample_weight=weights)
    )
    assert result["pixel"]["method"]["low"] <= expected <= result["pixel"]["method"]["high"]
    kind = cases[1].kind
    own = [p for p, case in zip(pixel, cases) if case.kind == kind]
    assert result["pixel"]["method"]["kinds"][kind] == pytest.approx(average_precision_score(own[0][1], own[0][0]))
    assert f"{expected:.3f}" in to_markdown(result)


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory):
    """A run folder of `train.py vae`, as far as the comparison looks at it."""
    folder = tmp_path_factory.mktemp("vae")
    settings = VAESettings((4, 4, 4, 8), 4, n_res_block=1)
    state = {f"module.{name}": value for name, value in VAE(settings).state_dict().items()}
    about = {"vae": {"channels": settings.channels, "latent": 4, "n_res_block": 1}}
    save_checkpoint(folder / "vae.pt", {"about": json.dumps(about), "average": state | {"n_averaged": torch.tensor(1)}})
    return folder


def test_the_script_writes_table_and_pictures_and_resumes(tiny_weights, tiny_vae, blobs, tmp_path):
    words = [
        "--region brain --data",
        blobs,
        "--weights",
        tiny_weights["brain"],
        "--vae",
        tiny_vae,
        "--slices 4 --restorations 2 --device cpu -o",
        tmp_path,
    ]
    run = mood("compare", *words)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "table.json").read_text())["all volumes"]
    assert {"vae", "paper", "vq-vae reconstruction"} == set(result["pixel"]) and "vae elbo" in result["sample"]
    assert all(0 <= row["ap"] <= 1 for methods in result.values() for row in methods.values())
    assert (tmp_path / "examples.png").stat().st_size > 10_000 and "| paper |" in run.stdout
    with np.load(tmp_path / "cases" / "case_0.npz") as healthy:
        assert healthy["pixel"].shape == (2, 2, VALUES) and healthy["pixel"][:, 1].sum() == 0
        assert (healthy["pixel"][:, 0].sum(1) == 28 * 24 * 12).all()
    missing = sorted((tmp_path / "cases").glob("case_1_*.npz"))[0]
    before = missing.read_bytes()
    missing.unlink()
    assert mood("compare", *words).returncode == 0
    with np.load(missing) as again:  # the same, made anew
        missing.with_name("before.npz").write_bytes(before)
        with np.load(missing.with_name("before.npz")) as first:
            assert all(np.array_equal(first[name], again[name]) for name in first.files)
    other = mood("compare", *words, "--seed 1")
    assert other.returncode == 1 and "settings.json" in other.stderr and other.stderr.count("\n") == 1


def test_held_out_volumes_must_be_named_in_the_model_file(tiny_weights, blobs, tmp_path):
    run = mood("compare --region brain --data", blobs, "--weights", tiny_weights["brain"], "--held-out -o", tmp_path)
    assert run.returncode == 1 and "held-out" in run.stderr and run.stderr.count("\n") == 1


def test_figures_of_both_halves_are_recorded_in_the_model_file(tiny_weights, blobs, tmp_path):
    model = load_model(tiny_weights["brain"], device="cpu")
    halves = {"train": [], "validation": ["case_0", "case_2"], "test": ["case_1"]}
    file = tmp_path / "brain.safetensors"
    rewrite_about(
        tiny_weights["brain"], file, dataclasses.replace(model.about, training={"vqvae": {"volumes": halves}})
    )
    words = [
        "--region brain --data",
        blobs,
        "--weights",
        file,
        "--slices 4 --restorations 2 --device cpu -o",
        tmp_path / "results",
    ]
    refused = mood("compare", *words, "--record")
    assert refused.returncode == 2 and "--held-out" in refused.stderr
    for _ in range(2):  # what is recorded is no other model: its results are kept
        run = mood("compare", *words, "--held-out --record")
        assert run.returncode == 0, run.stderr
    figures = load_model(file, device="cpu").about.training["comparison"]
    table = json.loads((tmp_path / "results" / "table.json").read_text())
    for half in ("validation", "test"):
        assert figures[half]["pixel"]["paper"] == round(table[f"{half} volumes"]["pixel"]["paper"]["ap"], 3)
        assert set(figures[half]["sample"]) == {"paper", "top"}
