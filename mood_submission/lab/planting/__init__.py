"""Planted anomalies and made-up healthy volumes."""
