"""ONNX files, and the engine of ONNX Runtime, compute what torch computes: for any number of slices, threads and any box."""

import dataclasses
import json
import warnings
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import mood, write_nifti

from mood_submission import load_model
from mood_submission.engines.graphs import Graphs, read_graphs
from mood_submission.evidence.evidence import Evidence
from mood_submission.lab import onnx_export
from mood_submission.lab.cli.quantise import QuantiseOptions, _what_lacks, slices_of_cache, slices_of_volumes
from mood_submission.lab.measuring import engines
from mood_submission.lab.onnx_export import OPSET, export_network, exported_networks
from mood_submission.lab.training.cache import build_cache
from mood_submission.model_file import add_detector
from mood_submission.networks.detector import Detector, DetectorSettings
from mood_submission.runtime import processor

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from mood_submission.lab.quantising import make

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def exported_once():
    """Each network is exported once for all commands: that takes seconds."""
    patch, done = pytest.MonkeyPatch(), {}

    def first(network):
        program = export_network(network)
        # The program is optimised in place later.
        done[network.name] = program.model_proto
        return program

    patch.setattr(onnx_export, "export_network", first)
    patch.setattr(make, "export_network", lambda network: SimpleNamespace(model_proto=done[network.name]))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def exported(exported_once, tiny_weights, tmp_path_factory):
    """A tiny brain model with a detector, and its ONNX files."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    detector = Detector(DetectorSettings((4, 6, 8), context=(-1, 0, 1)))
    for layer in detector.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_mean, -0.5, 0.5)
    before = load_model(tiny_weights["brain"], "cpu")
    about = type(before.about)(**vars(before.about) | {"detector": detector.settings})
    add_detector(tiny_weights["brain"], folder / "brain.safetensors", detector, about)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = mood("export-onnx", folder / "brain.safetensors", "-o", folder / "out")
    assert done.returncode == 0 and done.stdout.count(" MB") == 4, done.stderr
    return load_model(folder / "brain.safetensors", "cpu"), folder / "out"


@pytest.mark.parametrize("name", ["encoder", "decoder", "prior", "detector"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_onnxruntime_says_what_torch_says(exported, name, count):
    model, folder = exported
    (network,) = [network for network in exported_networks(model) if network.name == name]
    session = ort.InferenceSession(str(folder / f"{name}.onnx"))
    torch.manual_seed(count)
    inputs = []
    for tensor in network.inputs.values():
        more = tensor[torch.arange(count) % len(tensor)].clone()
        inputs.append(more if more.dtype == torch.int64 else more + 0.1 * torch.randn(more.shape))
    if name == "detector" and count == 5:  # another box
        maps, nll, place = inputs
        inputs = [maps[..., 16:96, 8:136], nll[..., 2:12, 1:17], place[..., 16:96, 8:136]]
    with torch.inference_mode():
        expected = network.module(*inputs)
    found = session.run(None, {n: x.numpy() for n, x in zip(network.inputs, inputs)})[0]
    assert found.shape == expected.shape
    if name == "encoder":
        assert np.array_equal(found, expected.numpy())
    else:
        assert np.abs(found - expected.numpy()).max() < 1e-4


def test_files_say_what_they_are(exported):
    model, folder = exported
    for file in folder.glob("*.onnx"):
        stored = onnx.load(file)
        onnx.checker.check_model(stored)
        assert [entry.version for entry in stored.opset_import if entry.domain == ""] == [OPSET]
        told = {entry.key: entry.value for entry in stored.metadata_props}
        assert told["sha256"] == model.sha256
        assert type(model.about).from_json(told["about"]) == model.about
        assert json.loads(told["shapes"])


def test_what_is_no_model_is_one_line(tmp_path):
    (tmp_path / "a.safetensors").write_text("nothing")
    done = mood("export-onnx", tmp_path / "a.safetensors", "-o", tmp_path / "out")
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_a_package_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("mood_submission.lab.onnx_export.NEEDED", ("onnx", "no_such_package"))
    done = mood("export-onnx brain -o", tmp_path / "out")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert done.stderr.count("\n") == 1 and "expected the package no_such_package" in done.stderr


# ---- the engine ----------------------------------------------------------------------------------------------------

# Of the processor that these tests run on.
HAS_VNNI = processor.has_vnni()


@pytest.fixture(scope="module")
def quantised(exported, blobs, vnni):
    """The model file with its graphs beside it, and what `quantise` said."""
    file = exported[0].file
    done = mood("quantise", file, "--data", blobs, "--volumes 2 --slices 3")
    assert done.returncode == 0, done.stderr
    return file, done.stdout


@pytest.fixture(scope="module")
def vnni(tmp_path_factory):
    """Graphs of int8 are computed by any processor; what they are worth on one without VNNI is not tested here."""
    info = tmp_path_factory.mktemp("proc") / "cpuinfo"
    info.write_text("flags\t\t: fpu avx2 avx512_vnni\n")
    patch = pytest.MonkeyPatch()
    patch.setattr(processor, "CPUINFO", info)
    patch.delenv(processor.LIMIT, raising=False)
    yield
    patch.undo()


def evidence_of(model, count: int = 7) -> Evidence:
    torch.manual_seed(3)
    slices = torch.randn(count, 160, 160) * (torch.rand(count, 1, 1) > 0.2)
    return Evidence(model, slices, torch.linspace(-0.4, 0.4, count)[:, None])


PARTS = ("codes", "nll", "decoded", "logits")


def by(file, precision: str):
    model = load_model(file, "cpu", precision=precision, engine="onnx")
    assert model.notes == () and model.engine.name == "onnx" and model.precision == precision
    return model


def test_the_engine_says_what_torch_says(quantised):
    expected, found = (
        evidence_of(load_model(quantised[0], "cpu", engine="torch")),
        evidence_of(by(quantised[0], "float32")),
    )
    assert torch.equal(expected.codes, found.codes) and expected.codes.unique().numel() > 3
    for part in PARTS[1:]:
        one, two = getattr(expected, part), getattr(found, part)
        assert one.shape == two.shape and one.dtype == two.dtype and (one - two).abs().max() < 1e-4
        assert not torch.equal(one, two), f"{part}: expected another engine's rounding"


@pytest.mark.skipif(
    not HAS_VNNI, reason="this processor has no VNNI: sums of int8 overflow, and models are not computed so"
)
def test_int8_is_near(quantised):
    expected, found = evidence_of(by(quantised[0], "float32")), evidence_of(by(quantised[0], "int8"))
    for part in ("nll", "decoded"):
        one, two = getattr(expected, part), getattr(found, part)
        apart, spread = (one - two).abs(), one.std()
        assert 0 < apart.mean() < 0.02 * spread and apart.max() < 0.2 * spread


def test_int8_leaves_codes_detector_and_restorations_as_they_are(quantised):
    torch_model, exact, rough = (
        load_model(quantised[0], "cpu", engine="torch"),
        by(quantised[0], "float32"),
        by(quantised[0], "int8"),
    )
    expected, found = evidence_of(exact), evidence_of(rough)
    assert torch.equal(expected.codes, found.codes) and not torch.equal(expected.nll, found.nll)
    maps, nll, place = next(
        network for network in exported_networks(torch_model) if network.name == "detector"
    ).inputs.values()
    assert torch.equal(exact.engine.detect(maps, nll, place), rough.engine.detect(maps, nll, place))
    uniforms = torch.rand(7, 2, *found.codes.shape[1:])
    drawn = [model.restore(found.codes, found.position, uniforms, 2.45) for model in (torch_model, rough)]
    assert torch.equal(*drawn) and not torch.equal(drawn[0][:, 0], found.codes)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_same_bits_for_any_number_of_threads_and_slices(quantised, precision):
    model, before, found = by(quantised[0], precision), torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            evidence = evidence_of(model)
            found[threads] = [getattr(evidence, part) for part in PARTS]
    finally:
        torch.set_num_threads(before)
    for threads in (2, 5):
        assert all(map(torch.equal, found[1], found[threads]))
    codes, nll, decoded, _ = found[1]
    # One slice alone, and none.
    assert torch.equal(model.nll(codes[3:4], evidence.position[3:4]), nll[3:4])
    assert torch.equal(model.decode(codes[3:], evidence.position[3:]), decoded[3:])
    assert model.nll(codes[:0], evidence.position[:0]).shape == (0, *nll.shape[1:])


def test_a_file_of_graphs_holds_no_parameters_and_comes_back(quantised, tmp_path):
    graphs = read_graphs(quantised[0].with_suffix(".graphs"))
    kinds = {(name, "float32") for name in ("encoder", "decoder", "prior", "detector")}
    assert set(graphs.graphs) == kinds | {("prior", "int8"), ("decoder", "int8")}
    assert graphs.calibration == {"volumes": 2, "sources": ["case"], "slices": 6}
    known = load_model(quantised[0], "cpu")
    for (network, precision), graph in graphs.graphs.items():
        owner = getattr(known, {"encoder": "vqvae", "decoder": "vqvae"}.get(network, network))
        names = graphs.parameters[f"{network}/{precision}"]
        assert names and set(names) <= set(owner.state_dict())
        stored = onnx.load_from_string(graph)
        assert {one.name for one in stored.graph.initializer if one.external_data} == set(names)
        # The weight of the smallest convolution would be larger.
        inside = [onnx.numpy_helper.to_array(one) for one in stored.graph.initializer if not one.external_data]
        assert all(array.size <= 16 for array in inside if array.dtype == np.float32)
        rounding = {node.op_type for node in stored.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
        assert bool(rounding) == (precision == "int8")
    graphs.write(tmp_path / "again.graphs")
    again = read_graphs(tmp_path / "again.graphs")
    assert vars(again) == vars(graphs) | {"file": tmp_path / "again.graphs"}


def test_quantise_says_how_far_each_precision_is_from_torch(quantised):
    file, told = quantised
    assert told.startswith(f"{file.with_suffix('.graphs')}: ") and "6 slices of 2 volumes" in told
    assert "float32: encoder differs from torch's by 0 on average" in told and told.count("int8: ") == 3
    assert told.count("on the same slices") == 6 and "trained on" not in told


def test_quantise_says_what_its_volumes_lack():
    """Ranges that were measured on other scans than those that a model knows are narrower than its own."""
    assert _what_lacks(["ixi1"], []) == _what_lacks(["ixi1", "novo2"], ["ixi1", "novo3"]) == []
    assert "none of these volumes" in _what_lacks(["ixi1"], ["ixi2"])[0]
    assert "called novo too" in _what_lacks(["ixi1"], ["ixi1", "novo3"])[0]


@pytest.mark.parametrize(
    "what, told",
    [
        ("blank", "case: expected a healthy volume to measure ranges on, found nothing in it"),
        ("abdom", "expected healthy volumes of region brain, found that 1 of 1 look like abdom, and none like brain"),
    ],
)
def test_quantise_refuses_volumes_that_say_nothing_of_the_ranges(what, told, quantised, tmp_path):
    if what == "blank":
        write_nifti(tmp_path / "data" / "case.nii.gz", np.zeros((24, 24, 24), np.float32), np.diag([8, 8, 8, 1.0]))
    else:
        made = "make-toy --region abdom --size 48 --volumes 1 --healthy-fraction 1 -o"
        assert mood(made, tmp_path / "toy").returncode == 0
        (tmp_path / "toy" / "abdom" / "toy").rename(tmp_path / "data")
    done = mood("quantise", quantised[0], "--data", tmp_path / "data", "-o", tmp_path / "out.graphs")
    assert done.returncode == 1 and told in done.stderr and not (tmp_path / "out.graphs").exists()


def test_predict_by_the_engine(quantised, blobs, tmp_path):
    scores = {}
    for engine, precision in (("torch", "float32"), ("onnx", "int8")):
        words = f"--region brain --task both --device cpu --slices 4 --restorations 1 --engine {engine} --precision {precision}"
        report = tmp_path / f"{engine}.json"
        done = mood(
            "predict", words, "-i", blobs, "-o", tmp_path / engine, "--weights", quantised[0], "--report", report
        )
        assert done.returncode == 0 and "instead" not in done.stderr, done.stderr
        options = json.loads(report.read_text())["options"]
        assert options["engine"] == engine and options["precision"] == precision
        scores[engine] = np.stack([nib.load(file).get_fdata() for file in sorted((tmp_path / engine).glob("*.nii.gz"))])
    assert len(scores["torch"]) == 3
    assert 0 < np.abs(scores["torch"] - scores["onnx"]).max() < 0.05


def with_graphs(quantised, folder, **changes):
    """The model file in a folder, with graphs that are changed."""
    (folder / "brain.safetensors").symlink_to(quantised[0])
    graphs = read_graphs(quantised[0].with_suffix(".graphs"))
    Graphs(**vars(graphs) | changes).write(folder / "brain.graphs")
    return folder / "brain.safetensors"


def test_graphs_that_cannot_be_computed_leave_it_to_torch(quantised, tmp_path):
    graphs = dict(read_graphs(quantised[0].with_suffix(".graphs")).graphs)
    graphs["prior", "int8"] = b"no graph"
    file = with_graphs(quantised, tmp_path, graphs=graphs)
    model = load_model(file, "cpu", precision="int8", engine="onnx")
    (note,) = model.notes
    assert model.engine.name == "torch" and model.precision == "float32"
    assert f"torch computes instead, in float32: {file.with_suffix('.graphs')}: " in note
    assert "cannot compute the prior" in note and "\n" not in note
    assert torch.equal(evidence_of(model).nll, evidence_of(load_model(file, "cpu", engine="torch")).nll)
    assert load_model(file, "cpu", engine="onnx").notes == ()


def test_ranges_of_other_weights_are_not_used(quantised, tmp_path):
    file = with_graphs(quantised, tmp_path, networks="0" * 64)
    (note,) = load_model(file, "cpu", precision="int8", engine="onnx").notes
    assert "expected ranges measured with these weights" in note
    assert load_model(file, "cpu", engine="onnx").notes == ()


def test_graphs_of_other_networks_are_not_used(quantised, tmp_path):
    file = with_graphs(quantised, tmp_path, settings={"vqvae": {}})
    (note,) = load_model(file, "cpu", engine="onnx").notes
    assert "found those of networks with other settings" in note


def test_graphs_serve_another_detector_of_the_same_sizes_and_none(quantised, tmp_path):
    """The ranges are of the VQ-VAE and the prior alone."""
    before = load_model(quantised[0], "cpu")
    settings = dataclasses.replace(before.detector.settings, dropout=0.4, ordinary_quantile=0.9, in_plane=0.01)
    torch.manual_seed(5)
    detector = Detector(settings).eval()
    add_detector(quantised[0], tmp_path / "brain.safetensors", detector, before.about)
    (tmp_path / "brain.graphs").symlink_to(quantised[0].with_suffix(".graphs"))
    found = evidence_of(by(tmp_path / "brain.safetensors", "int8"), 2)
    inputs = next(one for one in exported_networks(before) if one.name == "detector").inputs.values()
    assert (found.model.engine.detect(*inputs) - detector(*inputs)).abs().max() < 1e-4
    without = load_model(quantised[0], "cpu", precision="int8", engine="onnx", detector=False)
    assert without.notes == () and torch.equal(without.nll(found.codes, found.position), found.nll)
    wider = Detector(dataclasses.replace(settings, widths=(4, 6, 10)))
    add_detector(quantised[0], tmp_path / "brain.safetensors", wider, before.about)
    (note,) = load_model(tmp_path / "brain.safetensors", "cpu", engine="onnx").notes
    assert "found those of networks with other settings" in note


def test_quantise_refuses_a_cache_of_other_preprocessing(quantised, blobs, tmp_path):
    """Its slices have the model's size, and other grey values: ranges of them would be trusted all the same."""
    model = load_model(quantised[0], "cpu")
    other = dataclasses.replace(model.about.preprocessing, foreground_threshold=0.2)
    build_cache(blobs, tmp_path / "cache.npz", other)
    options = QuantiseOptions(model="brain", data=(tmp_path / "cache.npz",), volumes=2, slices=12)
    with pytest.raises(ValueError, match="cache.npz: expected slices of the model's preprocessing, found others"):
        slices_of_cache(model, options)


