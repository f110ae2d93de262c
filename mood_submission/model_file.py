"""Model files: one safetensors file a region, read and written.

A file holds the parameters of the VQ-VAE (`vqvae.*`), of the prior (`prior.*`) and, where there are such, of the detector
(`detector.*`) and of the network that tells levels (`level.*`), and one JSON text (`about`) with everything that is needed to use them; see `about.About`.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .about import FORMAT, About, ModelError
from .engines.choice import chosen
from .engines.graphs import SUFFIX
from .methods import table
from .model import Model
from .networks.detector import Detector
from .networks.level import LevelNet
from .networks.pixelsnail import PixelSNAIL
from .networks.vqvae import VQVAE
from .runtime.contract import REGIONS
from .runtime.devices import device_named
from .runtime.files import write_whole
from .runtime.integrity import check, content_sha256
from .runtime.names import in_one_line

# The weights of a wheel lie in the package; those of a checkout lie beside it.
INSTALLED = Path(__file__).resolve().parent / "weights"
WEIGHTS = INSTALLED if INSTALLED.is_dir() else INSTALLED.parent.parent / "weights"


def networks_sha256(model: Model) -> str:
    """The digest of the VQ-VAE's and the prior's parameters, by which a detector knows what it was trained for."""
    return content_sha256(_stored(model.vqvae, "vqvae", None) | _stored(model.prior, "prior", None), "")


def load_model(
    name: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    precision: str | None = None,
    detector: bool = True,
    *,
    engine: str = "torch",
    graphs: Path | None = None,
) -> Model:
    """The model of a region, or of a file.

    Only safetensors are read, so nothing in a file is executed. A file that has changed since it was written is refused
    (`integrity`).

    name: "brain" or "abdom" for the shipped weights, or a file.
    device: see `runtime.devices`. None for CUDA where there is one, else the CPU.
    dtype: of the parameters in memory. None for float32, whatever the file stores.
    precision, engine: see `Model`. The engine may also be "auto", see `engines.choice.chosen`, which also says what a precision of
        None is: float32, but for "auto" on a CPU.
    graphs: the file of graphs that the engine "onnx" needs. None for the one beside the model file.
    detector: whether to read the detector too, where there is one. Without, files with an earlier version's are read.
    Raises ModelError, in one line that names the file. One reason is a default method that is not registered. Raises RuntimeError for
    a device that is not there.
    """
    file = WEIGHTS / f"{name}.safetensors" if str(name) in REGIONS else Path(name)
    on = device_named(device)
    engine, precision = chosen(engine, precision, on)
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
        text = metadata.get("about", "{}")
        about = About.from_json(text, detector)
        for task, name in (("sample", about.sample_method), ("pixel", about.pixel_method)):
            table.method_named(name, task)
        sha256 = check(file, content_sha256(tensors, text), metadata.get("sha256"))
        vqvae = _filled(VQVAE(about.vqvae), tensors, "vqvae")
        prior = _filled(PixelSNAIL(about.prior), tensors, "prior")
        detecting = None
        if about.detector is not None:
            detecting = _filled(Detector(about.detector), tensors, "detector")
        level = None if about.level is None else _filled(LevelNet(about.level), tensors, "level")
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{file}: expected a model file ({FORMAT}, safetensors), found: {reason}") from error
    try:
        return Model(
            vqvae,
            prior,
            about,
            detector=detecting,
            level=level,
            device=on,
            dtype=dtype or torch.float32,
            precision=precision,
            engine=engine,
            graphs=graphs or file.with_suffix(SUFFIX),
            file=file,
            sha256=sha256,
            reread=partial(load_model, file, "cpu", dtype, detector=detector, graphs=graphs),
        )
    # So says a torch that was built without CUDA.
    except AssertionError as error:
        raise RuntimeError(in_one_line(error)) from None


def save_model(file: Path, vqvae: VQVAE, prior: PixelSNAIL, about: About, dtype: torch.dtype | None = None) -> None:
    """Write a model file without a detector. `add_detector` adds one.

    vqvae, prior: the networks. Weight norm must be folded (`fold_weight_norm`).
    about: the model's description.
    dtype: how parameters are stored. None for their own.
    Raises ValueError for parameters that are not finite, or too large for `dtype`.
    """
    _write(file, _stored(vqvae, "vqvae", dtype) | _stored(prior, "prior", dtype), about)


def _stored(network: nn.Module, name: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Parameters by their names in the file. Raises ValueError for values that `dtype` cannot hold."""
    stored = {
        f"{name}.{key}": value.to(dtype).contiguous() if dtype else value.contiguous()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    for key, value in stored.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{key}: expected finite values, found one that is none or is too large for {value.dtype}")
    return stored


def _write(file: Path, tensors: dict[str, Tensor], about: About) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = about.to_json()
    with write_whole(file) as out:
        out.write(save(tensors, metadata={"about": text, "sha256": content_sha256(tensors, text)}))


def rewrite_about(file: Path, out: Path, about: About) -> None:
    """Write the model of `file` to `out` with another description. `out` may be `file`. Parameters stay as they are stored."""
    _write(out, _tensors(file), about)


def add_detector(
    file: Path,
    out: Path,
    detector: Detector,
    about: About,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the model of `file` to `out` with another detector and another description. `out` may be `file`.

    The VQ-VAE's and the prior's parameters stay as they are stored. dtype: of the detector's, as in `save_model`.
    """
    kept = {name: value for name, value in _tensors(file).items() if not name.startswith("detector.")}
    _write(
        out,
        kept | _stored(detector, "detector", dtype),
        dataclasses.replace(about, detector=detector.settings),
    )


def add_level(file: Path, out: Path, level: LevelNet, about: About) -> None:
    """Write the model of `file` to `out` with another network that tells levels, and another description. `out` may be `file`.

    All other parameters stay as they are stored.
    """
    kept = {name: value for name, value in _tensors(file).items() if not name.startswith("level.")}
    _write(out, kept | _stored(level, "level", None), dataclasses.replace(about, level=level.settings))


def _tensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}


Network = TypeVar("Network", bound=nn.Module)


def _filled(network: Network, tensors: dict[str, Tensor], name: str) -> Network:
    """The network with its stored parameters. name: what their names begin with. Raises ValueError where some are missing."""
    own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    stored = next(iter(own.values())).dtype if own else torch.float32
    # Without this, load_state_dict would round float64.
    network.to(stored)
    missing, unexpected = network.load_state_dict(own, strict=False)
    wrong = unexpected + [key for key in missing if not key.endswith("num_batches_tracked")]
    if wrong:
        raise ValueError(f"parameters of the {name} missing or unknown: {', '.join(wrong[:3])} ...")
    return network
