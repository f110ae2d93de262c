"""The run of `predict`: what it computes, and the lines that it tells."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ..about import ModelError
from ..running.options import AUTO, PredictOptions
from ..running.preparation import PreparedRun, prepare_run
from ..running.processes import launch
from ..running.region import region_for
from ..running.report import Report, merge_reports
from ..running.run_folder import Outcome, predict_files
from ..running.work_sharing import Ranks
from ..runtime.files import no_folders_left
from ..runtime.names import as_text, shown
from ..runtime.stopping import check_stopped
from ..runtime.torchrun import Process
from ..volumes import FORMATS, Source, Survey, VolumeError, survey
from .output import Progress, say


def predict(options: PredictOptions, words: Sequence[str]) -> int:
    """Score a folder. Returns the exit status. words: the command's words, for the processes that it starts."""
    try:
        content = survey(options.input)
        if not content.volumes:
            for note in content.notes:
                say(note)
            found = f"only {names(content.others)}" if content.others else "none"
            raise VolumeError(f"{options.input}: expected {FORMATS}, found {found}")
        recognised = options.region == AUTO
        if recognised:
            options = dataclasses.replace(options, region=recognise(options, content.volumes))
            words = [*words, "--region", options.region]
        with no_folders_left(*filter(None, (options.output, options.html, options.findings_folder))):
            run = prepare_run(options, content.volumes)
            if recognised and run.is_first and not options.quiet:
                how = "the model file" if options.weights else "it looks"
                say(f"{options.input}: region {options.region}, as {how}")
            check_stopped()
            # Each process would find the same to be wrong. So it is found here, and told once.
            if run.processes > 1:
                return launch(run.processes, ["predict", *words])
            report = run.report()
    except (VolumeError, ModelError) as error:
        say(f"mood_submission: {error}")
        return 2
    announce(run, content)
    outcomes = score(run, report)
    status = conclude(outcomes)
    volumes = {as_text(outcome.file.name): outcome.to_dict() for outcome in outcomes}
    return finish(run, volumes, status) if run.ranks is None else finish_together(run, run.ranks, volumes, status)


def recognise(options: PredictOptions, volumes: Sequence[Source]) -> str:
    """The region of a run that names none. Shows how many volumes were looked at. Raises what `region_for` raises."""
    process = Process.from_torchrun()
    quiet = options.quiet or options.weights is not None or (process is not None and process.rank > 0)
    with Progress(len(volumes), "looking for the region", quiet=quiet) as progress:
        return region_for(options, progress.counting(volumes))


def announce(run: PreparedRun, content: Survey) -> None:
    """Tell what is going to be scored, and what is not."""
    if run.is_first:
        if content.others:
            say(f"{run.options.input}: skipped what is no volume: {names(content.others)}")
        for note in (*content.notes, *run.predictor.model.notes):
            say(note)
    if not run.options.quiet:
        which = "" if run.ranks is None else f", process {run.ranks.rank + 1} of {run.ranks.count}"
        model = run.predictor.model
        where = f"on {model.device} by {model.engine.name} in {model.precision}{which}"
        say(f"{len(run.sources)} volumes, {run.options.region}, {run.options.task} task, {where}")


def score(run: PreparedRun, report: Report) -> list[Outcome]:
    """Score the volumes, with a bar or lines of progress and a report."""
    options, ranks = run.options, run.ranks
    with Progress(len(run.sources), options.task, quiet=options.quiet or not run.is_first) as progress:

        def done(outcome: Outcome) -> None:
            for line in (outcome.message, report.add(outcome)):
                if line:
                    say(line)
            if options.verbose:
                say(described(outcome))
            progress.update(None if ranks is None else ranks.count_done())

        return predict_files(
            run.predictor,
            run.sources if ranks is None else ranks.take(run.sources),
            options.task,
            options.output,
            done,
            resume=options.resume,
            seconds=options.time_budget,
            findings=run.findings,
            stage=lambda stage, file: progress.stage(f"{stage} {file.name}"),
        )


def described(outcome: Outcome) -> str:
    """A line on a volume's outcome, for --verbose."""
    facts = [outcome.status]
    if outcome.score is not None:
        facts.append(f"score {outcome.score:.4g}")
    if outcome.slice_count is not None:
        facts.append(f"{outcome.slice_count} slices, {outcome.restorations} restorations, {outcome.seconds:.1f} s")
    return f"{shown(outcome.file.name)}: {', '.join(facts)}"


def conclude(outcomes: list[Outcome]) -> int:
    """Tell how many volumes were resumed, and which failed. Returns the exit status."""
    resumed = sum(outcome.status == "resumed" for outcome in outcomes)
    if resumed:
        say(f"{resumed} of {len(outcomes)} volumes had their prediction already")
    failed = [shown(outcome.file.name) for outcome in outcomes if outcome.status == "failed"]
    if failed:
        say(f"{len(failed)} of {len(outcomes)} volumes failed: {', '.join(failed)}")
    return 1 if failed else 0


def finish_together(run: PreparedRun, ranks: Ranks, volumes: dict[str, dict], status: int) -> int:
    """End this process among those of torchrun. Returns its exit status.

    torchrun ends all processes when one fails. So the last one alone tells that a volume of any process failed.
    """
    failed = ranks.count_failed(sum(volume["status"] == "failed" for volume in volumes.values()))
    if not ranks.is_last():
        return status if failed is None else 0
    status = 1 if ranks.count_failed(0) else 0
    path = run.options.report
    if path is not None:
        try:
            volumes = merge_reports(path, ranks.count)
        # The page is still made, and predictions have not failed for it.
        except (OSError, ValueError) as error:
            say(f"{path}: expected the reports of {ranks.count} processes, found: {error}")
    return finish(run, volumes, status)


def finish(run: PreparedRun, volumes: dict[str, dict], status: int) -> int:
    """Write the page, where one is asked for. Returns the exit status: 1 where the page cannot be made, else `status`.

    volumes: the outcomes by file name (`as_text`).
    """
    options, model = run.options, run.predictor.model
    if options.html is None:
        return status
    from ..output.report.collect import Sources
    from ..output.report.page import write_report

    settings = {
        "volumes": str(options.input),
        "weights": f"{model.file} (sha256 {model.sha256})",
        "device": str(model.device),
        "computed by": ", ".join(sorted({volume["computed"] for volume in volumes.values()} - {""}))
        or "{engine} in {precision}".format(**model.computed),
    }
    about = dataclasses.replace(
        model.about,
        pixel_method=run.predictor.pixel_method.name,
        sample_method=run.predictor.sample_method.name,
    )
    sources = Sources(volumes=options.input, predictions=options.output, findings=options.findings_folder)
    try:
        write_report(sources, options.html, about, settings, volumes)
    except (ValueError, OSError) as error:
        say(f"--html {options.html}: {error}")
        return 1
    say(f"look at {options.html / 'index.html'}")
    return status


def names(paths: list[Path], most: int = 5) -> str:
    """The names of files for people. Of more than `most`, the rest are counted."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(shown(path.name) for path in paths[:most]) + more
