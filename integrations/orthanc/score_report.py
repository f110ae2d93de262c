"""Writes a score and its findings as a DICOM structured report (TID 1500), which viewers and archives keep beside the images."""

from collections.abc import Sequence
from typing import Any

import highdicom
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes

from mood_submission.version import __version__

MANUFACTURER = "mood-submission"
# What no public dictionary has a code for.
SCHEME = "99MOOD"
SCORE = sr.CodedConcept("sample-score", SCHEME, "Anomaly score of the scan, 0 to 1")
VOXEL_SCORE = sr.CodedConcept("voxel-score", SCHEME, "Highest anomaly score of a voxel, 0 to 1")
FALSE_OBJECTS = sr.CodedConcept("false-objects", SCHEME, "Objects as sure as this in a healthy scan")
MILLILITRE = sr.CodedConcept("ml", "UCUM", "milliliter")
PROCEDURES = {"CT": codes.LN.CTUnspecifiedBodyRegion, "MR": codes.LN.MRIUnspecifiedBodyRegion}


def score_report(
    images: Sequence[Dataset], score: float, findings: Sequence[dict[str, Any]], segmentation: Dataset | None
) -> Dataset:
    """A report on a series, which belongs to the series' study.

    images: the headers of the series, CT or MR, as `dicom_seg.read_headers` gives them.
    score: of the sample task, 0 .. 1.
    findings: as in findings.json. The n-th is the n-th segment.
    segmentation: of the findings. None where there are none.
    Raises ValueError where findings and segments are not equally many.
    """
    segments = [] if segmentation is None else list(segmentation.SegmentSequence)
    if len(segments) != len(findings):
        raise ValueError(f"expected a segment for each of {len(findings)} findings, found {len(segments)} segments")
    groups: list[sr.MeasurementsAndQualitativeEvaluations | sr.VolumetricROIMeasurementsAndQualitativeEvaluations]
    groups = [_of_the_scan(images, score)]
    if segmentation is not None:
        # Not `from_segmentation`, which fails where there is one segment alone.
        series = sr.SourceSeriesForSegmentation(images[0].SeriesInstanceUID)
        file = (segmentation.SOPClassUID, segmentation.SOPInstanceUID)
        regions = [sr.ReferencedSegment(*file, one.SegmentNumber, source_series=series) for one in segments]
        groups += [_of_a_finding(*one) for one in zip(findings, segments, regions)]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=highdicom.UID(),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=f"{MANUFACTURER} {__version__}",
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(codes.DCM.Device, device),
        ),
        procedure_reported=PROCEDURES[images[0].Modality],
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return sr.EnhancedSR(
        evidence=[*images, *([] if segmentation is None else [segmentation])],
        content=content[0],
        series_instance_uid=highdicom.UID(),
        series_number=901,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        series_description="Anomaly score (research use)",
    )


def _number(name: Any, value: float, unit: Any) -> sr.Measurement:
    return sr.Measurement(name=name, value=round(float(value), 4), unit=unit)


def _of_the_scan(images: Sequence[Dataset], score: float) -> sr.MeasurementsAndQualitativeEvaluations:
    """The score, with the images that it is of."""
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(highdicom.UID(), "scan"),
        measurements=[_number(SCORE, score, codes.UCUM.NoUnits)],
        source_images=[sr.SourceImageForMeasurementGroup(one.SOPClassUID, one.SOPInstanceUID) for one in images],
    )


def _of_a_finding(
    finding: dict[str, Any], segment: Dataset, region: sr.ReferencedSegment
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """A finding's size and scores, with the region that its segment is. They share what tracks the finding."""
    measurements = [
        _number(codes.SCT.Volume, finding["volume_ml"], MILLILITRE),
        _number(VOXEL_SCORE, finding["highest"], codes.UCUM.NoUnits),
    ]
    if finding["false_objects"] is not None:
        measurements.append(_number(FALSE_OBJECTS, finding["false_objects"], codes.UCUM.NoUnits))
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(segment.TrackingUID, segment.TrackingID),
        referenced_segment=region,
        finding_type=codes.SCT.Lesion,
        measurements=measurements,
    )
