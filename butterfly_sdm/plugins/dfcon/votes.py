"""How an ensemble of real/fake classifiers decides."""

import numpy as np


def soft_vote(scores: np.ndarray) -> np.ndarray:
    """
    Return the mean probability.

    Parameters
    ----------
    scores
        (members, n) probabilities of real.
    """
    return np.asarray(np.mean(scores, axis=0, dtype=float))


def hard_vote(scores: np.ndarray) -> np.ndarray:
    """
    Return whether most members say real; where as many say fake, the mean probability decides.

    Parameters
    ----------
    scores
        (members, n) probabilities of real; at least 0.5 is a vote for real.

    Returns
    -------
    ndarray of shape (n,), bool

    Examples
    --------
    >>> hard_vote(np.array([[0.9, 0.9], [0.6, 0.1], [0.1, 0.4]])).tolist()
    [True, False]
    """
    scores = np.asarray(scores, dtype=float)
    real = (scores >= 0.5).sum(axis=0)
    fake = len(scores) - real
    return np.where(real == fake, soft_vote(scores) >= 0.5, real > fake)
