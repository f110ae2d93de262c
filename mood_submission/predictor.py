"""One volume to its scores: prepare -> evidence -> method -> scores. Files are read and written by `output.predictions`."""

import hashlib
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .about import ModelError
from .evidence.evidence import Evidence
from .evidence.rareness import rarity
from .evidence.suspected import blended, suspected_codes, suspected_places, thresholds_at
from .findings.objects import FALSE_BY_DEFAULT, Finding, outline_objects
from .methods.table import method_named
from .model import Model
from .networks.layers import at_size
from .preprocessing import (
    Frame,
    View,
    frame_of,
    harmonise,
    intensity_statistics,
    known_heights,
    normalise,
    slice_indices,
    slices_to_volume,
    volume_to_slices,
)
from .runtime.contract import BOTH
from .runtime.names import as_bytes
from .runtime.threads import one_thread_each
from .volumes import Grid, Source, Volume, VolumeError

# How many restorations of what stands out the expected picture is the mean of, where scores are made without any.
EXPECTED_RESTORATIONS = 4
# The most pixels of a slice's square field of view.
MOST_PIXELS = 1 << 26


@dataclass(frozen=True, eq=False)
class Prepared:
    """What scoring needs of a volume, in a tenth of its memory.

    slices: the network's input, (N, S, S) float32 on its device.
    position: (N, 1), -0.5 .. 0.5.
    indices: (N,), the slices' z.
    shape, spacing, grid, source: the volume's.
    notes: the volume's, and one where not all of it is scored, since the weights do not know so much of a body.
    view: how its slices were cut.
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
        """The volume's name in messages."""
        return self.source.path

    def with_slices(self, count: int) -> "Prepared":
        """The same volume with `count` of its slices, evenly spread."""
        chosen = slice_indices(len(self.indices), count)
        return replace(self, slices=self.slices[chosen], position=self.position[chosen], indices=self.indices[chosen])


@dataclass(frozen=True, eq=False)
class Scored:
    """A volume's scores.

    sample: how anomalous the volume is, 0 .. 1. None for the pixel task.
    pixel: the slices' scores (N, H, H), 0 .. 1, for `Predictor.to_volume`. None for the sample task.
    rare: by kind of evidence, how rare it is among healthy voxels, (N, H, H). Empty without `explain`.
    expected: what the networks would have expected to see, in their intensities, (N, S, S). It is the mean restoration. Where
        scores are made without restorations, only what stands out is restored. None without `explain`.
    """

    sample: float | None = None
    pixel: Tensor | None = None
    rare: dict[str, Tensor] = field(default_factory=dict)
    expected: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LabelledObjects:
    """The objects that stand out in a volume.

    findings: their descriptions, the surest first.
    mask: their numbers, (X, Y, Z) uint8 in RAS order, 0 elsewhere.
    expected: what the networks would have expected to see, (X, Y, Z) float32 in [0, 1]. None without `explain`.
    """

    findings: list[Finding]
    mask: np.ndarray
    expected: np.ndarray | None = None


