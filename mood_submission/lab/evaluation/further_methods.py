"""Methods that are in comparisons only: what a method's parts do alone. No model file can name them."""

from collections.abc import Sequence

from torch import Tensor

from ...about import About
from ...evidence.evidence import Evidence
from ...evidence.rareness import EVIDENCE
from ...evidence.smoothing import top_mean
from ...methods.base import Method
from ...methods.paper import smooth
from ...methods.rarity import Rarity, combined_rarity, soften

RARITY = Rarity()


class Reconstruction(Method):
    """|slice - reconstruction|, smoothed as the published scores are."""

    name = "vq-vae reconstruction"
    scores = {"pixel": "the difference from the reconstruction"}

    def pixel(self, evidence: Evidence) -> Tensor:
        """(N, S', S')."""
        return smooth((evidence.slices.to(evidence.decoded) - evidence.decoded).abs()).clamp(0, 1)


class SomeRarity(Method):
    """The rarity of some kinds of evidence, and as a sample score the mean of what is rarest.

    kinds: of EVIDENCE.
    tasks: whose scores are compared. As a sample score it loses against the strongest cluster of unlikely codes, which is why
        `methods.rarity` has none.
    """

    def __init__(self, name: str, kinds: Sequence[str], tasks: Sequence[str] = ("pixel", "sample")):
        self.name, self.kinds = name, kinds
        self.scores = {task: f"the rarity of {', '.join(kinds)}" for task in tasks}
        self.needs_restorations = "restoration" in kinds
        self.reads_restorations = tuple(tasks) if self.needs_restorations else ()

    def check(self, about: About) -> None:
        """Raises ModelError for a model that is not calibrated."""
        RARITY.check(about)

    def pixel(self, evidence: Evidence) -> Tensor:
        """(N, H, H), half as fine as the slices."""
        return soften(self._rarity(evidence))

    def sample(self, evidence: Evidence) -> float:
        """At least 0."""
        return top_mean(self._rarity(evidence))

    def _rarity(self, evidence: Evidence) -> Tensor:
        maps = {kind: maps for kind, maps in evidence.smoothed.items() if kind in self.kinds}
        return combined_rarity(maps, evidence.about.rarity_tables)


FURTHER_METHODS: tuple[Method, ...] = (
    Reconstruction(),
    *(SomeRarity(f"{RARITY.name} of {kind}", (kind,)) for kind in EVIDENCE),
    SomeRarity(f"{RARITY.name} without sampling", [kind for kind in EVIDENCE if kind != "restoration"]),
    SomeRarity(RARITY.name, EVIDENCE, ("sample",)),
)
