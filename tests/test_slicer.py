"""The module of 3D Slicer: its logic by itself, its widget with stand-ins for Slicer and Qt, both with a real run."""

import ast
import csv
import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer_fakes
from conftest import ROOT
from slicer_fakes import FakeProcess, Node, Parent, SegmentationNode, Settings, SliceNode, Timer

FOLDER = ROOT / "integrations" / "slicer" / "MoodSubmission"
sys.path.insert(0, str(FOLDER))

from MoodSubmissionLib import command_line, results
from MoodSubmissionLib.command_line import Choices, CommandError, Program, find_program

BRAIN = Choices("brain")


def program_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


# --- without Slicer --------------------------------------------------------------------------------------------------


def test_the_library_needs_nothing_of_slicer_or_of_the_package():
    """Nothing but Python itself, of the version that Slicer 5.6 has."""
    for file in FOLDER.rglob("*.py"):
        tree = ast.parse(file.read_text(), feature_version=(3, 9))
        froms = [one.module for one in ast.walk(tree) if isinstance(one, ast.ImportFrom) and not one.level]
        names = [name.name for one in ast.walk(tree) if isinstance(one, ast.Import) for name in one.names]
        imported = {name.split(".")[0] for name in froms + names}
        allowed = {"ctk", "numpy", "qt", "slicer", "MoodSubmissionLib"} if file.parent == FOLDER else set()
        assert imported - set(sys.stdlib_module_names) <= allowed, file


def test_the_program_is_found_where_it_was_chosen(tmp_path):
    python, script = program_at(tmp_path / "bin" / "python3.11"), program_at(tmp_path / "venv/bin/mood-submission")
    windows = program_at(tmp_path / "win" / "Scripts" / "mood-submission.exe")
    own = program_at(tmp_path / "checkout" / ".venv" / "bin" / "python")
    program_at(tmp_path / "checkout" / "mood_submission" / "__main__.py")
    module = ("-m", "mood_submission")
    for chosen, wanted in {
        python: Program((str(python), *module)),
        script: Program((str(script),)),
        tmp_path / "venv": Program((str(script),)),
        tmp_path / "win": Program((str(windows),)),
        tmp_path / "checkout": Program((str(own), *module), tmp_path / "checkout"),
    }.items():
        assert find_program(str(chosen), {}) == wanted
        assert find_program("", {"MOOD_SUBMISSION": str(chosen), "PATH": str(tmp_path)}) == wanted
    for wrong in (tmp_path, tmp_path / "none", ROOT / "README.md"):
        with pytest.raises(CommandError, match=rf"^the chosen program: expected mood-submission, .*, found {wrong}$"):
            find_program(f" {wrong} ", {"MOOD_SUBMISSION": str(python)})
        with pytest.raises(CommandError, match=rf"^MOOD_SUBMISSION: expected .*, found {wrong}$"):
            find_program(" ", {"MOOD_SUBMISSION": str(wrong)})


def test_the_program_is_found_in_path_and_then_in_the_checkout(tmp_path):
    script, checkout = program_at(tmp_path / "bin" / "mood-submission"), tmp_path / "checkout"
    own = program_at(checkout / ".venv" / "bin" / "python")
    program_at(checkout / "mood_submission" / "__main__.py")
    assert find_program("", {"PATH": f"/nowhere:{script.parent}"}, checkout) == Program((str(script),))
    assert find_program("", {"PATH": "/nowhere"}, checkout).words[0] == str(own)
    with pytest.raises(CommandError, match="^expected mood-submission in PATH, .*, found none"):
        find_program("", {"PATH": "/nowhere"}, tmp_path / "elsewhere")
    assert command_line.CHECKOUT == ROOT


def test_what_slicer_sets_for_its_own_python_is_left_out():
    environment = {"PYTHONHOME": "/slicer", "HOME": "/home/me", "PYTHONPATH": "/mine"}
    installed = command_line.environment_of(Program(("x",)), environment)
    assert installed == {"HOME": "/home/me", "PYTHONPATH": "/mine", "PYTHONUNBUFFERED": "1"}
    in_checkout = command_line.environment_of(Program(("x",), Path("/checkout")), environment)
    assert in_checkout == installed | {"PYTHONPATH": "/checkout"}


