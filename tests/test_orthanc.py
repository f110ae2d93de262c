"""A study in Orthanc is scored and gets its findings and its score, against a real Orthanc on the loopback; and where Orthanc
shows the voxels of segmentations is where the scan has them."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, mood
from format_matrix import LPS, ORDERS, SPACING, affine_of, plane_of_dicom

from mood_submission.findings.objects import Finding
from mood_submission.output.dicom_seg import TYPE_2, read_headers, write_dicom_seg
from mood_submission.volumes import read_volume, source_at

highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed (requirements-dev.txt)")
pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (requirements-dev.txt)")
sys.path.insert(0, str(ROOT / "integrations" / "orthanc"))

import score_study
from orthanc_rest import Orthanc, OrthancError
from score_report import score_report

PROGRAM = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
NO_SERVER = "Orthanc is not installed (Debian: apt-get install orthanc)"
# Orthanc shows binary segmentations only where rows are whole bytes.
SHAPE = (16, 11, 6)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Orthanc]:
    with running_server(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


@contextmanager
def running_server(folder: Path, **further) -> Iterator[Orthanc]:
    """An empty Orthanc that answers this machine alone. further: of its configuration."""
    if PROGRAM is None:
        pytest.skip(NO_SERVER)
    port = free_port()
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"mood": "secret"},
        "DicomServerEnabled": False,
        # Seconds for which a series counts as still arriving.
        "StableAge": 600,
        **further,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([PROGRAM, folder / "orthanc.json"], stdout=log, stderr=log)
    orthanc = Orthanc(f"http://127.0.0.1:{port}", "mood", "secret")
    try:
        wait_for(orthanc, process, folder / "log")
        yield orthanc
    finally:
        process.kill()
        process.wait(30)


def wait_for(orthanc: Orthanc, process: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            orthanc.get_json("/system")
            return
        except OrthancError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def write_series(folder: Path, voxels: np.ndarray, affine: np.ndarray, number: int, **tags) -> list[Path]:
    """CT slices of voxels (I, J, K), each study with UIDs that begin with its number. tags: what all of them have otherwise."""
    folder.mkdir(parents=True)
    lps, files = LPS @ affine, []
    for index in range(voxels.shape[2]):
        one = plane_of_dicom(voxels[:, :, index], lps @ [0, 0, index, 1], lps, index)
        one.StudyInstanceUID, one.SeriesInstanceUID = f"1.2.{number}", f"1.2.{number}.3"
        one.PatientID = f"patient {number}"
        for name, value in tags.items():
            setattr(one, name, value)
        one.SOPInstanceUID = f"{one.SeriesInstanceUID}.{index + 1}"
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        files.append(folder / f"{index}.dcm")
        one.save_as(files[-1], enforce_file_format=True)
    return files


def stored(orthanc: Orthanc, files: list[Path]) -> str:
    """Store files in Orthanc. Returns its identifier of their study."""
    (study,) = {orthanc.store(file.read_bytes())[1] for file in files}
    return study


# --- where segmentations lie -----------------------------------------------------------------------------------------


def turned(degrees: float) -> np.ndarray:
    """Axes turned about x, then y, as an oblique series has them."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


DIRECTIONS = {
    "axial": np.diag([-1.0, -1, 1]),
    "sagittal": np.column_stack([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]),
    "coronal": np.column_stack([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]),
    "flipped": np.diag([1.0, -1, -1]),
    "oblique": turned(23) @ np.diag([-1.0, -1, 1]),
    "oblique sagittal": turned(-31) @ np.column_stack([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]),
}


def shown(orthanc: Orthanc, instance: str, frame: int) -> np.ndarray:
    """A frame as Orthanc decodes it, (rows, columns)."""
    return np.load(io.BytesIO(orthanc.get(f"/instances/{instance}/frames/{frame}/numpy")))[..., 0]


def place_in(tags: dict) -> tuple[float, ...]:
    return tuple(round(float(x), 3) for x in tags["ImagePositionPatient"].split("\\"))