class Predictor:
    """Scores volumes with a model.

    model: the networks.
    slice_count: how many slices of a volume are scored, evenly spaced, or "all". None for the model's own distance in mm, or
        for all where it has none. The published method takes 32.
    restorations: how many of each slice. None for the model file's number (published: 15). 0 is much faster, but some pixel
        methods need restorations.
    seed: of the random numbers. Each slice has its own, from the seed, the file's name and the slice's index. So a volume's
        scores do not depend on what else is in the folder.
    sample_method, pixel_method: names of methods (`methods.table`). None for the model file's.
    explain: whether scores come with the rarity of each kind of evidence and the expected slices, for findings.
    strip: removes the skull of a volume before all else (see `running.skull_strip`). None to take volumes as they are.
    Raises ModelError for unknown methods, for methods that need what the model lacks, and for a pixel method that needs
        restorations where none are to be drawn.

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
        self.restorations = self.pixel_method.restorations(model.about) if restorations is None else restorations
        if self.restorations == 0 and self.pixel_method.needs_restorations:
            raise ModelError(f"expected at least one restoration for the method {self.pixel_method.name}, found 0")

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
        """The objects that stand out in a volume, outlined and numbered.

        prepared: the volume.
        scored: its scores, as `compute` gives them.
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
        """Raises ModelError for a model whose scores were not measured on healthy volumes by this pixel method."""
        if self.pixel_method.name not in self.model.about.healthy_voxels:
            raise ModelError(
                f"expected a model whose {self.pixel_method.name} scores were measured on healthy volumes, found one that "
                f"does not say what they mean; see mood-submission calibrate"
            )

    def prepare(self, volume: Volume) -> Prepared:
        """The volume's slices as the networks take them.

        Raises VolumeError where the square field of view has more than MOST_PIXELS, as for very long and narrow slices.
        """
        volume = volume if self.strip is None else self.strip(volume)
        preprocessing, shape = self.model.about.preprocessing, volume.data.shape
        self._check_frame(frame_of(shape, volume.spacing), volume.path)
        data, view = harmonise(volume.data, volume.spacing, preprocessing)
        self._check_frame(view.frame, volume.path)
        view, notes = self._known_part(volume, data, view)
        indices = view.indices(self.slice_count)
        slices = volume_to_slices(data, volume.spacing, indices, preprocessing, device=self.model.device, view=view)
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
            notes=(*volume.notes, *notes),
        )

    def _known_part(self, volume: Volume, data: np.ndarray, view: View) -> tuple[View, tuple[str, ...]]:
        """The view of the part of the volume that shows what the weights have seen of a body, and a note where it is not all.

        data, view: as `harmonise` gives them. All is known to a model that does not tell levels.
        """
        level, prep, apart = self.model.about.level, self.model.about.preprocessing, volume.spacing[2]
        # What is no body, or has no true distance of slices, has no level.
        if level is None or view.tone is None or not 0 < apart < math.inf:
            return view, ()
        indices, small = view.indices(), replace(prep, image_size=level.size)
        levels = self.model.levels(volume_to_slices(data, volume.spacing, indices, small, view=view))
        low, high = known_heights(levels.double().numpy(), indices * apart, level.low, level.high)
        first = view.first if low is None else max(view.first, math.ceil(low / apart))
        last = view.end - 1 if high is None else min(view.end - 1, math.floor(high / apart))
        if (first, last) == (view.first, view.end - 1):
            return view, ()
        note = (
            f"{volume.path}: shows more of a body than these weights have seen: slices {first} to {last} of "
            f"{volume.data.shape[2]}, counted from the feet, are scored, all others get 0"
        )
        warnings.warn(note, stacklevel=2)
        return replace(view, first=first, last=last), (note,)

    @staticmethod
    def _check_frame(frame: Frame, path: Path) -> None:
        if frame.padded_height * frame.padded_width > MOST_PIXELS:
            raise VolumeError(
                f"{path}: expected a field of view of at most {MOST_PIXELS} pixels, found one of "
                f"{frame.padded_height} x {frame.padded_width}"
            )

    def compute(self, prepared: Prepared, task: str, remark: Callable[[str], object] = lambda line: None) -> Scored:
        """A volume's scores.

        prepared: the volume, as `prepare` gives it.
        task: one of TASKS or BOTH.
        remark: is called with a line where the volume looks unlike the scans that the weights know.
        """
        with self.same_bits_for_any_threads():
            evidence = self.complete_evidence(prepared, task)
            scored = self.score(evidence, task)
            if scored.expected is not None and scored.pixel is not None and evidence.restored is None:
                scored = replace(scored, expected=self.restore_what_stands_out(prepared, evidence, scored.pixel))
            for line in self.remarks(evidence, prepared.path):
                remark(line)
            return scored

    def complete_evidence(self, prepared: Prepared, task: str) -> Evidence:
        """The evidence of a volume, with restorations where the task needs them.

        Call this within `same_bits_for_any_threads`.
        """
        evidence = self.evidence(prepared)
        if self.restorations_for(task):
            evidence = evidence.with_restorations(self.restore(prepared, evidence.codes))
        return evidence

    def restorations_for(self, task: str) -> int:
        """How many restorations of each slice a task needs. Sample scores and some pixel methods need none.

        task: one of TASKS or BOTH.
        """
        if task == "sample" or not (self.explain or "pixel" in self.pixel_method.reads_restorations):
            return 0
        return self.restorations

    def remarks(self, evidence: Evidence, path: Path) -> list[str]:
        """A line where the whole volume differs from all healthy hold-out volumes, see `Evidence.strangeness`.

        path: the volume's name in the line.
        Returns no line where the model file does not say what is usual.
        """
        usual = evidence.about.usual
        strange = [
            f"{kind} {value:.3g}, usual {usual[kind][0]:.3g} .. {usual[kind][1]:.3g}"
            for kind, (value, _) in evidence.strangeness.items()
        ]
        if not strange:
            return []
        return [
            f"{path}: looks unlike the scans that these weights know ({'; '.join(strange)}): scores may be high everywhere"
        ]

    def score(self, evidence: Evidence, task: str) -> Scored:
        """Scores from evidence. task: one of TASKS or BOTH."""
        if task == "sample":
            return Scored(self.sample(evidence))
        # It is the sample task's score, which has no restorations.
        sample = self.sample(evidence.without_restorations()) if task == BOTH else None
        scores = self.pixel(evidence)
        if not self.explain:
            return Scored(sample, scores)
        restored = evidence.decoded if evidence.restored is None else evidence.restored
        return Scored(sample, scores, self._rare(evidence), _expected(evidence.slices, restored))

    def _rare(self, evidence: Evidence) -> dict[str, Tensor]:
        """How rare the evidence is, for each kind that is there and was measured on healthy volumes."""
        tables = self.model.about.rarity_tables
        return {name: rarity(maps, tables[name]) for name, maps in evidence.smoothed.items() if name in tables}

    def sample(self, evidence: Evidence) -> float:
        """The sample score by this predictor's method, 0 .. 1."""
        return self.sample_method.sample(evidence)

    def pixel(self, evidence: Evidence) -> Tensor:
        """The slices' scores by this predictor's method, (N, H, H), 0 .. 1."""
        return self.pixel_method.pixel(evidence)

    def evidence(self, prepared: Prepared, restored_codes: Tensor | None = None) -> Evidence:
        """The evidence of a volume, before anything is computed."""
        return Evidence(self.model, prepared.slices, prepared.position, restored_codes)

    def same_bits_for_any_threads(self) -> AbstractContextManager[None]:
        """While this context is open, results have the same bits for any number of threads."""
        return one_thread_each() if self.model.device.type == "cpu" else nullcontext()

    def restore(
        self,
        prepared: Prepared,
        codes: Tensor,
        which: slice = slice(None),
        threshold: float | Tensor | None = None,
    ) -> Tensor:
        """Restored codes (N, S, h, w).

        prepared: the volume. Random numbers depend on its file's name and its slices.
        codes: its slices' codes, (N, h, w) int64.
        which: the restorations to draw, out of all.
        threshold: codes with a higher NLL, in nats, are replaced. One number, or (N,). None for the model's own.
        """
        threshold = self.model.about.pixel_threshold if threshold is None else threshold
        uniforms = self.uniforms_of(prepared, codes)[:, which]
        return self.model.restore(codes, prepared.position, uniforms, threshold)

    def restore_what_stands_out(self, prepared: Prepared, evidence: Evidence, scores: Tensor) -> Tensor:
        """What the networks would have expected to see, (N, S, S): the mean of restorations of the places that stand out.

        Everywhere else it is the reconstruction, also where the model file does not say what scores mean. What stands out scores
        as high as findings do by default.
        prepared: the volume.
        evidence: its evidence, without restorations.
        scores: its pixel scores, (N, H, H).
        """
        healthy = self.model.about.healthy_voxels.get(self.pixel_method.name)
        threshold = np.inf
        if healthy is not None:
            threshold = healthy.threshold(FALSE_BY_DEFAULT)
            # Only then is it another in this volume, whose scores on all voxels take memory.
            if healthy.ordinary is not None:
                threshold = healthy.threshold_in(self.to_volume(prepared, scores), FALSE_BY_DEFAULT)
        suspected = suspected_places(scores, threshold)
        chosen = suspected.flatten(1).any(1).nonzero()[:, 0]
        restored = evidence.decoded.clone()
        if len(chosen):
            codes = evidence.codes[chosen.to(evidence.codes.device)]
            grid = (codes.shape[1], codes.shape[2])
            where = suspected_codes(suspected[chosen], grid)
            thresholds = thresholds_at(where, self.model.about.pixel_threshold)
            name, indices = prepared.source.seed_name, prepared.indices[chosen.numpy()]
            uniforms = self.uniforms(name, indices, grid, EXPECTED_RESTORATIONS)
            position = prepared.position[chosen]
            drawn = self.model.restore(codes, position, uniforms, thresholds)
            mean = Evidence(self.model, prepared.slices[chosen], position, drawn).restored
            assert mean is not None
            at = chosen.to(restored.device)
            restored[at] = blended(mean.to(restored), restored[at], where.to(restored.device))
        return _expected(evidence.slices, restored)

    def uniforms_of(self, prepared: Prepared, codes: Tensor) -> Tensor:
        """Random numbers for a volume's restorations, (N, S, h, w) in [0, 1). codes: (N, h, w)."""
        height, width = codes.shape[1:]
        return self.uniforms(prepared.source.seed_name, prepared.indices, (height, width))

    def uniforms(
        self, name: str, indices: np.ndarray, grid: tuple[int, int], restorations: int | None = None
    ) -> Tensor:
        """Random numbers for restorations, (N, S, h, w) in [0, 1). They come from the CPU, so every device has the same.

        name: the volume's.
        indices: (N,), its slices' z.
        grid: height and width of a slice's codes.
        restorations: of each slice. None for the predictor's own number.
        """
        count = self.restorations if restorations is None else restorations
        parts = []
        for index in indices:
            digest = hashlib.sha256(as_bytes(f"{self.seed}/{name}/{index}")).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            parts.append(torch.rand(count, *grid, generator=generator))
        return torch.stack(parts)

    def to_volume(self, prepared: Prepared, scores: Tensor) -> np.ndarray:
        """Slices' scores (N, H, H) on the volume's voxels: (X, Y, Z) float32 in RAS order."""
        return slices_to_volume(scores, prepared.indices, prepared.shape, prepared.spacing, view=prepared.view)

    def on_cpu(self) -> "Predictor":
        """The same predictor with the model on the CPU."""
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


def _expected(slices: Tensor, restored: Tensor) -> Tensor:
    """What was restored, at the slices' size: (N, S, S). Air, which is exactly 0 in slices, gets the darkest value."""
    expected = at_size(restored.to(slices), slices.shape[-2:])
    anatomy = slices != 0
    return torch.where(anatomy, expected, expected[anatomy].min()) if anatomy.any() else expected
