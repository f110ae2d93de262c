"""The settings of preprocessing, which are stored in the model file."""

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from ..runtime.contract import REGIONS

INTENSITIES = ("foreground", "symmetric", "landmarks")
FRAMES = ("array", "anatomy")


@dataclass(frozen=True)
class Preprocessing:
    """How volumes become network input. It is stored as JSON in the model file.

    region: "brain" or "abdom".
    image_size: side of the square slices, in pixels.
    intensity: how grey values become the network's.
        "foreground", as published for the brain: 0 below the threshold, else standardised by the volume's own foreground.
        "symmetric", as published for the abdomen: x * 2 - 1.
        "landmarks": landmarks of the anatomy's histogram bring grey values to a common scale; then `centre` becomes 0 and
        `centre + spread` becomes 1. Air round the anatomy is 0.
    foreground_threshold: the least value of foreground, on the [0, 1] scale.
    hounsfield_window: the Hounsfield units that become 0 and 1. With the default, soft tissue at 40 HU becomes 0.5, as in the
        training data.
    frame: the field of view. "array", as published, is the volume's own. "anatomy" is a square round the anatomy: of
        `field_of_view` mm for a brain; for an abdomen so large that the body fills BODY_SHARE of its side.
    field_of_view: side of the square in mm, and the length along z of relative positions -0.5 to 0.5. For the brain's
        "anatomy" only.
    slice_distance: distance in mm of the slices that are scored by default. 0 for all slices.
    resolution: voxel size in mm. Finer volumes are blurred to its sharpness. 0 for no blurring.
    landmarks: what the 25th, 50th and 75th percentile of the inner brain become, on the [0, 1] scale. For "landmarks".
    centre, spread: of the network's intensities, on the [0, 1] scale. For "landmarks".

    With the defaults of `frame` and the fields after it, preprocessing is as before these fields existed. So older model files
    keep their meaning. Raises ValueError for an unknown region, intensity or frame, and for sizes or a window that cannot be.
    """

    region: str
    image_size: int = 160
    intensity: str = "foreground"
    foreground_threshold: float = 0.05
    hounsfield_window: tuple[float, float] = (-160.0, 240.0)
    frame: str = "array"
    field_of_view: float = 200.0
    slice_distance: float = 0.0
    resolution: float = 0.0
    landmarks: tuple[float, float, float] = (0.444, 0.534, 0.6)
    centre: float = 0.5
    spread: float = 0.5

    def __post_init__(self) -> None:
        if self.region not in REGIONS:
            raise ValueError(f"preprocessing: expected region {' or '.join(REGIONS)}, found {self.region!r}")
        if self.intensity not in INTENSITIES:
            raise ValueError(f"preprocessing: expected intensity {' or '.join(INTENSITIES)}, found {self.intensity!r}")
        if self.frame not in FRAMES:
            raise ValueError(f"preprocessing: expected frame {' or '.join(FRAMES)}, found {self.frame!r}")
        if self.image_size < 1:
            raise ValueError(f"preprocessing: expected a positive image_size, found {self.image_size}")
        if not (self.field_of_view > 0 and self.spread > 0 and self.slice_distance >= 0 and self.resolution >= 0):
            raise ValueError(
                f"preprocessing: expected field_of_view and spread above 0, slice_distance and resolution of "
                f"at least 0, found {self.field_of_view}, {self.spread}, {self.slice_distance}, {self.resolution}"
            )
        if len(self.hounsfield_window) != 2 or self.hounsfield_window[0] >= self.hounsfield_window[1]:
            raise ValueError(f"preprocessing: expected a rising hounsfield_window, found {self.hounsfield_window}")
        if len(self.landmarks) != 3 or not 0 < self.landmarks[0] < self.landmarks[1] < self.landmarks[2] <= 1:
            raise ValueError(f"preprocessing: expected three rising landmarks in 0 .. 1, found {self.landmarks}")

    @property
    def places_by_anatomy(self) -> bool:
        """Whether relative positions are told by the anatomy, as a brain's are, and not by the array's ends."""
        return self.region == "brain" and self.frame == "anatomy"

    @classmethod
    def published(cls, region: str) -> "Preprocessing":
        """The settings of the published submission for "brain" or "abdom"."""
        return cls(region, intensity="foreground" if region == "brain" else "symmetric")

    @classmethod
    def harmonised(cls, region: str) -> "Preprocessing":
        """Settings that make scans of different scanners, crops and scalings look alike."""
        if region == "brain":
            return cls(
                region,
                intensity="landmarks",
                frame="anatomy",
                slice_distance=2.0,
                resolution=2.0,
                centre=0.444,
                spread=0.153,
            )
        return cls(region, intensity="landmarks", frame="anatomy", slice_distance=4.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        return {
            **asdict(self),
            "hounsfield_window": list(self.hounsfield_window),
            "landmarks": list(self.landmarks),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`. Raises ValueError that names unknown or missing keys."""
        values = {name: value for name, value in values.items() if name not in RETIRED}
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING} | set(BEFORE_FRAMES)
        unknown, missing = sorted(set(values) - known), sorted(needed - set(values))
        if unknown or missing:
            raise ValueError(f"preprocessing: unknown keys {unknown}, missing keys {missing}")
        lists: dict[str, Any] = {
            name: tuple(values[name]) for name in ("hounsfield_window", "landmarks") if name in values
        }
        return cls(**{**values, **lists})


# Keys that every model file has.
BEFORE_FRAMES = ("image_size", "intensity", "foreground_threshold", "hounsfield_window")
# Keys of earlier versions' model files that nothing ever read.
RETIRED = ("slices",)
