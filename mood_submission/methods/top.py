"""The strongest cluster of unlikely codes.

Not in the paper, whose sum over a whole volume drowns an anomaly in what differs between healthy people.
"""

import numpy as np
from scipy import ndimage
from torch import Tensor

from ..evidence.evidence import Evidence
from .base import Method


class Top(Method):
    """The mean NLL of the strongest clusters: 0.5 for a volume like the healthy ones, never 1."""

    name = "top"
    scores = {"sample": "the strongest cluster of unlikely codes in 3D"}

    def sample(self, evidence: Evidence) -> float:
        """`top_score` in relation to the model's `top_reference`, which healthy volumes have on average."""
        score = top_score(evidence.nll)
        return score / (score + evidence.about.top_reference)


def top_score(nll: Tensor, share: float = 0.01, in_plane: float = 0.1, along: float = 0.04) -> float:
    """The mean of a volume's highest NLL after Gaussian smoothing in 3D: the strongest coherent cluster counts.

    nll: (N, h, w) of a volume's slices in order, in nats.
    share: of the places, how many are the highest.
    in_plane: standard deviation of the smoothing within slices, as a share of the code grid's side.
    along: standard deviation from slice to slice, as a share of the number of slices.
    Returns nats, at least 0.
    """
    sigmas = (along * len(nll), in_plane * nll.shape[1], in_plane * nll.shape[2])
    smoothed = ndimage.gaussian_filter(nll.float().cpu().numpy(), sigmas).ravel()
    count = max(1, round(share * smoothed.size))
    return float(np.partition(smoothed, -count)[-count:].mean(dtype=np.float64))
