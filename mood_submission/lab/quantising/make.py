"""Makes the graphs of a model: each network in float32, the prior and the decoder in int8 too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import Tensor

from ...engines.graphs import FLOAT32, INT8, Graphs, networks_digest, settings_of
from ...model import Model
from ..onnx_export import ExportedNetwork, export_network, exported_networks
from .convolutions import as_convolutions
from .editing import Graph
from .int8 import in_int8, layers, measure_ranges

# The networks that have a graph in int8, and how many of their last layers stay in float32: the prior's two that make logits, and
# the decoder's four at the slice's own resolution, whose errors are the slice's. In int8 the encoder would find other codes in
# 12% of places and more, and codes decide everything after them. The detector takes a tenth of the time.
EXACT_LAST = {"prior": 2, "decoder": 4}
# So many of their first layers stay in float32 too: what goes in has few values, and what they make of it is all that follows.
EXACT_FIRST = 1
# Where the exporter puts a network's parameters.
PREFIX = "network."
# No other constant of a graph has more numbers.
MOST_NUMBERS = 16


@dataclass(frozen=True, eq=False)
class Examples:
    """Healthy slices, on the CPU.

    slices: (N, S, S) in the network's intensities.
    position: (N, 1), -0.5 .. 0.5.
    sources: what they are from, such as {"volumes": 8}.
    """

    slices: Tensor
    position: Tensor
    sources: dict[str, Any]


def make_graphs(model: Model, examples: Examples, progress: Callable[[str], object] = lambda network: None) -> Graphs:
    """The graphs of a model.

    model: on the CPU, in float32.
    examples: the slices that the ranges of activations are measured on.
    progress: is called with each network's name before it is exported.
    """
    graphs: dict[tuple[str, str], bytes] = {}
    parameters: dict[str, list[str]] = {}

    def keep(network: ExportedNetwork, precision: str, graph: ModelProto) -> None:
        state = {name.removeprefix(PREFIX): value for name, value in network.module.state_dict().items()}
        parameters[f"{network.name}/{precision}"] = without_parameters(graph, state)
        graphs[network.name, precision] = graph.SerializeToString()

    codes = model.encode(examples.slices, examples.position)
    for network in exported_networks(model):
        progress(network.name)
        exact = exported(network)
        if network.name in EXACT_LAST:
            inputs = [
                {"codes": codes[i : i + 1].numpy(), "position": examples.position[i : i + 1].numpy()}
                for i in range(len(codes))
            ]
            chosen = list(layers(exact))[EXACT_FIRST : -EXACT_LAST[network.name]]
            keep(network, INT8, in_int8(exact, measure_ranges(exact, inputs), chosen))
        keep(network, FLOAT32, exact)
    settings = settings_of(model.vqvae, model.prior, model.detector, model.about.preprocessing.image_size)
    calibration = examples.sources | {"slices": len(codes)}
    return Graphs(settings, networks_digest(model.vqvae, model.prior), graphs, parameters, calibration)


def exported(network: ExportedNetwork) -> ModelProto:
    """A network as ONNX, all that can be as plain convolutions. Its parameters have the names that they have in the network."""
    model: ModelProto = export_network(network).model_proto
    graph = Graph(model)
    for one in model.graph.initializer:
        if one.name.startswith(PREFIX):
            name = one.name
            one.name = name.removeprefix(PREFIX)
            graph.read_instead(name, one.name)
    return as_convolutions(graph.finish())


def without_parameters(model: ModelProto, state: Mapping[str, Tensor]) -> list[str]:
    """Take the parameters out of a model, in place. Returns their names.

    What is left says where they would lie in a file. ONNX Runtime is given them instead. What the exporter tells of itself goes
    too.
    state: the network's parameters. Raises ValueError where the exporter made others of them.
    """
    names = []
    for one in model.graph.initializer:
        value = onnx.numpy_helper.to_array(one)
        if one.name in state:
            if not np.array_equal(value, state[one.name].numpy()):
                raise ValueError(f"{one.name}: expected the exporter to leave parameters as they are, found others")
            size = value.nbytes
            names.append(one.name)
            kept = onnx.TensorProto(
                name=one.name, dims=one.dims, data_type=one.data_type, data_location=onnx.TensorProto.EXTERNAL
            )
            for key, said in (("location", "model"), ("offset", "0"), ("length", str(size))):
                kept.external_data.add(key=key, value=said)
            one.CopyFrom(kept)
        elif value.dtype == np.float32 and value.size > MOST_NUMBERS:
            raise ValueError(f"{one.name}: expected parameters of the network alone, found {value.size} other numbers")
        one.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.name = node.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:], model.functions[:]
    return names


def differences(model: Model, other: Model, examples: Examples, most: int = 16) -> dict[str, tuple[float, float]]:
    """How far two models of the same weights differ on at most so many examples, by network: on average, and at most."""
    some = torch.from_numpy(evenly(len(examples.slices), most))
    slices, position = examples.slices[some], examples.position[some]
    codes = model.encode(slices, position)
    pairs = {
        "encoder": (codes, other.encode(slices, position)),
        "prior": (model.nll(codes, position), other.nll(codes, position)),
        "decoder": (model.decode(codes, position), other.decode(codes, position)),
    }
    # Of codes, the share that is not the same.
    apart = {
        name: (one != two).float() if name == "encoder" else (one - two).abs() for name, (one, two) in pairs.items()
    }
    return {name: (float(values.mean()), float(values.max())) for name, values in apart.items()}


def evenly(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` of 0 .. count - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def concatenated(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Slices and positions of several volumes as one."""
    slices, position = zip(*parts)
    return torch.cat(slices).cpu().float(), torch.cat(position).cpu().float()
