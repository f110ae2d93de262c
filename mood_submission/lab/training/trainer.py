"""The training loop that all networks share: budget, schedule, averaging, checkpoints, log.

A stage (`stage.py`) says what is trained and what its loss is; this module says how. Everything random depends on the seed
and the step alone. So a run that was killed and resumed goes on as if nothing had happened.
"""

import csv
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...runtime.files import write_text
from ...runtime.option_types import above_zero, not_negative, positive
from ...runtime.options import option
from .checkpoints import RunError, load_checkpoint, save_checkpoint
from .group import SINGLE_PROCESS, Group
from .sharing import is_flat
from .stage import Data, Network, Stage

# How much faster the rest of a budget is spent once validation is flat. The rate still falls to its end.
HURRY = 5
# How far apart the seeds of two parts of a batch are.
APART = 1_000_000_007


@dataclass(frozen=True)
class Budget:
    """How long to train: wall-clock minutes, those before a resumption included, or steps. One of both is given."""

    minutes: float | None = option(
        "train so long, resumed parts included", type=above_zero("minutes"), default=None, one_of="budget"
    )
    steps: int | None = option("train so many steps", default=None, one_of="budget")
    until_flat: bool = option(
        "once validation hardly gains any more, let the learning rate fall to its end in a fifth of the time that is left",
        default=False,
    )

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is spent, 0 .. 1."""
        shares = [step / self.steps] if self.steps else []
        shares += [seconds / 60 / self.minutes] if self.minutes else []
        return min(1.0, max(shares))


@dataclass(frozen=True)
class Schedule:
    """Optimisation settings.

    Published: Adam at 1e-4, gradient values clipped at 1, 600 epochs. The defaults of the stages fit minutes rather than days:
    a higher rate that falls to zero along a cosine, and the gradient's norm clipped.

    warmup: share of the budget in which the rate rises.
    clip_norm: a gradient with a larger norm is scaled down to it.
    average: decay of the weights' moving average, reached gradually.
    """

    batch: int = option("slices a step, of all processes together", type=positive, default=16)
    rate: float = option("highest learning rate of the cosine schedule", type=not_negative, default=1e-3)
    warmup: float = 0.03
    clip_norm: float = 1.0
    accumulate: int = option(
        "take each process's share of a batch in N parts, which needs less memory",
        type=positive,
        metavar="N",
        default=1,
    )
    average: float = 0.999
    precision: str | None = option(
        "autocast precision (default: bf16 where the device multiplies bfloat16, else float32)",
        choices=("bf16", "float32"),
        default=None,
    )
    seed: int = option("of batches, augmentation and initial weights", default=0)

    def rate_at(self, progress: float) -> float:
        """The learning rate when so much of the budget is spent, 0 .. 1."""
        if progress < self.warmup:
            return self.rate * (progress + 1e-3) / (self.warmup + 1e-3)
        return self.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))))


class Log:
    """Rows of numbers in a CSV file. A resumed run drops the rows after its step: None keeps all."""

    def __init__(self, file: Path, step: int | None = None):
        self.file = file
        self.rows: list[dict[str, object]] = []
        if file.exists() and step != 0:
            with open(file, newline="") as stored:
                self.rows = [row for row in csv.DictReader(stored) if step is None or int(row["step"]) <= step]

    def write(self, row: Mapping[str, float]) -> None:
        """Add a row, and write the whole file anew, with the columns of all rows."""
        self.rows.append({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        columns = list(dict.fromkeys(k for r in self.rows for k in r))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.file, text.getvalue())

    def numbers(self) -> list[dict[str, float]]:
        """The rows as numbers, as the file has them. So a resumed run reads what the first one read."""
        return [{name: float(str(value)) for name, value in row.items() if value != ""} for row in self.rows]


class Trainer(Generic[Data, Network]):
    """Trains a stage. Leaves NAME.pt and NAME.csv in `out`, and NAME_best.pt of a stage with a `judged_by`.

    In a group of processes each takes its part of every batch. The gradients are averaged, so that all hold the same network.
    The first process alone validates and writes.

    stage: what is trained.
    splits: the data, "train" and "validation".
    out: folder of the run.
    budget, schedule: how long to train, and how.
    device: where the network lies.
    about: what the checkpoint says of the stage.
    group: the processes that train together.
    Raises ValueError where a batch has no even share for each process and part.
    """

    def __init__(
        self,
        stage: Stage[Data, Network],
        splits: Mapping[str, Data],
        *,
        out: Path,
        budget: Budget,
        schedule: Schedule,
        device: torch.device,
        about: dict,
        group: Group = SINGLE_PROCESS,
    ):
        # What keeps other processes from training here. It is closed at the training's end.
        self.alone = ExitStack()
        self.parts = group.count * schedule.accumulate
        if schedule.batch % self.parts:
            raise ValueError(
                f"batch: expected a multiple of {self.parts} ({group.count} processes, {schedule.accumulate} parts each), "
                f"found {schedule.batch}"
            )
        self.stage, self.splits, self.out, self.budget = stage, splits, out, budget
        self.schedule, self.device, self.about = schedule, device, about
        self.group = group
        self.file, self.best_file = out / f"{stage.name}.pt", out / f"{stage.name}_best.pt"
        # Channels last is the faster layout everywhere, except for the VQ-VAE's wide, thin images on a CPU.
        if device.type != "cpu" or stage.channels_last_on_cpu:
            stage.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]
        stage.model.to(device)
        group.copy_from_first([*stage.model.parameters(), *stage.model.buffers()])
        self.average = torch.optim.swa_utils.AveragedModel(stage.model, use_buffers=True, multi_avg_fn=self._blend)
        self.optimiser = torch.optim.Adam(stage.model.parameters(), lr=schedule.rate, betas=(0.9, 0.99))
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        # How much of the budget was spent when validation was found to be flat. Above 1 where it was not.
        self.flat_from = math.inf
        # How many validations there have been. None where a checkpoint does not say.
        self.validated: int | None = 0

    def _progress(self, seconds: float) -> float:
        """How far training has come after so many seconds, 0 .. 1."""
        share = self.budget.progress(self.step, seconds)
        return share if share <= self.flat_from else min(1.0, self.flat_from + HURRY * (share - self.flat_from))

    @property
    def averaged(self) -> Network:
        """The averaged model."""
        return cast(Network, self.average.module)

    def _blend(self, averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        """A moving average. Its decay grows with the steps taken, so that short runs average over about their last tenth."""
        decay = min(self.schedule.average, (1 + self.step) / (10 + self.step))
        for a, c in zip(averaged, current):
            a.lerp_(c, 1 - decay) if a.is_floating_point() else a.copy_(c)

    def resume(self) -> None:
        """Continue from the checkpoint in `out`. Raises RunError where that was trained on other further stores than are given now."""
        stored = load_checkpoint(self.file, self.device)
        self.stage.model.load_state_dict(stored["model"])
        self.average.load_state_dict(stored["average"])
        self.optimiser.load_state_dict(stored["optimiser"])
        self.stage.load_state(stored["stage"])
        self.step, self.seconds = stored["step"], stored["seconds"]
        self.best, self.validated = stored.get("best", -math.inf), stored.get("validated")
        self.flat_from = stored.get("flat_from", math.inf) if self.budget.until_flat else math.inf
        before = json.loads(stored["about"])
        if "started_from" in before:
            self.about = self.about | {"started_from": before["started_from"]}
        if self._progress(self.seconds) >= 1:
            # No step is left: the code of before took them all, on what was there then.
            self.about = self.about | before
        elif before.get("also") != self.about.get("also"):
            raise RunError(f"{self.file}: expected the further stores (--also) that it was trained on, found others")
        elif self.about["revision"] not in before["revision"]:
            self.about = self.about | {"revision": f"{before['revision']}, {self.about['revision']}"}

    def save(self) -> None:
        """Write the checkpoint. The first process does so for all."""
        if not self.group.first:
            return
        rest = {
            "model": self.stage.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "flat_from": self.flat_from,
            "validated": self.validated,
        }
        save_checkpoint(self.file, self._result() | rest)

    def _result(self) -> dict:
        """What a checkpoint holds for users of the averaged model."""
        seen = {
            "steps": self.step,
            "minutes": round(self.seconds / 60, 2),
            "slices_seen": self.step * self.schedule.batch,
        }
        return {
            "about": json.dumps(self.about | seen),
            "average": self.average.state_dict(),
            "stage": self.stage.state(),
        }

    def train(self, save_seconds: float = 60.0, validations: int = 20) -> Network:
        """Train until the budget is spent.

        save_seconds: from one checkpoint to the next.
        validations: how many, evenly over the budget.
        Returns the averaged model.
        """
        with self.alone:
            return self._train(save_seconds, validations)

    def _train(self, save_seconds: float, validations: int) -> Network:
        order = self.splits["train"].order(self.schedule.batch, self.schedule.seed)
        log = Log(self.out / f"{self.stage.name}.csv", self.step)
        bar = tqdm(
            total=100,
            desc=self.stage.name,
            unit="%",
            disable=None if self.group.first else True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed} {postfix}",
        )
        progress = self._progress(self.seconds)
        saved, since = time.monotonic(), self.step
        if self.validated is None:
            self.validated = math.floor(progress * validations)
        sums: dict[str, float | Tensor] = {}
        while progress < 1:
            started = time.monotonic()
            for name, value in self._step(order(self.step), progress).items():
                sums[name] = sums.get(name, 0) + value
            seconds = self.group.from_first(self.seconds + time.monotonic() - started)
            last = self._progress(seconds) >= 1
            if last or math.floor(progress * validations) > self.validated:
                self.validated = math.floor(progress * validations)
                means = torch.tensor([float(value) / (self.step - since) for value in sums.values()])
                self.group.average([means])
                if self.group.first:
                    self._report(log, bar, dict(zip(sums, means.tolist())), progress)
                sums, since = {}, self.step
                self._look_whether_flat(log, seconds)
            self.seconds = self.group.from_first(self.seconds + time.monotonic() - started)
            progress = self._progress(self.seconds)
            bar.update(math.floor(progress * 100) - bar.n)
            if time.monotonic() - saved > save_seconds:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()
        return self.averaged

    def _report(self, log: Log, bar: tqdm, row: dict[str, float], progress: float) -> None:
        """Validate, and write a row of the log."""
        row |= self.stage.validate(self.averaged, self.splits["validation"])
        judged = row[self.stage.judged_by] if self.stage.judged_by else -math.inf
        if judged > self.best:
            self.best = judged
            save_checkpoint(self.best_file, self._result())
        minutes, rate = round(self.seconds / 60, 2), self.schedule.rate_at(progress)
        log.write({"step": self.step, "minutes": minutes, "rate": rate} | row)
        bar.set_postfix({k: f"{v:.4g}" for k, v in row.items()})
        print(json.dumps(log.rows[-1]), flush=True) if bar.disable else None

    def _look_whether_flat(self, log: Log, seconds: float) -> None:
        """Note from when on the budget is spent faster. The first process decides, by what is in its log."""
        if not self.budget.until_flat or self.flat_from <= 1:
            return
        flat = self.group.first and is_flat([self.stage.goodness(row) for row in log.numbers()])
        if self.group.from_first(float(flat)):
            self.flat_from = self.budget.progress(self.step, seconds)

    def _step(self, index: Tensor, progress: float) -> dict[str, Tensor]:
        """Train on the batch `index` (B,). Returns the means over this process's parts of it: the loss, the stage's numbers."""
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = self.schedule.rate_at(progress)
        self.optimiser.zero_grad(set_to_none=True)
        self.stage.model.train()
        sums: dict[str, Tensor] = {}
        share = self.schedule.accumulate
        for part in range(self.group.rank * share, (self.group.rank + 1) * share):
            seed = self.schedule.seed * 1_000_003 + self.step + part * APART
            generator = torch.Generator(self.device).manual_seed(seed)
            # Dropout has no generator of its own.
            torch.manual_seed(seed)
            mine = index.chunk(self.parts)[part].to(self.device)
            loss, numbers = self.stage.loss(self.splits["train"], mine, generator)
            (loss / share).backward()
            for name, value in ({"loss": loss.detach()} | numbers).items():
                sums[name] = sums.get(name, 0) + value / share
        self._share_what_was_learned()
        nn.utils.clip_grad_norm_(self.stage.model.parameters(), self.schedule.clip_norm)
        self.optimiser.step()
        self.step += 1
        self.stage.after_step(self.step, progress)
        self.average.update_parameters(self.stage.model)
        return sums

    def _share_what_was_learned(self) -> None:
        """Put into all gradients and running statistics their means over all processes."""
        gradients = [p.grad for p in self.stage.model.parameters() if p.grad is not None]
        self.group.average([*gradients, *(b for b in self.stage.model.buffers() if b.is_floating_point())])
