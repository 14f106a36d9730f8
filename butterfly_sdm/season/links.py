"""How the chance to see a species follows from the sum of effects: logit or cloglog."""

import numpy as np
from scipy.special import expit

from butterfly_sdm.season.options import LinkName


def chance(effects: np.ndarray, link: LinkName) -> np.ndarray:
    """
    Return the chance to see the species on a visit.

    cloglog, ``1 - exp(-exp(effects))``, is the chance that at least one animal is seen if their
    number is Poisson with mean ``exp(effects)``.
    """
    if link == "logit":
        return np.asarray(expit(effects))
    return np.asarray(-np.expm1(-np.exp(np.clip(effects, -30, 6))))


def log_chances(effects: np.ndarray, link: LinkName) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithms of the chance to see the species and of the chance not to."""
    if link == "logit":
        unseen = -np.logaddexp(0, effects)
        return unseen + effects, unseen
    mean = np.exp(np.clip(effects, -30, 6))
    return np.log(np.maximum(-np.expm1(-mean), 1e-300)), -mean


def scoring(effects: np.ndarray, link: LinkName) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return what Fisher scoring needs: the chance p, dp / d effects over p (1 - p), and dp /
    d effects squared over p (1 - p), the information of one visit.
    """
    if link == "logit":
        p = expit(effects)
        return p, np.ones_like(p), p * (1 - p)
    mean = np.exp(np.clip(effects, -30, 6))
    p = -np.expm1(-mean)
    slope = mean / np.maximum(p, 1e-300)  # of log p, times the chance not to be seen
    return p, slope, slope * mean * np.exp(-mean)
