"""Which volumes come from one source, such as a scanner: those whose names begin with the same letters."""

import re
from collections.abc import Sequence

import numpy as np

from .names import shown


def source_of(name: str) -> str:
    """The letters that a volume's name begins with, as text; "numbered" where it begins with a digit."""
    return shown(re.split(r"\d", name, maxsplit=1)[0].rstrip("_-")) or "numbered"


def source_shares(names: Sequence[str]) -> np.ndarray:
    """How often each of the volumes is to be drawn so that small sources are not lost among large ones, (N,), of sum 1.

    A source of n volumes is drawn as often as the root of n says: neither as often as all others nor by its size.
    """
    sources = [source_of(name) for name in names]
    shares = np.array([sources.count(source) ** -0.5 for source in sources])
    return shares / shares.sum()