@pytest.mark.parametrize("name", DIRECTIONS)
def test_orthanc_shows_findings_where_the_scan_has_them(server, tmp_path, name):
    """Two bright boxes of voxels are the findings. Orthanc's own picture of each frame of the segmentation is the bright part of
    its picture of the slice that lies there; highdicom reads the same places."""
    number = 100 + list(DIRECTIONS).index(name)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = DIRECTIONS[name] * SPACING, (-12.5, 30.25, 101.125)
    voxels = np.zeros(SHAPE, np.int16)
    voxels[1:4, 2:4, 0:2], voxels[9:15, 6:10, 1:5] = 1000, 2000
    files = write_series(tmp_path / "scan", voxels, affine, number)
    volume, source = read_volume(tmp_path / "scan"), source_at(tmp_path / "scan")
    mask = np.digitize(volume.data, [1000, 3000]).astype(np.uint8)
    findings = [Finding(n, *4 * [(0, 0, 0)], 1.0, 9, 0.9, 0.5, 0.1) for n in (1, 2)]
    write_dicom_seg(tmp_path / "scan.seg.dcm", source, mask, volume.grid, findings)

    slices = {}
    for file in files:
        instance, study = server.store(file.read_bytes())
        slices[place_in(server.tags_of(instance))] = shown(server, instance, 0)
    instance, its_study = server.store((tmp_path / "scan.seg.dcm").read_bytes())
    assert its_study == study and len(slices) == SHAPE[2]
    tags = server.tags_of(instance)
    orientation = tags["SharedFunctionalGroupsSequence"][0]["PlaneOrientationSequence"][0]["ImageOrientationPatient"]
    assert np.allclose(
        np.array(orientation.split("\\"), float),
        (LPS @ affine)[:3, :2].T.ravel() / np.repeat(SPACING[:2], 3),
        atol=1e-5,
    )
    seen = {1: 0, 2: 0}
    for index, frame in enumerate(tags["PerFrameFunctionalGroupsSequence"]):
        place = place_in(frame["PlanePositionSequence"][0])
        segment = int(frame["SegmentIdentificationSequence"][0]["ReferencedSegmentNumber"])
        wanted = slices[place] == {1: 1900, 2: 3900}[segment]
        assert np.array_equal(shown(server, instance, index) > 0, wanted)
        seen[segment] += int(wanted.sum())
    assert seen == {1: 3 * 2 * 2, 2: 6 * 4 * 4}

    whole = highdicom.seg.segread(tmp_path / "scan.seg.dcm").get_volume(combine_segments=True)
    for segment, value in ((1, 1000), (2, 2000)):
        found = {tuple(np.round((whole.affine @ [*at, 1])[:3], 2)) for at in np.argwhere(whole.array == segment)}
        assert found == {tuple(np.round((LPS @ affine @ [*at, 1])[:3], 2)) for at in np.argwhere(voxels == value)}


# --- a study from end to end -----------------------------------------------------------------------------------------


