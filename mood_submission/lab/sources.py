"""Groups volumes by source, such as a scanner. Names of one source begin with the same letters."""

import re
from collections.abc import Sequence

import numpy as np

from ..runtime.names import shown


def source_of(name: str) -> str:
    """The letters that a volume's name begins with, as printable text. "numbered" where it begins with a digit."""
    return shown(re.split(r"\d", name, maxsplit=1)[0].rstrip("_-")) or "numbered"


def source_shares(names: Sequence[str]) -> np.ndarray:
    """Probabilities to draw each volume with, (N,), which sum to 1. They favour volumes of small sources.

    A source of n volumes is drawn in proportion to the root of n. names: of the volumes.
    """
    sources = [source_of(name) for name in names]
    shares = np.array([sources.count(source) ** -0.5 for source in sources])
    return shares / shares.sum()
