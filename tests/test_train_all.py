"""From healthy volumes to a model that predicts, in one command: its recipe, and that it goes on after any kill."""

import argparse
import dataclasses
import functools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, mood, write_nifti

from mood_submission import load_model
from mood_submission.about import About
from mood_submission.lab.cli.add_detector import AddDetectorOptions
from mood_submission.lab.cli.recipe_check import check_recipe
from mood_submission.lab.cli.train import STAGES as TRAIN_STAGES
from mood_submission.lab.cli.train import kinds_in_recipes, main, parser
from mood_submission.lab.planting.toy import make_toy
from mood_submission.lab.training.cache import split_names
from mood_submission.lab.training.checkpoints import RunError
from mood_submission.lab.training.detector_stage import DetectorOptions
from mood_submission.lab.training.names_file import read_names, write_names
from mood_submission.lab.training.plant import PlantOptions
from mood_submission.lab.training.recipe import FURTHER_STORES, STAGES, Recipe, default_recipe, quick_recipe
from mood_submission.lab.training.trainer import Log
from mood_submission.lab.training.whole import RUNNING, AllOptions, WholeRun, alone, train_all
from mood_submission.lab.training.whole_options import how_many_together
from mood_submission.lab.training.whole_report import odd_volumes
from mood_submission.model_file import WEIGHTS
from mood_submission.networks.detector import DetectorSettings
from mood_submission.runtime.contract import REGIONS
from mood_submission.runtime.options import add_options, options_of
from mood_submission.volumes import source_at
from mood_submission.volumes.source import Source


@pytest.mark.parametrize("region", ["brain", "abdom"])
@pytest.mark.parametrize("gpu", [False, True])
def test_a_recipe_comes_back_from_its_file(region, gpu, tmp_path):
    for recipe in (default_recipe(region, 8.0, gpu=gpu, stored=100), quick_recipe(region)):
        recipe.write(tmp_path / "recipe.toml")
        assert Recipe.read(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize("region", ["brain", "abdom"])
def test_every_option_of_a_recipe_is_one_of_its_command(region, capsys):
    """The commands of `train` read them as they are."""
    recipes = (default_recipe(region, 8.0, gpu=False, stored=100), quick_recipe(region))
    needed = {
        "cache": ["-o", "x.npz"],
        "plant": ["--model", "m.safetensors", "--store", "s"],
        "detector": ["--model", "m.safetensors", "--store", "s", "--out", "r"],
    }
    for recipe in recipes:
        for stage in ("cache", "vqvae", "prior", "plant", "detector"):
            words = [*recipe.words(stage), *needed.get(stage, ["--out", "r"])]
            if stage == "plant" and "count" not in recipe.options["plant"]:
                words += ["--minutes", "9"]
            parser().parse_args([stage, "--region", region, "--data", "d", *words])
    minutes = [recipes[0].options[stage]["minutes"] for stage in ("vqvae", "prior", "detector")]
    assert sum(float(value) for value in minutes) <= 8 * 60


def test_words_are_what_a_command_takes():
    recipe = Recipe(
        "brain",
        {name: {} for name in STAGES} | {"plant": {"mirror": True, "best": False, "no_one": [1, 2], "rate": 0.5}},
    )
    assert recipe.words("plant") == ["--mirror", "--no-one", "1", "2", "--rate", "0.5"] and recipe.words("prior") == []


@pytest.mark.parametrize(
    "text, found",
    [
        ("", "no region"),
        ('region = "brain"\n[vqvea]\n', "an unknown vqvea"),
        ("region = brain", "Invalid value"),
        ('region = "brain"\nhours = 3\n', "an unknown hours"),
    ],
)
def test_what_is_no_recipe_is_one_line(text, found, tmp_path):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RunError, match=f"r.toml: expected a recipe.*{found}|expected a region and tables.*{found}"):
        Recipe.read(tmp_path / "r.toml")
    with pytest.raises(RunError, match="none.toml: expected a recipe"):
        Recipe.read(tmp_path / "none.toml")


def little_volumes(folder: Path, count: int) -> Path:
    """A folder of so many volumes, of a few voxels each."""
    for number in range(count):
        write_nifti(folder / f"toy_{number}.nii.gz", np.ones((4, 4, 4), np.float32))
    return folder


def options_for(*words: object) -> AllOptions:
    return options_of(AllOptions, parser().parse_args(["all", *map(str, words)]))


def test_a_run_does_not_go_on_with_another_recipe(tmp_path):
    volumes = little_volumes(tmp_path / "in", 3)
    data = ("--region", "brain", "--data", volumes, "-o", tmp_path / "m.safetensors")
    run = WholeRun(options_for(*data, "--quick"))
    assert run.recipe == quick_recipe("brain") and run.folder == tmp_path / "m.run"
    assert re.match(
        r"3 volumes; needs about \d+\.\d GB of disk in .*, \d+\.\d GB of memory and a few minutes of training; the recipe is ",
        run.needs(),
    )
    assert [step.name for step in run.steps()][-1] == "report"
    with pytest.raises(RunError, match="recipe.toml: expected the recipe of before, found another"):
        WholeRun(options_for(*data, "--hours", 2))
    with pytest.raises(RunError, match="recipe for brain, found one for abdom"):
        quick_recipe("abdom").write(tmp_path / "other.toml")
        WholeRun(options_for(*data, "--recipe", tmp_path / "other.toml"))
    for change in ({"detector": {"steps": 7}}, {"plant": {"count": 4}}):
        Recipe("brain", dict(run.recipe.options) | change).write(tmp_path / "other.toml")
        with pytest.raises(RunError, match="expected the recipe of before, found another"):
            WholeRun(options_for(*data, "--recipe", tmp_path / "other.toml"))


