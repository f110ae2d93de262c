"""The networks of a model as ONNX files, for runtimes without torch."""

import copy
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..evidence.normalised import Box, places
from ..model import Model
from ..networks.detector import Detector, input_channels
from ..runtime.files import write_whole_by_name
from ..runtime.telemetry import keep_to_ourselves

Network = TypeVar("Network", bound=nn.Module)
OPSET = 20
# How many slices are in the inputs that a network is traced with.
EXAMPLES = 2
# The packages that export.
NEEDED = ("onnx", "onnxscript")


def prepare_exporter(*more: str) -> None:
    """Silence the exporter, which warns of itself. Raises ValueError where its packages, or `more`, are not there."""
    missing = [name for name in (*NEEDED, *more) if find_spec(name) is None]
    if missing:
        raise ValueError(f"expected the package {missing[0]}, found none; pip install 'mood-submission[onnx]'")
    # The exporter's packages load ONNX Runtime too.
    keep_to_ourselves()
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


@dataclass(frozen=True, eq=False)
class ExportedNetwork:
    """A network as it is exported.

    name: of its file.
    module: its `forward` is what the file computes.
    output: name of what it computes.
    inputs: by name, examples with some number of slices. The file takes any number of them.
    free: by input, the further axes that may have another size, and what they are called.
    """

    name: str
    module: nn.Module
    output: str
    inputs: dict[str, Tensor]
    free: dict[str, dict[int, str]] = field(default_factory=dict)


class _Call(nn.Module):
    """One function of a network as a module of its own."""

    def __init__(self, network: nn.Module, function: Callable[..., Tensor]):
        super().__init__()
        self.network, self.function = network, function
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def _plain(network: Network) -> Network:
    """A copy on the CPU, in float32. The model itself stays where and as it is."""
    return copy.deepcopy(network).cpu().float().eval()


def exported_networks(model: Model) -> list[ExportedNetwork]:
    """The networks that become ONNX files: encoder, decoder, prior and, where there is one, detector.

    encoder: slices (B, S, S) float32 in the network's intensities, position (B, 1) -> codes (B, h, w) int64.
    decoder: codes, position -> slices (B, S', S').
    prior: codes, position -> NLL (B, h, w) in nats, of each code given those before it.
    detector: maps (B, C, H, W), NLL (B, K, h, w), place (B, 2, H, W) -> logits (B, H, W). See
        `NormalisedEvidence.inputs` and `places`. H and W are free.
    """
    vqvae, prior = _plain(model.vqvae), _plain(model.prior)
    size = model.about.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    slices = torch.randn(EXAMPLES, size, size, generator=generator)
    position = torch.linspace(-0.2, 0.3, EXAMPLES)[:, None]
    with torch.inference_mode():
        codes = vqvae.encode(slices, position)
    # A clone can be traced, which what was made in inference mode cannot.
    codes = codes.clone()
    networks = [
        ExportedNetwork("encoder", _Call(vqvae, vqvae.encode), "codes", {"slices": slices, "position": position}),
        ExportedNetwork("decoder", _Call(vqvae, vqvae.decode), "slices", {"codes": codes, "position": position}),
        ExportedNetwork("prior", _Call(prior, prior.nll), "nll", {"codes": codes, "position": position}),
    ]
    if model.detector is not None:
        networks.append(_exported_detector(_plain(model.detector), size, codes.shape[-1]))
    return networks


def _exported_detector(detector: Detector, size: int, code_side: int) -> ExportedNetwork:
    settings, generator = detector.settings, torch.Generator().manual_seed(1)
    channels = input_channels(settings.context, settings.mirror)
    maps = torch.randn(EXAMPLES, channels, size, size, generator=generator)
    nll = torch.randn(EXAMPLES, len(settings.context), code_side, code_side, generator=generator)
    whole = Box(slice(0, size), slice(0, size))
    place = places(whole, torch.Size((size, size))).expand(EXAMPLES, -1, -1, -1).contiguous()
    pixels = {2: "height", 3: "width"}
    free = {"maps": pixels, "nll": {2: "code_height", 3: "code_width"}, "place": pixels}
    return ExportedNetwork("detector", detector, "logits", {"maps": maps, "nll": nll, "place": place}, free)


def export_onnx(model: Model, folder: Path) -> list[Path]:
    """Write NAME.onnx of each network into `folder`, in float32 and opset OPSET. The metadata `about` is the model's description.

    Needs the packages onnx and onnxscript (`pip install 'mood-submission[onnx]'`). Raises OSError where the folder cannot be
    written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(network, model, folder / f"{network.name}.onnx") for network in exported_networks(model)]


def _write(network: ExportedNetwork, model: Model, path: Path) -> Path:
    program = export_network(network)
    program.optimize()
    program.model.metadata_props["about"] = model.about.to_json()
    program.model.metadata_props["sha256"] = str(model.sha256)
    program.model.metadata_props["shapes"] = json.dumps({name: list(x.shape) for name, x in network.inputs.items()})
    write_whole_by_name(path, lambda name: program.save(name, external_data=False))
    return path


def export_network(network: ExportedNetwork) -> torch.onnx.ONNXProgram:
    """The network as ONNX, in float32 and opset OPSET. Its parameters are the network's own, by their names."""
    shapes = tuple({0: torch.export.Dim.DYNAMIC} | _dynamic(network, name) for name in network.inputs)
    program = torch.onnx.export(
        network.module,
        tuple(network.inputs.values()),
        input_names=list(network.inputs),
        output_names=[network.output],
        dynamic_shapes={"inputs": shapes} if isinstance(network.module, _Call) else shapes,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
        # It would fold parameters into each other.
        optimize=False,
    )
    assert program is not None
    return program


def _dynamic(network: ExportedNetwork, name: str) -> dict[int, object]:
    return {axis: torch.export.Dim.DYNAMIC for axis in network.free.get(name, {})}
