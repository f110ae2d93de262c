"""Puts int8 into a graph: activations by measured ranges, weights by their own for each output channel.

It is static quantisation in the form that ONNX Runtime looks for: each convolution reads and writes values that are rounded
(QuantizeLinear) and turned back (DequantizeLinear), and these are fused with it.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, NodeProto, helper

from .editing import Graph, copied

# The lowest and the highest value of a layer's input, and of its output.
Ranges = Mapping[str, tuple[float, float, float, float]]
# No weight's channel has a smaller scale.
TINY = 1e-12
# No bias has more steps. That is well within int32.
MOST_STEPS = 1 << 30


def layers(model: ModelProto) -> dict[str, NodeProto]:
    """The convolutions by the name of their weight's parameter without ".weight", in order."""
    graph = Graph(model)
    producers = graph.producers()

    def parameter(value: str) -> str | None:
        """The first weight that a value is computed of."""
        if value in graph.shapes:
            return value if value.endswith(".weight") and len(graph.shapes[value]) > 1 else None
        found = (parameter(name) for name in producers[value].input) if value in producers else ()
        return next((name for name in found if name), None)

    named = {}
    for node in graph.nodes:
        name = parameter(node.input[1]) if node.op_type == "Conv" else None
        if name:
            named[name.removesuffix(".weight")] = node
    return named


def measure_ranges(model: ModelProto, examples: Iterable[Mapping[str, np.ndarray]]) -> Ranges:
    """The ranges of each layer's input and output over examples. model: in float32, see `as_convolutions`."""
    watched = {name: (node.input[0], node.output[0]) for name, node in layers(model).items()}
    values = list(dict.fromkeys(value for pair in watched.values() for value in pair))
    with_outputs = copied(model)
    del with_outputs.graph.output[:]
    with_outputs.graph.output.extend(helper.make_empty_tensor_value_info(value) for value in values)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(with_outputs.SerializeToString(), options, providers=["CPUExecutionProvider"])
    low, high = dict.fromkeys(values, 0.0), dict.fromkeys(values, 0.0)
    for example in examples:
        for value, array in zip(values, session.run(None, dict(example))):
            low[value], high[value] = min(low[value], float(array.min())), max(high[value], float(array.max()))
    return {name: (low[before], high[before], low[after], high[after]) for name, (before, after) in watched.items()}


def in_int8(model: ModelProto, ranges: Ranges, chosen: Sequence[str]) -> ModelProto:
    """The model with some of its convolutions in int8. model: as for `measure_ranges`.

    ranges: 0 lies in each, since convolutions pad with zeros.
    chosen: names of layers.
    """
    graph = Graph(copied(model))
    of_name = layers(graph.model)
    for name in chosen:
        node = of_name[name]
        low_in, high_in, low_out, high_out = ranges[name]
        _quantise(graph, node, (low_in, high_in), (low_out, high_out))
    return graph.finish()


def _quantise(graph: Graph, node: NodeProto, given: tuple[float, float], computed: tuple[float, float]) -> None:
    """Quantise one convolution. given, computed: the ranges of its input and its output."""
    step = _step(given)[0]
    node.input[0] = _rounded(graph, node.input[0], given)
    weight = node.input[1]
    largest = graph.add("ReduceMax", graph.add("Abs", weight), graph.constant(np.array([1, 2, 3])), keepdims=0)
    bounded = graph.add("Max", largest, graph.constant(np.float32(127 * TINY)))
    scale = graph.add("Div", bounded, graph.constant(np.float32(127)))
    if len(node.input) > 2:
        # Where weights are tiny, the bias must still fit in int32.
        least = graph.add("Mul", graph.add("Abs", node.input[2]), graph.constant(np.float32(1 / (step * MOST_STEPS))))
        scale = graph.add("Max", scale, least)
    zeros = graph.add("Cast", graph.add("Mul", scale, graph.constant(np.float32(0))), to=int(np_type(np.int8)))
    node.input[1] = graph.add(
        "DequantizeLinear", graph.add("QuantizeLinear", weight, scale, zeros, axis=0), scale, zeros, axis=0
    )
    if len(node.input) > 2:
        both = graph.add("Mul", scale, graph.constant(np.float32(step)))
        whole = graph.add("Round", graph.add("Div", node.input[2], both))
        node.input[2] = graph.add("DequantizeLinear", graph.add("Cast", whole, to=int(np_type(np.int32))), both, axis=0)
    output = node.output[0]
    node.output[0] = f"{output}_exact"
    _rounded(graph, node.output[0], computed, output)


def _rounded(graph: Graph, value: str, span: tuple[float, float], output: str | None = None) -> str:
    """A value rounded to one of 256 steps of its range. Returns its name: a new one, or `output`."""
    step, zero = _step(span)
    scale, zero_point = graph.constant(np.float32(step)), graph.constant(np.uint8(zero))
    rounded = graph.add("QuantizeLinear", value, scale, zero_point)
    return graph.add("DequantizeLinear", rounded, scale, zero_point, output=output)


def _step(span: tuple[float, float]) -> tuple[float, int]:
    """The distance of two steps of a range, and the number of the step that is 0."""
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    step = max(high - low, 1e-6) / 255
    return step, round(-low / step)


def np_type(kind: type) -> int:
    """ONNX's number of a numpy type."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(kind))
