#!/usr/bin/env python3
"""Scores a series of a study in Orthanc, and stores the findings and the score in that study.

The series is fetched by Orthanc's REST API, scored by `mood-submission predict --dicom-seg`, and the study gets a DICOM
segmentation (SEG) of the findings, where there are some, and a structured report (SR) of the score.
"""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# In a checkout that is not installed, the package is found here.
sys.path.append(str(ROOT))

from orthanc_rest import Orthanc, OrthancError, Series  # noqa: E402

# The password comes from this variable, since others can read command lines.
PASSWORD = "ORTHANC_PASSWORD"
MODALITIES = {"brain": "MR", "abdom": "CT"}
# The name of the volume, which predictions are called after.
NAME = "series"


@dataclass(frozen=True)
class Results:
    """The results of `predict`.

    score: of the sample task, 0 .. 1.
    findings: as in findings.json.
    segmentation: the path of their segmentation. None where there are no findings.
    """

    score: float
    findings: list[dict[str, Any]]
    segmentation: Path | None


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 when all is stored, 1 when something is in the way, 2 for wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, further = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    options = _parser().parse_args(own)
    orthanc = Orthanc(options.url, options.user, os.environ.get(PASSWORD, ""))
    try:
        check_url(options.url)
        if find_spec("highdicom") is None:
            raise OrthancError("expected highdicom (pip install 'mood-submission[dicom]'), found no such package")
        study = orthanc.find_study(options.study)
        if options.once and has_report(orthanc, study):
            print(f"study {study}: scored already")
        else:
            print(score_study(orthanc, study, options.region, options.series, further))
    except OrthancError as error:
        print(f"score_study: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Score a series of a study in Orthanc, and store findings and score in the study. What follows -- are "
        f"further options of `mood-submission predict`. The password is taken from the variable {PASSWORD}."
    )
    parser.add_argument("study", help="the study: Orthanc's identifier, or the StudyInstanceUID")
    parser.add_argument("--region", choices=tuple(MODALITIES), required=True)
    parser.add_argument("--series", metavar="UID", help="the series to score, where the study has several")
    parser.add_argument("--once", action="store_true", help="leave a study alone that has a report of this program's")
    parser.add_argument("--url", default="http://localhost:8042", help="of Orthanc (default: %(default)s)")
    parser.add_argument("--user", metavar="NAME", help="of Orthanc (default: none)")
    return parser


def check_url(url: str) -> None:
    """Raises OrthancError for what is no address of a server, and for one with a user, since addresses get into logs."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise OrthancError(
            f"--url: expected an address such as http://localhost:8042, found {url!r}: {error}"
        ) from None
    if "@" in parts.netloc:
        raise OrthancError(
            f"--url: expected an address without a user, found one; pass --user, and the password in {PASSWORD}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OrthancError(f"--url: expected an address such as http://localhost:8042, found {url!r}")


def has_report(orthanc: Orthanc, study: str) -> bool:
    """Whether this program has scored a study before. study: Orthanc's identifier."""
    from score_report import MANUFACTURER

    return any(one.modality == "SR" and one.manufacturer == MANUFACTURER for one in orthanc.series_of(study))


def score_study(orthanc: Orthanc, study: str, region: str, uid: str | None, further: Sequence[str]) -> str:
    """Score a series and store what was found. Returns a line on it.

    study: Orthanc's identifier.
    region: a key of MODALITIES.
    uid: the SeriesInstanceUID. None for the only series that can be scored.
    further: options of `predict`.
    Raises OrthancError, in one line, for whatever is in the way. Then nothing is stored, unless Orthanc fails at storing.
    """
    series = choose_series(orthanc, study, region, uid)
    if not series.stable:
        print(f"score_study: {series} may still be arriving, and is scored as it is", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="score_study-") as folder:
        work = Path(folder)
        orthanc.download(series, work / "in" / NAME)
        predict(work, region, further)
        results = read_results(work)
        stored = [orthanc.store(content) for content in _files(work, results)]
    elsewhere = [instance for instance, its_study in stored if its_study != study]
    if elsewhere:
        raise OrthancError(f"{orthanc.url}: expected what was stored in study {study}, found {elsewhere} in another")
    kept = ", ".join(instance for instance, _ in stored)
    return f"{series}: score {results.score:.4f}, {len(results.findings)} findings, stored as {kept}"


