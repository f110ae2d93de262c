"""Model files: round trips, the import of published checkpoints, and files that are none."""

import copy

import pytest
import torch
from conftest import mood
from safetensors.torch import load_file, save_file

from mood_submission import load_model
from mood_submission.about import ModelError
from mood_submission.model_file import save_model
from mood_submission.restoration.restore import restore


@pytest.mark.slow
def test_published_checkpoints_survive_the_import(reference, tmp_path):
    vqvae, prior = reference.state("vqvae"), reference.state("prior")
    torch.save(vqvae, tmp_path / "features.pt")
    torch.save(
        prior | {f"feature_extractor_model.{name}": value for name, value in vqvae.items()},
        tmp_path / "latent.pt",
    )
    out = tmp_path / "model.safetensors"
    mood(
        "import-reference",
        tmp_path / "features.pt",
        tmp_path / "latent.pt",
        "--region",
        reference.region,
        "-o",
        out,
        check=True,
    )
    model = load_model(out, device="cpu", dtype=torch.float64)
    codes = model.encode(reference["x"], reference["coord"])
    assert torch.equal(codes, reference["codes"])
    near = dict(rtol=0, atol=1e-8)
    assert torch.allclose(model.decode(codes, reference["coord"]), reference["reconstruction"], **near)
    assert torch.allclose(model.nll(codes, reference["coord"]), reference["nll"], **near)
    restored = model.restore(codes, reference["coord"], reference["uniforms"], reference.meta["threshold"])
    assert torch.equal(restored, reference["restored_codes"])
    assert model.about.region == reference.region and model.about.sample_scale == 2000


