"""The networks of a model as ONNX files, for runtimes without torch."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..evidence.normalised import Box, places
from ..model import Model
from ..networks.detector import Detector, input_channels
from ..runtime.files import write_whole_by_name

Network = TypeVar("Network", bound=nn.Module)
OPSET = 20
EXAMPLES = 2  # slices in the inputs that a network is traced with


@dataclass(frozen=True, eq=False)
class Part:
    """A network as it is exported.

    name: of its file. module: its forward is what the file computes. inputs, output: names. example: inputs of any batch
    size; the first axis is free in the file, and so are the axes named in `free`, by the input.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    output: str
    example: tuple[Tensor, ...]
    free: dict[str, dict[int, str]]


class _Call(nn.Module):
    """One function of a network as a module of its own."""

    def __init__(self, network: nn.Module, function: Callable[..., Tensor]):
        super().__init__()
        self.network, self.function = network, function
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def _plain(network: Network) -> Network:
    """A copy on the CPU, in float32: the model itself stays where and as it is."""
    return copy.deepcopy(network).cpu().float().eval()


def parts_of(model: Model) -> list[Part]:
    """What a model file's ONNX files are: encoder, decoder, prior and, where there is one, detector.

    encoder: slices (B, S, S) float32 in the network's intensities, position (B, 1) -> codes (B, h, w) int64.
    decoder: codes, position -> slices (B, S', S'). prior: codes, position -> NLL (B, h, w), nats, of each code given those
    before it. detector: maps (B, C, H, W), NLL (B, K, h, w), place (B, 2, H, W) -> logits (B, H, W): see
    `NormalisedEvidence.inputs` and `places`; H and W are free.
    """
    vqvae, prior = _plain(model.vqvae), _plain(model.prior)
    size = model.about.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    slices = torch.randn(EXAMPLES, size, size, generator=generator)
    position = torch.linspace(-0.2, 0.3, EXAMPLES)[:, None]
    with torch.inference_mode():
        codes = vqvae.encode(slices, position)
    codes = codes.clone()  # outside of inference mode
    parts = [
        Part("encoder", _Call(vqvae, vqvae.encode), ("slices", "position"), "codes", (slices, position), {}),
        Part("decoder", _Call(vqvae, vqvae.decode), ("codes", "position"), "slices", (codes, position), {}),
        Part("prior", _Call(prior, prior.nll), ("codes", "position"), "nll", (codes, position), {}),
    ]
    if model.detector is not None:
        parts.append(_detector_part(_plain(model.detector), size, codes.shape[-1]))
    return parts


def _detector_part(detector: Detector, size: int, code_side: int) -> Part:
    settings, generator = detector.settings, torch.Generator().manual_seed(1)
    channels = input_channels(settings.context, settings.mirror)
    maps = torch.randn(EXAMPLES, channels, size, size, generator=generator)
    nll = torch.randn(EXAMPLES, len(settings.context), code_side, code_side, generator=generator)
    whole = Box(slice(0, size), slice(0, size))
    place = places(whole, torch.Size((size, size))).expand(EXAMPLES, -1, -1, -1).contiguous()
    pixels = {2: "height", 3: "width"}
    free = {"maps": pixels, "nll": {2: "code_height", 3: "code_width"}, "place": pixels}
    return Part("detector", detector, ("maps", "nll", "place"), "logits", (maps, nll, place), free)


def export_onnx(model: Model, folder: Path) -> list[Path]:
    """Write NAME.onnx of each part into `folder`, with the model's description in the metadata `about`; opset OPSET, float32.

    Needs the packages onnx and onnxscript (`pip install 'mood-submission[onnx]'`). Raises OSError where the folder cannot be
    written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(part, model, folder / f"{part.name}.onnx") for part in parts_of(model)]


def _write(part: Part, model: Model, path: Path) -> Path:
    shapes = tuple({0: torch.export.Dim.DYNAMIC} | _dynamic(part, name) for name in part.inputs)
    program = torch.onnx.export(
        part.module,
        part.example,
        input_names=list(part.inputs),
        output_names=[part.output],
        dynamic_shapes={"inputs": shapes} if isinstance(part.module, _Call) else shapes,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["about"] = model.about.to_json()
    program.model.metadata_props["sha256"] = str(model.sha256)
    program.model.metadata_props["shapes"] = json.dumps(
        {name: list(tensor.shape) for name, tensor in zip(part.inputs, part.example)}
    )
    write_whole_by_name(path, lambda name: program.save(name, external_data=False))
    return path


def _dynamic(part: Part, name: str) -> dict[int, object]:
    return {axis: torch.export.Dim.DYNAMIC for axis in part.free.get(name, {})}
