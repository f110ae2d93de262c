"""Never fall over, never lose a result: bad files, full disks, kills and wrong usage, with real files and real runs."""

import contextlib
import csv
import gzip
import html
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, mood, words_of, write_nifti
from fuzzing import fuzz

from mood_submission import Predictor, load_model
from mood_submission.__main__ import main
from mood_submission.lab.measuring.benchmark import FreeNetworks
from mood_submission.running import run_folder
from mood_submission.running.run_folder import finished, predict_files
from mood_submission.runtime.files import HIDDEN, write_whole
from mood_submission.runtime.names import as_text, shown

AFFINE = np.diag([2, 2, 4, 1.0])
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*(voxels read as|orientation in the header)"),
]


def smooth_data(shape=(20, 18, 6), dtype=np.float32) -> np.ndarray:
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape], indexing="ij")
    ball = np.clip(1.2 - np.sqrt(x**2 + y**2 + z**2), 0, 1) * (0.8 + 0.2 * np.sin(7 * x))
    return (ball * (1 if np.dtype(dtype).kind == "f" else 100)).astype(dtype)


def nifti_bytes(data=None, affine=AFFINE, **fields) -> bytes:
    """A single-file NIfTI-1 whose header has these fields, whatever they make of it."""
    image = nib.Nifti1Image(smooth_data() if data is None else data, affine)
    image.set_data_dtype((smooth_data() if data is None else data).dtype)
    content = bytearray(image.to_bytes())
    header = np.frombuffer(content, nib.Nifti1Header.template_dtype, 1)  # a view: writes to content
    for name, value in fields.items():
        header[name] = value
    return bytes(content)


def dicom_bytes() -> bytes:
    return bytes(128) + b"DICM" + b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" * 40


def predicted_kinds() -> dict[str, bytes]:
    """Odd files that a prediction can be made of, by name."""
    data = smooth_data()
    with_nan = data.copy()
    with_nan[3:6, 4:7, 2], with_nan[0, 0, 0], with_nan[1, 0, 0] = np.nan, np.inf, -np.inf
    return {
        "nan and infinite.nii": nifti_bytes(with_nan),
        "all nan.nii": nifti_bytes(np.full_like(data, np.nan)),
        "zeros.nii": nifti_bytes(np.zeros_like(data)),
        "constant.nii": nifti_bytes(np.full_like(data, 7)),
        "constant negative.nii": nifti_bytes(np.full_like(data, -7)),
        "extreme.nii": nifti_bytes(data * np.float32(3e38)),
        "extreme both ways.nii": nifti_bytes((data - np.float32(0.5)) * np.float32(3e38) * 2),
        "beyond float32.nii": nifti_bytes(data.astype(np.float64) * 1e300),
        "tiny values.nii": nifti_bytes(data * np.float32(1e-40)),
        "one voxel.nii": nifti_bytes(np.ones((1, 1, 1), np.float32)),
        "one slice.nii": nifti_bytes(data[:, :, :1]),
        "one column.nii": nifti_bytes(data[:1]),
        "one row.nii": nifti_bytes(data[:, :1]),
        "line.nii": nifti_bytes(data[:1, :1]),
        "one frame.nii": nifti_bytes(data[..., None]),
        "one frame of 5D.nii": nifti_bytes(data[..., None, None]),
        "negative affine.nii": nifti_bytes(affine=np.diag([-2, -2, -4, 1.0])),
        "singular affine.nii": nifti_bytes(srow_x=1, srow_y=1, srow_z=1, sform_code=1, qform_code=0),
        "nan affine.nii": nifti_bytes(srow_x=np.nan, sform_code=1, qform_code=0),
        "no orientation.nii": nifti_bytes(sform_code=0, qform_code=0),
        "zero spacing.nii": nifti_bytes(pixdim=0, sform_code=0, qform_code=0),
        "uint16.nii": nifti_bytes(smooth_data(dtype=np.uint16)),
        "int16 scaled.nii": nifti_bytes(smooth_data(dtype=np.int16), scl_slope=20, scl_inter=-1024),
        "slope nan.nii": nifti_bytes(smooth_data(dtype=np.int16), scl_slope=np.nan, scl_inter=np.nan),
        "slope 0.nii": nifti_bytes(smooth_data(dtype=np.int16), scl_slope=0, scl_inter=5),
        "float64 scaled.nii": nifti_bytes(smooth_data(dtype=np.float64), scl_slope=0.5, scl_inter=1),
        "packed.nii.gz": gzip.compress(nifti_bytes()),
        "UPPER.NII.GZ": gzip.compress(nifti_bytes()),
        "-leading-dash.nii": nifti_bytes(),
        "--help.nii": nifti_bytes(),
        "$(touch pwned); `id` 'quoted\".nii": nifti_bytes(),
        "ünïcødé 脳.nii.gz": gzip.compress(nifti_bytes()),
        "line\nbreak.nii": nifti_bytes(),
        "a" * 200 + ".nii": nifti_bytes(),
        os.fsdecode(b"not unicode \xff.nii"): nifti_bytes(),
    }


