"""mood-submission predict: score every volume of a folder."""

import argparse
import dataclasses
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from ..about import ModelError
from ..methods import table
from ..model import Model
from ..model_file import WEIGHTS, load_model
from ..output.dicom_seg import MISSING, can_write
from ..output.findings_folder import FindingsFolder
from ..output.report import what_is_missing
from ..predictor import Predictor
from ..preprocessing.skull import DEEPBET, can_strip
from ..running.processes import VARIABLE, how_many, launch
from ..running.report import Report, merge_reports, rank_path
from ..running.run_folder import Outcome, predict_files
from ..running.skull_strip import FOLDER, WHEN, SkullStrip
from ..running.work_sharing import Ranks, shard
from ..runtime.contract import BOTH, TASKS
from ..runtime.names import as_text, shown
from ..runtime.option_types import (
    json_option,
    restorations_option,
    seconds_option,
    shard_option,
    slices_option,
)
from ..runtime.stopping import ask_to_stop, check_stopped
from ..volumes import FORMATS, VolumeError, survey
from .options import add_device, add_precision, add_region, add_weights, processes_option
from .output import Progress, quiet, say


def parser() -> argparse.ArgumentParser:
    predict = argparse.ArgumentParser(
        prog="mood-submission predict",
        description="Score every volume of a folder: NIfTI, MetaImage, NRRD, and folders of DICOM files. Exit status: 0 when every "
        "volume has its prediction, 1 when some failed (each named on standard error), 2 for wrong usage.",
    )
    add_region(predict)
    predict.add_argument(
        "--task",
        choices=(*TASKS, BOTH),
        required=True,
        help="sample: one score a volume, NAME.nii.gz.txt; pixel: one score a voxel, NAME.nii.gz; both: in one go",
    )
    predict.add_argument("-i", "--input", type=Path, required=True, metavar="IN", help="folder with the volumes")
    predict.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the predictions")
    add_weights(predict)
    add_device(predict)
    add_precision(
        predict,
        "tf32 (CUDA only) and bf16 are faster where the hardware knows them, and draw other restorations, as likely; "
        "bf16 computes the NLL, decoded slices and the detector too, which moves scores a little (default: float32)",
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
        help="restorations a slice; 0, for the pixel methods that need none: none are drawn, which takes a "
        "tenth of the time (default: what the model file says; published: 15)",
    )
    predict.add_argument(
        "--sample-method",
        choices=table.names("sample"),
        help=f"{table.described('sample')} (default: what the model file says)",
    )
    predict.add_argument(
        "--pixel-method",
        choices=table.names("pixel"),
        help=f"{table.described('pixel')} (default: what the model file says)",
    )
    predict.add_argument("--seed", type=int, default=0, help="of the restorations' draws (default: 0)")
    predict.add_argument(
        "--resume",
        action="store_true",
        help="leave out volumes whose whole prediction is there already, made with the same options "
        "(which is not checked)",
    )
    predict.add_argument(
        "--shard",
        type=shard_option,
        metavar="I/N",
        help="only the Ith of N parts of the volumes, about as large as the others: for job arrays. Under torchrun the processes "
        "take volumes from one queue instead",
    )
    predict.add_argument(
        "--processes",
        type=processes_option,
        default=os.environ.get(VARIABLE, "1"),
        metavar="N|auto",
        help=f"how many processes share the volumes, each on a GPU of its own; auto: one for each GPU that is there (default: "
        f"{VARIABLE} of the environment, else 1; the images say auto)",
    )
    predict.add_argument(
        "--time-budget",
        type=seconds_option,
        metavar="SECONDS",
        help="for each volume: where there is too little for all restorations and slices, fewer of them "
        "(default: as long as it takes)",
    )
    loud = predict.add_mutually_exclusive_group()
    loud.add_argument("-q", "--quiet", action="store_true", help="tell nothing but what went wrong or is odd")
    loud.add_argument("-v", "--verbose", action="store_true", help="a line for every volume")
    predict.add_argument(
        "--findings",
        type=Path,
        metavar="DIR",
        help="with --task pixel or both: the objects that stand out, as masks and as tables findings.csv and findings.json, in a "
        "folder of their own",
    )
    predict.add_argument(
        "--dicom-seg",
        action="store_true",
        help="with --findings or --html, of series of DICOM files: findings as DICOM segmentations too (the extra dicom)",
    )
    predict.add_argument(
        "--html",
        type=Path,
        metavar="FOLDER",
        help="with --task pixel or both: a page to look at, FOLDER/index.html, with ranking, pictures, findings and a viewer (findings "
        "in FOLDER/findings without --findings)",
    )
    predict.add_argument(
        "--skull-strip",
        choices=WHEN,
        default="auto",
        help="of brains: take skull and skin off by deepbet (the extra skullstrip): of volumes that look like whole heads, of all, or of "
        "none (default: auto); with --findings the masks are kept in DIR/brain_masks, and used again",
    )
    predict.add_argument(
        "--report",
        type=json_option,
        metavar="FILE.json",
        help="what became of each volume; written anew after each",
    )
    return predict


