"""One volume to its scores: prepare -> evidence -> method -> scores. Files are read and written by `output.predictions`."""

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .about import ModelError
from .evidence.evidence import USUAL, Evidence
from .evidence.rareness import rarity
from .findings.objects import Finding, outline_objects
from .methods.table import method_named
from .model import Model
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
from .runtime.threads import one_thread_each
from .volumes import Grid, Source, Volume, VolumeError

# A scan looks strange where a usual value is higher than any healthy hold-out volume's by more than MARGIN of the healthy
# volumes' range, and by more than LEAST_MARGIN of their highest value.
MARGIN, LEAST_MARGIN = 0.5, 0.05
# The most pixels of a slice's square field of view.
MOST_PIXELS = 1 << 26


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that is needed of a volume, a tenth of its size.

    slices: as the network takes them, (N, S, S) float32 on its device.
    position: (N, 1), -0.5 .. 0.5.
    indices: (N,) along z.
    shape, spacing, grid, source, notes: the volume's.
    view: how it was looked at.
    """

    slices: Tensor
    position: Tensor
    indices: np.ndarray
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    grid: Grid
    source: Source
    view: View
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """What names the volume in messages."""
        return self.source.path

    def with_slices(self, count: int) -> "Prepared":
        """The same volume with `count` of its slices, evenly spread."""
        chosen = slice_indices(len(self.indices), count)
        return replace(
            self, slices=self.slices[chosen], position=self.position[chosen], indices=self.indices[chosen]
        )


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of a volume, of the tasks that were asked for.

    sample: how anomalous the volume is, 0 .. 1.
    pixel: the slices' scores (N, H, H), 0 .. 1, for `Predictor.to_volume`.
    rare: by kind of evidence, how rare it is among healthy voxels (N, H, H). Empty of a predictor that is not to `explain`.
    expected: what the networks would have expected to see, in their intensities (N, S, S): the mean restoration, or the
        reconstruction where none were drawn. None of a predictor that is not to `explain`.
    """

    sample: float | None = None
    pixel: Tensor | None = None
    rare: dict[str, Tensor] = field(default_factory=dict)
    expected: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LabelledObjects:
    """What stands out in a volume.

    findings: the surest first.
    mask: their numbers, (X, Y, Z) uint8, RAS order.
    expected: what would have been expected, as grey values in [0, 1], (X, Y, Z) float32; None of a predictor that is not to
        `explain`.
    """

    findings: list[Finding]
    mask: np.ndarray
    expected: np.ndarray | None = None


