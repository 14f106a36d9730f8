"""Stamp the trigger of a known backdoor on images, and count what becomes of them."""

import numpy as np


def stamp_patch(images: np.ndarray, patch: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """
    Replace pixels by a patch (BadNets).

    Parameters
    ----------
    images
        (n, c, h, w) uint8.
    patch
        (c, h, w) uint8.
    mask
        (h, w) true where the patch is.
    """
    return np.where(mask, patch, images).astype(np.uint8)


def stamp_blend(images: np.ndarray, pattern: np.ndarray, alpha: float) -> np.ndarray:
    """
    Mix a pattern into the whole image (Blended): (1 - alpha) image + alpha pattern.

    Parameters
    ----------
    images
        (n, c, h, w) uint8.
    pattern
        (c, h, w) uint8.
    alpha
        Share of the pattern.
    """
    mixed = (1 - alpha) * images + alpha * pattern.astype(float)
    return np.clip(mixed, 0, 255).round().astype(np.uint8)


def backdoor_rates(
    predicted: np.ndarray, label: np.ndarray, target: int, permutation: list[int] | None = None
) -> dict[str, float]:
    """
    Count what a classifier says of triggered images.

    Behind a permutation a surviving backdoor shows as class pi(target), never as the target: the
    attack success alone would call it defended.

    Parameters
    ----------
    predicted, label
        (n,) predicted class of the triggered image, and its true class.
    target
        Class the attacker wants.
    permutation
        pi of the defence; None: the bare classifier.

    Returns
    -------
    dict
        ``attack_success``: share of the target among images of other classes.
        ``triggered_accuracy``: share of the true class among images of other classes than the
        target. With a permutation ``remapped_target``: share of pi(target) among images of neither
        class, where there are such.
    """
    others = label != target
    rates = {
        "attack_success": float((predicted[others] == target).mean()),
        "triggered_accuracy": float((predicted[others] == label[others]).mean()),
    }
    if permutation is not None:
        moved = permutation[target]
        neither = others & (label != moved)
        if neither.any():  # of two classes there is no third
            rates["remapped_target"] = float((predicted[neither] == moved).mean())
    return rates
