"""Scores, comparison, calibration, applicability and the report."""

from butterfly_sdm.evaluation.compare import Comparison, CrossValidation, compare, cross_validate
from butterfly_sdm.evaluation.evaluate import evaluate_run
from butterfly_sdm.evaluation.ladder import Ladder, run_ladder
from butterfly_sdm.evaluation.scores import DEFINITIONS, Scores, score_predictions

__all__ = [
    "DEFINITIONS",
    "Comparison",
    "CrossValidation",
    "Ladder",
    "Scores",
    "compare",
    "cross_validate",
    "evaluate_run",
    "run_ladder",
    "score_predictions",
]
