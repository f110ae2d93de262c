"""The methods' names and what their scores are, for help: read out of their files, which need torch when they are imported."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

TABLE = f"{__package__}.table"


def scores_by_name() -> dict[str, Mapping[str, str]]:
    """What each method's scores are (`Method.scores`), by its name, in the order in which they are registered.

    Where the table is imported already, it tells: other methods may have been registered. It tells too where a method's file
    does not say its name and scores in so many words.
    """
    if TABLE not in sys.modules:
        try:
            return dict(_read())
        # What is not plain to read is computed.
        except (ValueError, LookupError, OSError):
            pass
    from . import table

    return {name: method.scores for name, method in table.METHODS.items()}


def names(task: str) -> list[str]:
    """The names of the methods that have a score of the task."""
    return [name for name, scores in scores_by_name().items() if task in scores]


def described(task: str) -> str:
    """What each method's score of the task is, in one line for the command line's help."""
    return "; ".join(f"{name}: {scores[task]}" for name, scores in scores_by_name().items() if task in scores)


def _read() -> Iterator[tuple[str, Mapping[str, str]]]:
    """The name and scores of each class that the table's file registers. Raises ValueError where it registers more than these."""
    tree = _tree("table")
    modules = {
        alias.name: str(node.module)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    (loop,) = [node for node in tree.body if isinstance(node, ast.For)]
    others = [node for node in tree.body if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)]
    if others or not isinstance(loop.iter, ast.Tuple):
        raise ValueError("expected one loop over a tuple that registers all")
    for call in loop.iter.elts:
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError(f"expected an object that is made in the tuple, found {ast.unparse(call)}")
        yield _told_by(_tree(modules[call.func.id]), call.func.id)


def _told_by(tree: ast.Module, kind: str) -> tuple[str, Mapping[str, str]]:
    """What the class of that name says its name and scores are."""
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind]
    said = {
        node.targets[0].id: node.value
        for node in found.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return ast.literal_eval(said["name"]), ast.literal_eval(said["scores"])


def _tree(module: str) -> ast.Module:
    """The source of a module of this folder."""
    return ast.parse(Path(__file__).with_name(f"{module}.py").read_text("utf-8"))
