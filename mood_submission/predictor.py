"""One volume to its scores: read -> preprocess -> evidence -> score -> postprocess -> write."""

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .evidence.evidence import Evidence
from .findings.objects import Finding, find
from .methods.rarity import EVIDENCE, rarity
from .methods.table import PIXEL_WAYS, SAMPLE_WAYS
from .model import Model
from .model_file import ModelError
from .networks.layers import at_size
from .preprocessing import (
    Frame,
    View,
    frame_of,
    harmonise,
    intensity_statistics,
    normalise,
    slice_indices,
    slices_to_volume,
    volume_to_slices,
)
from .runtime.contract import BOTH
from .runtime.files import write_whole
from .runtime.threads import one_thread_each
from .volumes import Grid, Volume, VolumeError, output_name, read_volume, seed_name, write_volume

MARGIN, LEAST_MARGIN = 0.5, 0.05  # beyond healthy hold-out volumes, of their range and of their highest value
MOST_PIXELS = 1 << 26  # of a slice's square field of view


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that is needed of a volume, a tenth of its size.

    slices: as the network takes them, (N, S, S) float32 on its device. position: (N, 1). indices: (N,) along z.
    shape, spacing, grid, path, notes: the volume's. view: how it was looked at.
    """

    slices: Tensor
    position: Tensor
    indices: np.ndarray
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    grid: Grid
    path: Path
    view: View
    notes: tuple[str, ...] = ()

    def part(self, count: int) -> "Prepared":
        """The same volume with `count` of its slices, evenly spread."""
        chosen = slice_indices(len(self.indices), count)
        return replace(
            self, slices=self.slices[chosen], position=self.position[chosen], indices=self.indices[chosen]
        )


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of a volume, of the tasks that were asked for.

    sample: how anomalous the volume is, 0 .. 1. pixel: the slices' scores (N, H, H), 0 .. 1, for `Predictor.to_volume`.
    rare: by kind of evidence, how rare it is among healthy voxels (N, H, H); of a predictor that is to `explain`.
    expected: what the networks would have expected to see, in their intensities (N, S, S): the mean restoration, or the
        reconstruction where none were drawn; likewise.
    """

    sample: float | None = None
    pixel: Tensor | None = None
    rare: dict[str, Tensor] = field(default_factory=dict)
    expected: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """What stands out in a volume.

    findings: the surest first. mask: their numbers, (X, Y, Z) uint8, RAS order. expected: what would have been expected, as
    grey values in [0, 1], (X, Y, Z) float32; None of a predictor that is not to `explain`.
    """

    findings: list[Finding]
    mask: np.ndarray
    expected: np.ndarray | None = None