def test_a_run_of_another_region_is_named(tmp_path):
    words = ("--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors", "--quick")
    WholeRun(options_for("--region", "brain", *words))
    with pytest.raises(
        RunError, match="recipe.toml: expected a run of region abdom, found one of brain; choose another"
    ):
        WholeRun(options_for("--region", "abdom", *words))


def test_the_volumes_folder_is_none_for_a_run(tmp_path):
    volumes = little_volumes(tmp_path / "in", 3)
    words = ("--region", "brain", "--data", volumes, "-o", tmp_path / "m.safetensors", "--run", volumes, "--quick")
    done = mood("train all", *words)
    assert (
        done.returncode == 1
        and "expected a folder of its own for the run, found the one with the volumes" in done.stderr
    )
    assert len(list(volumes.iterdir())) == 3


def test_slices_that_are_gone_are_cached_again(tmp_path):
    words = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    run = WholeRun(options_for(*words, "--quick"))
    run.note("cache", 1.0)
    assert not WholeRun(options_for(*words, "--quick")).has_finished("cache")
    run.slices.touch()
    assert WholeRun(options_for(*words, "--quick")).has_finished("cache")


def test_the_page_names_healthy_volumes_that_score_as_planted_ones_do(tmp_path):
    (tmp_path / "results" / "cases").mkdir(parents=True)
    write_names(tmp_path / "held_out.txt", ["a", "b"])
    for method in ("learned", "learned without sampling"):
        for name, score in {"a": 0.4, "b": 0.7, "a_uniform": 0.6, "b_noise": 0.5}.items():
            np.savez(
                tmp_path / "results" / "cases" / f"{name}.npz",
                sample_methods=np.array(["top", method]),
                sample=np.array([0.99, score]),
            )
        assert odd_volumes(tmp_path, "learned") == (["b"], 2)


def test_a_run_goes_on_where_other_memory_is_free(tmp_path, monkeypatch):
    volumes = little_volumes(tmp_path / "in", 3)
    words = ("--region", "brain", "--data", volumes, "-o", tmp_path / "m.safetensors", "--hours", 2)
    kept = []
    for free in (10 << 30, 5 << 30):
        monkeypatch.setattr("mood_submission.lab.training.whole.free_memory", lambda device, free=free: free)
        run = WholeRun(options_for(*words))
        kept.append(run.recipe.options["plant"]["keep"])
    assert kept[0] == kept[1] > run.stored


def test_a_run_does_not_go_on_with_other_volumes(tmp_path):
    """Else the model of the first ones would be taken for theirs."""
    first, other = (("--data", little_volumes(tmp_path / str(count), count)) for count in (3, 4))
    rest = ("--region", "brain", "-o", tmp_path / "m.safetensors", "--quick")
    WholeRun(options_for(*first, *rest))
    WholeRun(options_for(*first, *rest))
    for changed in (other, (*first, "--hold-out", "toy_0")):
        with pytest.raises(RunError, match="volumes.json: expected files made with .* choose another folder"):
            WholeRun(options_for(*changed, *rest))
    # Those of another site may have the same names.
    write_nifti(tmp_path / "3" / "toy_1.nii.gz", np.full((4, 4, 4), 2.0, np.float32))
    with pytest.raises(RunError, match="volumes.json: expected files made with contents .* choose another folder"):
        WholeRun(options_for(*first, *rest))


def test_a_run_does_not_go_on_with_a_recipe_that_was_changed_in_its_folder(tmp_path, much_memory):
    """Else its page would tell what no network was trained with. What follows from memory may be changed."""
    words = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    run = WholeRun(options_for(*words, "--hours", 2))
    file = tmp_path / "m.run" / "recipe.toml"
    options = dict(run.recipe.options)
    less = options | {"detector": {**options["detector"], "most": 20}}
    other = options | {"vqvae": {**options["vqvae"], "rate": 0.5}}
    Recipe("brain", less).write(file)
    WholeRun(options_for(*words, "--recipe", file))
    Recipe("brain", other).write(file)
    with pytest.raises(
        RunError, match=r"volumes.json: expected files made with recipe \[vqvae\] .* choose another folder"
    ):
        WholeRun(options_for(*words, "--recipe", file))


def test_a_model_file_that_is_gone_is_written_again(tmp_path):
    volumes = little_volumes(tmp_path / "in", 3)
    words = ("--region", "brain", "--data", volumes, "-o", tmp_path / "m.safetensors", "--quick")
    run = WholeRun(options_for(*words))
    for step in run.steps():
        run.note(step.name, 1.0)
    again = WholeRun(options_for(*words))
    assert [step.name for step in again.steps() if not again.has_finished(step.name)] == ["try"]
    (tmp_path / "m.safetensors").touch()
    assert all(again.has_finished(step.name) for step in again.steps())
    # Another file than the run's own is no result of it.
    (tmp_path / "m.run" / "model.safetensors").write_bytes(b"made here")
    assert [step.name for step in again.steps() if not again.has_finished(step.name)] == ["try"]


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "soon"])
def test_hours_that_are_none_are_wrong_usage(hours, capsys):
    with pytest.raises(SystemExit):
        options_for("--region", "brain", "--data", "d", "-o", "m.safetensors", "--hours", hours)
    assert "expected a number of hours above 0" in capsys.readouterr().err


