"""A trained model: one safetensors file a region, and what can be done with it.

The file holds the parameters of the VQ-VAE (`vqvae.*`), of the prior (`prior.*`) and, where there is one, of the detector
(`detector.*`), and one JSON text (`about`) with everything that is needed to use them: sizes, preprocessing, thresholds, calibration, and where they come from.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .findings.thresholds import HealthyVoxels
from .networks.detector import Detector, DetectorSettings
from .networks.pixelsnail import PixelSNAIL, PixelSNAILSettings
from .networks.vqvae import VQVAE, VQVAESettings
from .preprocessing import Preprocessing
from .runtime.files import write_whole
from .runtime.integrity import content_sha256

FORMAT = "mood-submission-1"
INSTALLED = (
    Path(__file__).resolve().parent / "weights"
)  # of a wheel; in a checkout they lie beside the package
WEIGHTS = INSTALLED if INSTALLED.is_dir() else INSTALLED.parent.parent / "weights"
SAMPLE_METHODS = ("paper", "top", "learned")
PIXEL_METHODS = ("paper", "rarity", "learned")


class ModelError(ValueError):
    """A model file that is missing, damaged or of another kind."""


@dataclass(frozen=True)
class About:
    """What travels with the parameters.

    pixel_threshold, sample_threshold: lambda_p and lambda_s in nats; published 5 and 7, the 90th and 98th percentile of
        the codes' NLL on healthy hold-out.
    sample_method: how a volume's sample score is made: "paper" (sum of the unlikely NLL), "top" (`paper.top_score`) or
        "learned" (the detector).
    pixel_method: how voxels' scores are: "paper" (|slice - restoration|), "rarity" (`scoring.rarity`) or "learned".
    sample_scale: what a volume's sum of unlikely NLL (scaled to 32 slices) is divided by; published 2000.
    top_reference: mean `top_score` of healthy hold-out volumes, nats; a volume like them scores 0.5 by "top".
    rarity_tables: by kind of evidence, see `rarity.rarity_table`; empty where the model is not calibrated.
    usual: by kind of evidence, the lowest and the highest bulk (`evidence.Evidence.bulk`) of healthy hold-out volumes of all
        sources; a volume beyond these looks unlike the scans that the weights know. Empty where it was not measured.
    healthy_voxels: by way of scoring voxels, how often healthy hold-out volumes reach which scores; empty where it was not
        measured. healthy_samples: by way of scoring volumes, the scores of these volumes, rising.
    restorations, temperature: published 15 and 3.
    detector: sizes of the detector; None where the model has none.
    training: where the parameters come from: data, licence, date, git revision, minutes, held-out figures.
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
    healthy_voxels: dict[str, HealthyVoxels] = field(default_factory=dict)
    healthy_samples: dict[str, list[float]] = field(default_factory=dict)
    restorations: int = 15
    temperature: float = 3.0
    detector: DetectorSettings | None = None
    training: dict = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str, detector: bool = True) -> "About":
        """detector: whether to read what is said of one. Raises ValueError, TypeError or KeyError for what is no description."""
        values = json.loads(text)
        if values.pop("format", None) != FORMAT:
            raise ValueError(f"format is not {FORMAT}")
        values.pop("rarity_reference", None)  # of a sample score that earlier files could ask for
        for name, known in (("sample_method", SAMPLE_METHODS), ("pixel_method", PIXEL_METHODS)):
            if values.get(name, "paper") not in known:
                raise ValueError(f"{name}: {values[name]!r} is not one of {', '.join(known)}")
        described = values.get("detector") if detector else None  # earlier files know of none
        values["detector"] = described and DetectorSettings.from_dict(described)
        measured = values.get("healthy_voxels", {})
        values["healthy_voxels"] = {way: HealthyVoxels(**found) for way, found in measured.items()}
        return cls(
            **values
            | {
                "vqvae": VQVAESettings(**values["vqvae"]),
                "prior": PixelSNAILSettings(**values["prior"]),
                "preprocessing": Preprocessing.from_dict(values["preprocessing"]),
            }
        )


def save_model(
    file: Path, vqvae: VQVAE, prior: PixelSNAIL, about: About, dtype: torch.dtype | None = None
) -> None:
    """Write a model file; `dtype` None keeps the parameters' own. Weight norm must be folded (`fold_weight_norm`).
    A detector is added by `add_detector`."""
    _write(file, _stored(vqvae, "vqvae", dtype) | _stored(prior, "prior", dtype), about)


def _stored(network: nn.Module, part: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Parameters by their names in the file. Raises ValueError for one that `dtype` is too small for."""
    stored = {
        f"{part}.{name}": value.to(dtype).contiguous() if dtype else value.contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    for name, value in stored.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"{name}: expected finite values, found one that is none or is too large for {value.dtype}"
            )
    return stored


def _write(file: Path, tensors: dict[str, Tensor], about: About) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = about.to_json()
    with write_whole(file) as out:
        out.write(save(tensors, metadata={"about": text, "sha256": content_sha256(tensors, text)}))


def rewrite_about(file: Path, out: Path, about: About) -> None:
    """Write to `out` (which may be `file`) the model of `file` with another description; its parameters stay as stored."""
    _write(out, _tensors(file), about)


def add_detector(
    file: Path,
    out: Path,
    detector: Detector,
    about: About,
    dtype: torch.dtype | None = None,
) -> None:
    """Write to `out` (which may be `file`) the model of `file` with this detector, instead of any that it has, and this
    description; the other parameters stay as stored. dtype: as of `save_model`."""
    kept = {name: value for name, value in _tensors(file).items() if not name.startswith("detector.")}
    _write(
        out,
        kept | _stored(detector, "detector", dtype),
        dataclasses.replace(about, detector=detector.settings),
    )


def _tensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}


Network = TypeVar("Network", bound=nn.Module)


def _filled(network: Network, tensors: dict[str, Tensor], part: str) -> Network:
    """The network with the parameters stored under `part.`; all must be there and fit."""
    own = {
        name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")
    }
    stored = next(iter(own.values())).dtype if own else torch.float32
    network.to(stored)  # else load_state_dict would round float64
    missing, unexpected = network.load_state_dict(own, strict=False)
    wrong = unexpected + [name for name in missing if not name.endswith("num_batches_tracked")]
    if wrong:
        raise ValueError(f"parameters of the {part} missing or unknown: {', '.join(wrong[:3])} ...")
    return network
