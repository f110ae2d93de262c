"""Compares a slice with its restorations, as published (Marimont & Tarroni, 2020, section 2)."""

import torch
from torch import Tensor


def restoration_weights(slices: Tensor, restorations: Tensor, temperature: float) -> Tensor:
    """Weights of restorations: softmax(temperature / mean |slice - restoration|). Near restorations weigh more.

    slices: (B, H, W).
    restorations: (B, S, H, W), in the same intensities.
    temperature: above 0. Published: 3.
    Returns (B, S). Each row sums to 1.
    """
    distance = (slices[:, None] - restorations).abs().mean((2, 3))
    tiny = torch.finfo(distance.dtype).tiny
    # A perfect restoration's quotient stays finite.
    return torch.softmax(temperature / distance.clamp_min(tiny**0.5), dim=1)


def weighted_difference(slices: Tensor, restorations: Tensor, temperature: float) -> Tensor:
    """|slice - restoration|, averaged over a slice's restorations with `restoration_weights`.

    slices, restorations, temperature: as for `restoration_weights`.
    Returns (B, H, W), at least 0.
    """
    weights = restoration_weights(slices, restorations, temperature)
    return torch.einsum("bs,bshw->bhw", weights, (slices[:, None] - restorations).abs())
