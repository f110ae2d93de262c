"""What a run leaves: tables and masks of findings, DICOM segmentations, a page to look at."""