def test_a_run_that_cannot_work_is_refused_before_it_begins(tmp_path, much_memory, monkeypatch):
    volumes = little_volumes(tmp_path / "in", 3)
    data = ("--region", "brain", "--data", volumes, "-o", tmp_path / "m.safetensors")
    run = WholeRun(options_for(*data, "--hours", 2))
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10**6}))
        with pytest.raises(RunError, match="GB of free disk, found 0.0 GB; choose another --run"):
            run.needs()
    monkeypatch.setattr("mood_submission.lab.training.whole.free_memory", lambda device: 10**9)
    with pytest.raises(RunError, match="GB of free memory, found 1.0 GB"):
        run.needs()


def test_a_recipe_that_needs_more_memory_than_is_free_is_refused(tmp_path, monkeypatch):
    """One by steps tells its steps, since nobody knows yet how long they take."""
    data = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    memory = [64 * 10**9]
    monkeypatch.setattr("mood_submission.lab.training.whole.free_memory", lambda device: memory[0])
    options, steps = dict(quick_recipe("brain").options), {"vqvae": 856, "prior": 904, "detector": 9096}
    options |= {stage: {**options[stage], "steps": count} for stage, count in steps.items()}
    Recipe("brain", options | {"plant": {"count": 288}}).write(tmp_path / "own.toml")
    run = WholeRun(options_for(*data, "--recipe", tmp_path / "own.toml"))
    assert "13.2 GB of memory and 856 steps of vqvae, 904 steps of prior, 9096 steps of detector;" in run.needs()
    memory[0] = 8 * 10**9
    with pytest.raises(
        RunError, match=r"expected 13.2 GB of free memory, found 8.0 GB; a lower most in \[detector\] of .*m.run"
    ):
        run.needs()
    run.note("detector", 1.0)  # what comes after it needs no planted volumes
    assert "1.1 GB of memory" in run.needs()


@pytest.mark.parametrize(
    "words, count, found",
    [
        ((), 2, "expected at least three volumes whose names begin with the same letters"),
        (("--leave-out", "*_[01]"), 4, "are held out, found 2 volumes without; --hold-out NAME holds some out"),
        (("--leave-out", "*"), 4, "in: expected volumes that --leave-out does not name, found none of 4"),
        (("--hold-out", "toy_*"), 4, "in: expected volumes to train on, found that --hold-out names all 4"),
        (("--hold-out", "toy_1", "tyo_2"), 4, "in: expected volumes named tyo_2 to hold out, found none"),
        (("--hold-out", "none*"), 4, "in: expected volumes named none* to hold out, found none"),
        (("--device", "cuda:9"), 4, "--device cuda:9: expected a GPU that is there, found"),
        (("--device", "tpu"), 4, "--device: expected cpu, cuda, cuda:1, mps ..., found tpu"),
    ],
)
def test_volumes_and_devices_that_will_not_do_are_refused_before_anything_is_written(words, count, found, tmp_path):
    """So the corrected command is not refused for what this one wrote."""
    data = ("--region", "brain", "--data", little_volumes(tmp_path / "in", count), "-o", tmp_path / "m.safetensors")
    with pytest.raises(RunError, match=re.escape(found)):
        train_all(options_for(*data, "--quick", *words), print)
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_a_model_file_that_cannot_be_written_and_a_missing_package_are_refused_before_the_run(tmp_path, monkeypatch):
    volumes = little_volumes(tmp_path / "in", 3)
    (tmp_path / "m.safetensors").mkdir()
    words = ("--region", "brain", "--data", volumes, "--quick", "-o")
    with pytest.raises(RunError, match="m.safetensors: expected a file to write, found a folder"):
        train_all(options_for(*words, tmp_path / "m.safetensors"), print)
    monkeypatch.setattr("mood_submission.lab.training.whole_options.find_spec", lambda name: None)
    with pytest.raises(RunError, match="expected matplotlib"):
        train_all(options_for(*words, tmp_path / "n.safetensors"), print)
    assert {file.name for file in tmp_path.iterdir()} == {"in", "m.safetensors"}


@pytest.mark.parametrize("file", ["finished.json", "volumes.json"])
@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_damaged_file_of_a_run_is_named(file, text, tmp_path):
    words = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    WholeRun(options_for(*words, "--quick"))
    (tmp_path / "m.run" / file).write_text(text)
    with pytest.raises(RunError, match=f"{file}: expected settings in JSON, found a damaged file"):
        WholeRun(options_for(*words, "--quick"))


def test_finished_steps_without_seconds_are_named(tmp_path):
    words = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    WholeRun(options_for(*words, "--quick"))
    (tmp_path / "m.run" / "finished.json").write_text('{"cache": "x"}')
    with pytest.raises(
        RunError, match="finished.json: expected the seconds of each finished step, found something else"
    ):
        WholeRun(options_for(*words, "--quick"))


def test_few_hours_are_planned_as_minutes_that_trainings_take(tmp_path, much_memory):
    words = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    run = WholeRun(options_for(*words, "--hours", 1e-9))
    assert min(run.recipe.planned.values()) > 0 and run.progress.seconds_left > 0


