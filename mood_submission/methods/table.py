"""The scoring methods by name. All that asks for a method asks here."""

from ..about import About, ModelError
from .base import Method
from .learned import Learned
from .paper import Paper
from .rarity import Rarity
from .top import Top

METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Make a method known: to `Predictor`, to every command, and to model files. Returns it.

    It is known to this process. The processes that `predict --processes` starts import the package anew, and know the methods of
    this file alone.

    Raises ValueError where the name is taken, or where the method has no scores of any task.
    """
    if method.name in METHODS:
        raise ValueError(f"{method.name}: expected a name that no other method has")
    if not method.scores or not set(method.scores) <= {"sample", "pixel"}:
        raise ValueError(f"{method.name}: expected scores of the tasks sample or pixel, found {list(method.scores)}")
    METHODS[method.name] = method
    return method


def method_named(name: str, task: str) -> Method:
    """The method of that name. Raises ModelError where there is none, or where it has no score of the task."""
    if name not in names(task):
        raise ModelError(f"{task}_method: expected one of {', '.join(names(task))}, found {name!r}")
    return METHODS[name]


def methods(task: str) -> list[Method]:
    """The methods that have a score of the task, in the order in which they were registered."""
    return [method for method in METHODS.values() if task in method.scores]


def names(task: str) -> list[str]:
    """Their names."""
    return [method.name for method in methods(task)]


def first_that_fits(task: str, about: About, restorations: int | None) -> Method:
    """The first method that a model has all for: for whoever needs a predictor, whatever its method.

    restorations: how many of a slice are to be drawn; 0 leaves methods that need some out.
    Raises ModelError where there is none.
    """
    for method in methods(task):
        if method.fits(about) and not (restorations == 0 and method.needs_restorations):
            return method
    without = [method.name for method in methods(task) if not method.needs_restorations]
    raise ModelError(
        f"expected at least one restoration, or a model for the method {' or '.join(without)}, found neither"
    )


for _method in (Paper(), Top(), Rarity(), Learned()):
    register(_method)
