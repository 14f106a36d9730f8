"""How far the domains of a class, and how far the classes, lie apart in an embedding."""

from dataclasses import dataclass

import torch
from torch import Tensor

from butterfly_sdm.errors import DataError


@dataclass(frozen=True)
class Separation:
    """
    Squared discrepancies of class means [1]_.

    Attributes
    ----------
    cmmd2
        Mean over classes of the squared distance between the means of the two domains: 0 where
        domains agree.
    dcmmd2
        Mean over classes of the squared distances to the means of the other classes, weighted by
        domain shares.

    References
    ----------
    .. [1] arXiv 2502.00052 (2025).
    """

    cmmd2: float
    dcmmd2: float

    @property
    def ratio(self) -> float:
        """CMMD / DCMMD, free of the scale of the embedding; infinite where all classes coincide."""
        return (self.cmmd2 / self.dcmmd2) ** 0.5 if self.dcmmd2 > 0 else float("inf")

    @property
    def metrics(self) -> dict[str, float]:
        """Return CMMD, DCMMD and their ratio, finite."""
        ratio = min(self.ratio, 1e9)
        return {"cmmd": self.cmmd2**0.5, "dcmmd": self.dcmmd2**0.5, "cmmd_ratio": ratio}


def class_means(z: Tensor, labels: Tensor, domains: Tensor, classes: int) -> Tensor:
    """
    Return the mean embedding per class and domain.

    Parameters
    ----------
    z
        (n, d) embeddings.
    labels, domains
        (n,) class numbers, those below 0 left out; domain 0 or 1.

    Returns
    -------
    Tensor of shape (classes, 2, d)

    Raises
    ------
    DataError
        A class has no row in one of the domains.
    """
    known = labels >= 0
    cell = (labels * 2 + domains)[known]
    counts = torch.bincount(cell, minlength=2 * classes)  # (classes * 2,)
    if (counts == 0).any():
        empty = int((counts == 0).nonzero()[0])
        raise DataError(
            f"Class {empty // 2} has no labelled row in the {('source', 'target')[empty % 2]} "
            "domain; the discrepancy needs every class in both. Label some, or leave the class out."
        )
    sums = torch.zeros(2 * classes, z.shape[1], dtype=z.dtype).index_add_(0, cell, z[known])
    return (sums / counts[:, None]).reshape(classes, 2, -1)


def separation(z: Tensor, labels: Tensor, domains: Tensor, classes: int) -> Separation:
    """
    Measure CMMD and DCMMD with the linear kernel.

    Parameters
    ----------
    z
        (n, d) unit embeddings of the layer the loss acts on.
    labels, domains
        (n,) class numbers (below 0: unknown) and domains 0, 1.
    classes
        Number of classes.
    """
    means = class_means(z.double(), labels, domains, classes)  # (c, 2, d)
    share = torch.bincount(domains[labels >= 0], minlength=2).double()
    share = share / share.sum()  # (2,)
    cmmd2 = (means[:, 0] - means[:, 1]).square().sum(dim=1).mean()
    apart = means[:, None, :, None] - means[None, :, None, :]  # (c, c', d, d', length)
    weighted = apart.square().sum(dim=-1) * share[:, None] * share[None, :]  # (c, c', d, d')
    between = weighted.sum(dim=(2, 3))  # (c, c'), its diagonal is within classes
    dcmmd2 = (between.sum() - between.diagonal().sum()) / classes
    return Separation(float(cmmd2), float(dcmmd2))
