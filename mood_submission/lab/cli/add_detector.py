"""Put a run's detector into the model file that it was trained for. The method that needs it becomes the file's default."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...cli.command import run_command
from ...methods import table
from ...model import Model
from ...model_file import add_detector, load_model, networks_sha256
from ...networks.detector import Detector, DetectorSettings
from ...runtime.option_types import at_least, share
from ...runtime.options import option
from ...runtime.precision import DTYPES, STORED
from ..training.checkpoints import RunError, load_detector
from ..training.mean import mean_detector


@dataclass(frozen=True, kw_only=True)
class ChosenSettings:
    """Settings of the detector that can be chosen anew. None for the one that it was trained with."""

    along: float | None = option(
        "how far logits are smoothed from slice to slice: standard deviation, share of a volume's slices "
        f"(default: {DetectorSettings.along})",
        metavar="SHARE",
        default=None,
    )
    in_plane: float | None = option(
        f"and within slices, share of the side (default: {DetectorSettings.in_plane})", metavar="SHARE", default=None
    )
    restorations: int | None = option(
        f"of a slice by default, 0 for scores without any (default: {DetectorSettings.restorations})",
        type=at_least(0),
        metavar="N",
        default=None,
    )
    ordinary_quantile: float | None = option(
        "a volume's logits are ordinary up to this quantile of its own; sample scores tell how far the highest lie above "
        f"it. 0: the logits as they are (default: {DetectorSettings.ordinary_quantile})",
        type=share,
        metavar="QUANTILE",
        default=None,
    )
    ordinary_spread_quantile: float | None = option(
        "a lower quantile: from it to --ordinary-quantile ordinary logits spread, and sample scores leave out that width "
        f"too. 0: they do not (default: {DetectorSettings.ordinary_spread_quantile})",
        type=share,
        metavar="QUANTILE",
        default=None,
    )

    def chosen(self, settings: DetectorSettings) -> DetectorSettings:
        """The settings with those that were chosen. Raises ValueError where they do not go together."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(settings, **given)


def _default(task: str) -> str:
    """The name of the first method that needs a detector."""
    return next(method.name for method in table.methods(task) if method.needs_detector)


@dataclass(frozen=True, kw_only=True)
class AddDetectorOptions:
    """Options of `add-detector`."""

    run: Path = option("run folder of 'mood-submission train detector'", "run", metavar="RUN")
    model: Path = option("model file", "model", metavar="MODEL.safetensors")
    best: bool = option(
        "the detector that did best on the run's validation volumes, instead of the last: for a run that went on until it "
        "knew its volumes by heart",
        default=False,
    )
    mean_with: tuple[Path, ...] = option(
        "further runs, or model files with a detector: each parameter is the mean of theirs. Where all started from one "
        "detector, their mean is often better than each of them on volumes that they were not trained on",
        metavar="RUN",
        default=(),
    )
    out: Path | None = option("model file to write (default: the same)", "-o", "--out", metavar="FILE", default=None)
    dtype: str = option(
        "how its parameters are stored (default: float32: variances of its batch norms may be too large for float16)",
        choices=STORED,
        default="float32",
    )
    sample_method: str = option(
        "from then on the file's default", choices=lambda: table.names("sample"), default=_default("sample")
    )
    pixel_method: str = option(
        "from then on the file's default", choices=lambda: table.names("pixel"), default=_default("pixel")
    )
    settings: ChosenSettings


def _without_detector_scores(measured: dict) -> dict:
    """What was measured on healthy volumes, by method, without the methods that need a detector."""
    return {
        name: found
        for name, found in measured.items()
        if not (name in table.METHODS and table.METHODS[name].needs_detector)
    }


def _read(source: Path, best: bool, model: Model) -> tuple[Detector, dict]:
    """The detector of a run or a model file, and what that says of its training.

    best: of a run, the detector that did best in validation.
    model: the detector must have been trained for its networks. Raises RunError where it was trained for others.
    """
    if source.is_file():
        file, other = source, load_model(source, "cpu")
        if other.detector is None:
            raise RunError(f"{source}: expected a model file with a detector, found none")
        detector, about = other.detector, other.about.training.get("detector", {})
        networks = networks_sha256(other)
    else:
        file, (detector, about) = source / "detector.pt", load_detector(source, best)
        networks = about["networks"]
    if networks != networks_sha256(model):
        raise RunError(
            f"{file}: expected a detector for the VQ-VAE and prior of {model.file}, found one that was trained with others"
        )
    return detector, about


def add(options: AddDetectorOptions) -> list[str]:
    """Write the model file. Returns a line on what is in it. Raises ValueError or OSError where it cannot be written."""
    model = load_model(options.model, "cpu")
    read = [_read(source, options.best, model) for source in (options.run, *options.mean_with)]
    detector = mean_detector([detector for detector, _ in read])
    trained, *others = (about for _, about in read)
    if others:
        trained = trained | {"mean_with": others}
    detector.settings = options.settings.chosen(detector.settings)
    about = dataclasses.replace(
        model.about,
        sample_method=options.sample_method,
        pixel_method=options.pixel_method,
        training=model.about.training | {"detector": trained},
        healthy_voxels=_without_detector_scores(model.about.healthy_voxels),
        healthy_samples=_without_detector_scores(model.about.healthy_samples),
    )
    out = options.out or options.model
    add_detector(options.model, out, detector, about, DTYPES[options.dtype])
    size, kinds = out.stat().st_size / 1e6, ", ".join(dict.fromkeys(trained["kinds"]))
    return [f"{out}: {size:.1f} MB, detector of {trained['steps']} steps, kinds {kinds}"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission add-detector", description=__doc__)
    return run_command(parser, AddDetectorOptions, add, argv)