def usage_error(message: str) -> int:
    say(f"mood_submission: {message}")
    return 2


@contextmanager
def writing(option: str, path: Path, what: str) -> Iterator[None]:
    """Tells of an option's file or folder that cannot be written to. Raises VolumeError instead of OSError."""
    try:
        yield
    except OSError as error:
        found = error.strerror or str(error)
        raise VolumeError(f"{option} {path}: expected {what}, found: {found}") from None


def prepare_output(folder: Path, source: Path) -> None:
    """Make the folder and see that it can be written to, before anything is computed. Raises VolumeError."""
    with writing("--output", folder, "a folder to write to"):
        folder.mkdir(parents=True, exist_ok=True)
        if folder.samefile(source):
            raise VolumeError(f"{folder}: expected another folder for the predictions, found the one with the volumes")
        with tempfile.TemporaryFile(dir=folder):
            pass


def prepare_findings(args: argparse.Namespace, predictor: Predictor) -> FindingsFolder | None:
    """The folder for findings, where one is asked for. Raises VolumeError, ModelError."""
    if args.html is not None and what_is_missing():
        raise VolumeError(f"--html: {what_is_missing()}")
    if args.dicom_seg and (args.findings is None or not can_write()):
        wanted, instead = (
            ("--findings DIR or --html FOLDER", "neither") if can_write() else (MISSING, "no such package")
        )
        raise VolumeError(f"--dicom-seg: expected {wanted}, found {instead}")
    if args.findings is None:
        return None
    if args.task == "sample":
        raise VolumeError(f"{'--html' if args.html else '--findings'}: expected --task pixel or both, found sample")
    predictor.check_findings()
    if args.html is not None:  # what is written last is looked at first
        with writing("--html", args.html, "a folder to write to"):
            args.html.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=args.html):
                pass
    with writing("--findings", args.findings, "a folder to write to"):
        for folder, what in ((args.input, "the volumes"), (args.output, "the predictions")):
            if args.findings.exists() and args.findings.samefile(folder):
                raise VolumeError(f"{args.findings}: expected a folder of its own, found the one with {what}")
        try:
            return FindingsFolder(args.findings, args.dicom_seg)
        except ValueError as error:
            raise VolumeError(str(error)) from None


def skull_strip(args: argparse.Namespace) -> SkullStrip | None:
    """How volumes lose their skulls; None where they are no brains, or not to. Raises VolumeError where they cannot."""
    if args.region != "brain" or args.skull_strip == "no":
        if args.skull_strip == "yes":
            raise VolumeError(f"--skull-strip yes: expected --region brain, found {args.region}")
        return None
    if args.skull_strip == "yes" and not can_strip():
        raise VolumeError(f"--skull-strip yes: expected {DEEPBET}, found no such package")
    return SkullStrip(args.skull_strip, None if args.findings is None else args.findings / FOLDER)


def names(paths: list[Path], most: int = 5) -> str:
    return ", ".join(shown(path.name) for path in paths[:most]) + (
        f" and {len(paths) - most} more" if len(paths) > most else ""
    )


