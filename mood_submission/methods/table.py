"""The ways of scoring, by name: each is a function from a volume's evidence to its scores, 0 .. 1.

A new way is one function and one line in SAMPLE_WAYS or PIXEL_WAYS.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ..model_file import About
from .learned import sample_of, soften_logits
from .paper import sample_score, smooth, top_score
from .rarity import combined_rarity, soften

PUBLISHED_SLICES = 32  # of a volume: what the published sum over codes is a sum over


class Evidence(Protocol):
    """What a way of scoring may look at; see `evidence.Evidence`, which computes each part when it is asked for."""

    @property
    def about(self) -> About: ...
    @property
    def nll(self) -> Tensor: ...
    @property
    def published(self) -> Tensor: ...
    @property
    def smoothed(self) -> dict[str, Tensor]: ...
    @property
    def logits(self) -> Tensor: ...


def sample_paper(evidence: Evidence) -> float:
    """The published sum of unlikely codes' NLL, scaled to 32 slices and by the model's own divisor."""
    total = float(sample_score(evidence.nll, evidence.about.sample_threshold).double().sum())
    return min(total * PUBLISHED_SLICES / len(evidence.nll) / evidence.about.sample_scale, 1.0)


def sample_top(evidence: Evidence) -> float:
    """The strongest cluster of unlikely codes: 0.5 for a volume like the healthy ones, never 1."""
    score = top_score(evidence.nll)
    return score / (score + evidence.about.top_reference)


def sample_learned(evidence: Evidence) -> float:
    """Where the detector is surest."""
    settings = evidence.about.detector
    return (
        sample_of(evidence.logits, settings.ordinary_quantile, settings.ordinary_spread_quantile)
        if settings
        else sample_of(evidence.logits)
    )


def pixel_paper(evidence: Evidence) -> Tensor:
    """The published difference between slice and restorations, smoothed as published."""
    return smooth(evidence.published).clamp(0, 1)


def pixel_rarity(evidence: Evidence) -> Tensor:
    """How rare the evidence is among healthy voxels."""
    return soften(combined_rarity(evidence.smoothed, evidence.about.rarity_tables))


def pixel_learned(evidence: Evidence) -> Tensor:
    """The detector's logits, softened."""
    return soften_logits(evidence.logits)


SAMPLE_WAYS: dict[str, Callable[[Evidence], float]] = {
    "paper": sample_paper,
    "top": sample_top,
    "learned": sample_learned,
}
PIXEL_WAYS: dict[str, Callable[[Evidence], Tensor]] = {
    "paper": pixel_paper,
    "rarity": pixel_rarity,
    "learned": pixel_learned,
}
