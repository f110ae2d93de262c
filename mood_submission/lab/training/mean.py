"""One detector from several that were trained apart."""

import copy
from collections.abc import Sequence

import torch

from ...networks.detector import Detector


def mean_detector(detectors: Sequence[Detector]) -> Detector:
    """The detector whose parameters and batch norm statistics are the means of these, in evaluation mode.

    It is of use where the training of all started from one detector. Then they lie near each other, and what one of them learned
    by heart of its volumes averages out ("model soup", Wortsman et al., 2022). Its settings are those of the first.
    Raises ValueError where the detectors have other widths or another context.
    """
    mean = copy.deepcopy(detectors[0])
    built = (mean.settings.widths, mean.settings.context)
    for detector in detectors[1:]:
        other = (detector.settings.widths, detector.settings.context)
        if other != built:
            raise ValueError(
                f"expected detectors of the same widths and context, found {built} and {other}: they have no mean"
            )
    states = [detector.state_dict() for detector in detectors]
    mean.load_state_dict(
        {
            name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
            for name, value in states[0].items()
        }
    )
    return mean.eval()
