"""Model files that are not what they were when they were written."""

import shutil
import subprocess

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import save_file

from mood_submission import load_model
from mood_submission.about import ModelError
from mood_submission.model_file import WEIGHTS, rewrite_about
from mood_submission.runtime.contract import REGIONS
from mood_submission.runtime.integrity import SUMS, content_sha256, file_sha256


def contents(file) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(file, framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata()


def test_shipped_files_are_the_recorded_ones():
    run = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=WEIGHTS, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.count(": OK") == len(REGIONS), run.stdout + run.stderr
    for region in REGIONS:
        model = load_model(region, device="cpu")
        assert model.sha256 == file_sha256(model.file) and model.sha256 in (WEIGHTS / "README.md").read_text()
    assert f"!weights/{SUMS}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_one_changed_number_is_found_out(tiny_weights, tmp_path):
    content = bytearray(tiny_weights["brain"].read_bytes())
    assert load_model(tiny_weights["brain"], device="cpu").sha256 == file_sha256(tiny_weights["brain"])
    for place in (-1, -len(content) // 3):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / "damaged.safetensors").write_bytes(damaged)
        with pytest.raises(ModelError, match="damaged.safetensors: expected .* found: a damaged file"):
            load_model(tmp_path / "damaged.safetensors")


def test_the_digest_is_of_names_types_shapes_numbers_and_description():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(()), "c": torch.zeros(0)}
    digest = content_sha256(tensors, "about")
    assert digest == content_sha256(dict(reversed(tensors.items())), "about")
    assert digest == content_sha256(tensors | {"a": tensors["a"].t().contiguous().t()}, "about")  # however it lies
    changed = [
        tensors | {"a": tensors["a"].reshape(3, 2)},
        tensors | {"a": tensors["a"] + 1e-6},
        {"a": tensors["a"]},
        tensors | {"b": torch.zeros((), dtype=torch.int32)},
        {"d": tensors["a"], "b": tensors["b"], "c": tensors["c"]},
    ]
    assert all(content_sha256(other, "about") != digest for other in changed)
    assert content_sha256(tensors, "About") != digest


def test_a_shipped_file_may_be_replaced_by_ones_own_but_not_by_any(tiny_weights, tmp_path):
    """As with a file mounted over the image's: it may be one that says of itself that it is whole, or another shipped."""
    here, other = tmp_path / "brain.safetensors", tmp_path / "abdom.safetensors"
    tensors, metadata = contents(tiny_weights["brain"])
    shutil.copy(tiny_weights["abdom"], other)
    save_file(tensors, here, {"about": metadata["about"]})  # as files were before they recorded a digest
    assert load_model(here, device="cpu").about.region == "brain"  # none listed, all are taken
    (tmp_path / SUMS).write_text(f"{file_sha256(here)}  brain.safetensors\n{file_sha256(other)} *abdom.safetensors\n")
    assert load_model(here, device="cpu").about.region == "brain"
    assert load_model(other, device="cpu").about.region == "abdom"
    shutil.copy(here, other)
    assert load_model(other, device="cpu").about.region == "brain"
    save_file(tensors | {"prior.out.bias": tensors["prior.out.bias"] + 1}, here, {"about": metadata["about"]})
    with pytest.raises(ModelError, match=f"brain.safetensors: expected .* {SUMS} beside it says"):
        load_model(here)
    shutil.copy(tiny_weights["brain"], here)
    assert load_model(here, device="cpu").about.region == "brain"


def test_a_rewritten_description_has_a_digest_of_its_own(tiny_weights, tmp_path):
    about = load_model(tiny_weights["brain"], device="cpu").about
    rewrite_about(tiny_weights["brain"], tmp_path / "new.safetensors", about)
    before, after = (contents(file)[1] for file in (tiny_weights["brain"], tmp_path / "new.safetensors"))
    assert before == after and len(after["sha256"]) == 64
