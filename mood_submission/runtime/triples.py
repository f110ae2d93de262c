"""Three values of one kind, one for each axis of a volume."""

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def three(values: Iterable[T]) -> tuple[T, T, T]:
    """The values as a tuple of three. Raises ValueError for fewer or more values."""
    first, second, third = values
    return first, second, third