def predict(args: argparse.Namespace) -> int:
    if args.html is not None:
        args.findings = args.findings or args.html / "findings"
    try:
        there, ranks = survey(args.input), Ranks.from_environment()
        files, others = there.volumes, there.others
        if not files:
            for note in there.notes:
                say(note)
            found = f"only {names(others)}" if others else "none"
            return usage_error(f"{args.input}: expected {FORMATS}, found {found}")
        if args.shard is not None:
            if ranks is not None:
                return usage_error("--shard: expected no torchrun, which shares the volumes by itself")
            files = shard(files, *args.shard)
        prepare_output(args.output, args.input)
        one_of_several = ranks is not None or args.shard is not None
        processes = 1 if one_of_several else how_many(args.processes, args.device, len(files))
        device = "cpu" if processes > 1 else args.device or (None if ranks is None else ranks.device)
        model = load_model(args.weights or args.region, device, precision=args.precision)
        predictor = Predictor(
            model,
            args.slices,
            args.restorations,
            seed=args.seed,
            sample_method=args.sample_method,
            pixel_method=args.pixel_method,
            explain=args.findings is not None,
            strip=skull_strip(args),
        )
        findings = prepare_findings(args, predictor)
    except (VolumeError, ModelError) as error:
        return usage_error(str(error))
    except RuntimeError as error:  # no such device
        return usage_error(f"--device {args.device}: {str(error).splitlines()[0]}")
    check_stopped()
    if model.about.region != args.region:
        file = args.weights or WEIGHTS / f"{args.region}.safetensors"
        return usage_error(f"{file}: expected a model of region {args.region}, found {model.about.region}")
    if processes > 1:  # all that could be wrong has been looked at: nobody says it several times
        return launch(processes, ["predict", *args.words])
    try:
        path = args.report if ranks is None or args.report is None else rank_path(args.report, ranks.rank)
        with writing("--report", args.report, "a file to write the report to"):
            report = Report(args, model, files, path)
    except VolumeError as error:
        return usage_error(str(error))
    first = ranks is None or ranks.rank == 0
    if others and first:
        say(f"{args.input}: skipped what is no volume: {names(others)}")
    for note in there.notes if first else []:
        say(note)
    if not args.quiet:
        which = "" if ranks is None else f", process {ranks.rank + 1} of {ranks.count}"
        say(f"{len(files)} volumes, {args.region}, {args.task} task, on {model.device}{which}")
    with Progress(len(files), args.task, quiet=args.quiet or not first) as progress:

        def done(outcome: Outcome) -> None:
            for line in (outcome.message, report.add(outcome)):
                if line:
                    say(line)
            if args.verbose:
                say(described(outcome))
            progress.update(None if ranks is None else ranks.count_done())

        outcomes = predict_files(
            predictor,
            files if ranks is None else ranks.take(files),
            args.task,
            args.output,
            done,
            args.resume,
            args.time_budget,
            findings,
            lambda stage, file: progress.stage(f"{stage} {file.name}"),
        )
    status = conclude(outcomes)
    told = {as_text(outcome.file.name): outcome.to_dict() for outcome in outcomes}
    if ranks is not None:
        # torchrun ends all processes when one of them fails: the last tells for all
        failed = ranks.count_failed(sum(outcome.status == "failed" for outcome in outcomes))
        if not ranks.is_last():
            return status if failed is None else 0
        status = 1 if ranks.count_failed(0) else 0
        if args.report is not None:
            try:
                told = merge_reports(args.report, ranks.count)
            except (
                OSError,
                ValueError,
            ) as error:  # no reason to lose the page, or to call predictions failed
                say(f"{args.report}: expected the reports of {ranks.count} processes, found: {error}")
    return write_html(args, model, told) or status if args.html else status


def described(outcome: Outcome) -> str:
    """A line on what became of a volume, for --verbose."""
    told = [outcome.status]
    if outcome.score is not None:
        told.append(f"score {outcome.score:.4g}")
    if outcome.slice_count is not None:
        told.append(f"{outcome.slice_count} slices, {outcome.restorations} restorations, {outcome.seconds:.1f} s")
    return f"{shown(outcome.file.name)}: {', '.join(told)}"


def write_html(args: argparse.Namespace, model: Model, told: dict[str, dict]) -> int:
    """The page of the run. told: what became of the volumes, by their files' names (`as_text`). Returns 1 where it cannot be made, which is
    said, else 0."""
    from ..output.report.collect import Sources
    from ..output.report.page import write_report

    settings = {
        "volumes": str(args.input),
        "weights": f"{model.file} (sha256 {model.sha256})",
        "device": str(model.device),
    }
    about = dataclasses.replace(
        model.about,
        pixel_method=args.pixel_method or model.about.pixel_method,
        sample_method=args.sample_method or model.about.sample_method,
    )
    try:
        write_report(Sources(args.input, args.output, args.findings), args.html, about, settings, told)
    except (ValueError, OSError) as error:
        say(f"--html {args.html}: {error}")
        return 1
    say(f"look at {args.html / 'index.html'}")
    return 0


def conclude(outcomes: list[Outcome]) -> int:
    """Says what is worth saying at the end. Returns the exit status."""
    resumed = sum(outcome.status == "resumed" for outcome in outcomes)
    if resumed:
        say(f"{resumed} of {len(outcomes)} volumes had their prediction already")
    failed = [shown(outcome.file.name) for outcome in outcomes if outcome.status == "failed"]
    if failed:
        say(f"{len(failed)} of {len(outcomes)} volumes failed: {', '.join(failed)}")
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    sys.stderr = sys.stderr or open(os.devnull, "w")  # closed by whoever started this
    # tqdm's own lock would be for processes too, and leave a semaphore in /dev/shm if this one is killed
    tqdm.set_lock(threading.RLock())
    quiet()
    args = parser().parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    for sent in (signal.SIGINT, signal.SIGTERM):  # a container's first process ignores them otherwise
        signal.signal(sent, ask_to_stop)
    try:
        return predict(args)
    except KeyboardInterrupt:
        say("mood_submission: stopped")
        return 130
