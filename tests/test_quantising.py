"""Graphs are edited so that they compute the same, and are rounded as a slow and obvious version rounds."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from mood_submission.lab.quantising.convolutions import as_convolutions
from mood_submission.lab.quantising.editing import Graph
from mood_submission.lab.quantising.int8 import in_int8, layers, measure_ranges
from mood_submission.runtime.processor import has_vnni

GENERATOR = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def model_of(nodes: list, parameters: dict[str, np.ndarray], channels: int):
    """An ONNX model from "x" (B, channels, H, W) to "y"."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "test",
        [value("x", onnx.TensorProto.FLOAT, ["b", channels, "h", "w"])],
        [value("y", onnx.TensorProto.FLOAT, ["b", "c", "i", "j"])],
        [onnx.numpy_helper.from_array(array, name) for name, array in parameters.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def run(model, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def kinds(model) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("kernel, stride, padding", [(6, 2, 2), (2, 2, 0), (1, 1, 0), (9, 3, 3)])
@pytest.mark.parametrize("normed", [False, True])
def test_a_transposed_convolution_becomes_a_convolution(kernel, stride, padding, normed):
    parameters = {"up.weight": numbers(3, 4, kernel, kernel), "up.bias": numbers(4)}
    sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
    output = "up" if normed else "y"
    nodes = [onnx.helper.make_node("ConvTranspose", ["x", "up.weight", "up.bias"], [output], **sizes)]
    if normed:
        more = {"gain": numbers(4), "shift": numbers(4), "mean": numbers(4), "variance": numbers(4) ** 2 + 0.1}
        nodes.append(onnx.helper.make_node("BatchNormalization", ["up", *more], ["y"], epsilon=1e-3))
        parameters |= more
    model, x = model_of(nodes, parameters, 3), numbers(2, 3, 5, 7)
    changed = as_convolutions(model)
    assert "ConvTranspose" not in kinds(changed) and "BatchNormalization" not in kinds(changed)
    assert ("DepthToSpace" in kinds(changed)) == (stride > 1)
    assert np.abs(run(changed, x) - run(model, x)).max() < 1e-4


def test_what_cannot_be_changed_stays():
    """Phases that read different neighbours; a batch norm of what another node reads too."""
    for kernel in (3, 4):
        sizes = {"kernel_shape": [kernel] * 2, "strides": [2, 2], "pads": [1] * 4}
        node = onnx.helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], **sizes)
        up = model_of([node], {"w": numbers(3, 4, kernel, kernel), "b": numbers(4)}, 3)
        assert kinds(as_convolutions(up)) == ["ConvTranspose"]
    norm = {"gain": numbers(4), "shift": numbers(4), "mean": numbers(4), "variance": numbers(4) ** 2 + 0.1}
    both = model_of(
        [
            onnx.helper.make_node("Conv", ["x", "w"], ["before"], kernel_shape=[1, 1]),
            onnx.helper.make_node("BatchNormalization", ["before", *norm], ["after"]),
            onnx.helper.make_node("Add", ["before", "after"], ["y"]),
        ],
        {"w": numbers(4, 3, 1, 1)} | norm,
        3,
    )
    assert "BatchNormalization" in kinds(as_convolutions(both))


def rounded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """To the nearest of 256 steps of low .. high, one of which is 0."""
    step = (high - low) / 255
    zero = round(-low / step)
    return (np.clip(np.round(values / np.float32(step)) + zero, 0, 255) - zero) * np.float32(step)


@pytest.mark.skipif(
    not has_vnni(), reason="this processor has no VNNI: sums of int8 overflow, and models are not computed so"
)
@pytest.mark.parametrize("biased", [True, False])
def test_a_layer_in_int8_is_as_a_slow_version_rounds_it(biased):
    weight, bias, x = (
        numbers(4, 3, 3, 3) * np.float32([[[[1]]], [[[9]]], [[[0.1]]], [[[0]]]]),
        numbers(4),
        numbers(2, 3, 6, 5),
    )
    nodes = [
        onnx.helper.make_node("Conv", ["x", "a.weight", *["a.bias"] * biased], ["y"], kernel_shape=[3, 3], pads=[1] * 4)
    ]
    model = model_of(nodes, {"a.weight": weight} | ({"a.bias": bias} if biased else {}), 3)
    ranges = measure_ranges(model, [{"x": x[:1]}, {"x": x[1:]}])
    exact = run(model, x)
    low, high, low_out, high_out = ranges["a"]
    assert (low, high) == (x.min(), x.max()) and np.allclose((low_out, high_out), (exact.min(), exact.max()))
    scale = np.maximum(np.abs(weight).max((1, 2, 3), keepdims=True), 1e-10) / 127
    given = [
        torch.from_numpy(array.astype(np.float64))
        for array in (rounded(x, low, high), np.round(weight / scale) * scale)
    ]
    shift = torch.from_numpy(bias).double() if biased else None
    slow = rounded(F.conv2d(*given, shift, padding=1).numpy(), low_out, high_out)
    found = run(in_int8(model, ranges, ["a"]), x)
    # Sums that lie between two steps may be rounded either way, and so may the bias.
    step = (high_out - low_out) / 255
    assert np.abs(found - slow).max() < 1.01 * step and (np.abs(found - slow) < 0.01 * step).mean() > 0.9
    assert 0 < np.abs(found - exact).mean() < 2 * step
    assert np.array_equal(run(in_int8(model, ranges, []), x), exact)


def test_layers_are_named_by_the_parameters_that_their_weights_are_made_of():
    nodes = [
        onnx.helper.make_node("Pad", ["a.weight", "pads"], ["padded"]),
        onnx.helper.make_node("Conv", ["x", "padded"], ["one"], kernel_shape=[1, 2]),
        onnx.helper.make_node("Conv", ["one", "b.weight"], ["y"], kernel_shape=[1, 1]),
    ]
    parameters = {
        "a.weight": numbers(4, 3, 1, 1),
        "b.weight": numbers(2, 4, 1, 1),
        "pads": np.array([0, 0, 0, 0, 0, 0, 0, 1]),
    }
    assert list(layers(model_of(nodes, parameters, 3))) == ["a", "b"]


def test_new_names_are_new_in_graphs_that_were_edited_before():
    first = Graph(model_of([onnx.helper.make_node("Neg", ["x"], ["before"])], {}, 3))
    first.add("Identity", first.add("Abs", "before"), output="y")
    again = Graph(first.finish())
    again.add("Abs", "before")
    names = [output for node in again.finish().graph.node for output in node.output]
    assert len(names) == len(set(names)) == 4
