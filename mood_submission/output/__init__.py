"""What a run writes: scores, tables and masks of findings, DICOM segmentations, a report."""
