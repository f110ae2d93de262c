"""Scores from a detector's logits: smoothed in 3D, then softened so that float16 can still tell high ones apart."""

import numpy as np
import torch
from torch import Tensor

from ..networks.detector import DetectorSettings
from .smoothing import TOP_SHARE, smooth_along, top_mean

LOGIT_SCALE = (
    4.0  # divides smoothed logits before the logistic function, so that float16 tells high scores apart
)


def smooth_logits(logits: Tensor, settings: DetectorSettings) -> Tensor:
    """Logits of a volume's slices in order, (N, H, W), smoothed in 3D: what lies alone goes, what coheres stays."""
    for axis, share in enumerate((settings.along, settings.in_plane, settings.in_plane)):
        if share > 0:
            logits = smooth_along(logits, axis, share * logits.shape[axis])
    return logits


def soften_logits(logits: Tensor) -> Tensor:
    """Pixel scores of smoothed logits, any shape: 0 .. 1, rising everywhere."""
    return (logits / LOGIT_SCALE).sigmoid()


def sample_of(logits: Tensor, ordinary_quantile: float = 0.0, ordinary_spread_quantile: float = 0.0) -> float:
    """The sample score, 0 .. 1, of a volume's smoothed logits (N, H, W): of the mean of the highest TOP_SHARE of them.

    ordinary_quantile, ordinary_spread_quantile: see `DetectorSettings`.
    """
    highest = top_mean(logits, TOP_SHARE)
    if ordinary_quantile:
        quantiles = (ordinary_quantile, ordinary_spread_quantile)
        usual, low = np.quantile(logits[:, ::2, ::2].cpu().numpy(), quantiles)
        highest -= float(2 * usual - low if ordinary_spread_quantile else usual)
    return float(torch.tensor(highest / LOGIT_SCALE, dtype=torch.float64).sigmoid())