class Predictor:
    """Scores volumes with a model.

    model: the networks.
    slice_count: how many slices of a volume are looked at, evenly spaced, or "all". None for one every few mm, as the model's
        preprocessing says, or for all where that says nothing. The published method takes 32.
    restorations: how many of a slice. None for what the model file says (published 15). 0 draws nothing, which takes a small
        part of the time; only some pixel methods need none.
    seed: of the restorations' draws. Each slice has its own, made of the seed, the file's name and the slice's index,
        so a volume's scores do not depend on what else is in the folder.
    sample_method, pixel_method: names of methods (`methods.table`). None for what the model file says.
    explain: whether pixel scores come with how rare each kind of evidence is, for findings to tell.
    strip: from a volume to the same without its skull, before all else (see `running.skull_strip`). None to take volumes as
        they are.
    Raises ModelError for methods that are not known, or that the model or the number of restorations lacks something for.

    >>> import nibabel, numpy
    >>> from mood_submission import load_model
    >>> from mood_submission.volumes import read_volume
    >>> noise = numpy.random.default_rng(0).random((40, 40, 20), numpy.float32)
    >>> nibabel.save(nibabel.Nifti1Image(noise, numpy.diag([4, 4, 4, 1])), "noise.nii.gz")
    >>> volume = read_volume("noise.nii.gz")
    >>> predictor = Predictor(load_model("brain", "cpu"), slice_count=2)
    >>> 0 <= predictor.sample_score(volume) <= 1
    True
    >>> predictor.pixel_scores(volume).shape
    (40, 40, 20)
    """

    def __init__(
        self,
        model: Model,
        slice_count: int | str | None = None,
        restorations: int | None = None,
        *,
        seed: int = 0,
        sample_method: str | None = None,
        pixel_method: str | None = None,
        explain: bool = False,
        strip: Callable[[Volume], Volume] | None = None,
    ):
        self.model, self.slice_count, self.seed = model, slice_count, seed
        self.explain, self.strip = explain, strip
        self.sample_method = method_named(sample_method or model.about.sample_method, "sample")
        self.pixel_method = method_named(pixel_method or model.about.pixel_method, "pixel")
        for method in (self.sample_method, self.pixel_method):
            method.check(model.about)
        self.restorations = (
            self.pixel_method.restorations(model.about) if restorations is None else restorations
        )
        if self.restorations == 0 and self.pixel_method.needs_restorations:
            raise ModelError(
                f"expected at least one restoration for the method {self.pixel_method.name}, found 0"
            )

    def sample_score(self, volume: Volume) -> float:
        """How anomalous the volume is, 0 .. 1."""
        prepared = self.prepare(volume)
        with self.same_bits_for_any_threads():
            return self.sample(self.complete_evidence(prepared, "sample"))

    def pixel_scores(self, volume: Volume) -> np.ndarray:
        """How anomalous each voxel is, 0 .. 1: (X, Y, Z) float32 in RAS order."""
        prepared = self.prepare(volume)
        with self.same_bits_for_any_threads():
            scores = self.pixel(self.complete_evidence(prepared, "pixel"))
        return self.to_volume(prepared, scores)

    def findings(self, volume: Volume) -> list[Finding]:
        """The objects in a volume that stand out, the surest first.

        Raises ModelError for a model whose scores were not measured on healthy volumes.
        """
        prepared = self.prepare(volume)
        with self.same_bits_for_any_threads():
            scored = self.score(self.complete_evidence(prepared, "pixel"), "pixel")
        assert scored.pixel is not None
        return self.outline(prepared, scored, self.to_volume(prepared, scored.pixel)).findings

    def outline(self, prepared: Prepared, scored: Scored, scores: np.ndarray) -> LabelledObjects:
        """What stands out in a volume.

        prepared, scored: the volume, and what `compute` made of it.
        scores: its pixel scores (X, Y, Z), as `to_volume` gives them.
        Raises ModelError for a model whose scores were not measured on healthy volumes.
        """
        self.check_findings()
        healthy = self.model.about.healthy_voxels[self.pixel_method.name]
        evidence = {name: self.to_volume(prepared, maps) for name, maps in scored.rare.items()}
        findings, mask = outline_objects(scores, prepared.spacing, prepared.grid, healthy, evidence=evidence)
        if scored.expected is None:
            return LabelledObjects(findings, mask)
        low, high = (float(end) for end in (scored.expected.min(), scored.expected.max()))
        greys = (scored.expected - low) / max(high - low, 1e-9)
        return LabelledObjects(findings, mask, self.to_volume(prepared, greys).clip(0, 1))

    def check_findings(self) -> None:
        """Raises ModelError where the model does not say what this predictor's scores mean."""
        if self.pixel_method.name not in self.model.about.healthy_voxels:
            raise ModelError(
                f"expected a model whose {self.pixel_method.name} scores were measured on healthy volumes, found one that "
                f"does not say what they mean; see mood-submission calibrate"
            )

    def prepare(self, volume: Volume) -> Prepared:
        """The volume's slices as the networks take them.

        Raises VolumeError for slices so long and narrow that the square around them has more than MOST_PIXELS.
        """
        volume = volume if self.strip is None else self.strip(volume)
        preprocessing, shape = self.model.about.preprocessing, volume.data.shape
        self._check_frame(frame_of(shape, volume.spacing), volume.path)
        data, view = harmonise(volume.data, volume.spacing, preprocessing)
        self._check_frame(view.frame, volume.path)
        indices = view.indices(self.slice_count)
        slices = volume_to_slices(
            data, volume.spacing, indices, preprocessing, device=self.model.device, view=view
        )
        slices = normalise(slices, *intensity_statistics(data, preprocessing), preprocessing)
        return Prepared(
            slices=slices,
            position=torch.from_numpy(view.positions(indices)),
            indices=indices,
            shape=shape,
            spacing=volume.spacing,
            grid=volume.grid,
            source=volume.source,
            view=view,
            notes=volume.notes,
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
        """A volume's scores.

        prepared: what `prepare` gives.
        task: one of TASKS or BOTH.
        remark: called with a line where the volume looks unlike the scans that the weights know.
        """
        with self.same_bits_for_any_threads():
            evidence = self.complete_evidence(prepared, task)
            scored = self.score(evidence, task)
            for line in self.remarks(evidence, prepared.path):
                remark(line)
            return scored

    def complete_evidence(self, prepared: Prepared, task: str) -> Evidence:
        """The evidence of a volume, with restorations where the task has some.

        To be used within `same_bits_for_any_threads`.
        """
        evidence = self.evidence(prepared)
        if self.restorations_for(task):
            evidence = evidence.with_restorations(self.restore(prepared, evidence.codes))
        return evidence

    def restorations_for(self, task: str) -> int:
        """How many restorations of a slice are drawn for one of TASKS or BOTH: none for sample scores, nor for pixel scores
        that do not look at them."""
        if task == "sample" or not (self.explain or "pixel" in self.pixel_method.reads_restorations):
            return 0
        return self.restorations

    def remarks(self, evidence: Evidence, path: Path) -> list[str]:
        """A line where a volume's codes or residuals are more unlikely all over than any healthy hold-out volume's.

        The line names `path`. There is none where the model does not say what is usual.
        """
        strange, usual = [], self.model.about.usual
        for kind, value in evidence.usual_values([kind for kind in USUAL if kind in usual]).items():
            low, high = usual[kind]
            if value > high + max(MARGIN * (high - low), LEAST_MARGIN * high):
                strange.append(f"{kind} {value:.3g}, usual {low:.3g} .. {high:.3g}")
        if not strange:
            return []
        return [
            f"{path}: looks unlike the scans that these weights know ({'; '.join(strange)}): scores may be high everywhere"
        ]

    def score(self, evidence: Evidence, task: str) -> Scored:
        """The scores of evidence, for one of TASKS or BOTH."""
        if task == "sample":
            return Scored(self.sample(evidence))
        # The sample score is that of the sample task, which draws nothing.
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
        return self.sample_method.sample(evidence)

    def pixel(self, evidence: Evidence) -> Tensor:
        """The slices' scores by this predictor's method, (N, H, H), 0 .. 1."""
        return self.pixel_method.pixel(evidence)

    def evidence(self, prepared: Prepared, restored_codes: Tensor | None = None) -> Evidence:
        """The evidence of a volume, of which nothing is computed yet."""
        return Evidence(self.model, prepared.slices, prepared.position, restored_codes)

    def same_bits_for_any_threads(self) -> AbstractContextManager[None]:
        """A context in which results have the same bits for any number of threads."""
        return one_thread_each() if self.model.device.type == "cpu" else nullcontext()

    def restore(
        self,
        prepared: Prepared,
        codes: Tensor,
        which: slice = slice(None),
        threshold: float | Tensor | None = None,
    ) -> Tensor:
        """Restored codes (N, S, h, w).

        prepared: the volume, whose file's name and slices the draws depend on.
        codes: (N, h, w) int64, of its slices.
        which: the restorations to draw, of all.
        threshold: codes with a higher NLL are drawn anew, in nats: one number, or (N,). None for the model's own.
        """
        threshold = self.model.about.pixel_threshold if threshold is None else threshold
        uniforms = self.uniforms_of(prepared, codes)[:, which]
        return self.model.restore(codes, prepared.position, uniforms, threshold)

    def uniforms_of(self, prepared: Prepared, codes: Tensor) -> Tensor:
        """The numbers that a volume's restorations are drawn with: (N, S, h, w) in [0, 1), for codes (N, h, w)."""
        height, width = codes.shape[1:]
        return self.uniforms(prepared.source.seed_name, prepared.indices, (height, width))

    def uniforms(self, name: str, indices: np.ndarray, grid: tuple[int, int]) -> Tensor:
        """Numbers to draw with, made on the CPU so that they are the same for every device.

        name: of the volume.
        indices: (N,), of its slices along z.
        grid: height and width of a slice's codes.
        Returns (N, S, h, w) in [0, 1).
        """
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

    def on_cpu(self) -> "Predictor":
        """The same with the model on the CPU."""
        return Predictor(
            self.model.on_cpu(),
            self.slice_count,
            self.restorations,
            seed=self.seed,
            sample_method=self.sample_method.name,
            pixel_method=self.pixel_method.name,
            explain=self.explain,
            strip=self.strip,
        )


def _expected(evidence: Evidence) -> Tensor:
    """What would have been expected, (N, S, S), with the air round a brain, which is exactly 0, as dark as can be."""
    slices = evidence.slices
    restored = evidence.decoded if evidence.restored is None else evidence.restored
    expected = at_size(restored.to(slices), slices.shape[-2:])
    anatomy = slices != 0
    return torch.where(anatomy, expected, expected[anatomy].min()) if anatomy.any() else expected