class Predictor:
    """Scores volumes with a model.

    slice_count: how many slices of a volume are looked at, evenly spaced, or "all"; None for one every few mm, as the model's
        preprocessing says, or all where that says nothing. The published method takes 32.
    restorations: how many a slice; None for what the model file says (published 15). 0, for the pixel method "learned"
        alone: nothing is drawn, which takes a small part of the time. Raises ModelError for 0 with the others.
    sample_method: "paper", "top" or "learned", pixel_method: "paper", "rarity" or "learned" (see `model.About`); None for
        what the model file says. Raises ModelError for "rarity" with a model that is not calibrated, and for "learned"
        with one that has no detector.
    explain: whether pixel scores come with how rare each kind of evidence is, for findings to tell.
    strip: from a volume to the same without its skull, before all else (see `running.skull_strip`); None to take volumes as
        they are.
    seed: of the restorations' draws. Each slice has its own, made of the seed, the file's name and the slice's index,
        so a volume's scores do not depend on what else is in the folder.
    """

    def __init__(
        self,
        model: Model,
        slice_count: int | str | None = None,
        restorations: int | None = None,
        seed: int = 0,
        sample_method: str | None = None,
        pixel_method: str | None = None,
        explain: bool = False,
        strip: Callable[[Volume], Volume] | None = None,
    ):
        self.strip = strip
        self.model, self.slice_count, self.seed, self.explain = model, slice_count, seed, explain
        self.sample_method = sample_method or model.about.sample_method
        self.pixel_method = pixel_method or model.about.pixel_method
        by_default = (
            model.about.detector if self.pixel_method == "learned" and model.about.detector else model.about
        )
        self.restorations = by_default.restorations if restorations is None else restorations
        if self.restorations == 0 and self.pixel_method != "learned":
            raise ModelError(f"expected at least one restoration for the method {self.pixel_method}, found 0")
        missing = [name for name in EVIDENCE if name not in model.about.rarity_tables]
        if missing and self.pixel_method == "rarity":
            raise ModelError(
                f"expected a calibrated model for the method rarity, found one without a table of "
                f"{missing[0]}; see mood-submission calibrate"
            )
        if "learned" in (self.pixel_method, self.sample_method) and model.detector is None:
            raise ModelError(
                "expected a model with a detector for the method learned, found one without; see "
                "mood-submission train detector"
            )

    def sample_score(self, volume: Volume) -> float:
        """How anomalous the volume is, 0 .. 1."""
        prepared = self.prepare(volume)
        with self.alone():
            return self.sample(self.complete_evidence(prepared, "sample"))

    def pixel_scores(self, volume: Volume) -> np.ndarray:
        """How anomalous each voxel is, 0 .. 1: (X, Y, Z) float32 in RAS order."""
        prepared = self.prepare(volume)
        with self.alone():
            scores = self.pixel(self.complete_evidence(prepared, "pixel"))
        return self.to_volume(prepared, scores)

    def findings(self, volume: Volume) -> list[Finding]:
        """The objects in a volume that stand out, the surest first. Raises ModelError for a model whose scores were not
        measured on healthy volumes."""
        prepared = self.prepare(volume)
        with self.alone():
            scored = self.score(self.complete_evidence(prepared, "pixel"), "pixel")
        assert scored.pixel is not None
        return self.find(prepared, scored, self.to_volume(prepared, scored.pixel)).findings

    def find(self, prepared: Prepared, scored: Scored, scores: np.ndarray) -> Found:
        """What stands out in a volume's scores (X, Y, Z). Raises ModelError for a model whose scores were not measured on
        healthy volumes."""
        self.check_findings()
        healthy = self.model.about.healthy_voxels[self.pixel_method]
        evidence = {name: self.to_volume(prepared, maps) for name, maps in scored.rare.items()}
        findings, mask = find(scores, prepared.spacing, prepared.grid, healthy, evidence=evidence)
        if scored.expected is None:
            return Found(findings, mask)
        low, high = (float(end) for end in (scored.expected.min(), scored.expected.max()))
        greys = (scored.expected - low) / max(high - low, 1e-9)
        return Found(findings, mask, self.to_volume(prepared, greys).clip(0, 1))

    def check_findings(self) -> None:
        """Raises ModelError where the model does not say what this predictor's scores mean."""
        if self.pixel_method not in self.model.about.healthy_voxels:
            raise ModelError(
                f"expected a model whose {self.pixel_method} scores were measured on healthy volumes, found one that "
                f"does not say what they mean; see mood-submission calibrate"
            )

    def prepare(self, volume: Volume) -> Prepared:
        """Raises VolumeError for slices so long and narrow that the square around them has more than MOST_PIXELS."""
        volume = volume if self.strip is None else self.strip(volume)
        preprocessing, shape = self.model.about.preprocessing, volume.data.shape
        self._check_frame(frame_of(shape, volume.spacing), volume.path)
        data, view = harmonise(volume.data, volume.spacing, preprocessing)
        self._check_frame(view.frame, volume.path)
        indices = view.indices(self.slice_count)
        slices = volume_to_slices(data, volume.spacing, indices, preprocessing, self.model.device, view)
        slices = normalise(slices, *intensity_statistics(data, preprocessing), preprocessing)
        return Prepared(
            slices,
            torch.from_numpy(view.positions(indices)),
            indices,
            shape,
            volume.spacing,
            volume.grid,
            volume.path,
            view,
            volume.notes,
        )

    @staticmethod
    def _check_frame(frame: Frame, path: Path) -> None:
        if frame.padded_height * frame.padded_width > MOST_PIXELS:
            raise VolumeError(
                f"{path}: expected a field of view of at most {MOST_PIXELS} pixels, found one of "
                f"{frame.padded_height} x {frame.padded_width}"
            )

    def compute(
        self, prepared: Prepared, task: str, remark: Callable[[str], object] = lambda line: None
    ) -> Scored:
        """What the networks make of a volume, for one of TASKS or BOTH.

        remark: called with a line where the volume looks unlike the scans that the weights know.
        """
        with self.alone():
            evidence = self.complete_evidence(prepared, task)
            scored = self.score(evidence, task)
            for line in self.remarks(evidence, prepared.path):
                remark(line)
            return scored

    def complete_evidence(self, prepared: Prepared, task: str) -> Evidence:
        """The evidence of a volume, with restorations where the task needs them; to be used within `alone`."""
        evidence = self.evidence(prepared)
        if task != "sample" and self.restorations:
            evidence = evidence.with_restorations(self.restore(prepared, evidence.codes))
        return evidence

    def remarks(self, evidence: Evidence, path: Path) -> list[str]:
        """A line that names the file where its codes or residuals are more unlikely all over than any healthy hold-out volume's."""
        strange = []
        for name, value in evidence.bulk().items():
            low, high = self.model.about.usual.get(name, (0.0, np.inf))
            if value > high + max(MARGIN * (high - low), LEAST_MARGIN * high):
                strange.append(f"{name} {value:.3g}, usual {low:.3g} .. {high:.3g}")
        if not strange:
            return []
        return [
            f"{path}: looks unlike the scans that these weights know ({'; '.join(strange)}): scores may be high everywhere"
        ]

    def score(self, evidence: Evidence, task: str) -> Scored:
        """The scores of evidence, for one of TASKS or BOTH."""
        if task == "sample":
            return Scored(self.sample(evidence))
        # the sample score is that of the sample task, which draws nothing
        sample = self.sample(evidence.without_restorations()) if task == BOTH else None
        scores = self.pixel(evidence)
        if not self.explain:
            return Scored(sample, scores)
        return Scored(sample, scores, self._rare(evidence), _expected(evidence))

    def _rare(self, evidence: Evidence) -> dict[str, Tensor]:
        """How rare each kind of evidence is, of those that were measured and are there."""
        tables = self.model.about.rarity_tables
        return {
            name: rarity(maps, tables[name]) for name, maps in evidence.smoothed.items() if name in tables
        }

    def sample(self, evidence: Evidence) -> float:
        """The sample score by this predictor's method, 0 .. 1."""
        return SAMPLE_WAYS[self.sample_method](evidence)

    def pixel(self, evidence: Evidence) -> Tensor:
        """The slices' scores by this predictor's method, (N, H, H), 0 .. 1."""
        return PIXEL_WAYS[self.pixel_method](evidence)

    def evidence(self, prepared: Prepared, restored_codes: Tensor | None = None) -> Evidence:
        """The evidence of a volume, of which nothing is computed yet."""
        return Evidence(self.model, prepared.slices, prepared.position, restored_codes)

    def alone(self) -> AbstractContextManager[None]:
        """A context in which results have the same bits for any number of threads."""
        return one_thread_each() if self.model.device.type == "cpu" else nullcontext()

    def restore(self, prepared: Prepared, codes: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Restored codes (N, S, h, w): restorations `first` .. `last` of all."""
        height, width = codes.shape[1:]
        uniforms = self.uniforms(seed_name(prepared.path), prepared.indices, (height, width))[:, first:last]
        return self.model.restore(codes, prepared.position, uniforms, self.model.about.pixel_threshold)

    def uniforms(self, name: str, indices: np.ndarray, grid: tuple[int, int]) -> Tensor:
        """(N, S, h, w) in [0, 1), made on the CPU so that they are the same for every device."""
        parts = []
        for index in indices:
            digest = hashlib.sha256(os.fsencode(f"{self.seed}/{name}/{index}")).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            parts.append(torch.rand(self.restorations, *grid, generator=generator))
        return torch.stack(parts)

    def to_volume(self, prepared: Prepared, scores: Tensor) -> np.ndarray:
        """Slices' scores (N, H, H) on the volume: (X, Y, Z) float32 in RAS order."""
        return slices_to_volume(
            scores, prepared.indices, prepared.shape, prepared.spacing, view=prepared.view
        )

    def predict_file(self, source: Path, task: str, out: Path) -> float | None:
        """Predict one file into the folder `out`: NAME.nii.gz for pixel scores, NAME.nii.gz.txt for the sample score (of other
        formats see `volumes.output_name`).

        Returns the sample score (None for the pixel task). Raises VolumeError where the file is no volume, OSError
        where `out` cannot be written to. For many files: `running.run_folder.predict_files`.
        """
        prepared = self.read(source)
        scored = self.compute(prepared, task)
        self.write(prepared, scored, out)
        return scored.sample

    def read(self, source: Path) -> Prepared:
        """A file, ready for the networks. Raises VolumeError where it is no volume."""
        return self.prepare(read_volume(source))

    def write(
        self,
        prepared: Prepared,
        scored: Scored,
        out: Path,
        found: Callable[[Path, Found, Grid], object] | None = None,
    ) -> float:
        """Write what was scored into the folder `out`. Returns the sample score, or else the highest voxel's.

        found: called with the volume's path, what stands out in it and its grid, where voxels were scored.
        """
        name = output_name(prepared.path)
        highest = 0.0
        if scored.pixel is not None:
            scores = self.to_volume(prepared, scored.pixel)
            write_volume(out / name, scores, prepared.grid)
            highest = float(scores.max())
            if found is not None:
                found(prepared.path, self.find(prepared, scored, scores), prepared.grid)
        if scored.sample is None:
            return highest
        with write_whole(out / f"{name}.txt") as file:
            file.write(f"{scored.sample:.9g}\n".encode())
        return scored.sample

    def on_cpu(self) -> "Predictor":
        """The same with the model on the CPU."""
        return Predictor(
            self.model.on_cpu(),
            self.slice_count,
            self.restorations,
            self.seed,
            self.sample_method,
            self.pixel_method,
            self.explain,
            self.strip,
        )


def _expected(evidence: Evidence) -> Tensor:
    """What would have been expected, (N, S, S), with the air round a brain, which is exactly 0, as dark as can be."""
    slices = evidence.slices
    restored = evidence.decoded if evidence.restored is None else evidence.restored
    expected = at_size(restored.to(slices), slices.shape[-2:])
    anatomy = slices != 0
    return torch.where(anatomy, expected, expected[anatomy].min()) if anatomy.any() else expected
