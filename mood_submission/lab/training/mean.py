"""One detector from several that were trained apart."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...networks.detector import Detector, fitted_to


def mean_detector(detectors: Sequence[Detector]) -> Detector:
    """The detector whose parameters and batch norm statistics are the means of these, in evaluation mode.

    It is of use where the training of all started from one detector. Then they lie near each other, and what one of them learned
    by heart of its volumes averages out ("model soup", Wortsman et al., 2022). Its settings are those of the first.
    A detector that reads mirror images or restores slices may be averaged with one that does not.
    Raises ValueError where the detectors have other widths or another context.
    """
    built = (detectors[0].settings.widths, detectors[0].settings.context)
    for detector in detectors[1:]:
        other = (detector.settings.widths, detector.settings.context)
        if other != built:
            raise ValueError(
                f"expected detectors of the same widths and context, found {built} and {other}: they have no mean"
            )
    settings = replace(
        detectors[0].settings,
        mirror=any(detector.settings.mirror for detector in detectors),
        restores=any(detector.settings.restores for detector in detectors),
    )
    mean = Detector(settings)
    states = [fitted_to(detector.state_dict(), settings) for detector in detectors]
    mean.load_state_dict(
        {
            name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
            for name, value in states[0].items()
        }
    )
    return mean.eval()
