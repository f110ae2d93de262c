"""How a model is made from beginning to end: the options of each command, in one readable TOML file."""

import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...runtime.files import write_text
from .checkpoints import RunError

Value = str | int | float | bool | list
Options = dict[str, Value]

# The commands that have options in a recipe, in the order in which they are run. detector_2, where it has options, is a second
# training of the detector, on from the first: the model's is then the mean of both. plant_2 and plant_3, where they have
# options, fill further stores before, which the second training reads beside the first.
STAGES = (
    "cache",
    "vqvae",
    "prior",
    "export",
    "plant",
    "detector",
    "plant_2",
    "plant_3",
    "detector_2",
    "add_detector",
    "calibrate",
    "compare",
)
# Those that train a network.
TRAINED = ("vqvae", "prior", "detector", "detector_2")
# Those that plant for the second detector.
FURTHER_STORES = ("plant_2", "plant_3")
# What a second detector must have as the first, which it begins from.
SIZES = ("widths", "context", "mirror", "restores")
# How the time is planned to be shared. The detector and the planting beside it pay most.
SHARES = {"vqvae": 0.15, "prior": 0.25, "detector": 0.5}
HEADER = """# A recipe of `mood-submission train all`. Each table holds options of one command, as its --help tells them: `rate = 0.001`
# stands for `--rate 0.001`. The tables cache, vqvae, prior, plant and detector are commands of `mood-submission train`; a table
# detector_2 with options trains a second detector on from the first, and the model's is their mean; tables plant_2 and plant_3
# with options plant further stores for that one, which it reads beside the first.
"""


@dataclass(frozen=True)
class Recipe:
    """The options of each command, by its name (STAGES) and theirs, with underscores."""

    region: str
    options: Mapping[str, Mapping[str, Value]]

    @classmethod
    def read(cls, file: Path) -> "Recipe":
        """The recipe in a file. Raises RunError for what is none."""
        try:
            tables = tomllib.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{file}: expected a recipe, found {error}") from None
        region = tables.pop("region", None)
        unknown = [name for name in tables if name not in STAGES or not isinstance(tables[name], dict)]
        if not isinstance(region, str) or unknown:
            found = f"an unknown {unknown[0]}" if unknown else "no region"
            raise RunError(f"{file}: expected a region and tables named {', '.join(STAGES)}, found {found}")
        for name, options in tables.items():
            for key, value in options.items():
                if not isinstance(value, Value):
                    raise RunError(
                        f"{file}: expected text, numbers, true or false, or a list for {key} in [{name}], found {value}"
                    )
        return cls(region, {name: tables.get(name, {}) for name in STAGES}).with_equal_detectors()

    def with_equal_detectors(self) -> "Recipe":
        """The recipe with the first detector's SIZES for the second, where there is one that does not say its own."""
        first, second = (self.options[name] for name in ("detector", "detector_2"))
        sizes = {key: first[key] for key in SIZES if key in first and key not in second}
        return Recipe(self.region, dict(self.options) | {"detector_2": sizes | dict(second)}) if second else self

    def write(self, file: Path) -> None:
        """Write the recipe as TOML."""
        write_text(file, self.to_toml())

    def to_toml(self) -> str:
        """The recipe as TOML, which `read` reads."""
        lines = [HEADER + f"region = {_toml(self.region)}"]
        for name in STAGES:
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in self.options[name].items())]
        return "\n".join(lines) + "\n"

    def without(self, names: Collection[str]) -> "Recipe":
        """The recipe without the options of these names, whatever command they are of."""
        kept = {
            stage: {key: value for key, value in options.items() if key not in names}
            for stage, options in self.options.items()
        }
        return Recipe(self.region, kept)

    @property
    def planned(self) -> dict[str, float]:
        """The planned minutes of each stage that trains by the clock, in the order of training."""
        minutes = {name: self.options[name].get("minutes") for name in STAGES}
        return {
            name: float(value) for name, value in minutes.items() if name in TRAINED and isinstance(value, int | float)
        }

    def words(self, stage: str, **instead: Value) -> list[str]:
        """The options of a command as it takes them. instead: options that stand in for the recipe's."""
        words: list[str] = []
        for key, value in (dict(self.options[stage]) | instead).items():
            name = f"--{key.replace('_', '-')}"
            if isinstance(value, bool):
                words += [name] if value else []
            elif isinstance(value, list):
                words += [name, *map(str, value)] if value else []
            else:
                words += [name, str(value)]
        return words


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's. DEL alone stands in JSON as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)


