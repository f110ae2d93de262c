"""Where the time of a prediction goes: seconds and arithmetic of each stage, beside the speed of the machine's own matrices."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...evidence.evidence import Evidence
from ...evidence.normalised import NormalisedEvidence, volume_logits
from ...output.predictions import predict_file
from ...predictor import Predictor
from ...runtime.stopwatch import Stopwatch
from ...volumes import read_volume, write_volume

# Of the matrices that the machine's speed is measured with.
SIDE, TRIES = 2048, 5


@dataclass(frozen=True)
class StageCost:
    """seconds: of a whole volume. gflop: floating-point operations, in thousands of millions; 0 of what is no network."""

    name: str
    seconds: float
    gflop: float = 0.0

    @property
    def speed(self) -> float:
        """GFLOP/s."""
        return self.gflop / max(self.seconds, 1e-9)


def matrix_speed(device: torch.device) -> float:
    """GFLOP/s of float32 matrix products with all that the device has, the best of TRIES."""
    a, b = torch.rand(2, SIDE, SIDE, device=device)
    best, clock = 0.0, Stopwatch(device, time.perf_counter)
    for _ in range(TRIES + 1):
        clock.lap()
        a @ b
        best = max(best, 2 * SIDE**3 / 1e9 / max(clock.lap(), 1e-9))
    return best


def profile(predictor: Predictor, path: Path, out: Path) -> list[StageCost]:
    """Predict a volume once as a warm-up and once stage by stage, both tasks in one. out: folder to write the prediction to."""
    stages, clock = [], Stopwatch(predictor.model.device)
    predict_file(predictor, path, "pixel", out)

    def timed(name: str, work: Callable[[], object], gflop: float = 0.0) -> object:
        with clock.step(name):
            result = work()
        stages.append(StageCost(name, clock.seconds[name], gflop))
        return result

    volume = read_volume(path)
    timed("read", lambda: read_volume(path))
    prepared = predictor.prepare(volume)
    timed("prepare", lambda: predictor.prepare(volume))
    evidence = predictor.evidence(prepared)
    of_slice = slice_gflop(predictor, evidence)
    count = len(prepared.indices)
    timed("encode", lambda: evidence.codes, count * of_slice["encode"])
    timed("NLL", lambda: evidence.nll, count * of_slice["NLL"])
    timed("decode", lambda: evidence.decoded, count * of_slice["decode"])
    if predictor.restorations:
        copies = count * predictor.restorations
        restored = timed("sample", lambda: predictor.restore(prepared, evidence.codes), copies * of_slice["NLL"])
        assert isinstance(restored, Tensor)
        evidence = evidence.with_restorations(restored)
        timed("decode restorations", evidence.decode_restorations, copies * of_slice["decode"])
    if predictor.model.detector is not None:
        timed("detect", lambda: evidence.logits, count * of_slice["detect"])
    scores = timed("score", lambda: predictor.pixel(evidence))
    assert isinstance(scores, Tensor)
    timed("score the sample", lambda: predictor.sample(evidence))
    whole = predictor.to_volume(prepared, scores)
    timed("to the volume's grid", lambda: predictor.to_volume(prepared, scores))
    timed("write", lambda: write_volume(out / prepared.source.output_name, whole, prepared.grid))
    return stages


def slice_gflop(predictor: Predictor, evidence: Evidence) -> dict[str, float]:
    """Floating-point operations of the networks for one slice, by stage, in thousands of millions. Sampling a restoration does
    about what one NLL does."""
    model = predictor.model
    first = evidence.slices[:1], evidence.position[:1].to(model.device)
    codes = model.encode(*first)
    work: dict[str, Callable[[], object]] = {
        "encode": lambda: model.vqvae.encode(*first),
        "NLL": lambda: model.prior.nll(codes, first[1]),
        "decode": lambda: model.vqvae.decode(codes, first[1]),
    }
    if model.detector is not None:
        decoded, nll = model.decode(codes, first[1]), model.nll(codes, first[1])
        mirror = model.detector.settings.mirror
        maps = NormalisedEvidence.of(first[0], decoded, decoded, nll, first[1], mirror=mirror)
        work["detect"] = lambda: volume_logits(model, maps)
    counted = {}
    for name, run in work.items():
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            run()
        counted[name] = counter.get_total_flops() / 1e9
    return counted


def table(stages: list[StageCost], machine_speed: float) -> list[str]:
    """Lines of text: the stages, the most expensive first, and all of them."""
    total = StageCost("all", sum(s.seconds for s in stages), sum(s.gflop for s in stages))
    lines = [f"{'stage':22}{'seconds':>9}{'share':>8}{'GFLOP':>9}{'GFLOP/s':>9}{'of matrices':>13}"]
    for stage in [*sorted(stages, key=lambda s: -s.seconds), total]:
        share = stage.seconds / max(total.seconds, 1e-9)
        line = f"{stage.name:22}{stage.seconds:9.2f}{share:8.1%}"
        if stage.gflop:
            line += f"{stage.gflop:9.0f}{stage.speed:9.0f}{stage.speed / machine_speed:13.0%}"
        lines.append(line)
    return lines