@pytest.mark.parametrize(
    "count, compared, planted", [(1, 1, 3), (4, 4, 3), (10, 10, 3), (15, 15, 2), (16, 8, 3), (80, 14, 3)]
)
def test_of_many_held_out_volumes_some_are_compared_and_of_few_each_several_times(count, compared, planted, tmp_path):
    words = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    run, ran = WholeRun(options_for(*words, "--quick")), []
    write_names(tmp_path / "m.run" / "held_out.txt", [f"v{number}" for number in range(count)])
    run._run = lambda step, words, **_: ran.append([str(word) for word in words])
    run._compare()
    assert len(read_names(tmp_path / "m.run" / "compared.txt")) == compared
    assert ran[0][ran[0].index("--planted") + 1] == str(planted) and ran[0][-2:] == ["--planted", "1"]


def test_a_refused_run_leaves_no_folder_that_was_not_there(tmp_path):
    volumes = little_volumes(tmp_path / "in", 2)
    (tmp_path / "there").mkdir()
    for out, run in (("there/new/m.safetensors", "there/runs/1"), ("m.safetensors", "there")):
        words = ("--region", "brain", "--data", volumes, "-o", tmp_path / out, "--run", tmp_path / run, "--quick")
        with pytest.raises(RunError, match="at least three volumes"):
            train_all(options_for(*words), print)
    assert {file.name for file in tmp_path.iterdir()} == {"in", "there"}
    assert [file.name for file in (tmp_path / "there").iterdir()] == [RUNNING]


def test_a_run_that_lacks_disk_writes_nothing(tmp_path, monkeypatch):
    data = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10**6}))
    with pytest.raises(RunError, match="of free disk, found 0.0 GB"):
        train_all(options_for(*data, "--hours", 2), print)
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


