"""The challenge's evaluation, comparison of ways of scoring, calibration, benchmark."""