@pytest.mark.parametrize(
    "part, name",
    [("vqvae", "P.0.bias"), ("prior", "out.conv.bias"), ("prior", "blocks.0.downsample_key.weight")],
)
def test_a_checkpoint_with_a_parameter_missing_is_refused(reference, tmp_path, part, name):
    """What is missing must not be left at its random start."""
    states = {"vqvae": reference.state("vqvae"), "prior": reference.state("prior")}
    del states[part][name]
    for which, state in states.items():
        torch.save(state, tmp_path / f"{which}.pt")
    run = mood(
        "import-reference",
        tmp_path / "vqvae.pt",
        tmp_path / "prior.pt",
        "--region",
        reference.region,
        "-o",
        tmp_path / "out.safetensors",
    )
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and str(tmp_path / f"{part}.pt") in run.stderr
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_bad_checkpoint_is_named_in_one_line(tmp_path, content):
    bad = tmp_path / "bad.pt"
    if content is not None:
        bad.write_bytes(content)
    run = mood("import-reference", bad, bad, "--region brain -o", tmp_path / "x")
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and str(bad) in run.stderr


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save(Evil(), tmp_path / "evil.pt")
    run = mood("import-reference", tmp_path / "evil.pt", tmp_path / "evil.pt", "--region brain -o", tmp_path / "x")
    assert run.returncode == 1
    with pytest.raises(ModelError):
        load_model(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_saved_and_loaded_is_the_same_model(tiny_weights, tmp_path):
    model = load_model(tiny_weights["brain"], device="cpu", engine="torch")
    save_model(tmp_path / "again.safetensors", model.vqvae, model.prior, model.about)
    again = load_model(tmp_path / "again.safetensors", device="cpu")
    assert again.about == model.about
    x, position = torch.randn(3, 160, 160), torch.rand(3, 1) - 0.5
    codes = model.encode(x, position)
    assert codes.shape == (3, 20, 20) and codes.dtype == torch.int64
    assert torch.equal(again.encode(x, position), codes)
    assert torch.equal(again.nll(codes, position), model.nll(codes, position))
    save_model(tmp_path / "half.safetensors", model.vqvae, model.prior, model.about, torch.float16)
    assert {v.dtype for v in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}
    assert load_model(tmp_path / "half.safetensors", device="cpu").decode(codes, position).dtype == torch.float32


def test_batches_are_not_seen_in_the_results(tiny_weights):
    """As a GPU takes them; a CPU takes slices one by one."""
    model = load_model(tiny_weights["abdom"], device="cpu", dtype=torch.float64)
    x, position = torch.randn(5, 160, 160), torch.rand(5, 1) - 0.5
    codes = model.encode(x, position)
    nll = model.nll(codes, position)
    slices = model.decode(codes, position)
    for model.batch_size in (None, 2, 1):
        assert torch.equal(model._in_batches(model.vqvae.encode, x, position), codes)
        assert torch.allclose(model._in_batches(model.prior.nll, codes, position), nll, atol=1e-12)
        assert torch.allclose(model._in_batches(model.vqvae.decode, codes, position), slices, atol=1e-12)
    assert model.encode(x[:0], position[:0]).shape == (0, 10, 10)


def test_batches_are_halved_when_memory_runs_out(tiny_weights, monkeypatch):
    model = load_model(tiny_weights["brain"], device="cpu")
    x, position = torch.randn(7, 160, 160), torch.rand(7, 1) - 0.5
    codes, encode, asked = model.encode(x, position), model.vqvae.encode, []

    def small_encode(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(x, position)

    monkeypatch.setattr(model.vqvae, "encode", small_encode)
    monkeypatch.setattr(model, "batch_size", 8)
    assert torch.equal(model._in_batches(model.vqvae.encode, x, position), codes)
    assert asked == [4, 4, 2, 2, 2, 1]


def test_the_default_batch_fits_in_the_memory_that_is_there(tiny_weights, monkeypatch):
    model = load_model(tiny_weights["brain"], device="cpu")
    assert model.affordable_slices() == 32
    monkeypatch.setattr("mood_submission.runtime.memory.free_memory", lambda device: 64 << 20)
    assert 1 < model.affordable_slices() < 32
    monkeypatch.setattr("mood_submission.runtime.memory.free_memory", lambda device: 0)
    assert model.affordable_slices() == 1


def test_files_that_are_no_models_are_named(tiny_weights, tmp_path):
    tensors = load_file(tiny_weights["brain"])
    about = load_model(tiny_weights["brain"], device="cpu").about.to_json()
    (tmp_path / "text").write_text("hello")
    save_file(tensors, tmp_path / "no_about")
    save_file({k: v for k, v in tensors.items() if k != "prior.out.bias"}, tmp_path / "missing", {"about": about})
    save_file(tensors | {"prior.out.bias": torch.zeros(3)}, tmp_path / "wrong_shape", {"about": about})
    save_file(tensors, tmp_path / "format", {"about": about.replace("mood-submission-1", "mood-submission-9")})
    save_file(
        tensors,
        tmp_path / "method",
        {"about": about.replace('"sample_method": "paper"', '"sample_method": "mean"')},
    )
    for name in ("absent", "text", "no_about", "missing", "wrong_shape", "format", "method"):
        with pytest.raises(ModelError) as error:
            load_model(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_rough_precision_leaves_codes_alone(tiny_weights):
    exact, rough = (
        load_model(tiny_weights["brain"], device="cpu", precision=p, engine="torch") for p in ("float32", "bf16")
    )
    generator = torch.Generator().manual_seed(0)
    slices, position = torch.randn(2, 160, 160, generator=generator), torch.zeros(2, 1)
    codes = exact.encode(slices, position)
    assert torch.equal(rough.encode(slices, position), codes)
    for network in ("nll", "decode"):
        right, near = (getattr(model, network)(codes, position) for model in (exact, rough))
        assert near.dtype == torch.float32
        assert 0 < (near - right).abs().max() < 0.02 * right.abs().max(), network
    uniforms = torch.rand(2, 3, *codes.shape[1:], generator=generator)
    expected = restore(copy.deepcopy(exact.prior).bfloat16(), codes, position.bfloat16(), uniforms, 1.0)
    assert torch.equal(rough.restore(codes, position, uniforms, 1.0), expected)
    with pytest.raises(ValueError, match="precision: expected one of float32, tf32, bf16, int8, found 'half'"):
        load_model(tiny_weights["brain"], device="cpu", precision="half", engine="torch")


@pytest.mark.parametrize("count", [0, 1, 9, 19])
def test_slices_that_a_thread_takes_together_are_as_each_alone(tiny_weights, count):
    model = load_model(tiny_weights["abdom"], device="cpu", dtype=torch.float64)
    codes = torch.randint(0, 8, (count, 10, 10), generator=torch.Generator().manual_seed(0))
    position = torch.linspace(-0.5, 0.5, count, dtype=torch.float64)[:, None]
    alone = [model.nll(codes[i : i + 1], position[i : i + 1]) for i in range(count)]
    got = model.nll(codes, position)
    assert torch.allclose(got, torch.cat([*alone, codes[:0].double()]), atol=1e-12) and len(got) == count


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 2, 7, 32, 33, 75])
def test_batches_have_few_sizes_and_are_not_seen(tiny_weights, count):
    model = load_model(tiny_weights["abdom"], device="cpu", dtype=torch.float64)
    codes = torch.randint(0, 8, (count, 10, 10), generator=torch.Generator().manual_seed(0))
    position, sizes, decode = (
        torch.linspace(-0.5, 0.5, count, dtype=torch.float64)[:, None],
        [],
        model.vqvae.decode,
    )

    def spy(codes: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        sizes.append(len(codes))
        return decode(codes, position)

    got = model._in_batches(spy, codes, position)
    assert all(size & (size - 1) == 0 for size in sizes) and sum(sizes) == count
    if count:
        assert torch.allclose(got, decode(codes, position), atol=1e-12)
