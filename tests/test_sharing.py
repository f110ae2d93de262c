"""How a run of all stages shares its time: what a stage saves or overruns, and that it ends where it no longer gains."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import write_nifti
from torch import nn

from mood_submission.lab.training import commands, whole
from mood_submission.lab.training.cache import SliceData
from mood_submission.lab.training.checkpoints import RunError
from mood_submission.lab.training.sharing import LEAST_SHARE, is_flat, minutes_beside, minutes_for
from mood_submission.lab.training.stage import Stage
from mood_submission.lab.training.trainer import Budget, Log, Schedule, Trainer
from mood_submission.lab.training.whole import RUNNING, AllOptions, WholeRun, train_all
from mood_submission.runtime.files import exclusive_lock

pytestmark = pytest.mark.usefixtures("much_memory")

PLANNED = {"vqvae": 15.0, "prior": 25.0, "detector": 50.0}


@pytest.mark.parametrize(
    "history, flat",
    [
        ([], False),
        ([1.0], False),
        ([1, 2, 3, 4], False),
        ([1, 1, 1, 1, 1], True),
        ([1, 2, 3, 4, 5, 6], False),
        ([0, 50, 90, 98, 99, 99.1, 99.2, 99.3, 99.4], True),
        ([0, 50, 90, 95, 96, 97, 98, 99, 100], False),
        # It was best long ago, whatever it does now.
        ([0, 10, 5, 8, 3, 9, 9.5], True),
        # It jumps, and the last jump is the highest.
        ([0, 10, 5, 8, 3, 9, 11], False),
        ([-0.092, -0.084, -0.081, -0.075, -0.072, -0.070, -0.067, -0.066, -0.065], False),
        ([-3.31, -2.40, -2.10, -2.02, -2.01, -2.008, -2.007, -2.006], True),
    ],
)
def test_validation_is_flat_where_the_last_four_gave_hardly_anything(history, flat):
    assert is_flat(history) is flat


def test_what_a_stage_saves_goes_to_those_that_follow():
    assert minutes_for("vqvae", PLANNED, {}) == 15
    assert minutes_for("prior", PLANNED, {"vqvae": 9}) == 27
    assert minutes_for("detector", PLANNED, {"vqvae": 9, "prior": 27}) == 54
    assert minutes_for("detector", PLANNED, {"vqvae": 9, "prior": 12}) == 69


def test_what_a_stage_overruns_is_taken_from_those_that_follow():
    assert minutes_for("prior", PLANNED, {"vqvae": 30}) == 20
    assert minutes_for("detector", PLANNED, {"vqvae": 30, "prior": 20}) == 40
    assert minutes_for("detector", PLANNED, {"vqvae": 80, "prior": 20}) == LEAST_SHARE * 50
    assert minutes_beside([1, 2.5], PLANNED) == 0 and minutes_beside([1, 12.5], PLANNED) == 9
    assert minutes_for("prior", PLANNED, {"vqvae": 15}, beside=9) == 22


def test_a_stage_has_the_same_time_after_a_kill():
    """What it has paid itself does not count, nor what comes after."""
    assert minutes_for("prior", PLANNED, {"vqvae": 9, "prior": 3}) == minutes_for("prior", PLANNED, {"vqvae": 9})
    assert minutes_for("prior", PLANNED, {"vqvae": 15}) == 25


class Made(Stage[SliceData, nn.Linear]):
    """A stage whose validations are a made-up history."""

    name = "made"
    watched = "validation_l1"

    def __init__(self, history):
        torch.manual_seed(0)
        self.model, self.history, self.rates = nn.Linear(2, 1), history, []

    def loss(self, data, index, generator):
        return self.model(torch.randn(len(index), 2, generator=generator)).square().mean(), {}

    def validate(self, model, data):
        return {"validation_l1": self.history[min(self.count, len(self.history) - 1)]}

    def after_step(self, step, progress):
        self.count = step // 5 - (step % 5 == 0)


class Order:
    """Data that says only how many slices a batch has."""

    def __len__(self):
        return 8

    def order(self, batch, seed):
        return lambda step: torch.arange(batch)


def trainer(folder, history, *, steps=100, until_flat=True, stop=None) -> Trainer:
    stage = Made(history)
    made = Trainer(
        stage,
        {"train": Order(), "validation": Order()},
        out=folder,
        budget=Budget(steps=steps, until_flat=until_flat),
        schedule=Schedule(batch=2, precision="float32"),
        device=torch.device("cpu"),
        about={"revision": "x", "date": "", "device": "cpu", "torch": ""},
    )
    rate_of = made._step

    def step(index, progress):
        if made.step == stop:
            made.save()
            raise KeyboardInterrupt
        stage.rates.append(made.schedule.rate_at(progress))
        return rate_of(index, progress)

    made._step = step
    return made


GAINS = [1 - 0.01 * i for i in range(20)]
FLAT = [1.0, 0.5, 0.4, 0.39, 0.39, 0.39, 0.39, 0.39, 0.39]


@pytest.mark.slow
def test_a_training_that_gains_no_more_ends_sooner_at_a_low_rate(tmp_path):
    whole_time, short = trainer(tmp_path / "a", GAINS), trainer(tmp_path / "b", FLAT)
    for one in (whole_time, short):
        one.out.mkdir()
        one.train()
    assert whole_time.step == 100
    # Flat after the 8th of 20 validations; then a fifth of the rest.
    assert 35 < short.step < 55
    assert short.stage.rates[-1] < 0.05 * short.schedule.rate
    stays = trainer(tmp_path / "b", FLAT, until_flat=False)
    stays.train()
    assert stays.step == 100


@pytest.mark.parametrize("stop", [30, 38, 43])
def test_a_training_killed_anywhere_ends_flat_as_one_that_was_not(stop, tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    straight = trainer(tmp_path / "whole", FLAT)
    straight.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts", FLAT, stop=stop).train()
    resumed = trainer(tmp_path / "parts", FLAT)
    resumed.resume()
    resumed.train()
    assert resumed.step == straight.step and resumed.flat_from == straight.flat_from
    assert torch.equal(resumed.stage.model.weight, straight.stage.model.weight)
    logs = [Log(tmp_path / name / "made.csv").numbers() for name in ("whole", "parts")]
    assert [(row["step"], row["validation_l1"]) for row in logs[0]] == [
        (row["step"], row["validation_l1"]) for row in logs[1]
    ]


# --- train all --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_waiting_for_ever():
    """What would wait for ever fails after a while."""

    def late(number, frame):
        raise TimeoutError("expected an end, found none")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def options(tmp_path) -> AllOptions:
    for number in range(3):
        write_nifti(tmp_path / "in" / f"toy_{number}.nii.gz", np.ones((4, 4, 4), np.float32))
    return AllOptions(region="brain", data=(tmp_path / "in",), out=tmp_path / "m.safetensors", hours=2, processes=2)


def test_the_minutes_of_a_run_follow_from_its_folder(options, tmp_path):
    """By what finished.json and the logs hold; the log counts the parts before a kill."""
    said: list[str] = []
    run = WholeRun(options, said.append)
    assert run.recipe.planned == {"vqvae": 18, "prior": 30, "detector": 60}
    assert run._minutes("vqvae") == {"minutes": 18} and not said
    assert "--until-flat" in run.recipe.words("vqvae")
    run.note("cache", 30)
    run.note("vqvae", 60)
    (run.folder / "vqvae.csv").write_text("step,minutes,validation_l1\n5,4,0.2\n9,9,0.1\n")
    for _ in range(2):
        assert WholeRun(options, said.append)._minutes("prior") == {"minutes": 33}
    assert said == ["prior: 33 minutes instead of 30, by what the steps before have taken"] * 2
    # The cache took 10 minutes more than the 5.4 that are meant for it and its like.
    run.note("cache", 60 * 15.4)
    assert WholeRun(options)._minutes("prior") == {"minutes": 29.67}


def test_a_recipe_of_steps_has_no_minutes_to_share(options, tmp_path):
    run = WholeRun(AllOptions(region="brain", data=options.data, out=options.out, quick=True))
    run.note("cache", 10**4)
    assert run._minutes("prior") == {} and "--minutes" not in run.recipe.words("prior")


def test_a_second_start_in_a_folder_is_refused(options, monkeypatch):
    """While the first one is at work, and no longer."""
    monkeypatch.setattr(WholeRun, "steps", lambda self: [])
    train_all(options, lambda line: None)
    with exclusive_lock(options.folder / RUNNING):
        with pytest.raises(RunError, match="m.run: expected no other run in this folder, found one at work"):
            train_all(options, lambda line: None)
    train_all(options, lambda line: None)


@pytest.fixture
def imitated(options, monkeypatch):
    """imitated(PLANTERS, DETECTOR): a run with the networks' steps done, whose planters and detector are such Python programs."""
    said: list[str] = []
    started: list[subprocess.Popen] = []

    def imitate(planters: list[str], detector: str) -> tuple[WholeRun, list[str], list[subprocess.Popen]]:
        waiting = list(planters)
        store = options.folder / "store"
        monkeypatch.setattr(commands, "LOOK_EVERY", 0.05)

        def start(words, log, **how):
            log.begin(words)
            code = waiting.pop(0) if "plant" in words else detector
            code = f"import os, signal, sys, time, pathlib; store = pathlib.Path({str(store)!r})\n{code}"
            with open(log.file, "ab") as file:
                started.append(subprocess.Popen([sys.executable, "-S", "-c", code], stderr=file))
            return started[-1]

        monkeypatch.setattr(whole, "start", start)
        monkeypatch.setattr(commands, "start", start)
        run = WholeRun(options, said.append)
        store.mkdir()
        return run, said, started

    yield imitate
    commands.end(started)


