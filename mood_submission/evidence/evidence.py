"""What the networks make of a volume's slices: the pipeline from slices to evidence, once."""

from functools import cached_property

import torch
from torch import Tensor

from ..methods.learned import smooth_logits
from ..methods.paper import pixel_score
from ..methods.rarity import smooth_evidence
from ..model import Model
from ..model_file import About
from .normalised import usual_nll, usual_residual, volume_logits

CHUNK = 8  # slices whose restorations are decoded at a time: those of all would be large

UNDRAWN = ("slices", "codes", "nll", "decoded")  # parts that restorations do not change


class Evidence:
    """What the networks make of slices: each part is computed when it is first asked for, and once.

    slices: (N, S, S) in the network's intensities, in order. position: (N, 1).
    restored_codes: (N, R, h, w), R restorations of each slice; None where none were drawn.
    """

    def __init__(self, model: Model, slices: Tensor, position: Tensor, restored_codes: Tensor | None = None):
        self.model, self.position, self.restored_codes = model, position, restored_codes
        self._slices = slices

    def with_restorations(self, restored_codes: Tensor | None) -> "Evidence":
        """The same slices with these restorations (N, R, h, w), or with none; what is computed already is not computed again."""
        other = Evidence(self.model, self._slices, self.position, restored_codes)
        other.__dict__ |= {name: self.__dict__[name] for name in UNDRAWN if name in self.__dict__}
        return other

    def without_restorations(self) -> "Evidence":
        """The same slices as if no restorations were drawn."""
        return self.with_restorations(None)

    @property
    def about(self) -> About:
        """The model's description: thresholds, calibration, sizes."""
        return self.model.about

    @cached_property
    def slices(self) -> Tensor:
        """(N, S, S) on the model's device."""
        return self._slices.to(self.model.device)

    @cached_property
    def codes(self) -> Tensor:
        """(N, h, w) int64."""
        return self.model.encode(self._slices, self.position)

    @cached_property
    def nll(self) -> Tensor:
        """NLL of each code in nats, (N, h, w)."""
        return self.model.nll(self.codes, self.position)

    @cached_property
    def decoded(self) -> Tensor:
        """The slices as their codes are decoded, (N, S', S')."""
        return self.model.decode(self.codes, self.position)

    @property
    def published(self) -> Tensor:
        """The published pixel scores before smoothing, (N, S', S'). Raises ValueError without restorations."""
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
        """The published scores and the mean restorations. What came out alike of a slice is decoded once."""
        if self.restored_codes is None:
            raise ValueError("expected restorations, found none: the method needs at least one")
        parts = []
        for chunk in torch.arange(len(self.restored_codes)).split(CHUNK):
            codes, position = self.restored_codes[chunk], self.position[chunk]
            owner = torch.arange(len(chunk), device=codes.device)[:, None].expand(codes.shape[:2])
            rows = torch.cat([owner[..., None], codes.flatten(2)], dim=2).flatten(0, 1)  # (n * R, 1 + h * w)
            unique, back = rows.unique(dim=0, return_inverse=True)
            position = position.to(codes.device)[unique[:, 0]]
            decoded = self.model.decode(unique[:, 1:].unflatten(1, codes.shape[2:]), position)
            restorations = decoded[back].unflatten(0, codes.shape[:2])  # (n, R, S', S')
            score = pixel_score(self._slices[chunk].to(decoded), restorations, self.about.temperature)
            parts.append(torch.stack([score, restorations.mean(1)]).float())
        score, mean = torch.cat(parts, dim=1)
        return score, mean

    def bulk(self) -> dict[str, float]:
        """What is usual in the anatomy, of the parts that are computed: "likelihood", the median NLL; "residual", the 75th
        percentile of |slice - reconstruction|. An anomaly, which is small, hardly moves them; a strange scan does."""
        found = {}
        if "nll" in self.__dict__:
            found["likelihood"] = usual_nll(self.slices, self.nll)[0]
        if "decoded" in self.__dict__:
            found["residual"] = usual_residual(self.slices, self.decoded)
        return found

    @cached_property
    def smoothed(self) -> dict[str, Tensor]:
        """Evidence by kind (`rarity.EVIDENCE`), smoothed in 3D, (N, H, H) each on a grid half as fine as the slices."""
        slices = self.slices.to(self.decoded)
        maps = {"reconstruction": (slices - self.decoded).abs(), "likelihood": self.nll}
        if self.restored is not None:
            maps["restoration"] = (slices - self.restored.to(slices)).abs()
        size = max(1, self.about.preprocessing.image_size // 2)
        return {name: smooth_evidence(name, values.float(), size) for name, values in maps.items()}

    @cached_property
    def logits(self) -> Tensor:
        """The detector's logits, smoothed in 3D: (N, S, S). Where no restorations were drawn, reconstructions stand for them.
        Raises ModelError for a model without a detector."""
        restored = self.decoded if self.restored is None else self.restored
        logits = volume_logits(self.model, self._slices, self.decoded, restored, self.nll, self.position)
        assert self.model.detector is not None  # else `detect` has raised
        return smooth_logits(logits.float(), self.model.detector.settings)