def head() -> np.ndarray:
    """A mottled ball in air, (I, J, K) int16."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (24, 28, 8)], indexing="ij")
    ball = np.clip(1.2 - np.sqrt(x**2 + y**2 + z**2) / 0.7, 0, 1) * (0.7 + 0.3 * np.sin(9 * x))
    return (ball * 1000).astype(np.int16)


def run_script(orthanc: Orthanc, capsys, monkeypatch, *words: object) -> tuple[int, str, str]:
    """Exit status, output and errors of the script with such words."""
    monkeypatch.setenv("ORTHANC_PASSWORD", orthanc.password)
    capsys.readouterr()
    user = [] if orthanc.user is None else ["--user", orthanc.user]
    try:
        status = score_study.main(["--url", orthanc.url, *user, *map(str, words)])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def read_back(report: "pydicom.Dataset") -> "highdicom.sr.MeasurementReport":
    """The content of a structured report, as highdicom reads its file."""
    file = io.BytesIO()
    report.save_as(file)
    file.seek(0)
    content = highdicom.sr.srread(file).content
    assert isinstance(content, highdicom.sr.MeasurementReport)
    return content


@pytest.mark.slow
def test_a_study_gets_its_findings_and_its_score(server, measured, tmp_path, capsys, monkeypatch):
    """They are those of the command line; they lie in the same study, and refer to the series and to each other."""
    files = write_series(tmp_path / "in" / "series", head(), affine_of(ORDERS[0]), 1, Modality="MR")
    study = stored(server, files)
    options = ["--weights", str(measured), *"--slices 3 --restorations 1 --device cpu".split()]
    out, found = tmp_path / "out", tmp_path / "found"
    done = mood("predict --region brain --task both -i", tmp_path / "in", "-o", out, "--findings", found, *options)
    assert done.returncode == 0, done.stderr
    ((_, findings),) = (entry.values() for entry in json.loads((found / "findings.json").read_text()))
    assert findings

    status, told, wrong = run_script(server, capsys, monkeypatch, "1.2.1", "--region", "brain", "--", *options)
    assert status == 0, wrong
    assert f"{len(findings)} findings" in told
    series = {one.modality: one for one in server.series_of(study)}
    assert {modality: len(one.instances) for modality, one in series.items()} == {"MR": 8, "SEG": 1, "SR": 1}
    seg, report = (
        pydicom.dcmread(io.BytesIO(server.get(f"/instances/{series[kind].instances[0]}/file")))
        for kind in ("SEG", "SR")
    )
    mask = np.asarray(nib.load(found / "series.nii.gz").dataobj).transpose(2, 1, 0)
    numbers = highdicom.seg.Segmentation.from_dataset(seg).get_pixels_by_source_instance(
        [pydicom.dcmread(file).SOPInstanceUID for file in files], combine_segments=True, skip_overlap_checks=True
    )
    assert mask.any() and np.array_equal(numbers, mask)

    content = read_back(report)
    (whole,) = content.get_image_measurement_groups()
    score = float((out / "series.nii.gz.txt").read_text())
    assert whole.get_measurements()[0].value == pytest.approx(score, abs=1e-4)
    groups = content.get_volumetric_roi_measurement_groups()
    assert [g.tracking_uid for g in groups] == [s.TrackingUID for s in seg.SegmentSequence] and len(groups) == len(
        findings
    )
    for group, finding in zip(groups, findings):
        values = [one.value for one in group.get_measurements()]
        assert values[:2] == pytest.approx([finding["volume_ml"], finding["highest"]], abs=1e-4)
        assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID

    again = run_script(server, capsys, monkeypatch, study, "--region", "brain", "--once")
    assert again == (0, f"study {study}: scored already\n", "")


@pytest.mark.slow
def test_orthanc_calls_the_script_for_each_study(tmp_path):
    """By the function that docs/pacs.md shows, with another program in the script's place."""
    (lua,) = re.findall(r"```lua\n(.*?)```", (ROOT / "docs" / "pacs.md").read_text(), re.S)
    program = "/opt/mood-submission/.venv/bin/python /opt/mood-submission/integrations/orthanc/score_study.py"
    assert program in lua and ">>/var/log/orthanc/score_study.log" in lua
    log = tmp_path / "score_study.log"
    (tmp_path / "stable.lua").write_text(
        lua.replace(program, "echo").replace("/var/log/orthanc/score_study.log", str(log))
    )
    with running_server(tmp_path, StableAge=1, LuaScripts=[str(tmp_path / "stable.lua")]) as orthanc:
        study = stored(orthanc, write_series(tmp_path / "in", head()[:, :, :2], affine_of(ORDERS[0]), 6))
        for _ in range(300):
            if log.exists() and log.read_text().endswith("\n"):
                break
            time.sleep(0.1)
    assert log.read_text() == f"--once --region brain {study}\n"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_report_refers_to_a_segment_for_each_finding(tmp_path, count):
    """It belongs to the study of its series. Without findings it has the score alone. What a header may lack is not missed."""
    files = write_series(tmp_path / "in", head(), affine_of(ORDERS[0]), 2)
    for file in files:
        header = pydicom.dcmread(file)
        for name in set(TYPE_2) - {"PatientID"}:
            delattr(header, name)
        header.save_as(file)
    images = read_headers(files)
    findings = [Finding(n, *4 * [(0, 0, 0)], 1.5 / n, 9, 0.9, 0.5, 0.1 if n == 1 else np.nan) for n in (1, 2)][:count]
    segmentation = None
    if count:
        volume = read_volume(tmp_path / "in")
        mask = np.zeros(volume.data.shape, np.uint8)
        mask[2:5, 2:5, 2:5], mask[9:12, 9:12, 2:5] = 1, count
        write_dicom_seg(tmp_path / "seg.dcm", source_at(tmp_path / "in"), mask, volume.grid, findings)
        segmentation = pydicom.dcmread(tmp_path / "seg.dcm")
    report = score_report(images, 0.25, [one.to_dict() for one in findings], segmentation)
    assert report.StudyInstanceUID == "1.2.2" and report.PatientID == "patient 2" and report.Modality == "SR"
    content = read_back(report)
    (whole,) = content.get_image_measurement_groups()
    assert [one.value for one in whole.get_measurements()] == [0.25]
    assert [one.referenced_sop_instance_uid for one in whole.source_images] == [one.SOPInstanceUID for one in images]
    groups = content.get_volumetric_roi_measurement_groups()
    values = [[one.value for one in group.get_measurements()] for group in groups]
    # What was not measured is not reported.
    assert values == [[1.5, 0.9, 0.1], [0.75, 0.9]][:count]
    for number, group in enumerate(groups, 1):
        region = group.referenced_segment
        assert region.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        assert list(region.referenced_segment_numbers) == [number]
        assert group.tracking_uid == segmentation.SegmentSequence[number - 1].TrackingUID
    with pytest.raises(ValueError, match=f"expected a segment for each of 3 findings, found {count} segments"):
        score_report(images, 0.25, [{}] * 3, segmentation)


