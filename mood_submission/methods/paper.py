"""The published method (Marimont & Tarroni, 2020, section 2)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..evidence.evidence import Evidence
from .base import Method

# Slices of a volume: what the published sum over codes is a sum over.
PUBLISHED_SLICES = 32


class Paper(Method):
    """The sum of the unlikely codes' NLL, and the difference between a slice and its restorations."""

    name = "paper"
    scores = {
        "sample": "the published sum of unlikely codes' NLL",
        "pixel": "the published difference from the restorations",
    }
    reads_restorations = ("pixel",)
    needs_restorations = True

    def sample(self, evidence: Evidence) -> float:
        """The published sum, scaled to PUBLISHED_SLICES slices and divided by the model's `sample_scale`, at most 1."""
        total = float(sample_score(evidence.nll, evidence.about.sample_threshold).double().sum())
        return min(total * PUBLISHED_SLICES / len(evidence.nll) / evidence.about.sample_scale, 1.0)

    def pixel(self, evidence: Evidence) -> Tensor:
        """The published difference between slice and restorations, smoothed as published: (N, S', S')."""
        return smooth(evidence.weighted_difference).clamp(0, 1)


def sample_score(nll: Tensor, threshold: float) -> Tensor:
    """The sum of the NLL of the unlikely codes of each slice.

    nll: (B, h, w), in nats.
    threshold: lambda_s in nats. Codes with a higher NLL count, the others count 0.
    Returns (B,), at least 0.
    """
    return torch.where(nll > threshold, nll, 0).flatten(1).sum(1)


def smooth(volume: Tensor) -> Tensor:
    """The least value of 3 x 3 x 3 neighbours, then the mean of 3 x 7 x 7: specks go, blobs stay.

    volume: (D, H, W). Places outside it are left out of the minimum and count as zeros in the mean.
    Returns (D, H, W).
    """
    least = -F.max_pool3d(-volume[None], 3, stride=1, padding=1)
    # The padding of `avg_pool3d` is not for volumes smaller than its kernel.
    padded = F.pad(least, (3, 3, 3, 3, 1, 1))
    return F.avg_pool3d(padded, (3, 7, 7), stride=1)[0]
