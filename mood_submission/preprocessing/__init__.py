"""From a volume to the networks' input, and from score maps back to the volume.

`settings` holds what a model file says. `frame` and `anatomy` find where to look, `tone` maps grey values to a common scale,
`view` joins these for one volume, `known` leaves out what no network has seen, and `slices` cuts slices and puts score maps back.
"""

from .frame import Frame, frame_of
from .known import known_heights
from .positions import relative_positions, slice_indices
from .settings import Preprocessing
from .slices import slices_to_volume, volume_to_slices
from .tone import Tone, intensity_statistics, normalise, to_unit_range
from .view import View, harmonise, look

__all__ = [
    "Frame",
    "Preprocessing",
    "Tone",
    "View",
    "frame_of",
    "harmonise",
    "intensity_statistics",
    "known_heights",
    "look",
    "normalise",
    "relative_positions",
    "slice_indices",
    "slices_to_volume",
    "to_unit_range",
    "volume_to_slices",
]