def test_findings_without_a_segmentation_are_not_passed_over(tmp_path):
    for name in ("out", "found"):
        (tmp_path / name).mkdir()
    with pytest.raises(OrthancError, match="expected a score and findings, found: .*series.nii.gz.txt"):
        score_study.read_results(tmp_path)
    (tmp_path / "out" / "series.nii.gz.txt").write_text("0.5")
    table = tmp_path / "found" / "findings.json"
    table.write_text('[{"file": "series.nii.gz", "findings": [{"number": 1}]}]')
    with pytest.raises(OrthancError, match="expected a segmentation of 1 findings, found none: see above"):
        score_study.read_results(tmp_path)
    table.write_text('[{"file": "series.nii.gz", "findings": []}]')
    assert score_study.read_results(tmp_path) == score_study.Results(0.5, [], None)


# --- what is in the way ----------------------------------------------------------------------------------------------


def in_one_line(answer: tuple[int, str, str]) -> str:
    status, out, err = answer
    assert status == 1 and out == "" and err.startswith("score_study: ") and err.count("\n") == 1, answer
    return err


def test_without_a_server_one_line_says_so(capsys, monkeypatch):
    closed = Orthanc(f"http://127.0.0.1:{free_port()}")
    line = in_one_line(run_script(closed, capsys, monkeypatch, "1.2", "--region", "brain"))
    assert f"{closed.url}: expected an Orthanc server, found: " in line and "refused" in line
    for url, found in (
        ("localhost", "expected an address such as http://localhost:8042, found 'localhost'"),
        ("file:///etc", "expected an address such as http://localhost:8042, found 'file:///etc'"),
        ("http://me:secret@localhost", "expected an address without a user, found one; pass --user"),
    ):
        line = in_one_line(run_script(Orthanc(url), capsys, monkeypatch, "1.2", "--region", "brain"))
        assert found in line and "secret" not in line


def test_another_server_is_no_orthanc(capsys, monkeypatch):
    """One that talks without being asked, as of mail."""
    with socket.create_server(("127.0.0.1", 0)) as mail:
        url = f"http://127.0.0.1:{mail.getsockname()[1]}"
        answer = subprocess.Popen(
            [sys.executable, "-c", "import socket,sys; s = socket.socket(fileno=int(sys.argv[1])); s.accept()[0].send(b'220 mail\\r\\n')",
             str(mail.fileno())],
            pass_fds=[mail.fileno()],
        )  # fmt: skip
        line = in_one_line(run_script(Orthanc(url), capsys, monkeypatch, "1.2", "--region", "brain"))
        answer.wait(30)
    assert f"{url}: expected an Orthanc server, found: " in line


def test_a_wrong_password_is_told_in_one_line(server, capsys, monkeypatch):
    for orthanc, found in ((replace(server, password="x"), "user mood refused"), (Orthanc(server.url), "no user")):
        line = in_one_line(run_script(orthanc, capsys, monkeypatch, "1.2", "--region", "brain"))
        assert line.endswith(f"expected a user and a password that may use Orthanc, found {found}\n")


@pytest.mark.parametrize("answer", [[1, 2], {"a": 1}, [{"ID": "x"}], None, [["ID"]]])
def test_answers_that_orthanc_never_gives_are_told_in_one_line(capsys, monkeypatch, answer):
    monkeypatch.setattr(Orthanc, "_ask", lambda self, path, content: json.dumps(answer).encode())
    line = in_one_line(run_script(Orthanc("http://localhost:1"), capsys, monkeypatch, "1.2", "--region", "brain"))
    assert line.endswith("http://localhost:1: expected Orthanc's answer to /tools/lookup, found another\n")
    for ask in (lambda one: one.series_of("study"), lambda one: one.store(b"file")):
        with pytest.raises(OrthancError, match="expected Orthanc's answer to /"):
            ask(Orthanc("http://localhost:1"))


@pytest.mark.parametrize("name", ["../system", "?", "Miller^Ann"])
def test_what_names_no_study_is_not_asked_for(capsys, monkeypatch, name):
    line = in_one_line(run_script(Orthanc("http://localhost:1"), capsys, monkeypatch, name, "--region", "brain"))
    assert line.endswith(f"expected a StudyInstanceUID or Orthanc's identifier of a study, found {name!r}\n")


