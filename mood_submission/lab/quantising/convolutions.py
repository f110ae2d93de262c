"""Turns what is a convolution in other words into one: batch norms after a convolution, and transposed convolutions."""

import numpy as np
from onnx import ModelProto, NodeProto

from .editing import Graph, attribute, copied

CONVOLUTIONS = ("Conv", "ConvTranspose")


def as_convolutions(model: ModelProto) -> ModelProto:
    """The same computation with each batch norm folded into the convolution before it, and transposed ones as convolutions."""
    graph = Graph(copied(model))
    for node in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        _fold(graph, node)
    for node in [node for node in graph.nodes if node.op_type == "ConvTranspose"]:
        _as_convolution(graph, node)
    return graph.finish()


def _fold(graph: Graph, norm: NodeProto) -> None:
    """Fold a batch norm into the convolution before it, where nothing else reads what that computes."""
    value = norm.input[0]
    conv = graph.producers().get(value)
    if conv is None or conv.op_type not in CONVOLUTIONS or len(graph.readers(value)) > 1:
        return
    _, gain, shift, mean, variance = norm.input
    epsilon = graph.constant(np.float32(attribute(norm, "epsilon", 1e-5)))
    factor = graph.add("Div", gain, graph.add("Sqrt", graph.add("Add", variance, epsilon)))
    # The weight's axis of output channels is the first, or the second of a transposed convolution.
    across = [1, 2, 3] if conv.op_type == "Conv" else [0, 2, 3]
    weight = graph.add("Mul", conv.input[1], graph.add("Unsqueeze", factor, graph.constant(np.array(across))))
    before = [conv.input[2]] if len(conv.input) > 2 else []
    centred = graph.add("Sub", before[0], mean) if before else graph.add("Neg", mean)
    bias = graph.add("Add", graph.add("Mul", centred, factor), shift)
    del conv.input[1:]
    conv.input.extend([weight, bias])
    conv.output[0] = norm.output[0]
    graph.remove(norm)


def _as_convolution(graph: Graph, node: NodeProto) -> None:
    """Put a convolution with `stride` squared times the channels, and a shuffle of these to pixels, in the node's place.

    Output stride * i + a is the sum over d of input i + d times the weight's tap a + padding - stride * d. So each of the
    `stride` phases a is a convolution of its own. Nodes of other sizes, where phases read different neighbours, stay.
    """
    stride, padding = attribute(node, "strides", [1, 1])[0], attribute(node, "pads", [0] * 4)[0]
    kernel = attribute(node, "kernel_shape", [1, 1])[0]
    offsets = [
        d for d in range(-kernel, kernel + 1) if any(0 <= a + padding - stride * d < kernel for a in range(stride))
    ]
    taps = [a + padding - stride * d for a in range(stride) for d in offsets]
    if len(taps) != kernel or len(node.input) < 3:
        return
    index, phases, count = graph.constant(np.array(taps)), stride**2, len(offsets)
    weight = node.input[1]
    for axis in (2, 3):
        weight = graph.add("Gather", weight, index, axis=axis)
    # (in, out, k, k) to (in, out, phase, tap, phase, tap), to (out, phases, in, taps, taps), to (out * phases, in, taps, taps).
    shape = graph.constant(np.array([0, 0, stride, count, stride, count]))
    weight = graph.add("Transpose", graph.add("Reshape", weight, shape), perm=[1, 2, 4, 0, 3, 5])
    channels = graph.add("Shape", weight, start=3, end=4)
    whole = graph.add("Concat", graph.constant(np.array([-1])), channels, graph.constant(np.array([count] * 2)), axis=0)
    weight = graph.add("Reshape", weight, whole)
    # Each bias `phases` times in a row.
    spread = graph.add("Unsqueeze", node.input[2], graph.constant(np.array([1])))
    tiled = graph.add("Tile", spread, graph.constant(np.array([1, phases])))
    bias = graph.add("Reshape", tiled, graph.constant(np.array([-1])))
    first, last = -offsets[0], offsets[-1]
    graph.remove(node)
    sizes = {"kernel_shape": [count] * 2, "pads": [first, first, last, last], "strides": [1, 1]}
    computed = graph.add("Conv", node.input[0], weight, bias, output=node.output[0] if stride == 1 else None, **sizes)
    if stride > 1:
        graph.add("DepthToSpace", computed, output=node.output[0], blocksize=stride, mode="CRD")