def test_further_options_are_words(tmp_path):
    words = command_line.predict_words(Choices("abdom", "no", "--weights 'a b' --restorations 0"), tmp_path)
    assert words[:3] == ["predict", "--region", "abdom"] and words[-4:] == ["--weights", "a b", "--restorations", "0"]
    with pytest.raises(CommandError, match='^further options: expected words, found "\'": No closing quotation$'):
        command_line.predict_words(Choices("abdom", "no", "'"), tmp_path)


@pytest.mark.parametrize(
    "text, backslashes, words",
    [
        (
            r'--weights "C:\My Models\brain.safetensors" --slices 4',
            True,
            ["--weights", r"C:\My Models\brain.safetensors", "--slices", "4"],
        ),
        (r"--weights=C:\models\brain.safetensors #1", True, [r"--weights=C:\models\brain.safetensors", "#1"]),
        (r"--weights a\ b 'c d'", False, ["--weights", "a b", "c d"]),
        ("", True, []),
    ],
)
def test_further_options_may_be_paths_of_windows(text, backslashes, words):
    assert command_line.split_words(text, backslashes) == words


def test_options_are_those_of_the_command():
    from mood_submission.cli.predict import PredictOptions
    from mood_submission.runtime.contract import REGIONS

    texts = (FOLDER / "MoodSubmission.py").read_text()
    assert all(f'"{region}"' in texts for region in REGIONS)
    words = [word for word in command_line.predict_words(BRAIN, Path("/x")) if word.startswith("--")]
    fields = {word[2:].replace("-", "_") for word in words}
    assert fields <= set(PredictOptions.__dataclass_fields__)


FINDINGS = [
    {"number": 1, "centre_mm": [1.5, -2.0, 30.0], "volume_ml": 2.25, "highest": 0.912, "false_objects": 0.25},
    {"number": 2, "centre_mm": [0.0, 4.0, 5.0], "volume_ml": 0.5, "highest": 0.7, "false_objects": None},
]


def write_results(folder: Path, findings: list[dict]) -> None:
    for name in ("out", "found"):
        (folder / name).mkdir()
        (folder / name / "volume.nrrd").write_text(name)
    (folder / "out" / "volume.nrrd.txt").write_text("0.625\n")
    (folder / "found" / "findings.json").write_text(json.dumps([{"file": "volume.nrrd", "findings": findings}]))


def test_results_are_read_and_tabled(tmp_path):
    write_results(tmp_path, FINDINGS)
    read = results.read_results(tmp_path)
    assert read.score == 0.625 and read.summary == "Score 0.625 (0 ordinary, 1 anomalous), 2 findings"
    assert [one.label for one in read.findings] == ["Finding 1, score 0.91", "Finding 2, score 0.70"]
    assert read.findings[0].centre == (1.5, -2.0, 30.0)
    with open(read.table, newline="") as file:
        header, first, second = csv.reader(file)
    assert (
        header[0] == "Finding" and first == ["1", "1.5", "-2.0", "30.0", "2.25", "0.912", "0.25"] and second[-1] == ""
    )


