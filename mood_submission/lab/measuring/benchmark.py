"""How long each step of a prediction takes, and how that compares with the plain ways of doing the same."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from ...about import About
from ...model import Model
from ...networks.pixelsnail import PixelSNAILSettings
from ...networks.vqvae import VQVAESettings
from ...output.predictions import predict_file
from ...predictor import Predictor, Prepared
from ...preprocessing import Preprocessing
from ...restoration.plain import replace_unlikely
from ...running.run_folder import predict_files
from ...runtime.precision import exact_float32
from ...runtime.stopwatch import Stopwatch
from ...runtime.system_memory import peak_mb
from .steps import predict_in_steps

# The share of a slice's codes that are above its threshold where nothing is to be skipped.
REPLACED = 0.1
# The steps of a prediction that have a figure of their own, as `predict_in_steps` calls them.
STEPS = {
    "read": "read",
    "prepare": "prepare",
    "encode": "encode",
    "nll": "NLL",
    "healthy_sampling": "sample",
    "decode": "decode restorations",
    "write": "write",
}


def machine(device: torch.device) -> str:
    """What computes: the GPU's name, or the processor's with the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "CPU"
    return f"{name}, {torch.get_num_threads()} threads"


def benchmark(predictor: Predictor, path: Path, out: Path, places: int = 3) -> dict[str, float | int | str]:
    """Time a volume's prediction step by step, sampling with nothing skipped, one forward, and the naive loop.

    path: a healthy volume.
    out: folder to write the prediction to.
    places: at how many of the code grid's places the naive loop is measured. It does the same at every place, so its time for
        all of them is worked out from these.

    Returns seconds and ratios:
    read_s, prepare_s, encode_s, nll_s, healthy_sampling_s, decode_s (of the restorations), postprocess_s, write_s: the volume,
        at the model's own threshold. Between them they do both tasks. volume_s: all of these.
    sampling_s, sampling_decode_s: the same slices with a threshold for each that its 10% least likely codes are above, so that
        every slice is sampled. skipped: share of places before a slice's first replaced one. changed: share of codes that
        came out as others.
    floor_s: one forward of the prior for slices x restorations grids. naive_s: a forward of all of them for each place. Both in
        the model's own precision, also where sampling is in another (`Model.precision`).
    speedup = naive_s / sampling_s, over_floor = sampling_s / floor_s; with `healthy_` in front for healthy_sampling_s.
    peak_rss_mb: of the process, without floor and naive loop. peak_device_mb: CUDA's, likewise.
    """
    model = predictor.model
    steps, clock = Stopwatch(model.device), Stopwatch(model.device)
    _warm_up(predictor, path, out)
    prepared, evidence = predict_in_steps(predictor, path, out, steps)
    codes, nll, healthy = evidence.codes, evidence.nll, evidence.restored_codes
    assert healthy is not None
    seconds = {f"{name}_s": steps.seconds.pop(step) for name, step in STEPS.items()}
    seconds["postprocess_s"] = sum(steps.seconds.values())
    result: dict[str, float] = {"volume_s": sum(seconds.values()), "healthy_changed": _changed(healthy, codes)}
    thresholds = nll.flatten(1).quantile(1 - REPLACED, dim=1)
    with clock.step("sampling_s"):
        restored = predictor.restore(prepared, codes, threshold=thresholds)
    with clock.step("sampling_decode_s"):
        predictor.evidence(prepared, restored).decode_restorations()
    above = (nll > thresholds[:, None, None]).flatten(1)
    result |= {"changed": _changed(restored, codes), "skipped": float((above.cumsum(1) == 0).float().mean())}
    result["peak_rss_mb"] = peak_mb()
    if model.device.type == "cuda":
        result["peak_device_mb"] = torch.cuda.max_memory_allocated(model.device) / 1e6
    places = min(places, codes[0].numel())
    result |= {"places": codes[0].numel(), "naive_places": places, "rows": restored[:, :, 0, 0].numel()}
    _floor_and_naive(predictor, prepared, codes, thresholds=thresholds, places=places, clock=clock)
    seconds |= clock.seconds
    seconds["naive_s"] = seconds.pop("naive_places_s") / places * codes[0].numel()
    for kind in ("", "healthy_"):
        result[f"{kind}speedup"] = seconds["naive_s"] / seconds[f"{kind}sampling_s"]
        result[f"{kind}over_floor"] = seconds[f"{kind}sampling_s"] / seconds["floor_s"]
    return {**seconds, **result}


def _warm_up(predictor: Predictor, path: Path, out: Path) -> None:
    """Predict once, with one slice on a CPU. On CUDA with all slices, and until the sampler has its graphs: two uses more."""
    model, clock = predictor.model, Stopwatch(predictor.model.device)
    if model.device.type != "cuda":
        predict_in_steps(Predictor(model, 1, 1), path, out, clock)
        return
    prepared, evidence = predict_in_steps(predictor, path, out, clock)
    for _ in range(2):
        restored = predictor.restore(prepared, evidence.codes, threshold=0.0)
        evidence.with_restorations(restored).decode_restorations()


