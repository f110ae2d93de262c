"""DICOM files of many frames: whether the frames are what SimpleITK takes them for, one even stack of one scale.

SimpleITK looks at some of the frames only. Of frames that lie unevenly it makes 1 mm of every size.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

# How far a slice may lie beside its place, as a share of the step between slices.
UNEVEN = 0.05
# Positions and sizes in mm, and components of directions, that differ by less are the same.
SAME = 1e-3
HEADER = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]


def what_is_odd(file: Path, count: int, axes: np.ndarray, spacing: np.ndarray, origin: np.ndarray) -> str:
    """Why the `count` frames of a file are not a stack on this grid, as a note says it; empty where they are.

    Without pydicom, which reads the places of frames, no file is known to be such a stack.

    axes: (3, 3). Its columns are the directions of the file's axes.
    spacing, origin: (3,) in mm.
    """
    if find_spec("pydicom") is None:
        return "of many frames, whose places are not known without pydicom (pip install 'mood-submission[dicom]')"
    import pydicom

    try:
        stored = pydicom.dcmread(file, specific_tags=HEADER, stop_before_pixels=True)
        shared = stored.SharedFunctionalGroupsSequence[0]
        frames = [_of_frame(one, shared) for one in stored.PerFrameFunctionalGroupsSequence]
        found = [np.array(values, np.float64) for values in zip(*frames, strict=True)]
    except (AttributeError, LookupError, TypeError, ValueError, OSError, pydicom.errors.InvalidDicomError):
        return "of many frames without places"
    places, directions, sizes, scales = found
    steps = np.arange(count)[:, None] * axes[:, 2] * spacing[2]
    if len(places) != count or np.abs(places - origin - steps).max() > UNEVEN * spacing[2]:
        return "of many frames that are no even stack"
    alike = np.allclose(directions, axes[:, :2].T.ravel(), rtol=0, atol=SAME)
    if not alike or not np.allclose(sizes, spacing[1::-1], rtol=0, atol=SAME):
        return "of many frames that do not lie alike"
    return "" if (scales == scales[0]).all() else "of many frames of several scales"


def _of_frame(one: Any, shared: Any) -> tuple[list[float], ...]:
    """A frame's place, direction, sizes of pixels, and slope and intercept. Raises AttributeError where one is missing."""

    def group(name: str) -> Any:
        return (one if name in one else shared)[name][0]

    scale = [1.0, 0.0]
    if "PixelValueTransformationSequence" in one or "PixelValueTransformationSequence" in shared:
        stored = group("PixelValueTransformationSequence")
        scale = [float(stored.RescaleSlope), float(stored.RescaleIntercept)]
    return (
        [float(x) for x in group("PlanePositionSequence").ImagePositionPatient],
        [float(x) for x in group("PlaneOrientationSequence").ImageOrientationPatient],
        [float(x) for x in group("PixelMeasuresSequence").PixelSpacing],
        scale,
    )