def refused_kinds() -> dict[str, bytes]:
    """Files that no prediction can be made of, by name."""
    good = nifti_bytes()
    packed = gzip.compress(good)
    wrong_sum = packed[:-8] + bytes(4) + packed[-4:]
    rgb = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return {
        "empty.nii": b"",
        "empty.nii.gz": b"",
        "random.nii.gz": random.Random(0).randbytes(5000),
        "random.nii": random.Random(1).randbytes(5000),
        "truncated.nii": good[:-100],
        "truncated.nii.gz": packed[: len(packed) // 2],
        "header only.nii": good[:352],
        "half a header.nii": good[:100],
        "checksum.nii.gz": wrong_sum,
        "damaged.nii.gz": packed[:300] + b"\xff" * 60 + packed[360:],
        "named packed.nii.gz": good,
        "named plain.nii": packed,
        "text.nii": b"sub-01 was not scanned\n" * 30,
        "page.nii.gz": b"<!DOCTYPE html><html>404</html>" * 20,
        "dicom.nii": dicom_bytes(),
        "dicom.nii.gz": gzip.compress(dicom_bytes()),
        "zip.nii.gz": zip_bytes(good),
        "analyze.nii": nifti_bytes(magic=b"ni1\0")[:348],
        "flat.nii": nifti_bytes(smooth_data()[:, :, 0]),
        "frames.nii.gz": gzip.compress(nifti_bytes(np.stack([smooth_data()] * 3, -1))),
        "complex.nii": nifti_bytes(smooth_data().astype(np.complex64)),
        "rgb.nii": nifti_bytes(rgb),
        "no such type.nii": nifti_bytes(datatype=9999),
        "no voxels.nii": nifti_bytes(dim=[3, 20, 0, 6, 1, 1, 1, 1]),
        "negative.nii": nifti_bytes(dim=[3, -20, 18, 6, 1, 1, 1, 1]),
        "no axes.nii": nifti_bytes(dim=[0, 20, 18, 6, 1, 1, 1, 1]),
        "enormous.nii": nifti_bytes(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
        "enormous.nii.gz": gzip.compress(nifti_bytes(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])),
        "larger than it is.nii.gz": gzip.compress(nifti_bytes(dim=[3, 20, 18, 60, 1, 1, 1, 1])),
        "offset past the end.nii": nifti_bytes(vox_offset=1e9),
        "offset past the end.nii.gz": gzip.compress(nifti_bytes(vox_offset=1e9)),
        "offset in the header.nii": nifti_bytes(vox_offset=10),
        "offset negative.nii": nifti_bytes(vox_offset=-400),
        "long and narrow.nii": nifti_bytes(np.zeros((30000, 1, 2), np.uint8)),
    }


def zip_bytes(content: bytes) -> bytes:
    from io import BytesIO

    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("scan.nii", content)
    return file.getvalue()


def special_kinds(folder: Path, outside: Path) -> list[str]:
    """What is no file, or none that can be read: made in `folder`; their names."""
    (folder / "folder.nii.gz").mkdir()
    (folder / "dangling.nii.gz").symlink_to("nowhere.nii.gz")
    (folder / "circle.nii.gz").symlink_to("circle.nii.gz")
    os.mkfifo(folder / "pipe.nii")
    (folder / "device.nii").symlink_to("/dev/zero")
    (folder / "folder link.nii").symlink_to(outside, target_is_directory=True)
    names = ["folder.nii.gz", "dangling.nii.gz", "circle.nii.gz", "pipe.nii", "device.nii", "folder link.nii"]
    with socket.socket(socket.AF_UNIX) as end:
        before = Path.cwd()
        os.chdir(folder)  # names of sockets are short
        try:
            end.bind("socket.nii")
            names.append("socket.nii")
        finally:
            os.chdir(before)
    if os.geteuid() != 0:  # root may read everything
        (folder / "secret.nii").write_bytes(nifti_bytes())
        (folder / "secret.nii").chmod(0)
        names.append("secret.nii")
    return names


@pytest.mark.parametrize("task", ["sample", "pixel"])
def test_every_kind_of_file_is_predicted_or_named_in_one_line(task, tiny_weights, tmp_path):
    source, out, outside = tmp_path / "in", tmp_path / "out", tmp_path / "outside"
    source.mkdir(), outside.mkdir()
    good, bad = predicted_kinds(), refused_kinds()
    for name, content in (good | bad).items():
        (source / name).write_bytes(content)
    (outside / "elsewhere.nii").write_bytes(nifti_bytes())
    (source / "link.nii").symlink_to(outside / "elsewhere.nii")
    names = [*bad, *special_kinds(source, outside)]
    for stray in (".DS_Store", "README.txt", "case.json", "._packed.nii.gz", ".hidden.nii"):
        (source / stray).write_text("stray")
    report = tmp_path / "report.json"
    run = mood(
        "predict --region brain --task",
        task,
        "-i",
        source,
        "-o",
        out,
        "--weights",
        tiny_weights["brain"],
        "--slices 2 --restorations 1 --report",
        report,
        timeout=300,
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr, run.stderr
    volumes = {volume["file"]: volume for volume in json.loads(report.read_text())["volumes"]}
    refused = {name for name, volume in volumes.items() if volume["status"] == "failed"}
    assert refused == set(names) and len(volumes) == len(names) + len(good) + 1
    for name in names:
        message = volumes[name]["message"]
        assert (
            message.isprintable()
            and name in message
            and "expected" in message
            and "found" in message
            and "\n" not in message
        ), message
        assert f"{message}\n" in run.stderr
    for name, format in (
        ("dicom.nii", "a DICOM file"),
        ("dicom.nii.gz", "a DICOM file"),
        ("zip.nii.gz", "a zip archive"),
        ("page.nii.gz", "a page of HTML"),
        ("named plain.nii", "a packed file without .gz"),
    ):
        assert f"found {format}" in volumes[name]["message"]
    assert set(volumes) == {as_text(name) for name in [*names, *good, "link.nii"]}
    assert all(line.isprintable() for line in run.stderr.split("\n")) and "\\" in "".join(volumes)
    check_predictions(source, out, task, [*good, "link.nii"])
    assert "README.txt" in run.stderr and "case.json" in run.stderr  # skipped, and said so
    assert "nan and infinite.nii: 11 NaN or infinite voxels" in run.stderr
    assert not (ROOT / "pwned").exists() and sorted(outside.iterdir()) == [outside / "elsewhere.nii"]


def check_predictions(source: Path, out: Path, task: str, names: list[str]) -> None:
    """Just these have a prediction, each as it should be."""
    ending = ".txt" if task == "sample" else ""
    assert {path.name for path in out.iterdir()} == {name + ending for name in names}
    for name in names:
        assert finished(source / name, task, out) is not None, name
        if task == "pixel":
            before, after = nib.load(source / name), nib.load(out / name)
            assert after.shape == before.shape[:3] and np.array_equal(before.affine, after.affine, equal_nan=True)


def run_main(*words, **kwargs) -> subprocess.CompletedProcess:
    return mood("predict", *words, **kwargs)


def test_the_report_says_what_became_of_each(tiny_weights, blobs, tmp_path):
    shutil.copytree(blobs, tmp_path / "in")
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"bad")
    words = [
        "--region abdom --task sample -i",
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "--weights",
        tiny_weights["abdom"],
        "--report",
        tmp_path / "report.json",
    ]
    assert run_main(*words).returncode == 1
    (tmp_path / "out" / "case_1.nii.gz.txt").unlink()
    first = json.loads((tmp_path / "report.json").read_text())
    assert run_main(*words, "--resume --slices", 4).returncode == 1
    again = json.loads((tmp_path / "report.json").read_text())
    assert first["counts"] == {"predicted": 3, "resumed": 0, "failed": 1, "not reached": 0}
    assert again["counts"] == {"predicted": 1, "resumed": 2, "failed": 1, "not reached": 0}
    assert [volume["status"] for volume in again["volumes"]] == ["failed", "resumed", "predicted", "resumed"]
    assert first["version"] and len(first["weights"]["sha256"]) == 64 and first["device"] == "cpu"
    assert first["weights"]["file"] == str(tiny_weights["abdom"]) and again["options"]["slices"] == 4
    for volume in first["volumes"][1:]:
        text = tmp_path / "out" / f"{volume['file']}.txt"
        assert not text.exists() or volume["score"] == pytest.approx(float(text.read_text()), rel=1e-8)
        assert (
            volume["seconds"] > 0 and volume["device"] == "cpu" and volume["slices"] == 12 and volume["message"] == ""
        )
    assert "bad.nii.gz" in first["volumes"][0]["message"] and first["volumes"][0]["score"] is None


@pytest.mark.parametrize(
    "words, named",
    [
        (["-o", "/proc/predictions"], "--output /proc/predictions"),
        (["--report", "/proc/report.json"], "--report /proc/report.json"),
        (["--task pixel --findings", "/proc/findings"], "--findings /proc/findings"),
        (
            ["--task pixel --findings", __file__],
            f"--findings {__file__}: expected a folder to write to, found",
        ),
        (["--task pixel --html", "/proc/page"], "--html /proc/page"),
        (["--task pixel --html", "/proc/page", "--findings", "FOUND"], "--html /proc/page"),
        (["--report", "/nowhere/report.json"], "/nowhere/report.json"),
        (["--report", "case_0.nii.gz"], "--report"),
        (["--time-budget", "0"], "--time-budget"),
        (["--time-budget", "soon"], "--time-budget"),
    ],
)
def test_what_cannot_be_written_or_meant_ends_with_2(words, named, measured, blobs, tmp_path, tmp_path_factory):
    found = tmp_path_factory.mktemp("found")
    words = [found if word == "FOUND" else word for word in words]
    run = run_main("--region brain --task sample -i", blobs, "-o", tmp_path, "--weights", measured, *words)
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert named in run.stderr.splitlines()[-1] and not list(tmp_path.iterdir()) and not list(found.iterdir())


ODD_NAMES = [  # as bytes: no UTF-8, what a terminal obeys, what turns the reading direction, markup, mathematics
    b"caf\xe9.nii",
    b"\x1b[2J\x1b]0;title\x07.nii",
    b"two\nlines\r.nii",
    "turned \u202eiin.nii".encode(),
    "c1 \x9b2J.nii".encode(),
    b"<b>&'\" $x$ \\frac.nii",
    b"sound.nii",
]


def test_no_name_spoils_a_folder_of_findings_a_page_or_a_terminal(measured, tmp_path):
    source, out, found, report = (tmp_path / name for name in ("in", "out", "found", "report.json"))
    names = [os.fsdecode(name) for name in ODD_NAMES]
    for name in names:
        write_nifti(source / "sound.nii", smooth_data(), AFFINE).rename(source / name)
    (source / os.fsdecode(b"\x1bbad\xe9\n.nii")).write_bytes(b"bad")
    (source / os.fsdecode(b"\x1b[31mother\xe9")).write_bytes(b"other")
    words = [
        "--region brain --task both -i",
        source,
        "-o",
        out,
        "--weights",
        measured,
        "--slices 2 --restorations 1",
    ]
    more = ["--verbose --findings", found, "--html", tmp_path / "page", "--report", report]
    for resumed in ("", "--resume"):
        run = run_main(*words, *more, resumed)
        assert run.returncode == 1 and run.stderr.isascii() and "Traceback" not in run.stderr, run.stderr
        assert all(line.isprintable() for line in run.stderr.split("\n"))
        assert run.stderr.count("\\x1bbad\\xe9\\x0a.nii: expected a readable") == 1
        counts = json.loads(report.read_text())["counts"]
        assert counts["resumed" if resumed else "predicted"] == len(names) and counts["failed"] == 1
    texts = {as_text(name) for name in names}
    assert {entry["file"] for entry in json.loads((found / "findings.json").read_text())} == texts
    with open(found / "findings.csv", newline="", encoding="utf-8") as table:
        assert {row["file"] for row in csv.DictReader(table)} == texts
    page = (tmp_path / "page" / "index.html").read_text("utf-8")
    for name in names:
        escaped = html.escape(shown(name)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
        assert f"<h2>{escaped}</h2>" in page, name
    assert all(letter.isprintable() or letter == "\n" for letter in page.split("<main>")[1].split("</main>")[0])
    for command in (
        ["show", source, out, "-o", tmp_path / "pictures.png", "--most 99"],
        ["report -i", source, "-p", out, "-o", tmp_path / "page2", "--findings", found, "--run", report],
        ["info", source / names[1]],
        ["info --json", source / names[0]],
    ):
        (source / os.fsdecode(b"\x1bbad\xe9\n.nii")).unlink(missing_ok=True)
        done = mood(*command)
        told = done.stdout + done.stderr
        assert done.returncode == 0 and all(line.isprintable() for line in told.split("\n")), told


@pytest.mark.parametrize(
    "task, length, refused", [("pixel", 254, False), ("sample", 254, True), ("sample", 251, False)]
)
def test_the_longest_names_are_predicted_or_refused_in_one_line(task, length, refused, measured, tmp_path):
    """A sample score's name is four bytes longer than the volume's."""
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("a" * (length - 7) + ".nii.gz", "b.nii.gz"):
        write_nifti(source / name, smooth_data(), AFFINE)
    words = ["--region brain --task", task, "-i", source, "-o", out, "--weights", measured]
    page = ["--html", tmp_path / "page"] if task == "pixel" else []
    run = run_main(*words, "--slices 2 --restorations 1", *page)
    assert run.returncode == int(refused) and "Traceback" not in run.stderr, run.stderr
    told = "expected a prediction's name of at most 255 bytes, found 258"
    assert sum(told in line for line in run.stderr.splitlines()) == int(refused)
    check_predictions(source, out, task, ["b.nii.gz"] + ["a" * (length - 7) + ".nii.gz"] * (not refused))


def test_predictions_never_go_over_the_volumes(tiny_weights, blobs, tmp_path):
    shutil.copytree(blobs, tmp_path / "in")
    (tmp_path / "out").symlink_to("in")
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    for out in (tmp_path / "in", tmp_path / "out", tmp_path / "in" / ".." / "in"):
        run = run_main("--region brain --task pixel -i", tmp_path / "in", "-o", out, "--weights", tiny_weights["brain"])
        assert run.returncode == 2 and run.stderr.count("\n") == 1 and "another folder" in run.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before


def test_nothing_is_written_but_the_predictions(tiny_weights, blobs, tmp_path):
    """No temporary folder, no home, and nothing in shared memory, which a kill would leave behind."""
    words = [
        "predict --region brain --task pixel -i",
        str(blobs),
        "-o",
        str(tmp_path / "out"),
        "--weights",
        str(tiny_weights["brain"]),
        "--slices 2 --restorations 1",
    ]
    code = (
        "import sys; from mood_submission.__main__ import main; status = main(); "
        "sys.exit(status or 'multiprocessing.synchronize' in sys.modules)"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = os.environ | {"HOME": str(empty), "TMPDIR": str(empty), "XDG_CACHE_HOME": str(empty)}
    run = subprocess.run(
        [sys.executable, "-c", code, *words_of(*words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert not list(empty.iterdir()) and len(list((tmp_path / "out").iterdir())) == 3


def hidden_name(path: Path) -> str:
    """What a killed writer of `path` may have left beside it is called so."""
    with write_whole(path):
        (name,) = (entry.name for entry in path.parent.iterdir() if entry.name.startswith(HIDDEN))
    path.unlink()
    return name


def test_links_in_the_output_are_replaced_not_followed(blobs, tmp_path):
    out, precious = tmp_path / "out", tmp_path / "precious"
    out.mkdir()
    precious.write_text("precious")
    hidden = [hidden_name(out / f"case_{i}.nii.gz") for i in (0, 2)]
    for name in ("case_0.nii.gz", hidden[0], "case_1.nii.gz", hidden[1]):
        (out / name).symlink_to(precious)
    outcomes = predict_files(Predictor(FreeNetworks("brain"), 2, 1), sorted(blobs.iterdir()), "pixel", out)
    assert [outcome.status for outcome in outcomes] == ["predicted"] * 3 and precious.read_text() == "precious"
    assert sorted(path.name for path in out.iterdir()) == [f"case_{i}.nii.gz" for i in range(3)]
    assert not any(path.is_symlink() for path in out.iterdir())


@pytest.mark.parametrize("redirection", ["2>&-", "2>&1 | true"])
def test_nobody_listening_is_no_reason_to_stop(redirection, tiny_weights, blobs, tmp_path):
    shutil.copytree(blobs, tmp_path / "in")
    (tmp_path / "in" / "a_bad_one.nii.gz").write_bytes(b"bad")  # something to say early
    command = (
        f"{sys.executable} -m mood_submission predict --region brain --task sample -i {tmp_path / 'in'} "
        f"-o {tmp_path / 'out'} --weights {tiny_weights['brain']}; echo $? >{tmp_path / 'status'}"
    )
    subprocess.run(["sh", "-c", f"( {command} ) {redirection}"], cwd=ROOT, check=True, timeout=120)
    for _ in range(600):  # a pipeline's end does not wait for its beginning
        if (tmp_path / "status").exists() and (tmp_path / "status").read_text():
            break
        time.sleep(0.1)
    assert (tmp_path / "status").read_text() == "1\n"
    check_predictions(tmp_path / "in", tmp_path / "out", "sample", [f"case_{i}.nii.gz" for i in range(3)])


# --- a full disk -----------------------------------------------------------------------------------------------------


def test_no_room_for_a_large_file_leaves_whole_ones(tiny_weights, tmp_path):
    """The largest a file may get is limited, as by a quota: small predictions fit, large ones do not."""
    for name, shape in (("a_small", (12, 12, 6)), ("b_large", (64, 64, 40)), ("c_small", (12, 12, 6))):
        write_nifti(tmp_path / "in" / f"{name}.nii", smooth_data(shape), AFFINE)
    run = run_main(
        "--region brain --task pixel -i",
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "--weights",
        tiny_weights["brain"],
        "--slices",
        2,
        "--restorations",
        1,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "b_large.nii: " in run.stderr and "File too large" in run.stderr
    check_predictions(tmp_path / "in", tmp_path / "out", "pixel", ["a_small.nii", "c_small.nii"])


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True)
    if mount.returncode:
        pytest.skip("no small file system can be mounted here; docker/smoke_test.sh has one")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_whole_files(tiny_disk, tiny_weights, tmp_path):
    names = [f"case_{i}.nii" for i in range(8)]
    for name in names:
        write_nifti(tmp_path / "in" / name, smooth_data((30, 30, 15)), AFFINE)  # 54 kB each
    run = run_main(
        "--region brain --task pixel -i",
        tmp_path / "in",
        "-o",
        tiny_disk,
        "--weights",
        tiny_weights["brain"],
        "--slices",
        2,
        "--restorations",
        1,
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr and "No space left" in run.stderr
    written = sorted(path.name for path in tiny_disk.iterdir())
    assert 1 <= len(written) < 8
    check_predictions(tmp_path / "in", tiny_disk, "pixel", written)


# --- too little memory -----------------------------------------------------------------------------------------------

MEASURE = """
import re, sys
from mood_submission.__main__ import main
status = main()
print(re.search(r"VmPeak:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(status)
"""


def test_a_volume_too_large_for_memory_is_one_line(tiny_weights, blobs, tmp_path):
    """Under a limit that the small volumes just fit in."""
    shutil.copytree(blobs, tmp_path / "in")
    words = [
        "predict --region brain --task sample -i",
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "--weights",
        tiny_weights["brain"],
    ]
    command = [sys.executable, "-c", MEASURE, *words_of(*words)]
    alone = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    limit = (int(alone.stdout) << 10) + (300 << 20)
    content = nifti_bytes(np.zeros((1, 1, 1), np.uint8), dim=[3, 700, 700, 700, 1, 1, 1, 1])[:352]  # 1.3 GB as float32
    with gzip.open(tmp_path / "in" / "case_0_large.nii.gz", "wb", 1) as file:
        file.write(content)
        for _ in range(700):
            file.write(bytes(700 * 700))
    shutil.rmtree(tmp_path / "out")
    run = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr, run.stderr
    assert any("case_0_large.nii.gz: expected" in line and "allocate" in line for line in run.stderr.splitlines())
    check_predictions(tmp_path / "in", tmp_path / "out", "sample", [f"case_{i}.nii.gz" for i in range(3)])


# --- kills -----------------------------------------------------------------------------------------------------------


def run_quietly(words: list[str], log: str) -> None:
    """The command, in a process of its own."""
    with open(log, "a") as stream:
        os.dup2(stream.fileno(), 2)
        sys.argv = ["mood_submission", *words_of(*words)]
        sys.exit(main())


def predictions_in(folder: Path) -> list[str]:
    """The names of what is in a folder of predictions, but hidden files. The folder need not be there."""
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []


def killed_runs(kills: int, sent: signal.Signals, task: str, weights: Path, folder: Path, seed: int) -> tuple[int, int]:
    """Runs that are sent a signal at random moments, each going on where the last one ended, until so many were hit;
    when all volumes are done, they begin anew. Checks after each that what is there is whole. Returns how many were hit
    and how many predictions were there after a hit, summed."""
    rng, log = random.Random(seed), str(folder / "log")
    source, out = folder / "in", folder / "out"
    for i in range(4):
        write_nifti(source / f"case_{i}.nii.gz", smooth_data((70 + i, 80, 60)), AFFINE)
    words = [
        "predict --region brain --task",
        task,
        "-i",
        str(source),
        "-o",
        str(out),
        "--weights",
        str(weights),
        "--slices 2 --restorations 1 --resume --skull-strip no",  # they fill as much as whole heads
    ]
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["mood_submission.__main__", "test_robustness"])
    # Its server has loaded the package then.
    ready = fresh.Process(target=str)
    ready.start()
    ready.join()
    hit, left = 0, 0
    while hit < kills:
        process = fresh.Process(target=run_quietly, args=(words, log), daemon=True)
        process.start()
        # Hits come by how far a run is, not by the clock, which depends on how busy the machine is.
        wanted = rng.randrange(4)
        while process.is_alive() and len(predictions_in(out)) < wanted:
            process.join(0.005)
        process.join(rng.uniform(0, 0.1 if wanted else 1))
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(process.pid, sent)
            process.join(60)
            assert process.exitcode in (-sent, 130, 0), Path(log).read_text()
        hit += process.exitcode != 0
        whole = predictions_in(out)
        for name in whole:
            assert finished(source / name.removesuffix(".txt"), task, out) is not None, f"{name} after hit {hit}"
        assert sent == signal.SIGKILL or not out.exists() or len(whole) == len(list(out.iterdir())), "left something"
        left += len(whole)
        if len(whole) == 4:
            shutil.rmtree(out)
    assert "Traceback" not in Path(log).read_text()
    return hit, left


@pytest.mark.parametrize("task, kills", [("pixel", 40), ("sample", 15)])
def test_kills_leave_only_whole_predictions(task, kills, tiny_weights, tmp_path):
    hit, left = killed_runs(kills, signal.SIGKILL, task, tiny_weights["brain"], tmp_path, seed=0)
    assert hit == kills and left > kills // 4  # many of them in the middle of the work


@pytest.mark.parametrize("kills", [15, pytest.param(400, marks=pytest.mark.long)])
def test_sigterm_leaves_only_whole_predictions_and_nothing_else(kills, tiny_weights, tmp_path):
    hit, _ = killed_runs(kills, signal.SIGTERM, "pixel", tiny_weights["brain"], tmp_path, seed=1)
    assert hit == kills


@pytest.mark.long
@pytest.mark.parametrize("task", ["pixel", "sample"])
def test_many_kills_leave_only_whole_predictions(task, tiny_weights, tmp_path):
    hit, left = killed_runs(300, signal.SIGKILL, task, tiny_weights["brain"], tmp_path, seed=2)
    assert hit == 300 and left > 75


# --- many volumes, many wrong files ----------------------------------------------------------------------------------


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(volumes: int, weights: Path, folder: Path) -> tuple[float, float]:
    """MB in use over the second quarter of so many volumes, of many sizes, and over the last; medians, since what the
    allocator keeps goes up and down. All in this process."""
    rng = np.random.default_rng(0)
    predictor = Predictor(load_model(weights, device="cpu"), slice_count=3, restorations=1)
    sources, memory, shapes = [], [], [tuple(rng.integers(5, 60, 3)) for _ in range(20)]
    for i, shape in enumerate(shapes):
        write_nifti(folder / "in" / f"case_{i}.nii.gz", smooth_data(shape), AFFINE)
    for i in range(volumes):
        sources.append(folder / "in" / f"link_{i}.nii.gz")
        sources[-1].symlink_to(f"case_{i % len(shapes)}.nii.gz")
    (folder / "out").mkdir()
    outcomes = predict_files(predictor, sources, "pixel", folder / "out", lambda _: memory.append(resident_mb()))
    assert all(outcome.status == "predicted" for outcome in outcomes) and len(memory) == volumes
    quarters = [float(np.median(quarter)) for quarter in np.array_split(memory, 4)]
    print(
        f"{volumes} volumes: {memory[0]:.0f} MB after the first; medians of quarters {np.round(quarters)}; "
        f"{memory[-1]:.0f} at the end"
    )
    return quarters[1], quarters[3]


@pytest.mark.parametrize("volumes", [300, pytest.param(2000, marks=pytest.mark.long)])
def test_memory_stays_flat_over_volumes(volumes, tiny_weights, tmp_path):
    begin, end = soak(volumes, tiny_weights["abdom"], tmp_path)
    assert end < begin + 20


@pytest.mark.parametrize("cases, seed, each", [(1500, 0, 300), pytest.param(30_000, 1, 6000, marks=pytest.mark.long)])
def test_broken_files_end_in_a_prediction_or_a_line(cases, seed, each, tmp_path):
    """By the script, in whose process memory that is given back is overwritten."""
    command = [sys.executable, ROOT / "tests" / "fuzz.py", "--cases", str(cases), "--seed", str(seed)]
    run = subprocess.run([*command, "-o", tmp_path / "kept"], capture_output=True, text=True)
    assert run.returncode == 0, f"{run.returncode}: {run.stderr[-3000:]}"
    said = re.fullmatch(r"(\d+) files: (\d+) predicted, (\d+) refused, 0 wrong", run.stdout.splitlines()[-1])
    files, predicted, refused = map(int, said.groups())
    assert files == cases and predicted > each and refused > each
    assert not list((tmp_path / "kept").iterdir())


def test_the_fuzz_script_looks_at_memory_that_was_given_back():
    code = (
        "import os, sys; sys.argv = ['fuzz.py', '--help']; os.execve = lambda *a: print(a[2]['MALLOC_PERTURB_'], a[2]['PYTHONMALLOC']);"
        "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True)
    assert run.stdout.startswith("165 debug\n"), run.stderr


def test_a_reader_that_is_wrong_is_found_out(tmp_path, monkeypatch):
    """The fuzzing itself: a reader that lets an odd exception out, or says yes to everything, is noticed."""
    predictor = Predictor(FreeNetworks("brain"), 2, 1)

    def careless(predictor, path):
        raise IndexError("list index out of range")

    monkeypatch.setattr(run_folder, "read_prepared", careless)
    counts, wrong = fuzz(predictor, 3, 0, tmp_path)
    assert counts["wrong"] == 3 and "IndexError" in wrong[0][1] and Path(wrong[0][1].split(":")[0]).exists()
