"""Chooses what computes a model's networks. Where ONNX Runtime cannot, torch does, and a note says why."""

import warnings
from contextlib import suppress
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from ..networks.detector import Detector
from ..networks.pixelsnail import PixelSNAIL
from ..networks.vqvae import VQVAE
from ..runtime.contract import AUTO_ENGINE, ENGINES, PRECISIONS
from ..runtime.names import in_one_line
from ..runtime.processor import why_without_vnni
from .base import Engine, EngineError, EngineWarning
from .graphs import INT8, OWNERS, Graphs, networks_digest, read_graphs, settings_of
from .onnx_engine import OnnxEngine, load_runtime
from .torch_engine import TorchEngine

# The precisions that ONNX Runtime computes in.
OF_ONNX = ("float32", INT8)


def chosen(engine: str, precision: str | None, device: torch.device) -> tuple[str, str]:
    """The engine and the precision that an engine's name and a precision stand for.

    engine: one of ENGINES, or "auto": ONNX Runtime in int8 on a CPU, torch on any other device. Where a precision other than int8
        is asked for, "auto" is torch.
    precision: one of PRECISIONS, or None: int8 for ONNX Runtime as "auto" chooses it, else float32.
    """
    if engine != AUTO_ENGINE:
        return engine, precision or "float32"
    if device.type == "cpu" and precision in (None, INT8):
        return "onnx", INT8
    return "torch", precision or "float32"


def check_choice(engine: str, precision: str) -> None:
    """Raises ValueError, in one line, for an unknown engine or precision, and for two that do not go together."""
    # "auto" is one of the two by now.
    engines, precisions = (", ".join(known) for known in ((*ENGINES, AUTO_ENGINE), PRECISIONS))
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {engines}, found {engine!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {precisions}, found {precision!r}")
    if engine == "onnx" and precision not in OF_ONNX:
        raise ValueError(f"engine onnx: expected precision {' or '.join(OF_ONNX)}, found {precision}")
    if engine != "onnx" and precision == INT8:
        raise ValueError(f"precision {INT8}: expected engine onnx, found {engine}")


def choose_engine(
    vqvae: VQVAE,
    prior: PixelSNAIL,
    detector: Detector | None,
    *,
    engine: str,
    precision: str,
    graphs: Path | None,
    image_size: int,
) -> tuple[Engine, str | None]:
    """The engine of a model, and a note where another one was asked for.

    vqvae, prior, detector: the networks, on the model's device.
    engine, precision: what is asked for, see `check_choice`.
    graphs: the file of graphs. None where the model came from no file.
    image_size: the slices' side.
    """
    in_torch = TorchEngine(vqvae, prior, detector, bfloat16=precision == "bf16")
    if engine != "onnx":
        return in_torch, None
    try:
        load_runtime()
        _check_machine(vqvae, precision)
        if graphs is None:
            raise EngineError("expected a model from a file, found one without")
        found = graphs_for(vqvae, prior, detector, graphs, precision=precision, image_size=image_size)
        networks = {"vqvae": vqvae, "prior": prior} | ({} if detector is None else {"detector": detector})
        return OrTorch(OnnxEngine(found, networks, precision), in_torch), None
    except EngineError as error:
        dtype = str(vqvae.codebook.dtype).removeprefix("torch.")
        return in_torch, f"engine onnx, precision {precision}: torch computes instead, in {dtype}: {error}"


def graphs_for(
    vqvae: VQVAE, prior: PixelSNAIL, detector: Detector | None, file: Path, *, precision: str, image_size: int
) -> Graphs:
    """The graphs in a file, which are found to be of these networks. Raises EngineError for others. See `choose_engine`."""
    found = read_graphs(file)
    # Graphs with a detector also serve a model that is read without its own.
    if not settings_of(vqvae, prior, detector, image_size).items() <= found.settings.items():
        raise EngineError(f"{file}: expected graphs of these networks, found those of networks with other settings")
    if precision == INT8 and found.networks != networks_digest(vqvae, prior):
        raise EngineError(
            f"{file}: expected ranges measured with these weights, found those of others; see mood-submission quantise"
        )
    owners = {"vqvae", "prior"} | ({"detector"} if detector is not None else set())
    try:
        found.check([network for network, owner in OWNERS.items() if owner in owners], precision)
    except ValueError as error:
        raise EngineError(f"{file}: expected a file of mood-submission quantise, found {error}") from None
    return found


class OrTorch:
    """See `Engine`. Another engine as long as it computes, and torch from its first failure on, which a warning tells.

    first: the other engine.
    in_torch: computes the same networks.
    """

    def __init__(self, first: Engine, in_torch: Engine):
        self.in_torch, self._one_at_a_time = in_torch, Lock()
        self._take(first)

    def _take(self, engine: Engine) -> None:
        self.computing, self.name, self.nll_slices, self.graphs = engine, engine.name, engine.nll_slices, engine.graphs

    def encode(self, slices: Tensor, position: Tensor) -> Tensor:
        return self._computed("encode", slices, position)

    def nll(self, codes: Tensor, position: Tensor) -> Tensor:
        return self._computed("nll", codes, position)

    def decode(self, codes: Tensor, position: Tensor) -> Tensor:
        return self._computed("decode", codes, position)

    def detect(self, maps: Tensor, nll: Tensor, place: Tensor) -> Tensor:
        return self._computed("detect", maps, nll, place)

    def rest(self) -> None:
        # Its results are whole. Memory that is kept costs nothing but memory.
        with suppress(Exception):
            self.computing.rest()

    def _computed(self, what: str, *inputs: Tensor) -> Tensor:
        computing = self.computing
        try:
            found: Tensor = getattr(computing, what)(*inputs)
            return found
        # Smaller batches, or another device, may do.
        except MemoryError:
            raise
        except Exception as error:
            if computing is self.in_torch:
                raise
            # Of several threads that fail at a time one tells it.
            with self._one_at_a_time:
                first_failure = self.computing is computing
                self._take(self.in_torch)
            if first_failure:
                reason = in_one_line(error)[:600]
                line = f"engine {computing.name}: torch computes from here on, in float32: {reason}"
                warnings.warn(line, EngineWarning, stacklevel=2)
            again: Tensor = getattr(self.in_torch, what)(*inputs)
            return again


def _check_machine(vqvae: VQVAE, precision: str) -> None:
    parameter = vqvae.codebook
    if parameter.device.type != "cpu":
        raise EngineError(f"expected the device cpu, found {parameter.device.type}")
    if parameter.dtype != torch.float32:
        raise EngineError(f"expected parameters in float32, found {parameter.dtype}")
    if precision == INT8 and (why := why_without_vnni()):
        raise EngineError(why)
