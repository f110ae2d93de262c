"""The detector's scores: of its smoothed logits, softened so that float16 can still tell high ones apart."""

import numpy as np
import torch
from torch import Tensor

from ..about import About
from ..evidence.evidence import Evidence
from ..evidence.smoothing import top_mean
from .base import Method

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
        """The softened mean of the highest logits, as the detector's settings say."""
        settings = evidence.about.detector
        if settings is None:
            return sample_of(evidence.logits)
        return sample_of(evidence.logits, settings.ordinary_quantile, settings.ordinary_spread_quantile)

    def pixel(self, evidence: Evidence) -> Tensor:
        """The softened logits: (N, S, S)."""
        return soften_logits(evidence.logits)


def soften_logits(logits: Tensor) -> Tensor:
    """Pixel scores of smoothed logits: 0 .. 1, rising everywhere. logits: any shape."""
    return (logits / LOGIT_SCALE).sigmoid()


def sample_of(logits: Tensor, ordinary_quantile: float = 0.0, ordinary_spread_quantile: float = 0.0) -> float:
    """The sample score of a volume's smoothed logits: of the mean of the highest, see `smoothing.top_mean`.

    logits: (N, H, W).
    ordinary_quantile, ordinary_spread_quantile: see `DetectorSettings`.
    Returns 0 .. 1.
    """
    highest = top_mean(logits)
    if ordinary_quantile:
        quantiles = (ordinary_quantile, ordinary_spread_quantile)
        usual, low = np.quantile(logits[:, ::2, ::2].cpu().numpy(), quantiles)
        highest -= float(2 * usual - low if ordinary_spread_quantile else usual)
    return float(torch.tensor(highest / LOGIT_SCALE, dtype=torch.float64).sigmoid())
