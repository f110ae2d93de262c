"""A trained model on a device. It runs its networks in batches on a GPU, and in threads on a CPU."""

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .about import About, ModelError
from .engines.base import Detecting
from .engines.choice import check_choice, choose_engine
from .networks.detector import Detector
from .networks.level import LevelNet
from .networks.pixelsnail import PixelSNAIL
from .networks.vqvae import VQVAE
from .restoration.cached_prior import CachedPrior
from .restoration.restore import restore
from .runtime.memory import affordable, free_memory, in_batches
from .runtime.precision import exact_float32, slow_precision
from .runtime.threads import map_in_threads, one_thread_each

# BATCH slices at a time go through a network on a GPU. On a CPU each thread takes one slice at a time, or as many as its engine
# says.
BATCH = 32
# The most slices, and the most restorations, that a thread of a CPU works on at a time.
CPU_SLICES = 16
CPU_ROWS = 128


class Model:
    """VQ-VAE, prior and perhaps a detector on one device, in evaluation mode.

    Slices are (B, H, W) in the network's intensities (see `preprocessing.normalise`), positions (B, 1) in [-0.5, 0.5], codes
    (B, h, w) int64. Inputs may be on any device and of any floating dtype. Results are on the model's device. Codes are
    computed in `dtype`. Codes and NLL never use TF32, since thresholds depend on them; decoding uses torch's own setting. On a
    CPU, results have the same bits for any number of threads.

    vqvae, prior: the networks, which are moved to the device.
    about: the model's description.
    detector, level: None where the model has none.
    device: where the networks run.
    dtype: of the parameters.
    batch_size: slices that go through a network at a time on a GPU. None for BATCH, or fewer where memory is short. It is
        halved when memory runs out.
    precision: "float32" computes in `dtype` and draws the same codes everywhere. "tf32" (on CUDA) and "bf16" draw other codes,
        of the same distribution up to rounding. "bf16" also multiplies in bfloat16, and adds in float32, for the NLL, decoding
        and the detector. "int8", of the engine "onnx" alone, multiplies most of the NLL and of decoding in int8; codes,
        detector and restorations stay in float32.
    engine: what computes codes, NLL, slices and the detector: "torch", or "onnx" for ONNX Runtime on a CPU. Where that cannot,
        torch does, in float32, and `notes` says so. Restorations are always torch's.
    graphs: the file of graphs that "onnx" needs, see `engines.graphs`.
    file: the model file. None for a model that came from none.
    sha256: digest of that file's content.
    reread: reads the same model again, onto the CPU, for an engine and a precision. None for a model that came from no file.
    Raises ModelError for another precision or engine, and for two that do not go together.
    """

    def __init__(
        self,
        vqvae: VQVAE,
        prior: PixelSNAIL,
        about: About,
        *,
        detector: Detector | None = None,
        level: LevelNet | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int | None = None,
        precision: str = "float32",
        engine: str = "torch",
        graphs: Path | None = None,
        file: Path | None = None,
        sha256: str | None = None,
        reread: "Callable[..., Model] | None" = None,
    ):
        try:
            check_choice(engine, precision)
        except ValueError as error:
            raise ModelError(str(error)) from None
        self.vqvae = vqvae.to(device, dtype).eval().requires_grad_(False)
        self.prior = prior.to(device, dtype).eval().requires_grad_(False)
        self.detector = detector and detector.to(device, dtype).eval().requires_grad_(False)
        self.level = level and level.to("cpu", torch.float32).eval().requires_grad_(False)
        self.sampling_prior = copy.deepcopy(self.prior).bfloat16() if precision == "bf16" else self.prior
        self.about, self.device, self.dtype, self.batch_size = about, torch.device(device), dtype, batch_size
        self.file, self.sha256, self.reread = file, sha256, reread
        self.engine, note = choose_engine(
            self.vqvae,
            self.prior,
            self.detector,
            engine=engine,
            precision=precision,
            graphs=graphs,
            image_size=about.preprocessing.image_size,
        )
        self._precision = precision if note is None else "float32"
        # What users should know of how the model computes, in lines.
        self.notes = tuple(line for line in (note, slow_precision(precision, self.device)) if line)
        # By grid size, on CUDA only. It keeps the graphs that were recorded.
        self._cached: dict[torch.Size, CachedPrior] = {}

    @property
    def computed(self) -> dict[str, str | None]:
        """What computes: engine, precision, and the digest of the file of graphs, None for torch."""
        return {"engine": self.engine.name, "precision": self.precision, "graphs": self.engine.graphs}

    @property
    def precision(self) -> str:
        """The precision that networks are computed in. Where torch has taken over from another engine, that is float32."""
        return "float32" if self._precision == "int8" and self.engine.name == "torch" else self._precision

    def on_cpu(self) -> "Model":
        """The same model on the CPU, computed as it is here.

        A model from a file is read again, since a GPU that has failed may return nothing.
        """
        if self.reread is not None:
            return self.reread(engine=self.engine.name, precision=self.precision)
        return Model(
            copy.deepcopy(self.vqvae),
            copy.deepcopy(self.prior),
            self.about,
            detector=copy.deepcopy(self.detector),
            level=copy.deepcopy(self.level),
            dtype=self.dtype,
            precision=self.precision,
            engine=self.engine.name,
        )

    @exact_float32()
    def encode(self, slices: Tensor, position: Tensor) -> Tensor:
        """Codes (B, h, w) of slices (B, H, W)."""
        return self._batched(self.engine.encode, slices, position)

    def decode(self, codes: Tensor, position: Tensor) -> Tensor:
        """Slices (B, H, W) of codes (B, h, w)."""
        return self._batched(self.engine.decode, codes, position)

    @exact_float32()
    def nll(self, codes: Tensor, position: Tensor) -> Tensor:
        """NLL in nats of each code given the earlier ones in raster order, (B, h, w)."""
        return self._batched(self.engine.nll, codes, position, cpu_slices=self.engine.nll_slices)

    @exact_float32()
    def detect(self, read: Callable[[Detecting, Tensor], Tensor], count: int) -> Tensor:
        """The detector's logits (count, H, W) for the slices of a volume, in order.

        read: from the detector and the numbers of a few slices, (B,) int64 on the model's device, to their logits (B, H, W);
            see `evidence.normalised.detector_logits`.
        count: how many slices the volume has.
        Raises ModelError for a model without a detector.
        """
        if self.detector is None:
            raise ModelError("expected a model with a detector, found one without; see mood-submission train detector")
        detector = Detecting(self.detector.settings, self.engine.detect)
        return self._batched(lambda index: read(detector, self.here(index)), torch.arange(count))

    @torch.inference_mode()
    def levels(self, slices: Tensor) -> Tensor:
        """Where along the body slices lie: (B,) float32 on the CPU, in mm.

        The network is small, and is asked while a volume is read and another one is computed. So it runs on the CPU, slice by
        slice and in float32, whatever computes the other networks.

        slices: (B, S, S) in [0, 1], with air 0, S = `about.level.size`.
        Raises ModelError for a model that does not tell levels.
        """
        if self.level is None:
            raise ModelError(
                "expected a model that tells levels, found one that does not; see mood-submission add-level"
            )
        levels = [self.level(one[None].to("cpu", torch.float32)) for one in slices]
        return torch.cat(levels) if levels else torch.zeros(0)

    def rest(self) -> None:
        """Give back the memory that only computing needs, when a volume is computed: writing it needs its own."""
        self.engine.rest()

    @torch.inference_mode()
    def restore(self, codes: Tensor, position: Tensor, uniforms: Tensor, threshold: float | Tensor) -> Tensor:
        """Restored codes (B, S, h, w): unlikely codes are replaced by draws from the prior, see `restoration.restore`.

        codes: (B, h, w) int64.
        position: (B, 1), -0.5 .. 0.5.
        uniforms: (B, S, h, w) in [0, 1), for S restorations of each slice.
        threshold: codes with a higher NLL, in nats, are replaced. One number, (B,), or (B, h, w).
        """
        codes, position, uniforms = self.here(codes), self.here(position), self.here(uniforms)
        if self.device.type == "cpu":
            return self._restore_in_threads(codes, position, uniforms, threshold)
        if self._cached.get(codes.shape[1:]) is None:
            self._cached = {codes.shape[1:]: CachedPrior(self.sampling_prior, *codes.shape[1:])}
        return restore(
            self.sampling_prior,
            codes,
            position,
            uniforms,
            threshold,
            cached=self._cached[codes.shape[1:]],
            tf32=self.precision == "tf32",
        )

    # `exact_float32` is outermost: it is set for all threads at once.
    @exact_float32()
    @one_thread_each()
    def _restore_in_threads(
        self, codes: Tensor, position: Tensor, uniforms: Tensor, threshold: float | Tensor
    ) -> Tensor:
        """Restore a few slices at a time in each thread. Each thread has its own prior, as `restoration.restore` needs."""
        thresholds = torch.as_tensor(threshold)
        thresholds = thresholds if thresholds.ndim else thresholds.expand(len(codes))
        # This memory is freed when its thread ends.
        own = threading.local()

        def run(chunk: Tensor) -> Tensor:
            if not hasattr(own, "prior"):
                own.prior = _twin(self.sampling_prior)
                own.cached = CachedPrior(own.prior, *codes.shape[1:])
            return restore(
                own.prior, codes[chunk], position[chunk], uniforms[chunk], thresholds[chunk], cached=own.cached
            )

        slices = min(CPU_SLICES, max(1, CPU_ROWS // max(1, uniforms.shape[1])))
        parameters = sum(p.numel() * p.element_size() for p in self.sampling_prior.parameters())
        return torch.cat(
            map_in_threads(run, torch.arange(len(codes)).split(slices), self._affordable_threads(3 * parameters))
        )

    def here(self, tensor: Tensor) -> Tensor:
        """A tensor on the model's device. A floating one also gets the model's dtype."""
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    @torch.inference_mode()
    def _batched(self, function: Callable[..., Tensor], *inputs: Tensor, cpu_slices: int = 1) -> Tensor:
        if self.device.type == "cpu":
            return self._few_by_few(function, *inputs, most=cpu_slices)
        return self._in_batches(function, *inputs)

    def _in_batches(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        parts: list[Tensor] = []

        def run(first: int, last: int, _: int) -> None:
            done = [function(*(self.here(x[a:b]) for x in inputs)) for a, b in _pieces(first, last)]
            # Not earlier, since an error may end the batch before all its parts are done.
            parts.extend(done)

        # Without slices there is one empty batch.
        count = max(1, len(inputs[0]))
        in_batches(run, count, self.batch_size or self.affordable_slices())
        return torch.cat(parts)

    @one_thread_each()
    def _few_by_few(self, function: Callable[..., Tensor], *inputs: Tensor, most: int) -> Tensor:
        """Take `most` slices at a time in each thread. The last ones go singly, so that no thread waits long for another."""

        def run(chunk: range) -> Tensor:
            return function(*(self.here(x[chunk.start : chunk.stop]) for x in inputs))

        # Without slices there is one empty batch.
        count = max(1, len(inputs[0]))
        together = max(0, count - 2 * most) // most * most
        chunks = [range(first, first + most) for first in range(0, together, most)]
        chunks += [range(first, first + 1) for first in range(together, count)]
        return torch.cat(map_in_threads(run, chunks, self._affordable_threads(most * self._slice_bytes())))

    def _affordable_threads(self, bytes_each: int) -> int:
        return max(1, free_memory(self.device) // 2 // bytes_each)

    def affordable_slices(self) -> int:
        """How many slices at a time fit in the free memory, at most BATCH."""
        return min(BATCH, affordable(self._slice_bytes(), self.device))

    def _slice_bytes(self) -> int:
        """Memory for one slice: a unit at full resolution or a block of the prior with its attention, whichever is larger."""
        size = self.about.preprocessing.image_size
        places = self.vqvae.settings.latent_size(size) ** 2
        numbers = max(
            12 * size**2 * self.vqvae.settings.channels[0],
            places * (20 * self.prior.settings.n_channels + places),
        )
        return numbers * self.dtype.itemsize


def _twin(network: nn.Module) -> nn.Module:
    """A copy of a network that shares its parameters. Another thread can set hooks in it."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


def _pieces(first: int, last: int) -> list[tuple[int, int]]:
    """first .. last in pieces of falling powers of two. Libraries keep working memory for each size they meet, so few are used."""
    pieces: list[tuple[int, int]] = []
    while first < last or not pieces:
        step = 1 << max(0, (last - first).bit_length() - 1)
        pieces.append((first, min(first + step, last)))
        first += step
    return pieces
