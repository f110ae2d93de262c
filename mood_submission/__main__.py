"""Command line: python -m mood_submission predict --region brain --task pixel -i IN -o OUT"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from pathlib import Path

from tqdm import tqdm

from . import __version__
from .model import PRECISIONS, load_model
from .model_file import PIXEL_METHODS, REGIONS, SAMPLE_METHODS, WEIGHTS, ModelError
from .predictor import TASKS, Predictor
from .running.report import Report
from .running.run_folder import Outcome, predict_files
from .runtime.stopping import ask_to_stop, check_stopped
from .volumes import VolumeError, find_others, find_volumes


def slices_option(text: str) -> int | str:
    if text == "all":
        return text
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 'all' or a number of slices, found {text!r}")
    return int(text)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text!r}")
    return int(text)


def restorations_option(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number of restorations, found {text!r}")
    return int(text)


def seconds_option(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, found {text!r}")
    return value


def json_option(text: str) -> Path:
    if not text.lower().endswith(".json"):  # so that no slip of the hand writes it over a volume
        raise argparse.ArgumentTypeError(f"expected a name ending in .json, found {text!r}")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="mood_submission",
        description="Find what does not belong in a brain MRI or an "
        "abdominal CT, having learnt from healthy ones only.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True)
    predict = commands.add_parser(
        "predict",
        help="score every volume of a folder",
        description=(
            "Score every .nii and .nii.gz volume of a folder. Exit status: 0 when every volume has its prediction, 1 when "
            "some failed (each named on standard error), 2 for wrong usage."
        ),
    )
    predict.add_argument("--region", choices=REGIONS, required=True)
    predict.add_argument(
        "--task",
        choices=TASKS,
        required=True,
        help="sample: one score a volume, NAME.nii.gz.txt; pixel: one score a voxel, NAME.nii.gz",
    )
    predict.add_argument(
        "-i", "--input", type=Path, required=True, metavar="IN", help="folder with the volumes"
    )
    predict.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the predictions"
    )
    predict.add_argument(
        "--weights", type=Path, metavar="FILE", help="model file (default: the region's shipped one)"
    )
    predict.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there, else cpu)")
    predict.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of drawing restorations: tf32 (CUDA only) and bf16 are faster on many GPUs and draw "
        "others, as likely (default: float32)",
    )
    predict.add_argument(
        "--slices",
        type=slices_option,
        default=None,
        metavar="all|N",
        help="how many slices of a volume to look at; published: 32 (default: one every few mm, as "
        "the model file says, or all)",
    )
    predict.add_argument(
        "--restorations",
        type=restorations_option,
        metavar="N",
        help="restorations a slice; 0, for the pixel method learned alone: none are drawn, which takes a "
        "tenth of the time (default: what the model file says; published: 15)",
    )
    predict.add_argument(
        "--sample-method",
        choices=SAMPLE_METHODS,
        help="paper: the published sum of unlikely codes' NLL; top: their strongest cluster in 3D; "
        "learned: where the detector is surest (default: what the model file says)",
    )
    predict.add_argument(
        "--pixel-method",
        choices=PIXEL_METHODS,
        help="paper: the published difference from the restorations; rarity: how rare differences and "
        "NLL like these are among healthy volumes; learned: the detector's (default: what the model "
        "file says)",
    )
    predict.add_argument("--seed", type=int, default=0, help="of the restorations' draws (default: 0)")
    predict.add_argument(
        "--resume",
        action="store_true",
        help="leave out volumes whose whole prediction is there already, made with the same options "
        "(which is not checked)",
    )
    predict.add_argument(
        "--time-budget",
        type=seconds_option,
        metavar="SECONDS",
        help="for each volume: where there is too little for all restorations and slices, fewer of them "
        "(default: as long as it takes)",
    )
    predict.add_argument(
        "--report",
        type=json_option,
        metavar="FILE.json",
        help="what became of each volume; written anew after each",
    )
    return top


def usage_error(message: str) -> int:
    say(f"mood_submission: {message}")
    return 2


def prepare_output(folder: Path, source: Path) -> None:
    """Make the folder and see that it can be written to, before anything is computed. Raises OSError, VolumeError."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.samefile(source):
        raise VolumeError(
            f"{folder}: expected another folder for the predictions, found the one with the volumes"
        )
    with tempfile.TemporaryFile(dir=folder):
        pass