def test_quantise_takes_a_cache_too(quantised, blobs, tmp_path):
    model = load_model(quantised[0], "cpu")
    build_cache(blobs, tmp_path / "cache.npz", model.about.preprocessing)
    options = QuantiseOptions(model="brain", data=(tmp_path / "cache.npz",), volumes=2, slices=12)
    parts, names = slices_of_cache(model, options)
    assert names == sorted(names) and 0 < len(names) <= 2 and len(parts) == len(names)
    # The cache holds uint8, and other volumes to train on than all.
    same = dataclasses.replace(options, data=(blobs,), volumes=3)
    of_volumes = dict(zip(("case_0", "case_1", "case_2"), slices_of_volumes(model, same)[0]))
    for (slices, position), name in zip(parts, names):
        expected = of_volumes[name]
        assert slices.shape[1:] == expected[0].shape[1:] and position.shape == (len(slices), 1)
        assert abs(slices.max() - expected[0].max()) < 0.1
    # Of volumes that the model was trained on and others, the others are left out.
    model.about.training["vqvae"] = {"volumes": {"train": ["other", names[-1]]}}
    assert slices_of_cache(model, options)[1] == slices_of_volumes(model, same)[1] == names[-1:]


def test_what_quantise_cannot_use_is_one_line(quantised, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    done = mood("quantise", quantised[0], "--data", tmp_path / "empty", "-o", tmp_path / "out.graphs")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "expected" in done.stderr
    done = mood("quantise", quantised[0], "--data", tmp_path / "empty", "-o", tmp_path / "empty")
    assert done.returncode == 1 and "empty: expected a file to write, found a folder" in done.stderr
    monkeypatch.setattr("mood_submission.lab.onnx_export.NEEDED", ("onnx", "no_such_package"))
    done = mood("quantise", quantised[0], "--data", tmp_path, "-o", tmp_path / "out.graphs")
    assert done.returncode == 1 and "expected the package no_such_package" in done.stderr
    assert not (tmp_path / "out.graphs").exists()


def test_engines_side_by_side(quantised, blobs, tmp_path, monkeypatch):
    """One that fails while it computes is told, since its figures are torch's. Volumes are of any format."""
    runs = [("torch", "float32"), ("onnx", "int8"), ("onnx", "float32")]
    graphs = read_graphs(quantised[0].with_suffix(".graphs"))
    wrong = {("decoder", "float32"): graphs.graphs["encoder", "float32"]}
    names = {"decoder/float32": graphs.parameters["encoder/float32"]}
    file = with_graphs(quantised, tmp_path, graphs=dict(graphs.graphs) | wrong, parameters=graphs.parameters | names)
    sitk.WriteImage(sitk.ReadImage(str(blobs / "case_0.nii.gz")), str(tmp_path / "case_0.mha"))
    monkeypatch.setattr(engines, "RUNS", runs)
    monkeypatch.setattr("mood_submission.lab.cli.benchmark.RUNS", runs)
    words = "--region brain --engines --repeats 1 --device cpu --slices 2 --restorations 1"
    more = ("--weights", file, "--volume", tmp_path / "case_0.mha", "--json", tmp_path / "f.json")
    done = mood("benchmark", words, *more)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "f.json").read_text())["brain"]
    assert [(row["engine"], row["precision"]) for row in rows] == runs
    assert rows[0]["times_as_fast"] == 1 and rows[0]["sample_score_apart"] == rows[0]["voxel_apart"] == 0
    assert rows[2]["note"].startswith("onnx float32: expected figures of that, found those of torch in float32: ")
    assert "torch computes from here on" in rows[2]["note"] and rows[2]["note"] in done.stdout
    assert rows[2]["voxel_apart"] == 0
    assert rows[1]["times_as_fast"] == pytest.approx(rows[0]["seconds"] / rows[1]["seconds"])
    assert rows[1]["peak_rss_mb"] > 50
    # Each engine has a process of its own, which asks the processor itself.
    if HAS_VNNI:
        assert rows[1]["note"] is None and 0 < rows[1]["voxel_apart"] < 0.1
    else:
        assert "expected a processor with avx512_vnni" in rows[1]["note"] and rows[1]["voxel_apart"] == 0
    assert all(f"{engine} {precision}" in done.stdout for engine, precision in runs)


def test_an_engine_that_has_rested_computes_the_same(quantised):
    """What that gives back is tested with the memory of long runs (tests/test_engines.py)."""
    model = by(quantised[0], "int8")
    slices, position = torch.rand(1, 160, 160, generator=torch.Generator().manual_seed(2)), torch.zeros(1, 1)
    codes = model.encode(slices, position)
    before = model.decode(codes, position)
    model.rest()
    assert torch.equal(model.encode(slices, position), codes) and torch.equal(model.decode(codes, position), before)


@pytest.mark.parametrize("more", ["", "--time-budget 60", "--findings"])
def test_the_engine_rests_after_each_volume(more, measured, blobs, tmp_path, monkeypatch):
    """So no volume is written beside the memory that computing it took."""
    rested = []
    monkeypatch.setattr("mood_submission.model.Model.rest", lambda model: rested.append(1))
    words = "predict --region brain --task both --device cpu --slices 2 --restorations 1 -o"
    folder = (tmp_path / "found",) if more == "--findings" else ()
    done = mood(words, tmp_path / "out", "-i", blobs, "--weights", measured, more, *folder)
    assert done.returncode == 0, done.stderr
    assert len(rested) == 3