def default_recipe(region: str, hours: float, *, gpu: bool, stored: int, precision: str = "bf16") -> Recipe:
    """Sizes and rates of the shipped weights, which were made in several parts (see the model card), in one go.

    hours: of training in all, shared by SHARES; the rest is for what comes before and after. gpu: whether there is one, for larger batches.
    stored: how many planted volumes memory and disk hold.
    precision: what the model is calibrated in, "float32" where bfloat16 is slow.
    """
    brain = region == "brain"
    budgets: dict[str, Options] = {
        name: {"minutes": max(round(60 * hours * share, 2), 0.01), "until_flat": True} for name, share in SHARES.items()
    }
    batch: Options = {"batch": 64 if gpu else 16}
    vary: Options = {"augment": "mild" if brain else "bold", "dropout": 0.05}
    prior: Options = {"first_kernel": 7, "downsample": 2, "rate": 5e-4}
    patches: Options = {} if brain else {"weaker_evidence": 0.3, "other_tones": 0.4}
    scored: Options = {"along": 0.02 if brain else 0.0, "in_plane": 0.005, "restorations": 0}
    ordinary: Options = {"ordinary_quantile": 0.95 if brain else 0.9}
    spread: Options = {"ordinary_spread_quantile": 0.76} if brain else {}
    sizes: Options = {"channels": [16, 32, 64, 256], "res_blocks": 1, "rate": 1e-3}
    planted: Options = {"variants": 3, "keep": stored}
    part: Options = {} if brain else {"partial": 0.5}
    trained: Options = {"rate": 1.5e-3, "batch": 32 if gpu else 8, "most": stored}
    options: dict[str, Options] = {
        "cache": {},
        "vqvae": sizes | batch | vary | budgets["vqvae"],
        "prior": prior | batch | vary | budgets["prior"],
        "export": {},
        "plant": planted | part,
        "detector": trained | patches | budgets["detector"],
        "add_detector": {"best": True} | scored | ordinary | spread,
        "calibrate": {"slices": 32, "restorations": 4, "precision": precision},
        "compare": {"restorations": 0},
    }
    return Recipe(region, {name: options.get(name, {}) for name in STAGES})


def quick_recipe(region: str) -> Recipe:
    """Tiny networks and a few steps: whether everything works, on few small volumes. It finds nothing."""
    few: Options = {"batch": 4, "dropout": 0.0}
    prior: Options = {
        "prior_channels": 8,
        "blocks": 1,
        "res_blocks": 1,
        "first_kernel": 7,
        "downsample": 2,
        "steps": 5,
    }
    vqvae: Options = {"channels": [4, 8, 8, 16], "codebook_size": 16, "res_blocks": 1, "steps": 8}
    options: dict[str, Options] = {
        "cache": {"max_slices": 12},
        "vqvae": vqvae | few,
        "prior": prior | few,
        "export": {},
        "plant": {"variants": 1, "count": 3},
        "detector": {"widths": [4, 6, 8, 8], "batch": 2, "steps": 6, "validations": 1, "validation_volumes": 2},
        "add_detector": {"restorations": 0},
        "calibrate": {"slices": 4, "restorations": 1},
        "compare": {"slices": 4, "restorations": 0, "planted": 1},
    }
    return Recipe(region, {name: options.get(name, {}) for name in STAGES})
