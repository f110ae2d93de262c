"""Where the time of a prediction goes: seconds and arithmetic of each stage, beside the machine's speed in matrix products."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...evidence.evidence import Evidence
from ...evidence.normalised import NormalisedEvidence, volume_logits
from ...output.predictions import predict_file
from ...predictor import Predictor
from ...runtime.stopwatch import Stopwatch
from .steps import predict_in_steps

# Side of the matrices that the machine's speed is measured with, and how often they are multiplied.
SIDE, TRIES = 2048, 5


@dataclass(frozen=True)
class StageCost:
    """What a stage costs.

    seconds: for a whole volume.
    gflop: floating-point operations, in thousands of millions. 0 for what is no network.
    """

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
    clock = Stopwatch(predictor.model.device)
    predict_file(predictor, path, "pixel", out)
    prepared, evidence = predict_in_steps(predictor, path, out, clock)
    of_slice, slices = slice_gflop(predictor, evidence), len(prepared.indices)
    gflop = {name: slices * work for name, work in of_slice.items()}
    # Sampling a restoration does about what one NLL does.
    gflop["sample"] = gflop["NLL"] * predictor.restorations
    gflop["decode restorations"] = gflop["decode"] * predictor.restorations
    return [StageCost(name, seconds, gflop.get(name, 0.0)) for name, seconds in clock.seconds.items()]


def slice_gflop(predictor: Predictor, evidence: Evidence) -> dict[str, float]:
    """Floating-point operations of the networks for one slice, by stage, in thousands of millions."""
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


def stage_table(stages: list[StageCost], machine_speed: float) -> list[str]:
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