def names(paths: list[Path], most: int = 5) -> str:
    return ", ".join(path.name for path in paths[:most]) + (
        f" and {len(paths) - most} more" if len(paths) > most else ""
    )


def predict(args: argparse.Namespace) -> int:
    try:
        files, others = find_volumes(args.input), find_others(args.input)
        if not files:
            found = f"only {names(others)}" if others else "none"
            return usage_error(f"{args.input}: expected .nii or .nii.gz volumes, found {found}")
        prepare_output(args.output, args.input)
        model = load_model(args.weights or args.region, args.device, precision=args.precision)
        predictor = Predictor(
            model, args.slices, args.restorations, args.seed, args.sample_method, args.pixel_method
        )
    except (VolumeError, ModelError) as error:
        return usage_error(str(error))
    except OSError as error:
        return usage_error(f"{args.output}: expected a folder to write to, found: {error.strerror}")
    except RuntimeError as error:  # no such device
        return usage_error(f"--device {args.device}: {str(error).splitlines()[0]}")
    check_stopped()
    if model.about.region != args.region:
        file = args.weights or WEIGHTS / f"{args.region}.safetensors"
        return usage_error(f"{file}: expected a model of region {args.region}, found {model.about.region}")
    try:
        report = Report(args, model, files)
    except OSError as error:
        return usage_error(f"{args.report}: expected a file to write the report to, found: {error.strerror}")
    if others:
        say(f"{args.input}: skipped what is no .nii or .nii.gz: {names(others)}")
    say(f"{len(files)} volumes, {args.region}, {args.task} task, on {model.device}")
    with tqdm(total=len(files), desc=args.task, unit="volume", disable=None) as bar:

        def done(outcome: Outcome) -> None:
            for line in (outcome.message, report.add(outcome)):
                if line:
                    say(line)
            bar.update()

        outcomes = predict_files(
            predictor, files, args.task, args.output, done, args.resume, args.time_budget
        )
    return conclude(outcomes)


def conclude(outcomes: list[Outcome]) -> int:
    """Says what is worth saying at the end. Returns the exit status."""
    resumed = sum(outcome.status == "resumed" for outcome in outcomes)
    if resumed:
        say(f"{resumed} of {len(outcomes)} volumes had their prediction already")
    failed = [outcome.file.name for outcome in outcomes if outcome.status == "failed"]
    if failed:
        say(f"{len(failed)} of {len(outcomes)} volumes failed: {', '.join(failed)}")
    return 1 if failed else 0


def say(line: object) -> None:
    """A line on standard error, above a progress bar and in one piece, whatever threads say at the same time.

    Nobody listening, as after `2>&1 | head`, is no reason to stop.
    """
    text = " ".join(str(line).split())
    with contextlib.suppress(OSError), tqdm.external_write_mode(file=sys.stderr):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def quiet() -> None:
    """One line a warning and an error, from us; nibabel's notes on odd headers would only repeat them."""
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)


def main() -> int:
    sys.stderr = sys.stderr or open(os.devnull, "w")  # closed by whoever started this
    tqdm.set_lock(
        threading.RLock()
    )  # its own would be for processes too, and leave a semaphore in /dev/shm if killed
    quiet()
    args = parser().parse_args()
    for sent in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # also for a container's first process, which ignores them otherwise
        signal.signal(sent, ask_to_stop)
    try:
        return predict(args)
    except KeyboardInterrupt:
        say("mood_submission: stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
