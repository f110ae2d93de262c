"""The options of `predict`. They name files and numbers; nothing is loaded here."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..methods import told
from ..runtime.contract import BOTH, ENGINE_VARIABLE, PRECISIONS, REGIONS, TASKS
from ..runtime.option_types import (
    DEVICE_HELP,
    ENGINE_NAMES,
    at_least,
    check_engine_by_default,
    engine_by_default,
    json_option,
    positive,
    seconds_option,
    shard_option,
    slices_option,
)
from ..runtime.options import option

# As many processes as there are GPUs; the region that the volumes look like.
AUTO = "auto"
# This variable of the environment says how many processes to start where --processes does not.
PROCESSES_VARIABLE = "MOOD_PROCESSES"
# The volumes of brains that are skull-stripped: those that look like whole heads, all, or none.
STRIP_WHEN = ("auto", "yes", "no")


def processes_option(text: str) -> int | str:
    """AUTO, or a whole number of at least 1."""
    return text if text == AUTO else positive(text)


def _names(task: str) -> Callable[[], list[str]]:
    """Gives the names of the methods that have scores of the task."""

    def give() -> list[str]:
        return told.names(task)

    return give


def _described(task: str) -> Callable[[], str]:
    """Gives a line on the methods that have scores of the task."""

    def give() -> str:
        return f"{told.described(task)} (default: what the model file says)"

    return give


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What `predict` is asked for. `None` leaves a choice to the model file, or does without."""

    region: str = option(
        "what the volumes show (default: auto: what the model file is for, or what all volumes look like)",
        choices=(*REGIONS, AUTO),
        default=AUTO,
    )
    task: str = option(
        "sample: one score a volume, NAME.nii.gz.txt; pixel: one score a voxel, NAME.nii.gz; both: in one go",
        choices=(*TASKS, BOTH),
    )
    input: Path = option("folder with the volumes, or one volume", "-i", "--input", metavar="IN")
    output: Path = option("folder for the predictions", "-o", "--output", metavar="OUT")
    weights: Path | None = option("model file (default: the region's shipped one)", default=None, metavar="FILE")
    device: str | None = option(DEVICE_HELP, default=None)
    precision: str | None = option(
        "tf32 (CUDA only) and bf16 are faster where the hardware knows them. They draw other restorations, as likely. "
        "bf16 also computes the NLL, decoded slices and the detector so, which moves scores a little. int8, with --engine onnx "
        "on a CPU, computes most of the NLL and of decoded slices so (default: float32; with --engine auto on a CPU int8)",
        choices=PRECISIONS,
        default=None,
    )
    engine: str = option(
        "what computes the networks on a CPU: torch, or onnx, which is ONNX Runtime (the extra onnx). Where that cannot, torch "
        "does, and a line says why. auto: onnx in int8 on a CPU, else torch. Restorations are torch's (default: "
        f"{ENGINE_VARIABLE} of the environment, else torch; the images say auto)",
        choices=ENGINE_NAMES,
        default=engine_by_default,
    )
    slices: int | str | None = option(
        "how many slices of a volume to look at; published: 32 (default: one every few mm, as the model file says, or all)",
        type=slices_option,
        default=None,
        metavar="all|N",
    )
    restorations: int | None = option(
        "restorations of each slice. 0 takes a tenth of the time, for pixel methods that need none "
        "(default: what the model file says; published: 15)",
        type=at_least(0),
        default=None,
        metavar="N",
    )
    sample_method: str | None = option(_described("sample"), choices=_names("sample"), default=None)
    pixel_method: str | None = option(_described("pixel"), choices=_names("pixel"), default=None)
    seed: int = option("of the random numbers that restorations are drawn with (default: 0)", default=0)
    resume: bool = option(
        "leave out volumes whose whole prediction exists. It must have been made with the same options, which is not checked",
        default=False,
    )
    shard: tuple[int, int] | None = option(
        "only the Ith of N parts of the volumes, about as large as the others: for job arrays. Under torchrun the processes "
        "take volumes from one queue instead",
        type=shard_option,
        nargs=None,
        default=None,
        metavar="I/N",
    )
    processes: int | str = option(
        "how many processes share the volumes, each on a GPU of its own; auto: one for each GPU that is there (default: "
        f"{PROCESSES_VARIABLE} of the environment, else 1; the images say auto)",
        type=processes_option,
        default=lambda: os.environ.get(PROCESSES_VARIABLE, "1"),
        metavar="N|auto",
    )
    time_budget: float | None = option(
        "for each volume. Where it is too short for all restorations and slices, there are fewer of them "
        "(default: as long as it takes)",
        type=seconds_option,
        default=None,
        metavar="SECONDS",
    )
    quiet: bool = option("tell nothing but what went wrong or is odd", "-q", "--quiet", default=False, not_with="quiet")
    verbose: bool = option("a line for every volume", "-v", "--verbose", default=False, not_with="quiet")
    findings: Path | None = option(
        "with --task pixel or both: the objects that stand out, as masks and as tables findings.csv and findings.json, in a "
        "folder of their own",
        default=None,
        metavar="DIR",
    )
    dicom_seg: bool = option(
        "with --findings or --html: write findings in series of DICOM files as DICOM segmentations too (the extra dicom)",
        default=False,
    )
    html: Path | None = option(
        "with --task pixel or both: a page to look at, FOLDER/index.html, with ranking, pictures, findings and a viewer. "
        "Without --findings, findings are in FOLDER/findings",
        default=None,
        metavar="FOLDER",
    )
    skull_strip: str = option(
        "take skull and skin off brains, by deepbet (the extra skullstrip): off volumes that look like whole heads, off all, "
        "or off none (default: auto). With --findings the masks are kept in DIR/brain_masks, and used again",
        choices=STRIP_WHEN,
        default="auto",
    )
    report: Path | None = option(
        "what became of each volume; written again after each", type=json_option, default=None, metavar="FILE.json"
    )

    def __post_init__(self) -> None:
        check_engine_by_default(self.engine)

    @property
    def findings_folder(self) -> Path | None:
        """The folder of findings: the one that is named, or else the page's own."""
        return self.findings or (None if self.html is None else self.html / "findings")
