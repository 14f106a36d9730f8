"""
What else lives here: predictions that know what was already seen at a place or near it.

Around any :class:`~butterfly_sdm.data.predictor.Predictor`, from its out-of-fold predictions.
"""
