"""The networks computed by ONNX Runtime, on a CPU."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.names import in_one_line
from ..runtime.system_memory import return_large_blocks
from ..runtime.telemetry import keep_to_ourselves
from .base import EngineError
from .graphs import OWNERS, Graphs, parameters_of

PACKAGE = "onnxruntime"
# Of its own messages it prints none but fatal ones. What fails is raised.
FATAL = 4


def load_runtime() -> Any:
    """The package onnxruntime. Raises EngineError where it is missing or cannot be loaded."""
    keep_to_ourselves()
    try:
        import onnxruntime
    # A package that was built for other libraries raises errors of any class.
    except Exception as error:
        raise EngineError(
            f"expected the package {PACKAGE}, found none ({in_one_line(error)}); pip install 'mood-submission[onnx]'"
        ) from None
    # Windows collects it by other means.
    with suppress(Exception):
        onnxruntime.disable_telemetry_events()
    return onnxruntime


@cache
def share_memory() -> None:
    """Let all sessions of this process take the memory of their activations from one pool, which grows by what is asked for.

    Without a pool the memory of each slice is asked of the system anew, which takes a tenth of the time. A pool of each session's
    own would keep the largest slice's memory for each network. Raises EngineError where the runtime has no such pools.
    """
    runtime = load_runtime()
    # 0: no limit. 1: as much as is asked for, not twice as much as before. -1: as the runtime does by default.
    settings = {
        "max_mem": 0,
        "arena_extend_strategy": 1,
        "initial_chunk_size_bytes": -1,
        "max_dead_bytes_per_chunk": -1,
    }
    try:
        cpu = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
        runtime.create_and_register_allocator(cpu, runtime.OrtArenaCfg(settings))
    # It raises errors of many classes that have nothing else in common.
    except Exception as error:
        raise EngineError(f"{PACKAGE} has no memory to share: {in_one_line(error)[:300]}") from error
    return_large_blocks()


class OnnxEngine:
    """See `Engine`. One thread computes each slice, so results have the same bits for any number of threads.

    graphs: of a model with these networks.
    networks: "vqvae", "prior" and, where there is one, "detector", on the CPU in float32. Their parameters are shared, not copied.
    precision: "float32" or "int8". In int8 the networks that have no graph of that kind are computed in float32.
    Raises EngineError where the package is missing, or where it cannot compute the graphs.
    """

    name = "onnx"
    # Each slice has the same bits whatever others are scored with it.
    nll_slices = 1

    def __init__(self, graphs: Graphs, networks: Mapping[str, nn.Module], precision: str):
        self._runtime = load_runtime()
        self.graphs: str | None = graphs.sha256
        self._file = graphs.file
        share_memory()
        self._sessions = {
            network: self._session(network, *graphs.of(network, precision), parameters_of(networks[owner]))
            for network, owner in OWNERS.items()
            if owner in networks
        }

    def rest(self) -> None:
        options = self._runtime.RunOptions()
        # At the end of such a run the pool gives back what no session holds. Any network may run; the encoder is the fastest.
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        session = self._sessions["encoder"]
        shapes = {
            one.name: [size if isinstance(size, int) else 1 for size in one.shape] for one in session.get_inputs()
        }
        session.run(None, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, options)

    def encode(self, slices: Tensor, position: Tensor) -> Tensor:
        return self._run("encoder", slices=slices, position=position)

    def nll(self, codes: Tensor, position: Tensor) -> Tensor:
        return self._run("prior", codes=codes, position=position)

    def decode(self, codes: Tensor, position: Tensor) -> Tensor:
        return self._run("decoder", codes=codes, position=position)

    def detect(self, maps: Tensor, nll: Tensor, place: Tensor) -> Tensor:
        return self._run("detector", maps=maps, nll=nll, place=place)

    def _session(self, network: str, graph: bytes, names: list[str], parameters: Mapping[str, Tensor]) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = FATAL
        # See `share_memory`. A plan of a session's memory would keep another copy of it.
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.enable_mem_pattern = False
        try:
            values = [self._runtime.OrtValue.ortvalue_from_numpy(parameters[name].numpy()) for name in names]
            options.add_external_initializers(names, values)
            return self._runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        # It raises errors of many classes that have nothing else in common.
        except Exception as error:
            raise EngineError(
                f"{self._of_file()}{PACKAGE} cannot compute the {network}: {in_one_line(error)[:300]}"
            ) from error

    def _of_file(self) -> str:
        """The beginning of a line on what fails: the name of the file of graphs."""
        return "" if self._file is None else f"{self._file}: "

    def _run(self, network: str, **inputs: Tensor) -> Tensor:
        session = self._sessions[network]
        parts = [
            self._one(session, {name: value[i : i + 1].numpy() for name, value in inputs.items()})
            for i in range(len(next(iter(inputs.values()))))
        ]
        return torch.from_numpy(np.concatenate(parts)) if parts else self._nothing(session, inputs)

    def _one(self, session: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The result for one slice. Raises MemoryError where memory runs out."""
        try:
            found: np.ndarray = session.run(None, inputs)[0]
        except Exception as error:
            if any(words in str(error) for words in ("allocate", "bad_alloc")):
                raise MemoryError(str(error)) from error
            raise EngineError(f"{self._of_file()}{in_one_line(error)[:300]}") from error
        return found

    def _nothing(self, session: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """The result without slices: that of one slice, without it."""
        one = {name: np.zeros((1, *value.shape[1:]), value.numpy().dtype) for name, value in inputs.items()}
        return torch.from_numpy(self._one(session, one)[:0])
