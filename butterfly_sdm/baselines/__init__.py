"""Honest baselines: predictors that need no image."""