@pytest.mark.parametrize("name", ["1.2.999", "11111111-22222222-33333333-44444444-55555555"])
def test_an_unknown_study_is_told_in_one_line(server, capsys, monkeypatch, name):
    line = in_one_line(run_script(server, capsys, monkeypatch, name, "--region", "brain"))
    assert line.endswith(f": expected a study {name}, found none\n")


def test_a_study_without_a_usable_series_is_told_in_one_line(server, tmp_path, capsys, monkeypatch):
    """One slice alone, localisers, and another modality than the region's."""
    voxels, affine = head(), affine_of(ORDERS[0])
    files = write_series(tmp_path / "ct", voxels, affine, 3, SeriesDescription="abdomen")
    files += write_series(tmp_path / "one", voxels[:, :, :1], affine, 3, SeriesInstanceUID="1.2.3.4", Modality="MR")
    scout = {"SeriesInstanceUID": "1.2.3.5", "Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    study = stored(server, files + write_series(tmp_path / "scout", voxels, affine, 3, **scout))
    line = in_one_line(run_script(server, capsys, monkeypatch, study, "--region", "brain"))
    assert f"study {study}: expected a series of slices of modality MR, found " in line
    assert all(uid in line for uid in ("CT 1 abdomen (8 files, 1.2.3.3)", "(1 files, 1.2.3.4)", "(8 files, 1.2.3.5)"))
    line = in_one_line(run_script(server, capsys, monkeypatch, study, "--region", "brain", "--series", "1.2.3.3"))
    assert line.endswith("expected a series of slices of modality MR, found CT 1 abdomen (8 files, 1.2.3.3)\n")


def test_of_several_series_one_is_to_be_chosen(server, tmp_path, capsys, monkeypatch):
    """The choice is then taken: what is in the way is the next thing, and nothing is stored."""
    voxels, affine = head(), affine_of(ORDERS[0])
    files = write_series(tmp_path / "a", voxels, affine, 4, Modality="MR", SeriesDescription="T1")
    other = {"SeriesInstanceUID": "1.2.4.4", "SeriesNumber": 2, "Modality": "MR", "SeriesDescription": "T2"}
    study = stored(server, files + write_series(tmp_path / "b", voxels, affine, 4, **other))
    line = in_one_line(run_script(server, capsys, monkeypatch, study, "--region", "brain"))
    both = "MR 1 T1 (8 files, 1.2.4.3); MR 2 T2 (8 files, 1.2.4.4)"
    assert line.endswith(f"expected --series UID for one of several series, found {both}\n")
    words = (study, "--region", "brain", "--series")
    line = in_one_line(run_script(server, capsys, monkeypatch, *words, "1.2.4.5"))
    assert line.endswith(f"expected a series 1.2.4.5, found {both}\n")
    chosen = []
    monkeypatch.setattr(
        score_study, "predict", lambda work, region, further: chosen.append(sorted(work.rglob("*.dcm")))
    )
    monkeypatch.setattr(Orthanc, "download", lambda self, series, folder: chosen.append(series.description))
    status, _, err = run_script(server, capsys, monkeypatch, *words, "1.2.4.4")
    assert status == 1 and "expected a score and findings, found: " in err and chosen == ["T2", []]
    assert len(server.series_of(study)) == 2


def test_a_prediction_that_fails_stores_nothing(server, tmp_path, capsys, monkeypatch):
    study = stored(server, write_series(tmp_path / "in", head(), affine_of(ORDERS[0]), 5))
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    status, out, err = run_script(server, capsys, monkeypatch, study, "--region", "abdom")
    assert status == 1 and out == ""
    assert err.splitlines() == [
        "score_study: CT 1 (8 files, 1.2.5.3) may still be arriving, and is scored as it is",
        "score_study: expected a prediction, found status 1 of mood-submission predict: see above",
    ]
    assert len(server.series_of(study)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_script_that_is_stopped_leaves_no_files_of_the_patient(server, tmp_path, number, status):
    study = stored(server, write_series(tmp_path / "in", head(), affine_of(ORDERS[0]), 7))
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary"), "ORTHANC_PASSWORD": server.password}
    words = ["--url", server.url, "--user", server.user, "--region", "abdom", study]
    command = [sys.executable, ROOT / "integrations" / "orthanc" / "score_study.py", *words]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in range(300):
            if len(list(tmp_path.glob("temporary/*/in/series/*.dcm"))) == 8:
                break
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status and out == "" and "Traceback" not in err, err
    assert list((tmp_path / "temporary").iterdir()) == [] and len(server.series_of(study)) == 1