@pytest.mark.parametrize("name, content", [
    ("out/volume.nrrd", None), ("found/volume.nrrd", None), ("out/volume.nrrd.txt", "much"), ("found/findings.json", None),
    ("found/findings.json", "[]"), ("found/findings.json", '[{"findings": [{"number": 1}]}]'),
])  # fmt: skip
def test_results_that_are_not_whole_are_told_in_one_line(tmp_path, name, content):
    write_results(tmp_path, FINDINGS)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(results.ResultsError, match=r"^.*expected .*, found .*$") as raised:
        results.read_results(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_failure_is_told_by_its_own_reason():
    lines = "1 volumes\n/t/volume.nrrd: expected a 3D volume, found 2D\nvolume.nrrd: failed\n1 of 1 volumes failed: volume.nrrd\n"
    assert results.why_it_failed(lines, 1).endswith("status 1: /t/volume.nrrd: expected a 3D volume, found 2D")
    assert results.why_it_failed("a\nb\n\n", None) == "mood-submission crashed: b"
    assert results.why_it_failed("", 1) == "mood-submission ended with status 1 and wrote nothing"


# --- with stand-ins for Slicer ---------------------------------------------------------------------------------------


@pytest.fixture
def slicer(monkeypatch, tmp_path):
    (tmp_path / "slicer").mkdir()
    stands_in = slicer_fakes.install(monkeypatch, tmp_path / "slicer")
    stands_in.temporary = tmp_path / "slicer"
    monkeypatch.delitem(sys.modules, "MoodSubmission", raising=False)
    monkeypatch.setenv("MOOD_SUBMISSION", str(program_at(tmp_path / "bin" / "mood-submission")))
    return stands_in


@pytest.fixture
def module(slicer, monkeypatch):
    yield importlib.import_module("MoodSubmission")
    sys.modules.pop("MoodSubmission", None)


@pytest.fixture
def widget(module):
    made = module.MoodSubmissionWidget(Parent())
    made.setup()
    return made


def choose_volume(slicer, widget) -> Node:
    volume = slicer.mrmlScene.add(Node("volume", "MRHead"))
    volume.content = b"voxels"
    widget.inputSelector.choose(volume)
    return volume


def begin(slicer, widget) -> tuple[Node, FakeProcess]:
    volume = choose_volume(slicer, widget)
    widget.applyButton.click()
    (process,) = FakeProcess.started
    return volume, process


def folder_of(process: FakeProcess) -> Path:
    return Path(process.command[process.command.index("--input") + 1]).parent


def test_slicer_lists_the_module(module):
    parent = Parent()
    module.MoodSubmission(parent)
    assert parent.title == "MOOD Anomaly Detection" and parent.categories == ["Segmentation"]
    assert parent.contributors and "research only" in parent.helpText


def test_only_a_volume_can_be_scored(slicer, widget):
    assert not widget.applyButton.enabled and not widget.cancelButton.enabled and not widget.progressBar.visible
    choose_volume(slicer, widget)
    assert widget.applyButton.enabled


def test_a_run_gets_the_volume_and_the_choices(slicer, widget, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/of/slicer")
    widget.regionSelector.currentIndex, widget.skullStripSelector.currentIndex = 1, 2
    widget.furtherEdit.text = "--device cpu"
    _, process = begin(slicer, widget)
    assert process.command[:3] == [os.environ["MOOD_SUBMISSION"], "predict", "--region"]
    assert process.command[3] == "abdom" and process.command[-2:] == ["--device", "cpu"]
    assert process.command[process.command.index("--skull-strip") + 1] == "no"
    assert (folder_of(process) / "in" / "volume.nrrd").read_bytes() == b"voxels"
    assert folder_of(process).parent == slicer.temporary
    assert process.environment["PYTHONUNBUFFERED"] == "1" and "PYTHONHOME" not in process.environment
    assert not widget.applyButton.enabled and widget.cancelButton.enabled and widget.progressBar.visible
    process.write("1 volumes, caf\u00e9"[:-1].encode() + "\u00e9".encode()[:1])
    process.write("\u00e9".encode()[1:])
    assert widget.log.plainText == "1 volumes, caf\u00e9"


def test_results_are_loaded_and_the_folder_is_deleted(slicer, widget, monkeypatch):
    monkeypatch.setattr(SegmentationNode, "segments", 2)
    volume, process = begin(slicer, widget)
    volume.transform, volume.shift = "vtkMRMLTransformNode1", (100.0, 0.0, 0.0)
    write_results(folder_of(process), FINDINGS)
    process.end(0)
    scene, shown = slicer.mrmlScene, slicer.shown
    (_, scores), (masks,), (table,) = scene.of_kind("volume"), scene.of_kind("segmentation"), scene.of_kind("table")
    assert scores.content == b"out" and masks.content == b"found" and table.content.count(b"\n") == 3
    assert scores.name == "MRHead anomaly scores" and masks.name == "MRHead findings"
    assert [one.name for one in masks.segmentation.segments] == ["Finding 1, score 0.91", "Finding 2, score 0.70"]
    assert ("SetWindowLevelMinMax", 0.0, 1.0) in scores.display.told
    assert shown["background"] is volume and shown["foreground"] is scores and shown["errors"] == []
    assert widget.tableView.node is table and "2 findings" in widget.statusLabel.text
    # moved as the volume is, and no longer bound to files that are gone
    assert [node.transform for node in (scores, masks)] == [volume.transform] * 2
    assert [node.storage for node in (scores, masks, table)] == [None] * 3 and len(scene.removed) == 3
    assert list(slicer.temporary.iterdir()) == []
    assert SliceNode.places == [(101.5, -2.0, 30.0)]
    widget.findingSelector.emit("activated(int)", 1)
    assert SliceNode.places[-1] == (100.0, 4.0, 5.0)
    assert widget.applyButton.enabled and not widget.cancelButton.enabled


def test_a_scan_without_findings_has_scores_alone(slicer, widget):
    _, process = begin(slicer, widget)
    write_results(folder_of(process), [])
    process.end(0)
    assert slicer.mrmlScene.of_kind("segmentation") == [] and len(slicer.mrmlScene.of_kind("volume")) == 2
    assert widget.findingSelector.items is None and "0 findings" in widget.statusLabel.text


def test_a_run_can_be_stopped_and_another_begun(slicer, widget):
    """It is asked to stop, and killed where it does not; nothing is an error then."""
    _, process = begin(slicer, widget)
    widget.cancelButton.click()
    assert process.asked == ("terminate",) and widget.cancelButton.enabled
    process.end(130)
    Timer.ring()
    assert process.asked == ("terminate",), "it had stopped by itself"
    assert widget.statusLabel.text == "Stopped" and list(slicer.temporary.iterdir()) == []
    widget.applyButton.click()
    second = FakeProcess.started[1]
    widget.cancelButton.click()
    Timer.ring()
    assert second.asked == ("terminate", "kill")
    assert widget.statusLabel.text == "Stopped" and widget.applyButton.enabled and slicer.shown["errors"] == []
    widget.applyButton.click()
    third = FakeProcess.started[2]
    write_results(folder_of(third), [])
    third.end(0)
    assert "0 findings" in widget.statusLabel.text and slicer.shown["errors"] == []


def test_a_timer_of_one_run_does_not_kill_the_next(slicer, widget):
    _, first = begin(slicer, widget)
    widget.cancelButton.click()
    first.end(130)
    widget.applyButton.click()
    Timer.ring()
    assert FakeProcess.started[1].asked == () and widget.logic.isRunning


def failed(slicer, widget) -> str:
    """The error that a run ended with, after which another can begin."""
    (error,) = slicer.shown["errors"]
    assert widget.statusLabel.text == error and widget.applyButton.enabled and not widget.cancelButton.enabled
    assert list(slicer.temporary.iterdir()) == [] and len(slicer.mrmlScene.nodes) == 1
    return error


def test_a_run_that_fails_says_why(slicer, widget):
    _, process = begin(slicer, widget)
    process.write(b"volume.nrrd: expected a brain, found air\n1 of 1 volumes failed: volume.nrrd\n")
    process.end(1)
    assert failed(slicer, widget) == "mood-submission ended with status 1: volume.nrrd: expected a brain, found air"


def test_a_run_that_crashes_or_does_not_start_says_so(slicer, widget):
    _, process = begin(slicer, widget)
    process.end(11, FakeProcess.CrashExit)
    assert failed(slicer, widget) == "mood-submission crashed and wrote nothing"
    slicer.shown["errors"].clear()
    widget.applyButton.click()
    FakeProcess.started[1].fail_to_start("Permission denied")
    assert failed(slicer, widget) == "mood-submission does not start: Permission denied"


def test_a_run_that_leaves_no_results_says_so(slicer, widget):
    _, process = begin(slicer, widget)
    process.end(0)
    assert failed(slicer, widget).startswith("expected the file ")


def test_what_cannot_begin_says_why(slicer, widget):
    volume = choose_volume(slicer, widget)
    for path, further, content, wanted in (
        ("/no/such", "", b"voxels", "the chosen program: expected mood-submission, "),
        ("", "'", b"voxels", "further options: expected words, "),
        ("", "", None, "expected Slicer to write MRHead to "),
    ):
        widget.programEdit.currentPath, widget.furtherEdit.text, volume.content = path, further, content
        widget.applyButton.click()
        assert failed(slicer, widget).startswith(wanted)
        slicer.shown["errors"].clear()
    assert FakeProcess.started == []


def test_a_volume_that_was_removed_meanwhile_is_told(slicer, widget):
    volume, process = begin(slicer, widget)
    slicer.mrmlScene.nodes.remove(volume)
    write_results(folder_of(process), FINDINGS)
    process.end(0)
    (error,) = slicer.shown["errors"]
    assert "expected the volume in the scene, found that it was removed" in error
    assert list(slicer.temporary.iterdir()) == [] and widget.applyButton.enabled


def test_closing_the_scene_stops_the_run_and_closing_slicer_kills_it(slicer, widget):
    _, process = begin(slicer, widget)
    slicer.mrmlScene.Clear()
    assert process.asked == ("terminate",)
    process.end(130)
    _, second = begin_again(slicer, widget)
    widget.cleanup()
    assert second.asked == ("kill",) and slicer.mrmlScene.observers == []
    assert list(slicer.temporary.iterdir()) == [] and slicer.shown["errors"] == []


def begin_again(slicer, widget) -> tuple[Node, FakeProcess]:
    volume = choose_volume(slicer, widget)
    widget.applyButton.click()
    return volume, FakeProcess.started[-1]


def test_the_choice_of_a_program_is_kept(slicer, module, widget, tmp_path):
    widget.programEdit.currentPath = str(program_at(tmp_path / "other" / "mood-submission"))
    _, process = begin(slicer, widget)
    assert (
        process.command[0] == Settings.values["MoodSubmission/Program"] == str(tmp_path / "other" / "mood-submission")
    )
    later = module.MoodSubmissionWidget(Parent())
    later.setup()
    assert later.programEdit.currentPath == process.command[0]


def test_the_module_s_own_test_passes(slicer, module, monkeypatch):
    """The one that runs in Slicer."""
    monkeypatch.setattr(SegmentationNode, "segments", 2)
    module.MoodSubmissionTest("runTest").runTest()


# --- a real run ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_volume_is_scored_for_real(slicer, module, measured, tmp_path, monkeypatch):
    """Written as Slicer writes it, scored by the command line in a process of its own, and its results loaded."""
    z, y, x = np.mgrid[-1:1:12j, -1:1:24j, -1:1:28j]
    ball = np.clip(1.2 - np.sqrt(x**2 + y**2 + z**2) / 0.6, 0, 1) * (0.7 + 0.3 * np.sin(9 * x))
    head = sitk.GetImageFromArray(ball.astype(np.float32))
    head.SetSpacing((2, 2, 4))
    head.SetOrigin((-20, 10, 5))
    head.SetDirection((0, 0, 1, -1, 0, 0, 0, -1, 0))
    sitk.WriteImage(head, str(tmp_path / "head.nrrd"))
    monkeypatch.setattr(FakeProcess, "real", True)
    monkeypatch.setenv("MOOD_SUBMISSION", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    volume = slicer.mrmlScene.add(Node("volume", "head", tmp_path / "head.nrrd"))
    found = []

    def load(run: results.Results) -> None:
        found.extend([run, sitk.ReadImage(str(run.scores)), sitk.ReadImage(str(run.mask))])
        logic.load(run, volume)

    logic = module.MoodSubmissionLogic(onDone=load, onFailed=pytest.fail)
    logic.start(volume, "", Choices("brain", "no", f"--weights '{measured}' --slices 3 --restorations 1 --device cpu"))
    run, scores, mask = found
    for image in (scores, mask):
        assert image.GetSize() == head.GetSize() and np.allclose(image.GetOrigin(), head.GetOrigin())
        assert np.allclose(image.GetDirection(), head.GetDirection())
    numbers = sitk.GetArrayFromImage(mask)
    assert 0 < run.score < 1 and len(run.findings) == numbers.max() > 0
    first = np.argwhere(numbers.transpose(2, 1, 0) == 1).mean(0)
    lps = np.array(head.TransformContinuousIndexToPhysicalPoint(first.tolist()))
    assert np.allclose(run.findings[0].centre, lps * [-1, -1, 1], atol=0.02)
    assert len(slicer.mrmlScene.of_kind("table")) == 1 and list(slicer.temporary.iterdir()) == []
