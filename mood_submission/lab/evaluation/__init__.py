"""The challenge's evaluation, comparison of scoring methods, calibration, benchmark."""
