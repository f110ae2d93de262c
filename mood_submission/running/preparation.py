"""Makes what a run needs, and finds what is wrong with its options before anything is computed."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..about import ModelError
from ..model import Model
from ..model_file import WEIGHTS, load_model
from ..output.dicom_seg import MISSING, can_write
from ..output.findings_folder import FindingsFolder
from ..output.report import what_is_missing
from ..predictor import Predictor
from ..preprocessing.skull import DEEPBET, can_strip
from ..volumes import Source, VolumeError
from .options import PredictOptions
from .processes import how_many
from .report import Report, rank_path
from .skull_strip import FOLDER, SkullStrip
from .work_sharing import Ranks, shard


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run of `predict` that can begin.

    options: what was asked for.
    sources: the volumes, which are shared with the other processes of `ranks`.
    ranks: this process among those of torchrun. None where it is alone.
    processes: how many processes are to be started for the run. With 1, this one does it.
    predictor: scores the volumes. It is on the CPU where other processes are to be started.
    findings: the folder of findings. None to write none.
    """

    options: PredictOptions
    sources: list[Source]
    ranks: Ranks | None
    processes: int
    predictor: Predictor
    findings: FindingsFolder | None

    @property
    def is_first(self) -> bool:
        """Whether this process tells what all have in common."""
        return self.ranks is None or self.ranks.rank == 0

    def report(self) -> Report:
        """The report of this process. Raises VolumeError where it cannot be written."""
        path = self.options.report
        if path is None:
            return Report(self.options, self.predictor.model, self.sources, None)
        with _writing("--report", path, "a file to write the report to"):
            own = path if self.ranks is None else rank_path(path, self.ranks.rank)
            return Report(self.options, self.predictor.model, self.sources, own)


def prepare_run(options: PredictOptions, sources: list[Source]) -> PreparedRun:
    """Look at all that could be wrong with a run, and make its folders.

    sources: the volumes in the input folder, at least one.
    Raises VolumeError or ModelError, in one line, for options that do not go together, folders that cannot be written to, and
    a model or a device that cannot be used.
    """
    ranks = Ranks.from_environment()
    if options.shard is not None:
        if ranks is not None:
            raise VolumeError("--shard: expected no torchrun, which shares the volumes by itself")
        sources = shard(sources, *options.shard)
    _make_predictions_folder(options)
    shared = ranks is not None or options.shard is not None
    processes = 1 if shared else how_many(options.processes, options.device, len(sources))
    device = "cpu" if processes > 1 else options.device or (None if ranks is None else ranks.device)
    predictor = Predictor(
        _model(options, device),
        options.slices,
        options.restorations,
        seed=options.seed,
        sample_method=options.sample_method,
        pixel_method=options.pixel_method,
        explain=options.findings_folder is not None,
        strip=_skull_strip(options),
    )
    return PreparedRun(
        options=options,
        sources=sources,
        ranks=ranks,
        processes=processes,
        predictor=predictor,
        findings=_findings(options, predictor),
    )


@contextmanager
def _writing(option: str, path: Path, what: str) -> Iterator[None]:
    """Raises VolumeError instead of OSError, with the option, what was expected, and what was found."""
    try:
        yield
    except OSError as error:
        found = error.strerror or str(error)
        raise VolumeError(f"{option} {path}: expected {what}, found: {found}") from None


def _make_folder(folder: Path) -> None:
    """Make the folder, and see that a file can be written to it. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _volumes_folder(options: PredictOptions) -> Path:
    """The folder that the volumes lie in."""
    return options.input if options.input.is_dir() else options.input.parent


def _make_predictions_folder(options: PredictOptions) -> None:
    folder = options.output
    with _writing("--output", folder, "a folder to write to"):
        if folder.exists() and folder.samefile(_volumes_folder(options)):
            raise VolumeError(f"{folder}: expected another folder for the predictions, found the one with the volumes")
        _make_folder(folder)


def _model(options: PredictOptions, device: str | None) -> Model:
    """The model of the region. Raises ModelError for a model of another region, and for a device that is not there."""
    try:
        model = load_model(
            options.weights or options.region, device, precision=options.precision, engine=options.engine
        )
    # There is no such device.
    except RuntimeError as error:
        raise ModelError(
            f"--device {options.device}: expected a device that is there, found: {str(error).splitlines()[0]}"
        ) from None
    if model.about.region != options.region:
        file = options.weights or WEIGHTS / f"{options.region}.safetensors"
        raise ModelError(f"{file}: expected a model of region {options.region}, found {model.about.region}")
    return model


def _skull_strip(options: PredictOptions) -> SkullStrip | None:
    """How volumes lose their skulls. None where they keep them. Raises VolumeError where they cannot lose them."""
    if options.region != "brain" or options.skull_strip == "no":
        if options.skull_strip == "yes":
            raise VolumeError(f"--skull-strip yes: expected --region brain, found {options.region}")
        return None
    if options.skull_strip == "yes" and not can_strip():
        raise VolumeError(f"--skull-strip yes: expected {DEEPBET}, found no such package")
    return SkullStrip(options.skull_strip, options.findings_folder and options.findings_folder / FOLDER)


def _findings(options: PredictOptions, predictor: Predictor) -> FindingsFolder | None:
    """The folder of findings, where they are asked for. Raises VolumeError or ModelError where there can be none."""
    folder = options.findings_folder
    if options.html is not None and what_is_missing():
        raise VolumeError(f"--html: {what_is_missing()}")
    if options.dicom_seg and not can_write():
        raise VolumeError(f"--dicom-seg: expected {MISSING}, found no such package")
    if folder is None:
        if options.dicom_seg:
            raise VolumeError("--dicom-seg: expected --findings DIR or --html FOLDER, found neither")
        return None
    if options.task == "sample":
        option = "--html" if options.html else "--findings"
        raise VolumeError(f"{option}: expected --task pixel or both, found sample")
    predictor.check_findings()
    # The page is written last, hours later. So its folder is looked at now.
    if options.html is not None:
        with _writing("--html", options.html, "a folder to write to"):
            _make_folder(options.html)
    with _writing("--findings", folder, "a folder to write to"):
        for other, what in ((_volumes_folder(options), "the volumes"), (options.output, "the predictions")):
            if folder.exists() and folder.samefile(other):
                raise VolumeError(f"{folder}: expected a folder of its own, found the one with {what}")
        try:
            return FindingsFolder(folder, options.dicom_seg)
        except ValueError as error:
            raise VolumeError(str(error)) from None
