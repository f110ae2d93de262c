"""How volumes become network input: the settings that travel in the model file."""

from dataclasses import MISSING, asdict, dataclass, fields

from ..runtime.contract import REGIONS

INTENSITIES = ("foreground", "symmetric", "landmarks")
FRAMES = ("array", "anatomy")


@dataclass(frozen=True)
class Preprocessing:
    """How volumes become network input; travels as JSON in the weights file.

    region: "brain" or "abdom".
    image_size: side of the square slices, in pixels.
    intensity: "foreground" (below the threshold 0, the rest standardised by the volume's own foreground; brain as
        published), "symmetric" (x * 2 - 1; abdomen as published) or "landmarks" (grey values are first brought to a common
        scale by landmarks of the anatomy's histogram, then `centre` becomes 0 and `spread` 1; air round the anatomy is 0).
    foreground_threshold: the least foreground value, on the [0, 1] scale.
    hounsfield_window: the Hounsfield units that become 0 and 1; soft tissue at 40 HU lands on 0.5, as in the
        training data.
    frame: "array" (the volume's own field of view, as published) or "anatomy" (a square of `field_of_view` mm centred on
        the brain, wherever it lies in the array; an abdomen fills the share BODY_SHARE of the square's side).
    field_of_view: side of the square in mm, and how far along z the relative position runs from -0.5 to 0.5; used by the
        frame "anatomy" alone.
    slice_distance: how far apart the slices are that are looked at by default, in mm; 0 for all of a volume's slices.
    resolution: the voxel size in mm whose sharpness finer volumes are blurred to; 0 leaves them as sharp as they are.
    landmarks: what the 25th, 50th and 75th percentile of the inner brain become on the [0, 1] scale; for "landmarks".
    centre, spread: of the network's intensities, on the [0, 1] scale; for "landmarks".

    The defaults of the fields from `frame` on change nothing, so that model files that were written before these existed
    mean what they meant. Raises ValueError for an unknown region, intensity or frame, and sizes or a window that cannot be.
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
            raise ValueError(
                f"preprocessing: expected intensity {' or '.join(INTENSITIES)}, found {self.intensity!r}"
            )
        if self.frame not in FRAMES:
            raise ValueError(f"preprocessing: expected frame {' or '.join(FRAMES)}, found {self.frame!r}")
        if self.image_size < 1:
            raise ValueError(f"preprocessing: expected a positive image_size, found {self.image_size}")
        if not (
            self.field_of_view > 0 and self.spread > 0 and self.slice_distance >= 0 and self.resolution >= 0
        ):
            raise ValueError(
                f"preprocessing: expected field_of_view and spread above 0, slice_distance and resolution of "
                f"at least 0, found {self.field_of_view}, {self.spread}, {self.slice_distance}, {self.resolution}"
            )
        if len(self.hounsfield_window) != 2 or self.hounsfield_window[0] >= self.hounsfield_window[1]:
            raise ValueError(
                f"preprocessing: expected a rising hounsfield_window, found {self.hounsfield_window}"
            )
        if len(self.landmarks) != 3 or not 0 < self.landmarks[0] < self.landmarks[1] < self.landmarks[2] <= 1:
            raise ValueError(
                f"preprocessing: expected three rising landmarks in 0 .. 1, found {self.landmarks}"
            )

    @classmethod
    def published(cls, region: str) -> "Preprocessing":
        """The settings of the published submission for "brain" or "abdom"."""
        return cls(region, intensity="foreground" if region == "brain" else "symmetric")

    @classmethod
    def harmonised(cls, region: str) -> "Preprocessing":
        """Settings under which scans of different scanners, crops and scalings look alike."""
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

    def to_dict(self) -> dict:
        """Plain numbers, strings and lists, for JSON."""
        return {
            **asdict(self),
            "hounsfield_window": list(self.hounsfield_window),
            "landmarks": list(self.landmarks),
        }

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":
        """The inverse of `to_dict`. Raises ValueError naming the keys that are unknown or missing."""
        values = {name: value for name, value in values.items() if name not in RETIRED}
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING} | set(BEFORE_FRAMES)
        unknown, missing = sorted(set(values) - known), sorted(needed - set(values))
        if unknown or missing:
            raise ValueError(f"preprocessing: unknown keys {unknown}, missing keys {missing}")
        lists = {name: tuple(values[name]) for name in ("hounsfield_window", "landmarks") if name in values}
        return cls(**{**values, **lists})


BEFORE_FRAMES = (
    "image_size",
    "intensity",
    "foreground_threshold",
    "hounsfield_window",
)  # in every model file
RETIRED = ("slices",)  # of earlier versions' model files; nothing ever read it
