"""Scores, comparison, calibration, applicability and the report."""

from butterfly_sdm.evaluation.evaluate import evaluate_run
from butterfly_sdm.evaluation.scores import DEFINITIONS, Scores, score_predictions

__all__ = ["DEFINITIONS", "Scores", "evaluate_run", "score_predictions"]