def _changed(restored: Tensor, codes: Tensor) -> float:
    return float((restored != codes[:, None]).float().mean())


@torch.inference_mode()
@exact_float32()
def _floor_and_naive(
    predictor: Predictor, prepared: Prepared, codes: Tensor, *, thresholds: Tensor, places: int, clock: Stopwatch
) -> None:
    """Measure one forward of the prior for all restorations ("floor"), and the naive loop at so many places."""
    model, copies = predictor.model, predictor.restorations
    uniforms = predictor.uniforms_of(prepared, codes).flatten(0, 1).to(codes.device)
    rows, thresholds = codes.repeat_interleave(copies, dim=0), thresholds.repeat_interleave(copies)
    position = prepared.position.to(codes.device, model.dtype).repeat_interleave(copies, dim=0)
    batches = torch.arange(len(rows), device=codes.device).split(model.affordable_slices())
    for name in ("warm_up", "floor") if model.device.type == "cuda" else ("floor",):
        with clock.step(f"{name}_s"):
            for batch in batches:
                model.prior(rows[batch], position[batch])
    clock.seconds.pop("warm_up_s", None)
    with clock.step("naive_places_s"):
        for place in torch.linspace(0, codes[0].numel() - 1, places).long().tolist():
            row, column = divmod(place, codes.shape[2])
            for batch in batches:
                logits = model.prior(rows[batch], position[batch])[:, :, row, column]
                codes_here, draws = rows[batch, row, column], uniforms[batch, row, column]
                rows[batch, row, column] = replace_unlikely(logits, codes_here, draws, thresholds[batch])


class FreeNetworks(Model):
    """Networks that cost nothing, in a `Model`'s place. Every slice is restored to mid-grey."""

    def __init__(self, region: str, device: str | torch.device = "cpu"):
        self.about = About(region, VQVAESettings(), PixelSNAILSettings(), Preprocessing.published(region))
        self.device, self.detector = torch.device(device), None

    @property
    def computed(self) -> dict[str, str | None]:
        return {"engine": "none", "precision": "none", "graphs": None}

    def rest(self) -> None:
        pass

    def encode(self, slices: Tensor, position: Tensor) -> Tensor:
        return torch.zeros(len(slices), 10, 10, dtype=torch.int64, device=self.device)

    def nll(self, codes: Tensor, position: Tensor) -> Tensor:
        return torch.zeros(codes.shape, device=self.device)

    def restore(self, codes: Tensor, position: Tensor, uniforms: Tensor, threshold: float | Tensor) -> Tensor:
        return codes[:, None].repeat(1, uniforms.shape[1], 1, 1)

    def decode(self, codes: Tensor, position: Tensor) -> Tensor:
        size = self.about.preprocessing.image_size
        return torch.zeros(len(codes), size, size, device=self.device)


def benchmark_io(predictor: Predictor, path: Path, out: Path, volumes: int = 3) -> dict[str, float]:
    """Time all but the networks, beside nibabel's bare load and save of the same volume.

    predictor: with `FreeNetworks`.
    path: a volume.
    out: an empty folder to write to.
    volumes: how many copies of the volume the pipeline predicts.

    Returns
    io_s: the pixel task from file to file. nibabel_s: load as float32 and save, which gives a file of the same kind.
    io_ratio = io_s / nibabel_s.
    pipeline_s: for each of several volumes, read and written in threads. peak_rss_mb: of the process, with that pipeline.
    """
    clock = Stopwatch(predictor.model.device)
    links = [out / f"{i}_{path.name}" for i in range(volumes)]
    for link in links:
        link.symlink_to(path.resolve())
    predictions = out / "predictions"
    predictions.mkdir()
    with clock.step("io_s"):
        predict_file(predictor, path, "pixel", predictions)
    with clock.step("pipeline_s"):
        failed = [
            outcome
            for outcome in predict_files(predictor, links, "pixel", predictions)
            if outcome.status != "predicted"
        ]
    if failed:
        raise OSError(f"{path}: expected {volumes} predictions, {len(failed)} failed")
    peak = peak_mb()
    with clock.step("nibabel_s"):
        image = nib.load(path)
        assert isinstance(image, SpatialImage)
        data = np.asarray(image.dataobj, dtype=np.float32)
        nib.save(nib.Nifti1Image(data, image.affine), predictions / f"nibabel_{path.name}")
    seconds = clock.seconds
    seconds["pipeline_s"] /= volumes
    return seconds | {"io_ratio": seconds["io_s"] / seconds["nibabel_s"], "peak_rss_mb": peak}
