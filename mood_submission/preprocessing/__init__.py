"""From a volume to the networks' input: where its anatomy lies, what its intensities mean, its slices; and the way back.

`settings` says how, `frame` and `anatomy` where to look, `tone` what grey values become, `view` joins these for one
volume, `slices` cuts the slices and puts score maps back.
"""

from .frame import Frame, frame_of
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
    "look",
    "normalise",
    "relative_positions",
    "slice_indices",
    "slices_to_volume",
    "to_unit_range",
    "volume_to_slices",
]