def choose_series(orthanc: Orthanc, study: str, region: str, uid: str | None) -> Series:
    """The series to score. Raises OrthancError where there is none, or several and no `uid`."""
    everything = orthanc.series_of(study)
    if uid is not None and uid not in [series.uid for series in everything]:
        raise OrthancError(f"study {study}: expected a series {uid}, found {_listed(everything)}")
    everything = [series for series in everything if uid in (None, series.uid)]
    usable = [series for series in everything if is_usable(orthanc, series, region)]
    if len(usable) > 1:
        raise OrthancError(f"study {study}: expected --series UID for one of several series, found {_listed(usable)}")
    if not usable:
        expected = f"a series of slices of modality {MODALITIES[region]}"
        raise OrthancError(f"study {study}: expected {expected}, found {_listed(everything)}")
    return usable[0]


def is_usable(orthanc: Orthanc, series: Series, region: str) -> bool:
    """Whether a series is a stack of slices of the region's modality, and no localiser."""
    if series.modality != MODALITIES[region]:
        return False
    tags = orthanc.tags_of(series.instances[0])
    frames = int(tags.get("NumberOfFrames") or 1)
    return "LOCALIZER" not in tags.get("ImageType", "") and len(series.instances) * frames > 1


def _listed(series: Sequence[Series]) -> str:
    return "; ".join(map(str, series)) or "no series"


def predict(work: Path, region: str, further: Sequence[str]) -> None:
    """Score the series in `work`. Raises OrthancError where that fails, after `predict` said why."""
    command = [sys.executable, "-m", "mood_submission", "predict", "--region", region, "--task", "both", "--dicom-seg"]
    folders = ["-i", str(work / "in"), "-o", str(work / "out"), "--findings", str(work / "found")]
    places = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*places, str(ROOT)])}
    # It has no use for the password.
    environment.pop(PASSWORD, None)
    status = subprocess.run([*command, *folders, *further], env=environment).returncode
    if status:
        raise OrthancError(f"expected a prediction, found status {status} of mood-submission predict: see above")


def read_results(work: Path) -> Results:
    """What `predict` wrote. Raises OrthancError where something is missing, as a segmentation of findings."""
    try:
        score = float((work / "out" / f"{NAME}.nii.gz.txt").read_text("utf-8"))
        (entry,) = json.loads((work / "found" / "findings.json").read_text("utf-8"))
    # Of options that change what is written, or where.
    except OSError as error:
        raise OrthancError(f"expected a score and findings, found: {error}") from None
    findings, segmentation = entry["findings"], work / "found" / f"{NAME}.seg.dcm"
    if findings and not segmentation.exists():
        raise OrthancError(f"expected a segmentation of {len(findings)} findings, found none: see above")
    return Results(score, findings, segmentation if findings else None)


def _files(work: Path, results: Results) -> list[bytes]:
    """The DICOM files to store: the segmentation, where there is one, and the report."""
    from score_report import score_report

    from mood_submission.output.dicom_seg import read_headers

    images = read_headers(sorted((work / "in" / NAME).iterdir()))
    segmentation = None if results.segmentation is None else read_headers([results.segmentation])[0]
    report = io.BytesIO()
    score_report(images, results.score, results.findings, segmentation).save_as(report)
    return [*([results.segmentation.read_bytes()] if results.segmentation else []), report.getvalue()]


def _stop(*_: object) -> None:
    """Leave by an exception, which deletes the files of the patient."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
