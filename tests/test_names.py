"""How names become text, and files that are whole whoever else writes them."""

import csv
import errno
import fcntl
import io
import json
import multiprocessing
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from conftest import mood, write_nifti
from hypothesis import given
from hypothesis import strategies as st

from mood_submission.cli.output import say, tell
from mood_submission.findings.objects import Finding
from mood_submission.lab.evaluation.details import Details
from mood_submission.lab.settings_file import check_settings
from mood_submission.output.findings_folder import FindingsFolder
from mood_submission.output.report.page import _template
from mood_submission.predictor import LabelledObjects
from mood_submission.runtime.files import HIDDEN, exclusive_lock, write_text, write_whole, write_whole_by_name
from mood_submission.runtime.names import as_text, shown
from mood_submission.volumes import Source, find_volumes, read_volume

ODD = {  # names of files, and what is shown of them
    b"caf\xe9.nii": "caf\\xe9.nii",
    b"\x1b[2J\x1b]0;title\x07.nii": "\\x1b[2J\\x1b]0;title\\x07.nii",
    b"two\nlines\r.nii": "two\\x0alines\\x0d.nii",
    "turned\u202eiin.nii".encode(): "turned\\u202eiin.nii",
    "c1 \x9b2J\x85.nii".encode(): "c1 \\u009b2J\\u0085.nii",
    "line\u2028.nii".encode(): "line\\u2028.nii",
    "ünïcødé 脳.nii".encode(): "ünïcødé 脳.nii",
    b"back\\slash <b>&'\".nii": "back\\slash <b>&'\".nii",
}


def name_in(text: str) -> str:
    """The name that `as_text` made a text of."""

    def one(found: re.Match) -> str:
        if found[0] == "\\\\":
            return "\\"
        code = int(found[2], 16)
        return chr(0xDC00 + code if found[1] == "x" and code >= 0x80 else code)

    return re.sub(r"\\\\|\\([xuU])((?<=x)[0-9a-f]{2}|(?<=u)[0-9a-f]{4}|(?<=U)[0-9a-f]{8})", one, text)


@pytest.mark.parametrize("name", ODD)
def test_names_are_shown_without_what_a_terminal_obeys(name):
    text = shown(os.fsdecode(name))
    assert text == ODD[name] and shown(text) == text and text.encode()


@given(st.binary(min_size=1).map(os.fsdecode) | st.text(min_size=1))
def test_no_two_names_have_one_text_in_tables(name):
    text = as_text(name)
    assert text.isprintable() and text.encode() and name_in(text) == name
    assert json.loads(json.dumps(text)) == text == shown(text)


def test_lines_hold_no_name_as_it_is(capsys):
    for name in map(os.fsdecode, ODD):
        say(f"{name}: expected a volume")
        tell(name)
    out, err = capsys.readouterr()
    assert out == "".join(f"{text}\n" for text in ODD.values())
    assert err == "".join(f"{text}: expected a volume\n" for text in ODD.values())


