"""Options that several commands of the workshop share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cli.output import say
from ...methods import table
from ...model_file import load_model
from ...predictor import Predictor
from ...runtime.contract import ENGINES, PRECISIONS, TASKS
from ...runtime.option_types import DEVICE_HELP, at_least, slices_option
from ...runtime.options import option


def weights_option() -> Any:
    """A field for --weights."""
    return option("model file (default: the region's shipped one)", metavar="FILE", default=None)


def precision_option() -> Any:
    """A field for --precision."""
    return option("of the networks, as in predict", choices=PRECISIONS, default="float32")


def engine_option() -> Any:
    """A field for --engine."""
    return option(
        "what computes the networks, whatever the environment says: torch, or onnx, which is ONNX Runtime on a CPU, in float32 or "
        "with --precision int8",
        choices=ENGINES,
        default="torch",
    )


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How commands that measure scores look at a volume. None: as the model file says."""

    slices: int | str | None = option(
        "a volume (default: those that prediction looks at)", type=slices_option, metavar="all|N", default=None
    )
    restorations: int | None = option(
        "of a slice; 0: only what needs none is measured, such as a detector's scores (default: what the model file says)",
        type=at_least(0),
        metavar="N",
        default=None,
    )
    precision: str = precision_option()
    engine: str = engine_option()
    device: str | None = option(DEVICE_HELP, default=None)

    def predictor(self, weights: Path) -> Predictor:
        """The predictor of a model file. For each task it has the first method that the model has all for.

        Raises ModelError for a file that is no model, RuntimeError for a device that is not there.
        """
        model = load_model(weights, self.device, precision=self.precision, engine=self.engine)
        for note in model.notes:
            say(note)
        sample, pixel = (table.first_that_fits(task, model.about, self.restorations).name for task in TASKS)
        return Predictor(model, self.slices, self.restorations, sample_method=sample, pixel_method=pixel)
