"""Checks all options of a recipe before `train all` begins. Otherwise the last command might refuse its own after hours."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from ...runtime.options import add_options
from ..training.checkpoints import RunError
from ..training.recipe import STAGES, Recipe


class _Words(argparse.ArgumentParser):
    """Reads the words of one command. Raises RunError for what it does not know."""

    def error(self, message: str) -> NoReturn:
        raise RunError(message)


def check_recipe(file: Path, kinds: Mapping[str, type]) -> None:
    """Raises RunError, in one line, for what is no recipe and for an option that its command does not take.

    kinds: the dataclass of each command's options, by the tables' names (recipe.STAGES).
    """
    recipe = Recipe.read(file)
    for table in STAGES:
        # Without options there is no second detector.
        if table == "detector_2" and not recipe.options[table]:
            continue
        parser = _Words(add_help=False, allow_abbrev=False)
        add_options(parser, kinds[table])
        given = []
        # `train all` gives these itself. Of minutes and steps, one must be in the recipe all the same.
        for action in parser._actions:
            given += [] if action.option_strings else ["given"]
            action.required = False
        # Planting without a count goes on as long as the detector trains.
        given += ["--minutes", "1"] if table == "plant" and "count" not in recipe.options[table] else []
        try:
            _, unknown = parser.parse_known_args([*given, *recipe.words(table)])
        except RunError as error:
            raise RunError(f"{file}: expected options of its command in [{table}], found: {error}") from None
        if unknown:
            raise RunError(f"{file}: expected options of its command in [{table}], found {' '.join(unknown)}")
