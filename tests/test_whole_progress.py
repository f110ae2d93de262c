"""What `train all` shows while it works: one bar over the whole, the step at work, its last line, what comes next."""

import io
import sys

import pytest

from mood_submission.lab.training.step_log import StepLog, in_short, share_trained
from mood_submission.lab.training.whole_progress import WholeProgress, expected_minutes

STEPS = ["cache", "vqvae", "prior", "detector"]
ROW = '{"step": 40, "minutes": "0.5", "rate": "0.001", "loss": "2.25", "l1": "0.3", "validation_l1": "0.125"}'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_planned_minutes_are_kept_and_the_others_follow_from_them():
    planned = {"vqvae": 15.0, "prior": 25.0, "detector": 50.0}
    assert expected_minutes(STEPS, planned) == pytest.approx(planned | {"cache": 5.0})
    assert expected_minutes(STEPS, {}) == pytest.approx({"cache": 0.05, "vqvae": 0.15, "prior": 0.25, "detector": 0.5})


def test_a_terminal_shows_one_bar_with_the_step_its_last_line_and_what_is_next(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    finished = {"cache": 6.0}
    said: list[str] = []
    with WholeProgress(STEPS, {"vqvae": 15, "prior": 25, "detector": 50}, finished, said.append) as progress:
        progress.begin("vqvae")
        progress.show(in_short(ROW), 0.5)
        # 5 of the cache and half of 15 minutes are done, of 95.
        assert progress.done == pytest.approx(12.5 / 95)
        assert progress.line() == "vqvae, then prior; 82 min left; step 40, loss 2.25, validation_l1 0.125"
        # Another command of the step begins anew; the bar does not go back.
        progress.show("calibrating", 0.1)
        assert progress.done == pytest.approx(12.5 / 95)
        drawn = sys.stderr.getvalue()
    assert " 13%|" in drawn and "vqvae, then prior; 82 min left; step 40" in drawn and not said
    assert "100%|" in sys.stderr.getvalue()


def test_elsewhere_there_is_a_plain_line_now_and_then(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    clock, said = Clock(), []
    with WholeProgress(STEPS, {}, finished := {}, said.append, every=60, clock=clock) as progress:
        progress.begin("cache")
        progress.show("caching slices: 1 of 9 volumes", 0.1)
        assert progress.seconds_left is None
        finished["cache"] = 50.0
        progress.begin("vqvae")
        for clock.seconds in (59, 60, 119, 120):
            progress.show("step 3", 0.0)
    # Of a recipe of steps the pace tells what is left: 5 of 95 parts have taken 110 seconds, then 170.
    assert said == [
        "5% of all, vqvae, then prior; 33 min left; step 3",
        "5% of all, vqvae, then prior; 51 min left; step 3",
    ]
    assert sys.stderr.getvalue() == ""


def test_a_step_that_went_on_after_a_kill_counts_as_it_is(monkeypatch):
    """Steps that are finished already count from the beginning on."""
    with WholeProgress(STEPS, {}, {"cache": 1.0, "vqvae": 1.0}, lambda line: None) as progress:
        progress.begin("prior")
        assert progress.done == pytest.approx(0.20 / 0.95)


@pytest.mark.parametrize(
    "line, budget, minutes, share",
    [
        (ROW, {"steps": 80}, 0.1, 0.5),
        (ROW, {"minutes": 10}, 2.0, 0.2),
        (ROW, {"steps": 20}, 0.1, 1.0),
        ("warning: odd", {"minutes": 10}, 2.0, 0.2),
        ("warning: odd", {"steps": 10}, 2.0, 0.0),
        ("calibrating: 3 of 12 volumes, 4 min left", {}, 0.0, 0.25),
        ('["no", "row"]', {}, 0.0, 0.0),
    ],
)
def test_how_far_a_command_is_follows_from_its_last_line_and_the_clock(line, budget, minutes, share):
    assert share_trained(line, budget, minutes) == share


def test_a_log_keeps_what_was_before_and_reads_what_is_new(tmp_path):
    log = StepLog(tmp_path / "logs" / "cache.log")
    log.begin(["train", "cache", "--data", tmp_path])
    assert log.lines() == [] and log.complaint() == ""
    with open(log.file, "a") as file:
        file.write("mood-submission train: no volumes\n\nTraceback\n")
    assert log.complaint() == "no volumes"
    again = StepLog(log.file)
    again.begin(["train", "cache"])
    with open(log.file, "ab") as file:
        file.write(b"long " * 5000 + b"\nodd \xff name\n")
    assert again.lines()[-1] == again.complaint() == "odd \\xff name"
    text = log.file.read_text("latin1")
    assert text.count("$ mood-submission train cache") == 2 and "no volumes" in text
