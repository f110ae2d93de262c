"""Checks all options of a recipe before `train all` begins. Otherwise the last command might refuse its own after hours."""

import argparse
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from ...networks.detector import Detector, input_channels
from ...networks.pixelsnail import PixelSNAIL
from ...networks.vqvae import VQVAE
from ...preprocessing import Preprocessing
from ...runtime.names import in_one_line
from ...runtime.options import add_options, options_of
from ..training.checkpoints import RunError
from ..training.plant import PlantOptions
from ..training.recipe import FURTHER_STORES, SIZES, STAGES, TRAINED, Recipe

# What `train all` tells its commands itself: which volumes, which device, and where files lie.
ITS_OWN = (
    *("region", "data", "leave_out", "hold_out", "names", "names_file", "device"),
    *(
        "validation",
        "test",
        "out",
        "resume",
        "model",
        "store",
        "also",
        "shard",
        "weights",
        "mean_with",
        "held_out",
        "only",
        "record",
    ),
)
# Tables without which it is not done.
SECOND = (*FURTHER_STORES, "detector_2")
# Options that do nothing in a table: the cache has decided how volumes become slices.
IN_VAIN = {name: ("preprocessing", "max_slices") for name in ("vqvae", "prior", "plant", "detector", *SECOND)}
# What only looks like one of these: in [export] it is a text, for the file's metadata.
MEANT = (("export", "data"),)


class _Words(argparse.ArgumentParser):
    """Reads the words of one command. Raises RunError for what it does not know."""

    def error(self, message: str) -> NoReturn:
        raise RunError(message)


def check_recipe(file: Path, kinds: Mapping[str, type]) -> None:
    """Raises RunError, in one line, for what is no recipe and for an option that its command does not take, or not from a recipe.

    kinds: the dataclass of each command's options, by the tables' names (recipe.STAGES).
    """
    recipe = Recipe.read(file)
    read: dict[str, argparse.Namespace] = {}
    for table in STAGES:
        _check_keys(file, table, recipe.options[table])
        # Without options there is no second detector, and no further store.
        if table in SECOND and not recipe.options[table]:
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
            read[table], unknown = parser.parse_known_args([*given, *recipe.words(table)])
        except RunError as error:
            raise RunError(f"{file}: expected options of its command in [{table}], found: {error}") from None
        if unknown:
            raise RunError(f"{file}: expected options of its command in [{table}], found {' '.join(unknown)}")
        if kinds[table] is PlantOptions:
            try:
                _options(recipe, kinds, read, table)
            except ValueError as error:
                raise RunError(f"{file}: expected options of its command in [{table}], found: {error}") from None
    _check_values(file, recipe)
    for name, check in (("vqvae and prior", _try_networks), ("detector", _try_detector)):
        try:
            check(recipe, kinds, read)
        # torch says it in many ways.
        except (ValueError, RuntimeError, IndexError, KeyError, TypeError, ArithmeticError) as error:
            raise RunError(
                f"{file}: expected sizes that networks can have ({name}), found: {in_one_line(error)}"
            ) from None


def _try_networks(recipe: Recipe, kinds: Mapping[str, type], read: Mapping[str, argparse.Namespace]) -> None:
    """Make a VQ-VAE and a prior of the recipe's sizes, and let both look at an empty slice. Raises what torch raises."""
    vqvae_options, prior_options = (_options(recipe, kinds, read, name) for name in ("vqvae", "prior"))
    size, position = _image_size(read["cache"], recipe.region), torch.zeros(1, 1)
    with torch.inference_mode():
        vqvae = VQVAE(vqvae_options.settings).eval()
        codes = vqvae.encode(torch.zeros(1, size, size), position)
        vqvae.decode(codes, position)
        PixelSNAIL(prior_options.settings(vqvae.settings.codebook_size)).eval().nll(codes, position)


def _try_detector(recipe: Recipe, kinds: Mapping[str, type], read: Mapping[str, argparse.Namespace]) -> None:
    """Make the detectors of the recipe's sizes, and let them look at nothing. Raises what torch and the settings raise."""
    size, made = _image_size(read["cache"], recipe.region), read["add_detector"]
    for name in ("detector", "detector_2"):
        if name in read:
            settings = _options(recipe, kinds, read, name).settings
            # The settings check these against each other.
            quantiles = {key: getattr(made, key) or 0.0 for key in ("ordinary_quantile", "ordinary_spread_quantile")}
            detector = Detector(dataclasses.replace(settings, **quantiles)).eval()
            maps = torch.zeros(1, input_channels(settings.context, settings.mirror), size, size)
            with torch.inference_mode():
                detector(
                    maps, torch.zeros(1, len(settings.context), size // 8, size // 8), torch.zeros(1, 2, size, size)
                )


def _options(recipe: Recipe, kinds: Mapping[str, type], read: Mapping[str, argparse.Namespace], table: str) -> Any:
    """A command's options as it gets them, with the region that `train all` tells it."""
    read[table].region = recipe.region
    return options_of(kinds[table], read[table])


def _image_size(cache: argparse.Namespace, region: str) -> int:
    """The slices' side."""
    return (Preprocessing.published if cache.preprocessing == "published" else Preprocessing.harmonised)(
        region
    ).image_size


def _check_values(file: Path, recipe: Recipe) -> None:
    """Raises RunError for values that their command takes, and that cannot work."""
    first, second = (recipe.options[name] for name in ("detector", "detector_2"))
    for key in SIZES:
        # It may read and say more than the first, and not less.
        more = isinstance(second.get(key), bool) and not first.get(key)
        if second and second.get(key) != first.get(key) and not more:
            raise RunError(
                f"{file}: expected the {key} of [detector] in [detector_2], which begins from it, found another"
            )
    for table in FURTHER_STORES:
        if recipe.options[table] and not second:
            raise RunError(f"{file}: expected a [detector_2], which alone reads what [{table}] plants, found none")
    for table in TRAINED:
        options = recipe.options[table]
        steps, begin = options.get("steps", 1), options.get("start_from")
        if isinstance(steps, int) and steps < 1:
            raise RunError(f"{file}: expected at least one step in [{table}], found {steps}")
        if begin is not None and not Path(str(begin)).exists():
            raise RunError(f"{file}: expected a run or a model file as start_from in [{table}], found no {begin}")
    most = recipe.options["cache"].get("max_slices", 1)
    if isinstance(most, int) and most < 1:
        raise RunError(f"{file}: expected at least one slice a volume in [cache], found max_slices = {most}")


def _check_keys(file: Path, table: str, keys: Collection[str]) -> None:
    """Raises RunError for the first key that is not a recipe's to say."""
    own = (*ITS_OWN, "start_from") if table == "detector_2" else ITS_OWN
    for key in keys:
        if key in own and (table, key) not in MEANT:
            raise RunError(f"{file}: expected no {key} in [{table}], which train all says itself, found one")
        if key in IN_VAIN.get(table, ()):
            raise RunError(f"{file}: expected {key} in [cache] alone, found it in [{table}]")
