"""What computes the networks: the choice, and torch where ONNX Runtime cannot."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, mood, write_graphs

from mood_submission import load_model
from mood_submission.about import ModelError
from mood_submission.engines.base import EngineError
from mood_submission.engines.choice import OrTorch, chosen
from mood_submission.engines.graphs import OWNERS, SUFFIX, read_graphs
from mood_submission.engines.onnx_engine import OnnxEngine, share_memory
from mood_submission.lab.sources import source_of
from mood_submission.lab.training.plant import planting_model
from mood_submission.runtime import processor
from mood_submission.runtime.contract import REGIONS
from mood_submission.runtime.option_types import engine_by_default
from mood_submission.runtime.precision import fast_precision, slow_precision

WITH, WITHOUT = "processor : 0\nflags\t\t: fpu avx2 {} sse\n", "flags\t\t: fpu avx2 avx512f\n"


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    """Lets the system say what the processor can do."""

    def say(text: str) -> None:
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.delenv(processor.LIMIT, raising=False)

    return say


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni"])
def test_vnni_is_seen(flag, cpuinfo, monkeypatch):
    cpuinfo(WITH.format(flag))
    assert processor.has_vnni()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    assert processor.has_vnni()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert not processor.has_vnni()
    assert "found ONEDNN_MAX_CPU_ISA=AVX2 in the environment" in processor.why_without_vnni()


@pytest.mark.parametrize("text", [WITHOUT, "", "Features : asimd\n", WITH.format("avx512_vnnix")])
def test_processors_without_vnni(text, cpuinfo):
    cpuinfo(text)
    assert not processor.has_vnni() and processor.why_without_vnni().endswith("found one without")


def test_a_system_that_does_not_say_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "absent")
    monkeypatch.delenv(processor.LIMIT, raising=False)
    assert not processor.has_vnni() and "found a system that does not say" in processor.why_without_vnni()


@pytest.mark.parametrize(
    "text, limit, fast",
    [
        (WITH.format("avx512_bf16"), "", True),
        (WITH.format("amx_bf16"), "AVX512_CORE_AMX", True),
        ("processor : 0\nFeatures\t: fp asimd i8mm bf16 dgh\n", "", True),
        (WITH.format("avx512_bf16"), "avx512_core_vnni", False),
        (WITH.format("avx512_vnni"), "", False),
        ("Features\t: fp asimd\n", "", False),
        ("", "", False),
    ],
)
def test_bfloat16_is_for_processors_that_multiply_it(text, limit, fast, cpuinfo, monkeypatch, tiny_weights):
    """Others compute in it tens of times slower than in float32."""
    cpuinfo(text)
    monkeypatch.setenv(processor.LIMIT, limit)
    cpu = torch.device("cpu")
    assert fast_precision(cpu) == ("bf16" if fast else "float32")
    assert planting_model(tiny_weights["brain"], cpu).precision == fast_precision(cpu)
    assert load_model(tiny_weights["brain"], "cpu").notes == ()
    notes = load_model(tiny_weights["brain"], "cpu", precision="bf16").notes
    assert [note.partition(":")[0] for note in notes] == ([] if fast else ["precision bf16"])
    assert all("slower here than float32: expected a processor with avx512_bf16" in note for note in notes)


def test_bfloat16_is_for_gpus_that_multiply_it(monkeypatch):
    for fast in (True, False):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: fast or including_emulation)
        assert fast_precision(torch.device("cuda:1")) == ("bf16" if fast else "float32")
        assert (slow_precision("bf16", torch.device("cuda")) == "") == fast
    assert slow_precision("float32", torch.device("cuda")) == ""


@pytest.mark.parametrize(
    "engine, precision, told",
    [
        ("onnx", "bf16", "engine onnx: expected precision float32 or int8, found bf16"),
        ("onnx", "tf32", "found tf32"),
        ("torch", "int8", "precision int8: expected engine onnx, found torch"),
        ("tensor", "float32", "engine: expected one of torch, onnx"),
        ("torch", "float8", "precision: expected one of float32"),
    ],
)
def test_what_does_not_go_together_is_refused(engine, precision, told, tiny_weights):
    with pytest.raises(ModelError, match=told):
        load_model(tiny_weights["brain"], "cpu", engine=engine, precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize("region", REGIONS)
def test_shipped_graphs_are_of_the_shipped_weights(region, cpuinfo):
    pytest.importorskip("onnxruntime")
    cpuinfo(WITH.format("avx512_vnni"))
    model = load_model(region, "cpu", engine="onnx", precision="int8")
    assert model.notes == () and model.engine.name == "onnx" and model.precision == "int8"
    assert model.file is not None
    trained_on = model.about.training["vqvae"]["volumes"]["train"]
    measured_on = read_graphs(model.file.with_suffix(SUFFIX)).calibration
    assert set(measured_on["sources"]) == set(map(source_of, trained_on)) and measured_on["slices"] > 50


@pytest.mark.parametrize(
    "engine, precision, device, expected",
    [
        ("auto", None, "cpu", ("onnx", "int8")),
        ("auto", "int8", "cpu", ("onnx", "int8")),
        ("auto", "float32", "cpu", ("torch", "float32")),
        ("auto", "bf16", "cpu", ("torch", "bf16")),
        ("auto", None, "cuda:1", ("torch", "float32")),
        ("auto", None, "mps", ("torch", "float32")),
        ("torch", None, "cpu", ("torch", "float32")),
        ("onnx", None, "cpu", ("onnx", "float32")),
        ("onnx", "int8", "cpu", ("onnx", "int8")),
    ],
)
def test_what_auto_stands_for(engine, precision, device, expected):
    assert chosen(engine, precision, torch.device(device)) == expected


def fall_back(file, precision="float32"):
    """The note of a model that torch computes, in float32, though ONNX Runtime was asked for."""
    model = load_model(file, "cpu", engine="onnx", precision=precision)
    assert model.engine.name == "torch" and model.precision == "float32"
    (note,) = model.notes
    assert note.startswith(f"engine onnx, precision {precision}: torch computes instead, in float32: ")
    assert "expected" in note and "found" in note and "\n" not in note
    again = model.on_cpu()
    # It is told once, and what has computed goes on.
    assert again.notes == () and again.computed == model.computed
    return note


def test_torch_computes_where_the_package_is_missing(tiny_weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "expected the package onnxruntime, found none" in fall_back(tiny_weights["brain"])


LOADED = """
import os, sys
from mood_submission import load_model
assert load_model(sys.argv[1], "cpu", engine="onnx").engine.name == "onnx"
from mood_submission.lab.onnx_export import prepare_exporter
os.environ.pop("ORT_DISABLE_TELEMETRY")
prepare_exporter()
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
"""


def test_onnx_runtime_writes_nothing_of_this_machine(own, tmp_path):
    """It would write its number into the home folder, and tell its makers what is computed, but where it sees a test or CI."""
    home = tmp_path / "home"
    home.mkdir()
    hidden = {"ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "TF_BUILD", "GITHUB_ACTIONS"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {name: str(home) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME", "USERPROFILE")}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(own)], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert not list(home.iterdir())


def test_a_runtime_that_shares_no_memory_is_named(monkeypatch):
    runtime = pytest.importorskip("onnxruntime")

    def refuse(*arguments: object) -> None:
        raise RuntimeError("an allocator\nis there already")

    monkeypatch.setattr(runtime, "create_and_register_allocator", refuse)
    # Not the cached one, which has shared the memory of this process perhaps.
    with pytest.raises(EngineError, match="onnxruntime has no memory to share: an allocator is there already"):
        share_memory.__wrapped__()


def test_torch_computes_where_there_are_no_graphs_of_the_model(tiny_weights, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "brain.safetensors").symlink_to(tiny_weights["brain"])
    assert "brain.graphs: expected the model's graphs, found no such file" in fall_back(tmp_path / "brain.safetensors")
    for content in (b"", b"no graphs", b"PK\x03\x04 torn"):
        (tmp_path / "brain.graphs").write_bytes(content)
        assert "expected a file of mood-submission quantise" in fall_back(tmp_path / "brain.safetensors")
    with open(tmp_path / "brain.graphs", "wb") as file:
        np.savez(file, about=np.array("{}"))
    assert "expected a file of mood-submission quantise" in fall_back(tmp_path / "brain.safetensors")


@pytest.fixture(scope="module")
def with_graphs(tiny_weights, tmp_path_factory):
    """A folder with the tiny brain model and graphs of its own beside it."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("graphs")
    shutil.copy(tiny_weights["brain"], folder / "brain.safetensors")
    write_graphs(folder / "brain.safetensors")
    return folder