@pytest.mark.slow
def test_a_command_s_answer_can_be_written_whatever_a_name_holds(tmp_path):
    """Into a pipe that takes ASCII alone, by a process of its own; warnings are lines too."""
    scan = np.ones((4, 4, 4), np.float32)
    scan[0, 0, 0] = np.nan
    odd = tmp_path / os.fsdecode("脳 $x ".encode() + b"\xe9\x1b[2J")
    for folder in (odd / "in", odd / "out"):
        write_nifti(folder / "scan.nii", scan)
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    told = "\\u8133 $x \\xe9\\x1b[2J/"
    done = mood("info", odd / "in" / "scan.nii", cwd=tmp_path, env=ascii_only)
    assert done.returncode == 0 and f"{told}in/scan.nii\n" in done.stdout, done.stderr
    done = mood("show", odd / "in", odd / "out", "-o", odd / "picture.png", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("picture.png\n") and "1 NaN" in done.stderr
    assert all(line.isprintable() for line in (done.stdout + done.stderr).split("\n"))


def test_the_page_holds_no_name_as_it_is():
    entry = {"number": 0, "score": 0.5, "score_name": "highest", "findings": [], "places": [], "facts": {}}
    entries = [
        entry | {"name": os.fsdecode(name), "warnings": [os.fsdecode(name)], "histogram": "", "profile": ""}
        for name in ODD
    ]
    words = {name: "" for name in ("title", "css", "js", "niivue")} | {"healthy_range": None}
    page = _template().render(entries=entries, first_score=0.4, about={}, **words)
    assert page.encode() and "caf\\xe9.nii" in page and "\\u202e" in page and "<b>" not in page
    assert all(c.isprintable() or c == "\n" for c in page)


def finding() -> Finding:
    place = (1.0, 2.0, 3.0)
    return Finding(1, place, place, (0, 1, 2), (2, 3, 4), 0.1, 9, 0.9, 0.5, 0.4, {"likelihood": 2.0})


def test_tables_of_findings_take_every_name_and_know_it_again(tmp_path):
    folder = FindingsFolder(tmp_path / "found")
    grid = read_volume(write_nifti(tmp_path / "scan.nii", np.ones((3, 3, 3), np.float32))).grid
    names = [os.fsdecode(name) for name in ODD]
    for name in names:
        source = Source("nifti", tmp_path / name, (tmp_path / name,))
        folder.add(source, LabelledObjects([finding()], np.ones((3, 3, 3), np.uint8)), grid)
    again = FindingsFolder(tmp_path / "found")
    assert all(again.has(name) for name in names) and not again.has("caf\\xe9.nii")
    entries = json.loads((tmp_path / "found" / "findings.json").read_text("utf-8"))
    assert sorted(name_in(entry["file"]) for entry in entries) == sorted(names)
    text = (tmp_path / "found" / "findings.csv").read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert text.count("\n") == len(rows) + 1 and {name_in(row["file"]) for row in rows} == set(names)


def test_a_table_that_an_earlier_version_spoilt_is_read(tmp_path):
    """It wrote findings.json with the name as it was, and then failed at findings.csv."""
    name, known = os.fsdecode(b"caf\xe9.nii"), finding().to_dict()
    (tmp_path / "findings.json").write_text(json.dumps([{"file": name, "findings": [known]}]))
    (tmp_path / name).write_bytes(b"mask")
    folder = FindingsFolder(tmp_path)
    assert folder.has(name) and "caf\\xe9.nii" in (tmp_path / "findings.csv").read_text()
    (tmp_path / "findings.json").write_bytes(b"[\xff]")
    with pytest.raises(ValueError, match="findings.json: expected findings of a run, found"):
        FindingsFolder(tmp_path)


def test_a_table_of_cases_takes_every_name(tmp_path):
    details = Details("sample", {as_text(os.fsdecode(b"caf\xe9")): {"kind": "ball"}})
    for name in ODD:
        details.add_sample(os.fsdecode(name).removesuffix(".nii"), 1, 0.5)
    details.write_cases(tmp_path / "cases.csv")
    text = (tmp_path / "cases.csv").read_text("utf-8")
    assert text.count("\n") == len(ODD) + 1 and "caf\\xe9,ball," in text


# --- whole files ---------------------------------------------------------------------------------------------------------


def write_often(path: Path, content: bytes, times: int, by_name: bool) -> None:
    for _ in range(times):
        if by_name:
            write_whole_by_name(path, lambda name: Path(name).write_bytes(content))
        else:
            with write_whole(path) as file:
                file.write(content[: len(content) // 2])
                file.flush()
                file.write(content[len(content) // 2 :])


@pytest.mark.parametrize("by_name", [False, True])
def test_writers_of_one_path_leave_each_other_alone(by_name, tmp_path):
    path, contents = tmp_path / "file.Nii", [bytes([i]) * 50_000 for i in range(3)]
    processes = [
        multiprocessing.get_context("fork").Process(target=write_often, args=(path, content, 60, by_name))
        for content in contents
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        assert not path.exists() or path.read_bytes() in contents
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["file.Nii"] and path.read_bytes() in contents


def killed_while_writing(path: Path, by_name: bool) -> None:
    """Leave what a writer leaves that is killed."""

    def half(name: str) -> None:
        Path(name).write_bytes(b"half")
        os._exit(9)

    def write() -> None:
        if by_name:
            write_whole_by_name(path, half)
        with write_whole(path) as file:
            half(f"/proc/self/fd/{file.fileno()}")

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join()
    assert process.exitcode == 9


@pytest.mark.parametrize("by_name", [False, True])
def test_what_killed_writers_left_goes_and_what_others_write_stays(by_name, tmp_path):
    path, other = tmp_path / "scan.nii", tmp_path / "scan2.nii"
    for killed in (path, path, other):  # the second takes away what the first left
        killed_while_writing(killed, by_name)
    left = sorted(tmp_path.iterdir())
    assert len(left) == 2 and all(file.name.startswith(HIDDEN) for file in left)
    assert find_volumes(tmp_path) == []
    with write_whole(path) as first:
        first.write(b"first")
        with write_whole(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second" and len(os.listdir(tmp_path)) == 3  # the first's and the other's
    assert path.read_bytes() == b"first"
    write_often(other, b"whole", 1, by_name)
    assert sorted(os.listdir(tmp_path)) == ["scan.nii", "scan2.nii"]


def test_a_part_that_is_taken_before_it_is_locked_is_begun_anew(tmp_path, monkeypatch):
    """Between making its file and locking it, another may have taken the file for one that was left."""
    flock, taken = fcntl.flock, []

    def late(file: int, how: int) -> None:
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_often(tmp_path / "file", b"whole", 1, False)
    assert len(taken) == 1 and (tmp_path / "file").read_bytes() == b"whole"


def test_without_locks_files_are_whole_and_nobody_s_part_is_taken(tmp_path, monkeypatch):
    def none(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    killed_while_writing(tmp_path / "file", False)
    monkeypatch.setattr(fcntl, "flock", none)
    write_often(tmp_path / "file", b"whole", 2, False)
    with exclusive_lock(tmp_path / ".lock"):
        pass
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert len([name for name in os.listdir(tmp_path) if name.startswith(HIDDEN)]) == 1


@pytest.mark.parametrize("by_name", [False, True])
def test_the_longest_names_and_the_usual_modes(by_name, tmp_path):
    before = os.umask(0o027)
    try:
        for name in ("a" * 255, "b" * 251 + ".nii", "é" * 127):
            write_often(tmp_path / name, b"whole", 1, by_name)
            assert (tmp_path / name).read_bytes() == b"whole"
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
    finally:
        os.umask(before)
    assert len(os.listdir(tmp_path)) == 3


def test_text_is_whole_whatever_it_holds(tmp_path):
    write_text(tmp_path / "text", "caf\udce9 脳\n")
    assert (tmp_path / "text").read_bytes() == "caf\\udce9 脳\n".encode()


def count_up(folder: Path) -> None:
    for _ in range(50):
        with exclusive_lock(folder / ".lock"):
            number = int((folder / "number").read_text())
            (folder / "number").write_text(str(number + 1))


def test_a_lock_lets_one_process_in_at_a_time(tmp_path):
    (tmp_path / "number").write_text("0")
    processes = [multiprocessing.get_context("fork").Process(target=count_up, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "number").read_text() == "150"


def test_of_two_that_begin_a_folder_at_once_one_decides_what_it_is_made_with(tmp_path, monkeypatch):
    """The other has seen no settings before."""
    exists, seen = Path.exists, []

    def late(path: Path) -> bool:
        if path.name == "settings.json" and not seen:
            seen.append(path)
            check_settings(path, {"kinds": ["ball"]})
            return False
        return exists(path)

    monkeypatch.setattr(Path, "exists", late)
    with pytest.raises(ValueError, match="expected files made with kinds"):
        check_settings(tmp_path / "settings.json", {"kinds": ["bar"]})
    assert json.loads((tmp_path / "settings.json").read_text()) == {"kinds": ["ball"]}
