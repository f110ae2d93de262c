"""Edits ONNX graphs: adds nodes that compute with parameters, and asks what computes what.

What is computed of parameters alone stays in the graph as nodes. ONNX Runtime computes it once, when it loads the graph.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper


class Graph:
    """An ONNX model that nodes are added to.

    model: is changed in place. Its nodes stay in an order in which each comes after what it reads, see `finish`.
    """

    def __init__(self, model: ModelProto):
        self.model, self.graph = model, model.graph
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.shapes = {one.name: tuple(one.dims) for one in model.graph.initializer}
        # No new name may be one of these.
        self._taken = {*self.shapes, *(one.name for one in model.graph.input)}
        self._taken |= {output for node in self.nodes for output in node.output}
        self._count = 0

    def producers(self) -> dict[str, NodeProto]:
        """The node that computes each value."""
        return {output: node for node in self.nodes for output in node.output}

    def readers(self, value: str) -> list[NodeProto]:
        """The nodes that read a value."""
        return [node for node in self.nodes if value in node.input]

    def constant(self, array: np.ndarray | np.generic) -> str:
        """The name of a new constant."""
        name = self._name("constant")
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output. Returns the output's name: a new one, or the one that is given."""
        output = output or self._name(kind.lower())
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def remove(self, node: NodeProto) -> None:
        self.nodes = [other for other in self.nodes if other is not node]

    def read_instead(self, value: str, other: str, but: Sequence[NodeProto] = ()) -> None:
        """All nodes but those in `but` read `other` where they read `value`."""
        for node in self.nodes:
            if not any(node is one for one in but):
                for place, name in enumerate(node.input):
                    if name == value:
                        node.input[place] = other

    def finish(self) -> ModelProto:
        """The model, its nodes in order."""
        waiting, done = list(self.nodes), {""}
        done |= {one.name for one in (*self.graph.initializer, *self.graph.input)}
        ordered: list[NodeProto] = []
        while waiting:
            ready = [node for node in waiting if all(name in done for name in node.input)]
            if not ready:
                raise ValueError(f"expected a graph without circles, found one round {waiting[0].output[0]}")
            ordered += ready
            done |= {name for node in ready for name in node.output}
            waiting = [node for node in waiting if not any(node is one for one in ready)]
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(ordered)
        return self.model

    def _name(self, kind: str) -> str:
        self._count += 1
        while f"{kind}_q{self._count}" in self._taken:
            self._count += 1
        return f"{kind}_q{self._count}"


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute, or the default."""
    for one in node.attribute:
        if one.name == name:
            return helper.get_attribute_value(one)
    return default


def copied(model: ModelProto) -> ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
