"""What a model file says of its networks beside their parameters: sizes, preprocessing, thresholds, calibration, origin."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from .findings.thresholds import HealthyVoxels
from .networks.detector import DetectorSettings
from .networks.level import LevelSettings
from .networks.pixelsnail import PixelSNAILSettings
from .networks.vqvae import VQVAESettings
from .preprocessing import Preprocessing

FORMAT = "mood-submission-1"


class ModelError(ValueError):
    """A model file that is missing, damaged or of another kind, or a model that lacks what is asked of it."""


@dataclass(frozen=True)
class About:
    """What travels with the parameters.

    region: one of `contract.REGIONS`.
    vqvae: sizes of the VQ-VAE.
    prior: sizes of the prior.
    preprocessing: how volumes become slices.
    pixel_threshold: lambda_p in nats: codes with a higher NLL are drawn anew. Published 5, the 90th percentile of the codes'
        NLL on healthy hold-out volumes.
    sample_threshold: lambda_s in nats: codes with a higher NLL count for the published sample score. Published 7, the 98th
        percentile.
    sample_method: name of the method (`methods.table`) that scores volumes by default.
    sample_scale: what a volume's sum of unlikely NLL (scaled to 32 slices) is divided by; published 2000.
    top_reference: mean of the strongest clusters' NLL of healthy hold-out volumes, in nats.
    pixel_method: name of the method that scores voxels by default.
    rarity_tables: by kind of evidence, see `evidence.rareness.rarity_table`. Empty where the model is not calibrated.
    usual: by kind of evidence, the lowest and the highest usual value (`Evidence.usual_values`) of healthy hold-out volumes
        of all sources. A volume beyond these looks unlike the scans that the weights know. Empty where it was not measured.
    typical: how healthy hold-out volumes look at a coarse scale, see `evidence.strangeness.typical_of`. Empty where it was not
        measured.
    healthy_voxels: by method, how often healthy hold-out volumes reach which voxel scores. Empty where it was not measured.
    healthy_samples: by method, the sample scores of healthy hold-out volumes, rising.
    restorations: how many restorations of a slice are drawn; published 15.
    temperature: of the restorations' weights; published 3.
    detector: sizes of the detector; None where the model has none.
    level: sizes of the network that tells where along the body a slice lies; None where the model has none.
    training: where the parameters come from: data, licence, date, git revision, minutes, held-out figures.
    method_settings: by method, what calibration measured for it, as JSON has it. For methods whose values have no field above.
    """

    region: str
    vqvae: VQVAESettings
    prior: PixelSNAILSettings
    preprocessing: Preprocessing
    pixel_threshold: float = 5.0
    sample_threshold: float = 7.0
    sample_method: str = "paper"
    sample_scale: float = 2000.0
    top_reference: float = 3.0
    pixel_method: str = "paper"
    rarity_tables: dict[str, list[float]] = field(default_factory=dict)
    usual: dict[str, list[float]] = field(default_factory=dict)
    typical: dict[str, list[float | None]] = field(default_factory=dict)
    healthy_voxels: dict[str, HealthyVoxels] = field(default_factory=dict)
    healthy_samples: dict[str, list[float]] = field(default_factory=dict)
    restorations: int = 15
    temperature: float = 3.0
    detector: DetectorSettings | None = None
    level: LevelSettings | None = None
    training: dict[str, Any] = field(default_factory=dict)
    method_settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The description as one JSON text, which `from_json` reads."""
        values = dataclasses.asdict(self)
        # What was not measured is left out, so that a description is the same text whatever later versions measure.
        for measured in values["healthy_voxels"].values():
            if measured["ordinary"] is None:
                del measured["ordinary"]
        for name in ("method_settings", "typical", "level"):
            if not values[name]:
                del values[name]
        return json.dumps({"format": FORMAT} | values)

    @classmethod
    def from_json(cls, text: str, detector: bool = True) -> "About":
        """The description that `to_json` wrote, of this version or of an earlier one.

        detector: whether to read what is said of a detector.
        Raises ValueError, TypeError or KeyError for what is no description. Names of methods are not looked at.
        """
        values = json.loads(text)
        if values.pop("format", None) != FORMAT:
            raise ValueError(f"format is not {FORMAT}")
        # Of a sample score that earlier files could ask for.
        values.pop("rarity_reference", None)
        # Earlier files know of no detector.
        described = values.get("detector") if detector else None
        values["detector"] = described and DetectorSettings.from_dict(described)
        if values.get("level") is not None:
            values["level"] = LevelSettings(**values["level"])
        measured = values.get("healthy_voxels", {})
        values["healthy_voxels"] = {name: HealthyVoxels(**found) for name, found in measured.items()}
        return cls(
            **values
            | {
                "vqvae": VQVAESettings(**values["vqvae"]),
                "prior": PixelSNAILSettings(**values["prior"]),
                "preprocessing": Preprocessing.from_dict(values["preprocessing"]),
            }
        )
