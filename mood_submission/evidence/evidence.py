"""The pipeline from a volume's slices to evidence of anomalies."""

import copy
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..about import About
from ..model import Model
from .normalised import NormalisedEvidence, usual_nll, usual_residual, volume_logits
from .restorations import weighted_difference
from .smoothing import smooth_evidence, smooth_logits
from .strangeness import coarse_look, distance_from, excess

# How many slices' restorations are decoded at a time. Those of all slices would take much memory.
CHUNK = 8
# The kinds of `Evidence.usual_values`.
USUAL = ("likelihood", "likelihood_spread", "residual", "look")


class _WithoutRestorations:
    """What restorations do not change. Evidence with other restorations of the same slices shares it."""

    def __init__(self, model: Model, given: Tensor, position: Tensor, about: About):
        self.model, self.given, self.position, self.about = model, given, position, about

    @cached_property
    def slices(self) -> Tensor:
        return self.given.to(self.model.device)

    @cached_property
    def codes(self) -> Tensor:
        return self.model.encode(self.given, self.position)

    @cached_property
    def nll(self) -> Tensor:
        return self.model.nll(self.codes, self.position)

    @cached_property
    def decoded(self) -> Tensor:
        return self.model.decode(self.codes, self.position)

    @cached_property
    def smoothed(self) -> dict[str, Tensor]:
        residual = (self.slices.to(self.decoded) - self.decoded).abs()
        return {
            "reconstruction": self.smooth("reconstruction", residual),
            "likelihood": self.smooth("likelihood", self.nll),
        }

    @cached_property
    def logits(self) -> Tensor:
        return self.detect(self.decoded)

    def with_ranges(self, about: About) -> "_WithoutRestorations":
        """The same, with the logits to be computed anew: what is usual bounds what the detector reads."""
        other = copy.copy(self)
        other.__dict__.pop("logits", None)
        other.about = about
        return other

    def smooth(self, kind: str, maps: Tensor) -> Tensor:
        """Maps (N, H, H) of one kind of evidence, smoothed, on a grid half as fine as the slices."""
        return smooth_evidence(kind, maps.float(), max(1, self.model.about.preprocessing.image_size // 2))

    def detect(self, restored: Tensor) -> Tensor:
        """The detector's smoothed logits, with these mean restorations (N, S', S')."""
        maps = (self.model.here(x) for x in (self.given, self.decoded, restored, self.nll, self.position))
        detector = self.model.detector
        mirror = detector is not None and detector.settings.mirror
        evidence = NormalisedEvidence.of(*maps, ranges=self.about.usual, mirror=mirror)
        logits = volume_logits(self.model, evidence)
        # Without a detector `volume_logits` has raised.
        assert detector is not None
        return smooth_logits(logits.float(), detector.settings)


class Evidence:
    """What the networks compute from a volume's slices. Each property is computed once, when it is first read.

    model: the networks.
    slices: (N, S, S) in the network's intensities, in order.
    position: (N, 1), -0.5 .. 0.5.
    restored_codes: (N, R, h, w) int64, R restorations of each slice; None where none were drawn.

    >>> import torch
    >>> from mood_submission import load_model
    >>> evidence = Evidence(load_model("brain", "cpu"), torch.zeros(2, 160, 160), torch.zeros(2, 1))
    >>> evidence.codes.shape, evidence.decoded.shape
    (torch.Size([2, 20, 20]), torch.Size([2, 160, 160]))
    >>> evidence.restored is None
    True
    >>> unchanged = evidence.with_restorations(evidence.codes[:, None].repeat(1, 2, 1, 1))
    >>> torch.equal(unchanged.restored, evidence.decoded)
    True
    """

    def __init__(self, model: Model, slices: Tensor, position: Tensor, restored_codes: Tensor | None = None):
        self._shared = _WithoutRestorations(model, slices, position, model.about)
        self.about: About = model.about
        self.restored_codes = restored_codes

    def with_restorations(self, restored_codes: Tensor) -> "Evidence":
        """The same slices with these restorations. What restorations do not change is shared.

        restored_codes: (N, R, h, w) int64.
        """
        return self._with_codes(restored_codes)

    def without_restorations(self) -> "Evidence":
        """The same slices as if no restorations were drawn."""
        return self if self.restored_codes is None else self._with_codes(None)

    def _with_codes(self, restored_codes: Tensor | None) -> "Evidence":
        other = Evidence(self.model, self._shared.given, self.position, restored_codes)
        other._shared, other.about = self._shared, self.about
        return other

    def with_calibration(self, about: About) -> "Evidence":
        """The same evidence for a model with another calibration. What is computed already stays.

        about: the model's description with the other calibration.
        Raises ValueError where `about` has other preprocessing, another temperature or another detector, since these decide
        what is computed.
        """
        for name in ("preprocessing", "temperature", "detector"):
            if getattr(about, name) != getattr(self.about, name):
                raise ValueError(f"expected a description that differs in its calibration, found another {name}")
        other = copy.copy(self)
        other.about = about
        # What is strange, and what the detector reads, depends on what is usual.
        other.__dict__.pop("strangeness", None)
        if about.usual != self.about.usual:
            other._shared = self._shared.with_ranges(about)
            other.__dict__.pop("logits", None)
        return other

    @property
    def model(self) -> Model:
        """The networks."""
        return self._shared.model

    @property
    def position(self) -> Tensor:
        """Relative positions of the slices, (N, 1), -0.5 .. 0.5."""
        return self._shared.position

    @property
    def slices(self) -> Tensor:
        """The slices, (N, S, S), on the model's device."""
        return self._shared.slices

    @property
    def codes(self) -> Tensor:
        """The slices' codes, (N, h, w) int64."""
        return self._shared.codes

    @property
    def nll(self) -> Tensor:
        """NLL of each code in nats, (N, h, w)."""
        return self._shared.nll

    @property
    def decoded(self) -> Tensor:
        """The slices' reconstructions, decoded from their codes, (N, S', S')."""
        return self._shared.decoded

    @property
    def weighted_difference(self) -> Tensor:
        """|slice - restoration| averaged over the restorations, near ones weighing more, (N, S', S').

        Raises ValueError without restorations.
        """
        return self._compared[0]

    @property
    def restored(self) -> Tensor | None:
        """The mean of each slice's restorations, (N, S', S'); None where none were drawn."""
        return None if self.restored_codes is None else self._compared[1]

    def decode_restorations(self) -> None:
        """Decode the restorations and compare them with the slices now, so that the time for it can be measured."""
        self._compared  # noqa: B018

    @cached_property
    def _compared(self) -> tuple[Tensor, Tensor]:
        """`weighted_difference`, and the mean restorations. Equal restorations of a slice are decoded once."""
        if self.restored_codes is None:
            raise ValueError("expected restorations, found none")
        parts = []
        for chunk in torch.arange(len(self.restored_codes)).split(CHUNK):
            codes, position = self.restored_codes[chunk], self.position[chunk]
            owner = torch.arange(len(chunk), device=codes.device)[:, None].expand(codes.shape[:2])
            # (n * R, 1 + h * w): the slice's number, then its codes.
            rows = torch.cat([owner[..., None], codes.flatten(2)], dim=2).flatten(0, 1)
            unique, back = torch.unique(rows, dim=0, return_inverse=True)
            position = position.to(codes.device)[unique[:, 0]]
            decoded = self.model.decode(unique[:, 1:].unflatten(1, codes.shape[2:]), position)
            # (n, R, S', S').
            restorations = decoded[back].unflatten(0, codes.shape[:2])
            slices = self._shared.given[chunk].to(decoded)
            difference = weighted_difference(slices, restorations, self.about.temperature)
            parts.append(torch.stack([difference, restorations.mean(1)]).float())
        difference, mean = torch.cat(parts, dim=1)
        return difference, mean

    @property
    def look(self) -> np.ndarray:
        """How the volume looks at a coarse scale, see `strangeness.coarse_look`."""
        return coarse_look(self.slices, self.position)

    def usual_values(self, kinds: Iterable[str] = USUAL) -> dict[str, float]:
        """Values of the whole volume, by kind. A small anomaly hardly moves them; a strange scan does.

        kinds: any of USUAL. "likelihood" is the median NLL of the anatomy in nats, "likelihood_spread" how far its 90th
            percentile lies above that. "residual" is the 75th percentile of |slice - reconstruction|. "look" is how far the
            volume looks from healthy ones at a coarse scale, in standard deviations; 0 where the model does not say how those
            look.
        """
        compute = {
            "likelihood": lambda: usual_nll(self.slices, self.nll)[0],
            "likelihood_spread": lambda: float(np.diff(usual_nll(self.slices, self.nll))[0]),
            "residual": lambda: usual_residual(self.slices, self.decoded),
            "look": lambda: distance_from(self.look, self.about.typical) if self.about.typical else 0.0,
        }
        return {kind: compute[kind]() for kind in kinds}

    @cached_property
    def strangeness(self) -> dict[str, tuple[float, float]]:
        """The values of the whole volume that healthy volumes do not have, by kind: (value, how far beyond the limits).

        The second is in widths between the limits, see `strangeness.excess`. It is empty for a volume like the healthy ones, and
        where the model file does not say what is usual.
        """
        usual = self.about.usual
        values = self.usual_values([kind for kind in USUAL if kind in usual])
        # No volume is too much like healthy ones.
        beyond = {kind: (value, excess(value, usual[kind], one_sided=kind == "look")) for kind, value in values.items()}
        return {kind: found for kind, found in beyond.items() if found[1] > 0}

    @cached_property
    def smoothed(self) -> dict[str, Tensor]:
        """Evidence by kind (`rareness.EVIDENCE`), smoothed in 3D: (N, H, H) each, on a grid half as fine as the slices.

        Without restorations, the kind "restoration" is missing.
        """
        if self.restored is None:
            return self._shared.smoothed
        slices = self.slices.to(self.decoded)
        difference = (slices - self.restored.to(slices)).abs()
        return self._shared.smoothed | {"restoration": self._shared.smooth("restoration", difference)}

    @cached_property
    def logits(self) -> Tensor:
        """The detector's logits, smoothed in 3D: (N, S, S).

        Without restorations, the detector reads reconstructions in their place. Raises ModelError for a model without a detector.
        """
        return self._shared.logits if self.restored is None else self._shared.detect(self.restored)