# --- several processes for each network --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, found",
    [
        (("--together", 3), "--together 3: expected a batch in [vqvae] that is a multiple of 3, found 4"),
        (("--together", 4, "--device", "cpu"), "[detector] that is a multiple of 4, found 2"),
        (("--together", 2, "--device", "mps"), "--together 2: expected --device cpu or cuda, found mps"),
    ],
)
def test_processes_that_cannot_train_together_are_refused_before_anything_is_written(
    words, found, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    data = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    with pytest.raises(RunError, match=re.escape(found)):
        train_all(options_for(*data, "--quick", *words), print)
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("gpus, together", [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2)])
def test_as_many_gpus_as_can_part_the_batches_train_together(gpus, together, monkeypatch):
    """The quick recipe's are of 4 slices and of 2 patches."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    recipe, words = quick_recipe("brain"), ("--region", "brain", "--data", "d", "-o", "m.safetensors", "--quick")
    assert how_many_together(options_for(*words), recipe) == together
    assert how_many_together(options_for(*words, "--device", "cpu"), recipe) == 1
    assert how_many_together(options_for(*words, "--device", "cpu", "--together", 2), recipe) == 2
    assert how_many_together(options_for(*words, "--together", 1), recipe) == 1
    if gpus:
        assert how_many_together(options_for(*words, "--device", "cuda:0"), recipe) == 1
        with pytest.raises(RunError, match="--together 2: expected --device cpu or cuda, found cuda:0"):
            how_many_together(options_for(*words, "--device", "cuda:0", "--together", 2), recipe)
    if gpus == 1:
        with pytest.raises(RunError, match="--together 2: expected at most as many processes as GPUs, found 1 GPUs"):
            how_many_together(options_for(*words, "--together", 2), recipe)


def test_processes_that_train_together_share_the_memory_and_have_a_gpu_each(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("mood_submission.lab.training.whole.free_memory", lambda device: 20 << 30)
    data = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    run = WholeRun(options_for(*data, "--hours", 2, "--device", "cuda"))
    assert run.together == 2 and "2 processes train each network together" in run.needs()
    ran: dict[str, tuple[list[str], int]] = {}

    def note(words, log, *, together, meanwhile):
        ran[words[1]] = [str(word) for word in words], together

    monkeypatch.setattr("mood_submission.lab.training.whole.run", note)
    run._train("vqvae")
    run._train_detector("detector", run.folder)
    assert [together for _, together in ran.values()] == [2, 2]
    assert not any("--device" in words for words, _ in ran.values())
    detector = options_of(DetectorOptions, parser().parse_args(ran["detector"][0][1:]))
    assert detector.most == run.stored // 2 == run.recipe.options["detector"]["most"] // 2


# --- what cannot be begun ------------------------------------------------------------------------------------------------


def test_processes_of_torchrun_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    data = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RunError, match="expected one process, found 2 that torchrun has started"):
        WholeRun(options_for(*data, "--quick"))
    assert not (tmp_path / "m.run").exists()


def test_a_volume_alone_is_its_file_or_a_copy_of_its_series(tmp_path):
    """Slices of one name in two folders stay apart, and what a copy of before held is gone."""
    file = write_nifti(tmp_path / "in" / "a.nii.gz", np.ones((4, 4, 4), np.float32))
    assert alone(source_at(file), tmp_path / "copy") == file
    slices = [tmp_path / "study" / part / "1.dcm" for part in ("a", "b")]
    for number, one in enumerate(slices):
        one.parent.mkdir(parents=True)
        one.write_text(str(number))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "old.nii.gz").touch()
    folder = alone(Source("dicom", tmp_path / "study", tuple(slices)), tmp_path / "copy")
    assert sorted(one.read_text() for one in folder.rglob("*") if one.is_file()) == ["0", "1"]


@pytest.mark.parametrize("place", ["-o", "--run"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_run(place, tmp_path):
    (tmp_path / "file").write_text("no folder")
    places = {"-o": tmp_path / "m.safetensors", "--run": tmp_path / "run"}
    places |= {place: tmp_path / "file" / "m.safetensors"}
    words = [word for pair in places.items() for word in pair]
    data = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3))
    with pytest.raises(RunError, match="file.*: expected a folder to write to, found: "):
        train_all(options_for(*data, "--quick", *words), print)


@pytest.mark.parametrize(
    "table, options, found",
    [
        ("compare", {"restoration": 0}, "[compare], found --restoration 0"),
        ("calibrate", {"slices": "most"}, "[calibrate], found: argument --slices"),
        ("vqvae", {"rate": 0.001}, "[vqvae], found: one of the arguments --minutes --steps is required"),
        ("detector_2", {"steps": 1, "widhts": [4, 4]}, "[detector_2], found --widhts 4 4"),
        ("add_detector", {"best": 3}, "[add_detector], found 3"),
    ],
)
def test_an_option_that_its_command_does_not_take_is_found_before_the_run(table, options, found, tmp_path, capsys):
    """Those of the last command too, which would refuse them after hours."""
    recipe, file = quick_recipe("brain"), tmp_path / "own.toml"
    Recipe("brain", dict(recipe.options) | {table: options}).write(file)
    words = ["all", "--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors"]
    assert main([*map(str, words), "--recipe", str(file)]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{file}: expected options of its command in {found}" in told
    assert not (tmp_path / "m.run").exists()


@pytest.mark.parametrize(
    "table, key, value, found",
    [
        ("vqvae", "validation", 0.0, "expected no validation in [vqvae], which train all says itself"),
        ("cache", "data", "IN", "expected no data in [cache], which train all says itself, found one"),
        ("vqvae", "out", "elsewhere", "expected no out in [vqvae], which"),
        ("compare", "region", "abdom", "expected no region in [compare], which"),
        ("prior", "resume", False, "expected no resume in [prior], which"),
        ("detector_2", "start_from", "RUN", "expected no start_from in [detector_2], which"),
        ("plant", "max_slices", 3, "expected max_slices in [cache] alone, found it in [plant]"),
        ("detector", "preprocessing", "published", "expected preprocessing in [cache] alone, found it in [detector]"),
    ],
)
def test_what_is_not_a_recipe_s_to_say_is_refused(table, key, value, found, tmp_path):
    recipe, file = quick_recipe("brain"), tmp_path / "own.toml"
    Recipe("brain", dict(recipe.options) | {table: {**recipe.options[table], "steps": 1, key: value}}).write(file)
    with pytest.raises(RunError, match=re.escape(f"{file}: {found}")):
        check_recipe(file, kinds_in_recipes())


def test_a_recipe_may_start_from_other_weights_and_say_what_was_trained_on(tmp_path):
    options = dict(quick_recipe("brain").options)
    options |= {"vqvae": {**options["vqvae"], "start_from": str(tmp_path / "RUN")}, "export": {"data": "twelve people"}}
    file = tmp_path / "own.toml"
    Recipe("brain", options).write(file)
    with pytest.raises(RunError, match="expected a run or a model file as start_from in \\[vqvae\\], found no "):
        check_recipe(file, kinds_in_recipes())
    (tmp_path / "RUN").mkdir()
    check_recipe(file, kinds_in_recipes())


@pytest.mark.parametrize(
    "table, key, value, found",
    [
        ("vqvae", "steps", 0, "expected at least one step in [vqvae], found 0"),
        ("cache", "max_slices", 0, "expected at least one slice a volume in [cache], found max_slices = 0"),
        (
            "detector_2",
            "widths",
            [4, 4],
            "expected the widths of [detector] in [detector_2], which begins from it, found another",
        ),
        (
            "detector",
            "context",
            [1, 2],
            "expected sizes that networks can have (detector), found: detector: expected a context",
        ),
        (
            "vqvae",
            "dropout",
            1.5,
            "expected options of its command in [vqvae], found: argument --dropout: expected 0 to 1",
        ),
        (
            "prior",
            "rate",
            -1,
            "expected options of its command in [prior], found: argument --rate: expected a number of at least 0",
        ),
        (
            "prior",
            "first_kernel",
            6,
            "expected options of its command in [prior], found: argument --first-kernel: expected an odd",
        ),
        (
            "prior",
            "downsample",
            0,
            "expected options of its command in [prior], found: argument --downsample: expected a number",
        ),
        ("vqvae", "channels", [0, 4], "expected sizes that networks can have (vqvae and prior), found: "),
        (
            "add_detector",
            "ordinary_spread_quantile",
            0.9,
            "expected sizes that networks can have (detector), found: detector: ",
        ),
    ],
)
def test_values_that_cannot_work_are_found_before_the_run(table, key, value, found, tmp_path):
    recipe, file = quick_recipe("brain"), tmp_path / "own.toml"
    more = {"steps": 1} if table == "detector_2" else {}
    Recipe("brain", dict(recipe.options) | {table: {**recipe.options[table], key: value} | more}).write(file)
    with pytest.raises(RunError, match=re.escape(f"{file}: {found}")):
        check_recipe(file, kinds_in_recipes())


def test_a_second_detector_has_the_sizes_of_the_first(tmp_path):
    recipe, file = quick_recipe("brain"), tmp_path / "own.toml"
    Recipe("brain", dict(recipe.options) | {"detector_2": {"steps": 1, "mirror": True}}).write(file)
    assert Recipe.read(file).options["detector_2"] == {"widths": [4, 6, 8, 8], "steps": 1, "mirror": True}
    check_recipe(file, kinds_in_recipes())


@pytest.mark.parametrize(
    "planting, second, found",
    [
        ({"count": 2}, {}, "expected a [detector_2], which alone reads what [plant_2] plants, found none"),
        (
            {"variants": 2},
            {"steps": 1},
            "expected options of its command in [plant_2], found: one of the arguments --count",
        ),
        (
            {"count": 2, "radii": [0.2, 0.1]},
            {"steps": 1},
            "expected options of its command in [plant_2], found: --radii: ",
        ),
        ({"count": 2, "store": "s"}, {"steps": 1}, "expected no store in [plant_2], which train all says itself"),
        ({"count": 2}, {"steps": 1, "also": ["s"]}, "expected no also in [detector_2], which train all says itself"),
    ],
)
def test_a_second_store_that_cannot_be_is_found_before_the_run(planting, second, found, tmp_path):
    file = tmp_path / "own.toml"
    for table in FURTHER_STORES:
        Recipe("brain", dict(quick_recipe("brain").options) | {table: planting, "detector_2": second}).write(file)
        with pytest.raises(RunError, match=re.escape(f"{file}: {found.replace('plant_2', table)}")):
            check_recipe(file, kinds_in_recipes())


def test_further_stores_are_planted_for_the_second_detector_alone(monkeypatch, tmp_path, much_memory):
    data = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    more = {"plant_2": {"count": 2, "radii": [0.02, 0.05], "together": 6}, "detector_2": {"steps": 3}}
    more["plant_3"] = {"count": 4, "kinds": ["spots"]}
    Recipe("brain", dict(quick_recipe("brain").options) | more).write(tmp_path / "own.toml")
    check_recipe(tmp_path / "own.toml", kinds_in_recipes())
    run = WholeRun(options_for(*data, "--recipe", tmp_path / "own.toml", "--device", "cpu"))
    names = [step.name for step in run.steps()]
    assert names[names.index("detector") :][:4] == ["detector", "plant_2", "plant_3", "detector_2"]
    started: list[list[str]] = []

    class Ended:
        def poll(self) -> int:
            return 0

        def wait(self, timeout: float | None = None) -> int:
            return 0

    def start(words, log, **how):
        started.append([str(word) for word in words])
        return Ended()

    monkeypatch.setattr("mood_submission.lab.training.whole.start", start)
    monkeypatch.setattr("mood_submission.lab.training.whole.run", lambda words, log, **how: start(words, log))
    for step in run.steps():
        if step.name in ("plant_2", "plant_3", "detector_2"):
            step.act()
    last = options_of(PlantOptions, parser().parse_args(started[-2][1:]))
    assert last.store == run.folder / "store_3" and last.count == 4 and last.planting.kinds == ("spots",)
    planting = options_of(PlantOptions, parser().parse_args(started[0][1:]))
    assert planting.store == run.folder / "store_2" and planting.count == 2
    assert planting.planting.radii == (0.02, 0.05) and planting.planting.together == 6
    training = options_of(DetectorOptions, parser().parse_args(started[-1][1:]))
    assert training.store == run.folder / "store" and training.also == (run.folder / "store_2", run.folder / "store_3")


def test_any_text_of_a_recipe_comes_back(tmp_path):
    options = dict(quick_recipe("brain").options)
    options |= {"export": {"data": 'two\nlines, a\ttab, "quotes" and \\ \x07 \x7f ä', "licence": "CC0"}}
    Recipe("brain", options).write(tmp_path / "own.toml")
    assert Recipe.read(tmp_path / "own.toml").options == options
    (tmp_path / "own.toml").write_text('region = "brain"\n[export]\ndata = 2020-01-01\n')
    with pytest.raises(
        RunError, match=r"own.toml: expected text, numbers, .* for data in \[export\], found 2020-01-01"
    ):
        Recipe.read(tmp_path / "own.toml")


@pytest.mark.parametrize(
    "words, again",
    [
        ("all --region brain --data d -o m.safetensors --quick", "the same command goes on where it was"),
        ("cache --region brain --data d -o s.npz", "the same command begins anew"),
        ("vqvae --region brain --data d --out r --steps 1", "--resume goes on from the last checkpoint"),
        ("plant --region brain --data d --model m --store s --count 1", "the same command goes on where it was"),
    ],
)
def test_who_stops_a_training_is_told_how_it_goes_on(words, again, monkeypatch, capsys):
    def stopped(options):
        raise KeyboardInterrupt

    stage = words.split()[0]
    monkeypatch.setitem(TRAIN_STAGES, stage, dataclasses.replace(TRAIN_STAGES[stage], run=stopped))
    assert main(words.split()) == 130 and capsys.readouterr().err == f"mood-submission train: stopped; {again}\n"


@pytest.mark.parametrize("region", REGIONS)
def test_recipes_that_can_be_run_are_taken(region, tmp_path):
    default_recipe(region, 8.0, gpu=False, stored=100).write(tmp_path / "default.toml")
    quick_recipe(region).write(tmp_path / "quick.toml")
    for file in (SHIPPED[region], tmp_path / "default.toml", tmp_path / "quick.toml"):
        check_recipe(file, kinds_in_recipes())


@pytest.mark.parametrize(
    "names", [["a b", "c"], ["a\nb", " c", "d"], ["\udce9", "\u2028x", "%s"], ["a\n\udce9 "], ["b\x85", "c\x1cd"]]
)
def test_names_of_any_kind_come_back_from_their_file(names, tmp_path):
    write_names(tmp_path / "names.txt", names)
    assert read_names(tmp_path / "names.txt") == names


def test_names_that_people_wrote_may_have_spaces_around_them(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"a b\r\n\n c \n")
    assert read_names(tmp_path / "names.txt") == ["a b", "c"]


def predicts(model, region: str, volumes, tmp_path) -> None:
    """The model file scores volumes by its detector, and knows which ones it was trained on."""
    about = load_model(model, "cpu").about
    assert (
        about.region == region and about.detector is not None and about.sample_method == about.pixel_method == "learned"
    )
    assert about.training["vqvae"]["volumes"]["validation"] == ["toy_0", "toy_1"] and about.healthy_samples["learned"]
    run = mood(
        f"predict --region {region} --task pixel --slices 4 -i", volumes, "-o", tmp_path / "out", "--weights", model
    )
    assert run.returncode == 0, run.stderr
    scores = nib.load(tmp_path / "out" / "toy_2.nii.gz").get_fdata()
    assert np.isfinite(scores).all() and scores.max() > 0


def command(region: str, volumes, model) -> list[str]:
    words = ["train", "all", "--region", region, "--data", volumes, "--hold-out", "toy_[01]", "-o", model]
    return [sys.executable, "-m", "mood_submission", *map(str, words), "--quick", "--processes", "1"]


@pytest.mark.slow
def test_abdomens_from_nothing_to_a_model_that_predicts(tmp_path):
    """Two processes train each network. Brains are trained on by tests/test_commands.py, as the README has it."""
    make_toy("abdom", tmp_path, 4, 40, healthy_fraction=1.0)
    volumes, model = tmp_path / "abdom" / "toy", tmp_path / "model.safetensors"
    words = [*command("abdom", volumes, model), "--together", "2", "--device", "cpu"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predicts(model, "abdom", volumes, tmp_path)
    run = tmp_path / "model.run"
    page = (run / "index.html").read_text()
    assert "held out 2 for thresholds" in page and "results/examples.png" in page and "[vqvae]" in page
    # What steps tell is in their files; each step has its line.
    assert re.findall(r"^\d+/10 (\w+): ", done.stderr, re.M) == list(json.loads((run / "finished.json").read_text()))
    told = {file.stem: file.read_text() for file in (run / "logs").iterdir()}
    assert set(told) == {*re.findall(r"^\d+/10 (\w+): ", done.stderr, re.M), "plant_1"} - {"report"}
    assert '"loss"' in told["prior"] and "loss" not in done.stderr and done.stdout.count("\n") == 1
    for stage in ("vqvae", "prior", "detector"):
        # The first of the processes alone writes rows.
        steps = [row["step"] for row in Log(run / f"{stage}.csv").numbers()]
        assert steps == sorted(set(steps)) and steps[-1] == quick_recipe("abdom").options[stage]["steps"]


@pytest.mark.long
def test_it_goes_on_after_a_kill_in_any_step(tmp_path):
    """Each step is killed once as it begins, by turns politely and not. The same command goes on, and nothing is left running."""
    make_toy("brain", tmp_path, 4, 40, healthy_fraction=1.0)
    volumes, model = tmp_path / "brain" / "toy", tmp_path / "model.safetensors"
    killed: list[str] = []
    for _ in range(30):
        process = subprocess.Popen(
            command("brain", volumes, model), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            step = re.match(r"\d+/\d+ (\w+): ", line)
            if step and step[1] not in killed:
                killed.append(step[1])
                time.sleep(0.7)
                process.send_signal(signal.SIGTERM if len(killed) % 2 else signal.SIGKILL)
                break
        process.stderr.close()
        if process.wait(120) == 0:
            break
    finished = json.loads((tmp_path / "model.run" / "finished.json").read_text())
    assert list(finished) == killed, (finished, killed)
    predicts(model, "brain", volumes, tmp_path)
    listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path / "model.run") not in listed


# --- the recipes of the shipped models ---------------------------------------------------------------------------------

SHIPPED = {region: WEIGHTS / "recipes" / f"{region}.toml" for region in REGIONS}


@functools.cache
def about_of(region: str) -> About:
    """What a shipped model file says of itself."""
    return load_model(region, "cpu").about


def options_in(recipe: Recipe, table: str) -> object:
    """The options of a table as its command reads them."""
    stage = table.partition("_")[0]
    words = {
        "plant": ["--model", "m", "--store", "s"],
        "detector": ["--model", "m", "--store", "s", "--out", "r"],
    }.get(stage, ["--out", "r"])
    args = parser().parse_args([stage, "--region", recipe.region, "--data", "d", *words, *recipe.words(table)])
    return options_of(TRAIN_STAGES[stage].options, args)


def parts_of(trained: dict) -> list[dict]:
    """The parts of a network's training, the last one first, as a model file tells them."""
    return [trained, *(parts_of(trained["started_from"]) if "started_from" in trained else [])]