FAIL = "print('mood-submission train: no disk', file=sys.stderr); sys.exit(3)"
PLANT = "[(store / f'{n}.npz').touch() for n in range(3)]; time.sleep(60)"


def test_planters_that_all_die_are_named_and_not_waited_for(imitated):
    run, said, _ = imitated([FAIL, "os.kill(os.getpid(), signal.SIGKILL)"], "")
    with pytest.raises(
        RunError, match="train plant --shard 1/2.*2/2: expected 3 planted volumes, found that it failed"
    ):
        run._detector()
    assert sorted(said) == [
        f"train plant --shard {shard}: expected it to go on, found that {end}; the others go on without it"
        for shard, end in (("1/2", "it ended with status 3: no disk"), ("2/2", "signal 9 ended it"))
    ]


@pytest.mark.slow
def test_a_planter_that_dies_is_named_while_the_detector_trains(imitated):
    run, said, started = imitated([PLANT, "time.sleep(0.1); sys.exit(1)"], "time.sleep(0.6)")
    run._detector()
    assert len(said) == 1 and said[0].startswith("train plant --shard 2/2: expected it to go on")
    assert all(process.poll() is not None for process in started)


def test_planters_that_are_done_are_no_failure(imitated):
    run, said, _ = imitated(["(store / '0.npz').touch()", ""], "")
    run._detector()
    assert not said


def test_a_detector_that_fails_ends_the_planters(imitated):
    run, _, started = imitated([PLANT, PLANT], "sys.exit(5)")
    with pytest.raises(
        RunError, match="train detector: expected it to work, found that it ended with status 5; all .*detector.log$"
    ):
        run._detector()
    assert len(started) == 3 and all(process.poll() is not None for process in started)


def test_what_killed_a_detector_may_not_do_so_again(imitated):
    """What a command has found to be wrong stays wrong: there, nothing is said of going on."""
    run, _, _ = imitated([PLANT, PLANT], "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RunError, match="signal 9 ended it; .*detector.log; the same command goes on from there$"):
        run._detector()
