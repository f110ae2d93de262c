"""The detector's scores: of its smoothed logits, softened so that float16 can still tell high ones apart."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..about import About
from ..evidence.evidence import Evidence
from ..evidence.smoothing import top_mean
from ..evidence.strangeness import usual_range
from ..networks.detector import DetectorSettings
from .base import Method

# How much is added to the logit of the sample score where the whole volume lies beyond the limits of healthy volumes by as much
# as these lie apart.
STRANGE_LOGIT = 24.0
# No more is added, however strange the volume is.
MOST_STRANGE_LOGIT = 12.0
# Divides smoothed logits before the logistic function, so that float16 tells high scores apart.
LOGIT_SCALE = 4.0


class Learned(Method):
    """What the detector learned to find. It needs a model with a detector, and no restorations."""

    name = "learned"
    scores = {"sample": "where the detector is surest", "pixel": "the detector's"}
    reads_restorations = ("sample", "pixel")
    needs_detector = True

    def restorations(self, about: About) -> int:
        """As many as the detector was made for."""
        return super().restorations(about) if about.detector is None else about.detector.restorations

    def sample(self, evidence: Evidence) -> float:
        """See `sample_of`. What is ordinary in healthy volumes stands in the model file."""
        settings = evidence.about.detector or DetectorSettings()
        healthy = evidence.about.method_settings.get(self.name, {}).get("ordinary")
        return sample_of(evidence.logits, settings, healthy, strange_logit(evidence))

    def calibrated(self, about: About, healthy: Sequence[Evidence]) -> About:
        """The description with the lowest and the highest of the volumes' ordinary logits."""
        settings = about.detector
        if settings is None or not settings.ordinary_quantile:
            return about
        ordinary = [ordinary_logit(one.logits, settings) for one in healthy]
        measured = {self.name: {"ordinary": usual_range([round(value, 4) for value in ordinary])}}
        return dataclasses.replace(about, method_settings=about.method_settings | measured)

    def pixel(self, evidence: Evidence) -> Tensor:
        """The softened logits: (N, S, S)."""
        return soften_logits(evidence.logits)


def soften_logits(logits: Tensor) -> Tensor:
    """Pixel scores of smoothed logits: 0 .. 1, rising everywhere. logits: any shape."""
    return (logits / LOGIT_SCALE).sigmoid()


def sample_of(
    logits: Tensor,
    settings: DetectorSettings,
    healthy: Sequence[float] | None = None,
    strange: float = 0.0,
) -> float:
    """The sample score of a volume's smoothed logits: how far the mean of the highest lies above ordinary ones.

    logits: (N, H, W).
    settings: they say which of the volume's own logits are ordinary.
    healthy: the lowest and the highest `ordinary_logit` of healthy hold-out volumes. The volume's own counts up to these, so
        that a volume does not score lower because more of it is wrong. None for no bounds.
    strange: what the volume as a whole adds, see `strange_logit`.
    Returns 0 .. 1.
    """
    ordinary = ordinary_logit(logits, settings)
    if healthy is not None:
        ordinary = min(max(ordinary, healthy[0]), healthy[1])
    logit = torch.tensor((top_mean(logits) - ordinary + strange) / LOGIT_SCALE, dtype=torch.float64)
    return float(logit.sigmoid())


def ordinary_logit(logits: Tensor, settings: DetectorSettings) -> float:
    """The logit up to which a volume's smoothed logits (N, H, W) are ordinary. 0 where the settings ask for none."""
    if not settings.ordinary_quantile:
        return 0.0
    quantiles = (settings.ordinary_quantile, settings.ordinary_spread_quantile)
    usual, low = np.quantile(logits[:, ::2, ::2].cpu().numpy(), quantiles)
    return float(2 * usual - low if settings.ordinary_spread_quantile else usual)


def strange_logit(evidence: Evidence) -> float:
    """What the sample score's logit gains where the whole volume is unlike healthy ones: 0 for a volume like these."""
    most = max((beyond for _, beyond in evidence.strangeness.values()), default=0.0)
    return min(STRANGE_LOGIT * most, MOST_STRANGE_LOGIT)
