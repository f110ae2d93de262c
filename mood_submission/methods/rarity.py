"""How rare what is seen would be in a healthy volume, of all kinds of evidence together.

Not in the paper. Its pixel score is a difference of intensities and its sample score a sum of NLL; neither can be added
to the other, and both are swamped by what is common in healthy people.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..about import About, ModelError
from ..evidence.evidence import Evidence
from ..evidence.rareness import EVIDENCE, rarity, rarity_table
from .base import Method

# The rarity that scores 0.5.
HALF_RARITY = 4.0


class Rarity(Method):
    """The rarities of restoration, reconstruction and likelihood, added up. It needs a calibrated model."""

    name = "rarity"
    scores = {"pixel": "how rare differences and NLL like these are among healthy volumes"}
    reads_restorations = ("pixel",)
    needs_restorations = True

    def check(self, about: About) -> None:
        """Raises ModelError for a model without a table of each kind of evidence."""
        super().check(about)
        missing = [kind for kind in EVIDENCE if kind not in about.rarity_tables]
        if missing:
            raise ModelError(
                f"expected a calibrated model for the method {self.name}, found one without a table of {missing[0]}; "
                "see mood-submission calibrate"
            )

    def pixel(self, evidence: Evidence) -> Tensor:
        """How rare the evidence is among healthy voxels: (N, H, H), half as fine as the slices."""
        return soften(combined_rarity(evidence.smoothed, evidence.about.rarity_tables))

    def calibrated(self, about: About, healthy: Sequence[Evidence]) -> About:
        """The description with a table of each kind of evidence, and with this method as its pixel method."""
        tables = {
            kind: rarity_table(np.concatenate([one.smoothed[kind].cpu().numpy().ravel() for one in healthy]))
            for kind in EVIDENCE
        }
        return dataclasses.replace(about, rarity_tables=tables, pixel_method=self.name)


def combined_rarity(evidence: Mapping[str, Tensor], tables: Mapping[str, Sequence[float]]) -> Tensor:
    """The root of the summed squares of each kind's rarity.

    evidence: smoothed maps (N, H, W) by kind.
    tables: what `rarity_table` measured, by kind.
    Returns (N, H, W), at least 0.
    """
    return torch.stack([rarity(maps, tables[kind]).square() for kind, maps in evidence.items()]).sum(0).sqrt()


def soften(value: Tensor, half: float = HALF_RARITY) -> Tensor:
    """value / (value + half): rising everywhere, never 1.

    value: any shape, at least 0.
    half: the value that becomes 0.5.
    Returns 0 .. 1, of the same shape.
    """
    return value / (value + half)
