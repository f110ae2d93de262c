"""A prediction step by step, each step measured."""

from pathlib import Path

from ...evidence.evidence import Evidence
from ...predictor import Predictor, Prepared
from ...runtime.stopwatch import Stopwatch
from ...volumes import read_volume, write_volume


def predict_in_steps(predictor: Predictor, path: Path, out: Path, clock: Stopwatch) -> tuple[Prepared, Evidence]:
    """Both tasks of `Predictor` in one, step by step.

    Restorations are drawn where the predictor's number of them is above 0, and the detector runs where there is one, whatever
    the methods need: what is measured is the networks.

    path: a volume.
    out: folder to write the prediction to.
    clock: measures the steps.
    Returns the volume, and its evidence with all that was computed.
    """
    with clock.step("read"):
        volume = read_volume(path)
    with clock.step("prepare"):
        prepared = predictor.prepare(volume)
    evidence = predictor.evidence(prepared)
    for step, computed in (("encode", "codes"), ("NLL", "nll"), ("decode", "decoded")):
        with clock.step(step):
            getattr(evidence, computed)
    if predictor.restorations:
        with clock.step("sample"):
            restored = predictor.restore(prepared, evidence.codes)
        evidence = evidence.with_restorations(restored)
        with clock.step("decode restorations"):
            evidence.decode_restorations()
    if predictor.model.detector is not None:
        with clock.step("detect"):
            _ = evidence.logits
    with clock.step("score"):
        scores = predictor.pixel(evidence)
    with clock.step("score the sample"):
        predictor.sample(evidence)
    with clock.step("to the volume's grid"):
        whole = predictor.to_volume(prepared, scores)
    with clock.step("write"):
        write_volume(out / prepared.source.output_name, whole, prepared.grid)
    return prepared, evidence
