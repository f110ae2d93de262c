"""Put a run's detector into the model file that it was trained for, and make the method "learned" the file's default."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from ...model import Model, load_model, networks_sha256
from ...model_file import PIXEL_METHODS, SAMPLE_METHODS, add_detector
from ...networks.detector import Detector, DetectorSettings
from ...runtime.option_types import restorations_option, share
from ...runtime.precision import DTYPES, STORED
from ..training.checkpoints import RunError, load_detector
from ..training.mean import mean_detector


def _but_learned(measured: dict) -> dict:
    """What was measured on healthy volumes, without the scores of another detector."""
    return {way: found for way, found in measured.items() if way != "learned"}


def _detectors(args: argparse.Namespace, model: Model) -> tuple[list[Detector], list[dict]]:
    """The detectors that are named, and what each says of its training. Raises RunError for one of other networks."""
    detectors, trained = [], []
    for source in [args.run, *args.mean_with]:
        if source.is_file():
            file, other = source, load_model(source, "cpu")
            if other.detector is None:
                raise RunError(f"{source}: expected a model file with a detector, found none")
            detector, about = other.detector, other.about.training.get("detector", {})
            networks = networks_sha256(other)
        else:
            file, (detector, about) = source / "detector.pt", load_detector(source, args.best)
            networks = about["networks"]
        if networks != networks_sha256(model):
            raise RunError(
                f"{file}: expected a detector for the VQ-VAE and prior of {args.model}, found one that was trained "
                f"with others"
            )
        detectors.append(detector)
        trained.append(about)
    return detectors, trained


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission add-detector", description=__doc__)
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="run folder of 'mood-submission train detector'"
    )
    parser.add_argument("model", type=Path, metavar="MODEL.safetensors", help="model file")
    parser.add_argument(
        "--best",
        action="store_true",
        help="the detector that did best on the run's validation volumes, instead of the last: where training went on "
        "for so long that it learned its volumes by heart",
    )
    parser.add_argument(
        "--mean-with",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN",
        help="further runs, or model files with a detector: each parameter is the mean of theirs. Where all started from "
        "one detector, their mean is often better than each of them on volumes that they were not trained on",
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="model file to write (default: the same)"
    )
    parser.add_argument(
        "--dtype",
        choices=STORED,
        default="float32",
        help="how its parameters are stored (default: "
        "float32: variances of its batch norms may be too large for float16)",
    )
    parser.add_argument(
        "--sample-method", choices=SAMPLE_METHODS, default="learned", help="from then on the file's default"
    )
    parser.add_argument(
        "--pixel-method", choices=PIXEL_METHODS, default="learned", help="from then on the file's default"
    )
    parser.add_argument(
        "--along",
        type=float,
        metavar="SHARE",
        help="how far logits are smoothed from slice to slice: standard "
        f"deviation, share of a volume's slices (default: {DetectorSettings.along})",
    )
    parser.add_argument(
        "--in-plane",
        type=float,
        metavar="SHARE",
        help=f"and within slices, share of the side (default: {DetectorSettings.in_plane})",
    )
    parser.add_argument(
        "--restorations",
        type=restorations_option,
        metavar="N",
        help=f"of a slice by default, 0 for scores without any (default: {DetectorSettings.restorations})",
    )
    parser.add_argument(
        "--ordinary-quantile",
        type=share,
        metavar="QUANTILE",
        help="a volume's logits are ordinary up to this quantile of its own; sample scores tell how far the highest lie above "
        f"it. 0: the logits as they are (default: {DetectorSettings.ordinary_quantile})",
    )
    parser.add_argument(
        "--ordinary-spread-quantile",
        type=share,
        metavar="QUANTILE",
        help="a lower quantile: from it to --ordinary-quantile ordinary logits spread, and sample scores leave out that width "
        f"too. 0: they do not (default: {DetectorSettings.ordinary_spread_quantile})",
    )
    args = parser.parse_args(argv)
    try:
        model = load_model(args.model, "cpu")
        detectors, (trained, *others) = _detectors(args, model)
        detector = mean_detector(detectors)
        if others:
            trained = trained | {"mean_with": others}
        chosen = {
            name: value
            for name in ("along", "in_plane", "restorations", "ordinary_quantile", "ordinary_spread_quantile")
            if (value := getattr(args, name)) is not None
        }
        detector.settings = dataclasses.replace(detector.settings, **chosen)
        about = dataclasses.replace(
            model.about,
            sample_method=args.sample_method,
            pixel_method=args.pixel_method,
            training=model.about.training | {"detector": trained},
            healthy_voxels=_but_learned(model.about.healthy_voxels),
            healthy_samples=_but_learned(model.about.healthy_samples),
        )
        add_detector(args.model, args.out or args.model, detector, about, DTYPES[args.dtype])
    except (ValueError, OSError) as error:
        print(f"mood-submission add-detector: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    out = args.out or args.model
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, detector of {trained['steps']} steps, kinds {', '.join(trained['kinds'])}"
    )
    return 0
