"""Files of graphs: what ONNX Runtime computes, without a model's parameters.

`mood-submission quantise` writes one beside a model file. It holds one ONNX graph for each network and precision. Their
parameters are left out, and come from the model file when it is loaded. A graph of int8 rounds them itself, and holds the ranges
of the activations, which were measured on healthy slices.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..networks.detector import Detector
from ..networks.pixelsnail import PixelSNAIL
from ..networks.vqvae import VQVAE
from ..runtime.files import write_whole
from ..runtime.integrity import content_sha256, file_sha256
from ..runtime.names import in_one_line
from .base import EngineError

# What the name of a file of graphs ends in. Before that it is the model file's.
SUFFIX = ".graphs"
FLOAT32, INT8 = "float32", "int8"
# The networks, and the network of the model that holds the parameters of each.
OWNERS = {"encoder": "vqvae", "decoder": "vqvae", "prior": "prior", "detector": "detector"}
# Those that have a graph of int8.
IN_INT8 = ("decoder", "prior")
# Settings that no graph depends on: of training, and of what is done with a detector's logits.
OUTSIDE = ("dropout", "along", "in_plane", "restorations", "ordinary_quantile", "ordinary_spread_quantile")


@dataclass(frozen=True, eq=False)
class Graphs:
    """The graphs of a model.

    settings: the networks' settings, see `settings_of`. The graphs compute networks of these alone.
    networks: the digest of the VQ-VAE and the prior (`networks_digest`) that the ranges of int8 were measured with.
    graphs: ONNX files as bytes, by network and precision.
    parameters: the names of the parameters that each graph lacks, by "network/precision".
    calibration: what the ranges were measured on.
    file: where they were read. None where they were made.
    sha256: that file's digest. Empty where there is none.
    """

    settings: dict[str, Any]
    networks: str
    graphs: Mapping[tuple[str, str], bytes]
    parameters: dict[str, list[str]]
    calibration: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    sha256: str = ""

    def check(self, networks: Collection[str], precision: str) -> None:
        """Raises ValueError where there is no graph of one of these networks, or none in int8 of those that int8 is for.

        networks: names of OWNERS.
        """
        wanted = {(network, FLOAT32) for network in networks}
        wanted |= {(network, INT8) for network in IN_INT8} if precision == INT8 else set()
        for network, kind in sorted(wanted):
            names = self.parameters.get(f"{network}/{kind}")
            if (network, kind) not in self.graphs or not isinstance(names, list):
                raise ValueError(f"no graph of the {network} in {kind}")

    def of(self, network: str, precision: str) -> tuple[bytes, list[str]]:
        """A network's graph in a precision, and the parameters that it lacks. One that has none in int8 is that of float32."""
        kind = precision if (network, precision) in self.graphs else FLOAT32
        return self.graphs[network, kind], self.parameters[f"{network}/{kind}"]

    def write(self, file: Path) -> None:
        """Write the file. Raises OSError."""
        about = {name: getattr(self, name) for name in ("settings", "networks", "parameters", "calibration")}
        arrays: dict[str, Any] = {
            "/".join(key): np.frombuffer(graph, np.uint8) for key, graph in sorted(self.graphs.items())
        }
        with write_whole(file) as out:
            np.savez_compressed(out, about=np.array(json.dumps(about)), **arrays)


def read_graphs(file: Path) -> Graphs:
    """Raises EngineError for a file that is missing or no file of graphs. Nothing in it is executed."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            keys = [tuple(name.split("/")) for name in stored.files if name != "about"]
            graphs = {(network, kind): stored[f"{network}/{kind}"].tobytes() for network, kind in keys}
        for name in ("settings", "parameters", "calibration"):
            if not isinstance(about.get(name), dict):
                raise ValueError(f"no {name}")
        return Graphs(graphs=graphs, file=file, sha256=file_sha256(file), **about)
    except FileNotFoundError:
        raise EngineError(
            f"{file}: expected the model's graphs, found no such file; see mood-submission quantise"
        ) from None
    # What a damaged file raises is of many classes: of zip files, of compressed data, of arrays' headers.
    except Exception as error:
        found = in_one_line(error)[:300] or type(error).__name__
        raise EngineError(f"{file}: expected a file of mood-submission quantise, found: {found}") from error


def settings_of(vqvae: VQVAE, prior: PixelSNAIL, detector: Detector | None, image_size: int) -> dict[str, Any]:
    """What the graphs of networks depend on besides parameters and ranges, as JSON gives it back.

    Without a detector nothing is said of one.
    """
    every = {"vqvae": asdict(vqvae.settings), "prior": asdict(prior.settings)}
    if detector is not None:
        every["detector"] = asdict(detector.settings)
    inside = {
        name: {key: value for key, value in settings.items() if key not in OUTSIDE} for name, settings in every.items()
    }
    given_back: dict[str, Any] = json.loads(json.dumps(inside | {"image_size": image_size}))
    return given_back


def networks_digest(vqvae: VQVAE, prior: PixelSNAIL) -> str:
    """The digest of the parameters of the VQ-VAE and the prior, in float32."""
    tensors = {
        f"{name}.{key}": value.float()
        for name, network in (("vqvae", vqvae), ("prior", prior))
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    return content_sha256(tensors, "")


def parameters_of(network: nn.Module) -> dict[str, Tensor]:
    """A network's parameters and buffers by their names in the graphs."""
    return {name: value.detach() for name, value in network.state_dict().items()}
