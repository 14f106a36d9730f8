"""Scores, comparison, calibration, applicability and the report."""
