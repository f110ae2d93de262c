"""Writes findings as a DICOM segmentation (SEG). Viewers lay it over the series that was scored."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..findings.objects import Finding
from ..runtime.files import write_whole_by_name
from ..volumes import Grid, Source

if TYPE_CHECKING:
    from pydicom import Dataset

MISSING = "highdicom (pip install 'mood-submission[dicom]')"
SUFFIX = ".seg.dcm"
# ASCII, where other character sets may follow it.
DEFAULT_CHARACTERS = "ISO 2022 IR 6"
# What each DICOM image must tell, if only that it is not known. Files of which names were taken out may lack them.
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def can_write() -> bool:
    """Whether highdicom is installed."""
    return find_spec("highdicom") is not None


def read_headers(files: Sequence[Path]) -> list["Dataset"]:
    """The headers of DICOM images as pydicom reads them, for highdicom. What they lack of TYPE_2 is added, and empty."""
    import pydicom

    # It warns of names of one word, with the patient's name in it.
    warnings.filterwarnings("ignore", "The string .* is unlikely to represent the intended person name", UserWarning)
    headers: list[Dataset] = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    for header in headers:
        for name in TYPE_2:
            if name not in header:
                setattr(header, name, None)
        _name_default_characters(header)
    return headers


def _name_default_characters(header: "Dataset") -> None:
    """Name the characters that an empty first character set means, as in Japanese files: highdicom needs a name."""
    sets = header.get("SpecificCharacterSet")
    if isinstance(sets, Sequence) and not isinstance(sets, str) and len(sets) > 1:
        header.SpecificCharacterSet = [one or DEFAULT_CHARACTERS for one in sets]


def write_dicom_seg(file: Path, source: Source, mask: np.ndarray, grid: Grid, findings: Sequence[Finding]) -> None:
    """Write a segmentation that refers to the slices of a DICOM series, with a segment for each finding.

    file: the path to write.
    source: the series.
    mask: the findings' numbers, (X, Y, Z) uint8 in RAS order.
    grid: the series'.
    findings: at least one.
    Raises OSError where the series is gone, ValueError where its files cannot be referred to.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    from ..version import __version__

    images = read_headers(source.files)
    for image in images:
        # Not all files have it, and highdicom needs it.
        if not image.get("SliceThickness"):
            image.SliceThickness = f"{np.linalg.norm(grid.affine_mm[:3, 2]):.6g}"
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="mood-submission", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=i + 1,
            segment_label=f"Finding {finding.number}, score {finding.highest:.2f}",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=highdicom.UID(),
            tracking_id=f"finding {finding.number}",
        )
        for i, finding in enumerate(findings)
    ]
    # (slices, rows, columns), as the images have them.
    frames = grid.to_file(mask).transpose(2, 1, 0)
    numbers = np.stack([frames == finding.number for finding in findings], -1).astype(np.uint8)
    segmentation = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=numbers,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=900,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="mood-submission",
        manufacturer_model_name="mood-submission",
        software_versions=__version__,
        device_serial_number="0",
        series_description="Findings: what does not belong (research use)",
    )
    write_whole_by_name(file, segmentation.save_as)