@pytest.mark.parametrize("region", REGIONS)
def test_the_recipes_of_the_shipped_models_make_what_is_shipped(region):
    """Sizes, batches, rates, what was planted, and as many slices as all parts saw: as the model file's metadata has them."""
    recipe, about = Recipe.read(SHIPPED[region]), about_of(region)
    vqvae, prior = options_in(recipe, "vqvae"), options_in(recipe, "prior")
    assert recipe.region == region and vqvae.settings == about.vqvae
    assert prior.settings(about.vqvae.codebook_size) == about.prior
    trained = about.training["detector"]
    last = "detector_2" if "mean_with" in trained else "detector"
    assert bool(recipe.options["detector_2"]) == ("mean_with" in trained)
    planting = options_in(recipe, "plant")
    for name in ("variants", "seed", "restored"):
        assert getattr(planting.planting, name) == trained[name]
    # As many volumes as the part saw that saw the most, in all stores.
    stores = [planting, *(options_in(recipe, table) for table in FURTHER_STORES if recipe.options[table])]
    most = max(part.get("planted_volumes", 0) for part in parts_of(trained))
    assert list(planting.planting.kinds) == trained["kinds"] and sum(store.count for store in stores) == most
    further = trained.get("also", [])
    assert len(stores) == 1 + len(further)
    for store, told in zip(stores[1:], further, strict=True):
        settings = json.loads(json.dumps(dataclasses.asdict(store.planting)))
        assert {name: told.get(name) for name in settings} == settings
    networks = {name: parts_of(about.training[name]) for name in ("vqvae", "prior")}
    networks |= {last: parts_of(trained)}
    if last == "detector_2":
        # Its detector is one part of the second's training.
        networks |= {last: [trained], "detector": parts_of(trained["mean_with"][0])}
    for table, parts in networks.items():
        run = options_in(recipe, table).run
        batch = parts[0]["schedule"]["batch"]
        assert run.schedule.batch == batch and run.augment == parts[0]["augment"], table
        assert run.schedule.rate == max(p["schedule"]["rate"] for p in parts if p["schedule"]["batch"] == batch), table
        assert run.budget.steps == -(-sum(part["slices_seen"] for part in parts) // batch), table
    detector = options_in(recipe, last)
    args = argparse.ArgumentParser()
    add_options(args, AddDetectorOptions)
    added = options_of(AddDetectorOptions, args.parse_args(["run", "m", *recipe.words("add_detector")]))
    settings = DetectorSettings(
        detector.widths,
        detector.run.dropout,
        context=detector.context,
        mirror=detector.mirror,
        restores=detector.restores,
    )
    assert added.settings.chosen(settings) == about.detector
    if "patches" in trained:
        told = trained["patches"]["weaker_evidence"], trained["patches"]["other_tones"]
        assert (detector.patches.weaker_evidence, detector.patches.other_tones) == told
    for name in ("restorations", "precision"):
        assert recipe.options["calibrate"][name] == about.training["calibration"][name]


@pytest.mark.parametrize("region", REGIONS)
def test_the_volumes_that_were_held_out_are_held_out_by_default(region):
    """So the recipes need not name them."""
    volumes = about_of(region).training["vqvae"]["volumes"]
    assert split_names(sorted(sum(volumes.values(), [])), 0.1, 0.1) == volumes


@pytest.mark.parametrize("region", REGIONS)
def test_train_all_takes_the_recipes_of_the_shipped_models(region, tmp_path, much_memory):
    data = ("--region", region, "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    run = WholeRun(options_for(*data, "--recipe", SHIPPED[region]))
    assert run.recipe == Recipe.read(SHIPPED[region]) == Recipe.read(run.folder / "recipe.toml")
    assert ("detector_2" in [step.name for step in run.steps()]) == bool(run.recipe.options["detector_2"])


def test_a_second_detector_starts_from_the_first_and_the_mean_of_both_is_taken(monkeypatch, tmp_path, much_memory):
    data = ("--region", "brain", "--data", little_volumes(tmp_path / "in", 3), "-o", tmp_path / "m.safetensors")
    recipe = tmp_path / "recipe.toml"
    second = {"detector_2": {"other_tones": 0.7, "steps": 9}}
    Recipe("brain", dict(Recipe.read(SHIPPED["brain"]).options) | second).write(recipe)
    run = WholeRun(options_for(*data, "--recipe", recipe))
    ran: list[list[str]] = []
    monkeypatch.setattr(
        "mood_submission.lab.training.whole.run", lambda words, log, **how: ran.append([str(word) for word in words])
    )
    (run.folder / "networks.safetensors").touch()
    for step in run.steps():
        if step.name in ("detector_2", "add_detector"):
            step.act()
    (_, *training), (_, *adding) = ran
    second = options_of(DetectorOptions, parser().parse_args(training))
    assert second.run.start_from == run.folder and second.run.out == run.folder / "detector_2" and second.run.resume
    assert second.patches.other_tones == 0.7
    args = argparse.ArgumentParser()
    add_options(args, AddDetectorOptions)
    added = options_of(AddDetectorOptions, args.parse_args(adding))
    assert added.run == run.folder / "detector_2" and added.mean_with == (run.folder,)
    assert added.model == run.folder / "model.safetensors"