@pytest.fixture
def own(with_graphs, tmp_path):
    """A copy of that model, for a test to damage what lies beside it."""
    for name in ("brain.safetensors", f"brain{SUFFIX}"):
        shutil.copy(with_graphs / name, tmp_path / name)
    return tmp_path / "brain.safetensors"


def test_torch_computes_where_the_graphs_are_damaged(own):
    """Every kind of error that zip files, compressed data and the headers of arrays raise is one line."""
    graphs, rng = own.with_suffix(SUFFIX), np.random.default_rng(7)
    whole = graphs.read_bytes()
    assert load_model(own, "cpu", engine="onnx").engine.name == "onnx"
    refused = 0
    for _ in range(120):
        content = bytearray(whole)
        content[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        graphs.write_bytes(content)
        try:
            read_graphs(graphs)
        except EngineError as error:
            assert "\n" not in str(error) and str(graphs) in str(error)
            refused += 1
    assert refused > 40


def test_torch_computes_where_graphs_are_missing_in_their_file(own, cpuinfo):
    cpuinfo(WITH.format("avx512_vnni"))
    graphs, file = read_graphs(own.with_suffix(SUFFIX)), own.with_suffix(SUFFIX)
    without = {network: {key: g for key, g in graphs.graphs.items() if key[0] != network} for network in OWNERS}
    for network in ("encoder", "prior", "decoder"):
        dataclasses.replace(graphs, graphs=without[network]).write(file)
        assert f"found no graph of the {network} in float32" in fall_back(own)
    float32 = {key: graph for key, graph in graphs.graphs.items() if key[1] == "float32"}
    dataclasses.replace(graphs, graphs=float32).write(file)
    assert "found no graph of the decoder in int8" in fall_back(own, "int8")
    assert load_model(own, "cpu", engine="onnx").engine.name == "onnx"
    for wrong in ({"parameters": {}}, {"parameters": []}, {"settings": []}, {"calibration": "none"}):
        dataclasses.replace(graphs, **wrong).write(file)
        assert "expected a file of mood-submission quantise, found" in fall_back(own)


def test_torch_computes_where_the_package_cannot_be_imported(own, tmp_path, monkeypatch):
    (tmp_path / "packages" / "onnxruntime").mkdir(parents=True)
    (tmp_path / "packages" / "onnxruntime" / "__init__.py").write_text("raise AttributeError('_ARRAY_API not found')\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    assert "expected the package onnxruntime, found none (_ARRAY_API not found)" in fall_back(own)


def test_torch_goes_on_where_onnx_runtime_fails_while_it_computes(own, blobs, tmp_path, monkeypatch):
    """One line tells it, and the report tells what computed."""
    one, failed = OnnxEngine._one, []

    def failing(self, session, inputs):
        if "codes" in inputs:
            failed.append(1)
            raise RuntimeError("Non-zero status code\nreturned by a node")
        return one(self, session, inputs)

    words = (
        "--region brain --task both --sample-method paper --pixel-method paper --device cpu --slices 3 --restorations 1"
    )
    said = {}
    for engine in ("torch", "onnx"):
        monkeypatch.setattr(OnnxEngine, "_one", failing)
        more = ("--weights", own, "-o", tmp_path / engine, "--report", tmp_path / f"{engine}.json", "--engine", engine)
        done = mood("predict", words, "-i", blobs, *more)
        assert done.returncode == 0, done.stderr
        said[engine] = done.stderr
    assert failed and "torch" not in said["torch"].replace("by torch", "")
    assert said["onnx"].count("torch computes from here on, in float32: Non-zero status code returned by a node") == 1
    report = json.loads((tmp_path / "onnx.json").read_text())
    assert report["computed"] == {"engine": "torch", "precision": "float32", "graphs": None}
    assert {volume["computed"] for volume in report["volumes"]} == {"torch in float32"}
    for file in (tmp_path / "torch").iterdir():
        assert file.read_bytes() == (tmp_path / "onnx" / file.name).read_bytes()


def test_torch_computes_where_the_processor_has_no_vnni(tiny_weights, cpuinfo):
    pytest.importorskip("onnxruntime")
    cpuinfo(WITHOUT)
    assert "expected a processor with avx512_vnni or avx_vnni" in fall_back(tiny_weights["brain"], "int8")


def test_torch_computes_other_parameters_than_float32(tiny_weights):
    pytest.importorskip("onnxruntime")
    model = load_model(tiny_weights["brain"], "cpu", torch.float64, engine="onnx")
    assert "torch computes instead, in float64: expected parameters in float32" in model.notes[0]
    assert model.engine.name == "torch"


def test_predict_says_once_that_torch_computes_and_scores_as_torch_does(tiny_weights, blobs, tmp_path, cpuinfo):
    cpuinfo(WITHOUT)
    words = "--region brain --task sample --sample-method paper --pixel-method paper --device cpu --slices 2 --restorations 1"
    asked = ("--engine onnx --precision int8", "--engine torch")
    for name, more in zip(("onnx", "torch"), asked):
        done = mood("predict", words, more, "-i", blobs, "-o", tmp_path / name, "--weights", tiny_weights["brain"])
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("torch computes instead") == (name == "onnx")
    for file in (tmp_path / "torch").iterdir():
        assert file.read_bytes() == (tmp_path / "onnx" / file.name).read_bytes()


def test_auto_of_the_environment_falls_back_to_torch_where_vnni_is_hidden(tiny_weights, blobs, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    words = "--region brain --task sample --sample-method paper --pixel-method paper --slices 2 --restorations 1 --device cpu"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    for name in ("torch", "auto"):
        monkeypatch.setenv("MOOD_ENGINE", name)
        report = tmp_path / f"{name}.json"
        folders = ("-i", blobs, "-o", tmp_path / name, "--weights", tiny_weights["brain"], "--report", report)
        done = mood("predict", words, *folders)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("torch computes instead") == (name == "auto")
        assert "on cpu by torch in float32" in done.stderr
        assert json.loads(report.read_text())["computed"] == {"engine": "torch", "precision": "float32", "graphs": None}
    for file in (tmp_path / "torch").iterdir():
        assert file.read_bytes() == (tmp_path / "auto" / file.name).read_bytes()


def test_an_engine_of_the_environment_that_is_none_is_one_line(tiny_weights, blobs, tmp_path, monkeypatch):
    monkeypatch.setenv("MOOD_ENGINE", "steam")
    done = mood("predict --region brain --task sample -i", blobs, "-o", tmp_path, "--weights", tiny_weights["brain"])
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "MOOD_ENGINE (of the environment): expected one of auto, torch, onnx, found 'steam'" in done.stderr
    # argparse tells what is wrong in the words.
    assert "invalid choice: 'steam'" in mood("predict --engine steam").stderr
    monkeypatch.setenv("MOOD_ENGINE", "")
    assert engine_by_default() == "torch"


def fail_at_codes(monkeypatch):
    """Let ONNX Runtime fail at the prior and the decoder, as an operator that runs out of something does."""
    one = OnnxEngine._one

    def failing(self, session, inputs):
        if "codes" in inputs:
            raise RuntimeError("Non-zero status code\nreturned by a node")
        return one(self, session, inputs)

    monkeypatch.setattr(OnnxEngine, "_one", failing)


def test_a_case_of_grand_challenge_tells_that_torch_took_over(own, blobs, tmp_path, monkeypatch):
    fail_at_codes(monkeypatch)
    image = tmp_path / "input" / "images" / "brain-mri"
    image.mkdir(parents=True)
    shutil.copy(blobs / "case_0.nii.gz", image)
    (tmp_path / "model").mkdir()
    shutil.move(own, tmp_path / "model")
    shutil.move(own.with_suffix(SUFFIX), tmp_path / "model")
    folders = ("--input", tmp_path / "input", "--output", tmp_path / "output", "--model", tmp_path / "model")
    done = mood("grand-challenge --engine onnx", *folders)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("engine onnx: torch computes from here on, in float32: Non-zero status code") == 1


def test_what_a_volume_was_computed_by_is_its_own(own, blobs, tmp_path, monkeypatch):
    """A run in which torch takes over at the second volume says so of each."""
    one, calls = OnnxEngine._one, []

    def failing(self, session, inputs):
        calls.append(1)
        # Three calls for each of a volume's two slices: codes, NLL, decoded slices.
        if len(calls) > 6:
            raise RuntimeError("no more")
        return one(self, session, inputs)

    monkeypatch.setattr(OnnxEngine, "_one", failing)
    words = "--region brain --task sample --sample-method paper --pixel-method paper --device cpu --slices 2 --restorations 1"
    more = ("--weights", own, "-o", tmp_path / "out", "--report", tmp_path / "r.json", "--engine onnx")
    done = mood("predict", words, "-i", blobs, *more)
    assert done.returncode == 0, done.stderr
    computed = [volume["computed"] for volume in json.loads((tmp_path / "r.json").read_text())["volumes"]]
    assert computed[0] == "onnx in float32" and computed[-1] == "torch in float32"


def test_compare_mixes_no_engines_and_no_graphs(own, blobs, tmp_path, monkeypatch, cpuinfo):
    cpuinfo(WITH.format("avx512_vnni"))
    words = "compare --region brain --device cpu --slices 2 --restorations 1 --engine onnx --precision int8"
    more = ("--only case_0", "--data", blobs, "--weights", own, "-o", tmp_path / "results")
    with monkeypatch.context() as patched:
        fail_at_codes(patched)
        done = mood(words, *more)
        assert done.returncode == 1 and "expected scores by onnx in int8, which failed" in done.stderr
        assert not list((tmp_path / "results" / "cases").iterdir())
    assert mood(words, *more).returncode == 0
    graphs = read_graphs(own.with_suffix(SUFFIX))
    dataclasses.replace(graphs, calibration={"slices": 1}).write(own.with_suffix(SUFFIX))
    done = mood(words, *more)
    assert done.returncode == 1 and "settings.json: expected files made with graphs" in done.stderr


GROWTH = """
import threading
import torch
from mood_submission import load_model

model = load_model("brain", "cpu", engine="onnx")
assert model.engine.name == "onnx", model.notes
kept = []

def score(count):
    for _ in range(count):
        codes = model.engine.encode(torch.rand(1, 160, 160), torch.zeros(1, 1))
        kept.append((codes, model.engine.decode(codes, torch.zeros(1, 1))))

def kilobytes(of):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(of)))

def both(count):
    threads = [threading.Thread(target=score, args=(count,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

both(2)
before = kilobytes("VmHWM")
both(12)
print(kilobytes("VmHWM") - before)
computing = kilobytes("VmRSS")
model.rest()
print(computing - kilobytes("VmRSS"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no peak of memory")
def test_memory_does_not_grow_with_the_slices_that_onnx_runtime_has_computed():
    pytest.importorskip("onnxruntime")
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    growth, given_back = map(int, done.stdout.split())
    assert growth < 50_000 and given_back > 5_000


def test_predict_refuses_in_one_line_what_does_not_go_together(tiny_weights, blobs, tmp_path):
    words = "--region brain --task sample --device cpu --engine torch --precision int8"
    done = mood("predict", words, "-i", blobs, "-o", tmp_path / "out", "--weights", tiny_weights["brain"])
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "expected engine onnx" in done.stderr


def test_of_threads_that_fail_at_a_time_one_tells_that_torch_takes_over():
    together = threading.Barrier(4)

    class Failing:
        name, nll_slices, graphs = "onnx", 1, "0" * 64

        def encode(self, slices, position):
            together.wait()
            raise RuntimeError("no more")

    in_torch = types.SimpleNamespace(
        name="torch", nll_slices=8, graphs=None, encode=lambda slices, position: slices + 1
    )
    engine = OrTorch(Failing(), in_torch)
    with warnings.catch_warnings(record=True) as told, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        found = list(pool.map(lambda number: engine.encode(number, None), range(4)))
    assert found == [1, 2, 3, 4] and (engine.name, engine.nll_slices) == ("torch", 8)
    assert [str(one.message) for one in told] == ["engine onnx: torch computes from here on, in float32: no more"]
