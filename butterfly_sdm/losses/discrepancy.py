"""
How far apart two groups of embeddings lie: maximum mean discrepancy, also per class across domains.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from butterfly_sdm.errors import DataError


class ClassDiscrepancy(NamedTuple):
    """
    Distances between class means.

    Attributes
    ----------
    within
        CMMD^2: mean over classes of the squared distance between the means of one class in the two
        domains. Small: domains agree.
    between
        DCMMD^2: squared distances between means of different classes, over all domains. Large:
        classes lie apart.
    """

    within: Tensor
    between: Tensor


def mean_discrepancy(x: Tensor, y: Tensor, *, width: float | None = None) -> Tensor:
    """
    Return the squared maximum mean discrepancy of two samples [1]_.

    Parameters
    ----------
    x, y
        (n, d) and (m, d).
    width
        Of the Gaussian kernel exp(-|x - y|^2 / (2 width^2)); None: the linear kernel, that is
        |mean(x) - mean(y)|^2.

    Notes
    -----
    The biased estimate (means over all pairs), never negative.

    Raises
    ------
    DataError
        The samples are not (n, d) and (m, d), or the width is not above 0.

    References
    ----------
    .. [1] Gretton et al. (2012). A kernel two-sample test. JMLR 13.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise DataError(
            f"Two samples of vectors of one length are needed; these have shapes {tuple(x.shape)} "
            f"and {tuple(y.shape)}."
        )
    if width is None:
        return ((x.mean(dim=0) - y.mean(dim=0)) ** 2).sum()
    if not width > 0:
        raise DataError(f"The width of the kernel must be above 0; it is {width}.")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(torch.cdist(a, b) ** 2) / (2 * width**2)).mean()

    return (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)).clamp(min=0)


def class_discrepancy(z: Tensor, classes: Tensor, domains: Tensor) -> ClassDiscrepancy:
    """
    Measure how well the classes of two domains agree, and how far different classes lie apart [1]_.

    With mu_c^d the mean of class c in domain d, p_d the share of domain d and C classes::

        CMMD^2  = 1/C sum_c |mu_c^0 - mu_c^1|^2
        DCMMD^2 = 1/C sum_{c != c'} sum_{d, d'} p_d p_d' |mu_c^d - mu_c'^d'|^2

    Parameters
    ----------
    z
        (n, d) embeddings.
    classes, domains
        (n,) whole numbers; rows with a negative class are left out, and classes that one of the
        domains lacks.

    Raises
    ------
    DataError
        There are not two domains, or no class is in both.

    References
    ----------
    .. [1] Contrastive learning as conditional domain adaptation. arXiv 2502.00052.
    """
    if z.ndim != 2 or classes.shape != z.shape[:1] or domains.shape != z.shape[:1]:
        raise DataError(
            f"Needed are (n, d) embeddings and (n,) classes and domains; got {tuple(z.shape)}, "
            f"{tuple(classes.shape)}, "
            f"{tuple(domains.shape)}."
        )
    known = classes >= 0
    z, classes, domains = z[known], classes[known], domains[known]
    names = domains.unique()
    if len(names) != 2:
        raise DataError(f"The discrepancy compares two domains; these are {len(names)}.")
    here = [set(classes[domains == name].tolist()) for name in names]
    common = sorted(here[0] & here[1])
    if not common:
        raise DataError("No class is in both domains, so no class means can be compared.")
    means = torch.stack(
        [
            torch.stack([z[(classes == c) & (domains == d)].mean(dim=0) for d in names])
            for c in common
        ]
    )  # (classes, 2, d)
    share = torch.stack([(domains == d).sum() for d in names]).to(z.dtype)
    share = share / share.sum()  # (2,)
    within = ((means[:, 0] - means[:, 1]) ** 2).sum(dim=-1).mean()
    flat = means.flatten(0, 1)  # (classes * 2, d)
    distance = ((flat[:, None] - flat[None]) ** 2).sum(dim=-1)
    weight = share.repeat(len(common))
    row = torch.arange(len(common), device=z.device).repeat_interleave(2)
    other = row[:, None] != row[None]
    between = (distance * weight[:, None] * weight[None] * other).sum() / len(common)
    return ClassDiscrepancy(within, between)
