"""From a predictor and scenes to a map."""
