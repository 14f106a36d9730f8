"""Losses of presence: how well claimed probabilities explain k detections on n visits."""

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from butterfly_sdm.errors import DataError
from butterfly_sdm.losses.options import PresenceName


def binomial(logits: Tensor, detections: Tensor, visits: Tensor) -> Tensor:
    """
    Return the negative log-likelihood of k detections on n visits, without the constant log C(n,
    k).

    Parameters
    ----------
    logits
        (n, species).
    detections
        (n, species) k.
    visits
        (n, 1) n.

    Returns
    -------
    Tensor of shape (n, species)
        n times the cross-entropy of the rate: a site counts as often as it was visited.
    """
    return -(detections * logsigmoid(logits) + (visits - detections) * logsigmoid(-logits))


def beta_binomial(
    logits: Tensor, detections: Tensor, visits: Tensor, concentration: Tensor
) -> Tensor:
    """
    Return the negative log-likelihood of k of n when the rate of a site scatters around the claim,
    without log C(n, k).

    The rate is Beta(p c, (1 - p) c): variance p (1 - p) / (c + 1). Large c gives the binomial;
    small c lets single sites with many visits pull less.

    Parameters
    ----------
    concentration
        (species,) c > 0.

    Returns
    -------
    Tensor of shape (n, species)
    """
    # (n, species)
    alpha, beta = (
        logits.sigmoid() * concentration,
        (-logits).sigmoid() * concentration,
    )
    alpha, beta = alpha.clamp(min=1e-6), beta.clamp(min=1e-6)
    seen = torch.lgamma(detections + alpha) - torch.lgamma(alpha)
    unseen = torch.lgamma(visits - detections + beta) - torch.lgamma(beta)
    return torch.lgamma(visits + concentration) - torch.lgamma(concentration) - seen - unseen


def cross_entropy(logits: Tensor, detections: Tensor, visits: Tensor) -> Tensor:
    """
    Return the binary cross-entropy of the rate k / n: a rate from 3 visits counts as much as one
    from 100.
    """
    return binary_cross_entropy_with_logits(logits, _rates(detections, visits), reduction="none")


def squared_error(logits: Tensor, detections: Tensor, visits: Tensor) -> Tensor:
    """Return the squared difference of probability and rate."""
    return (logits.sigmoid() - _rates(detections, visits)) ** 2


def absolute_error(logits: Tensor, detections: Tensor, visits: Tensor) -> Tensor:
    """Return the absolute difference of probability and rate."""
    return (logits.sigmoid() - _rates(detections, visits)).abs()


def focal(logits: Tensor, detections: Tensor, visits: Tensor, *, gamma: float = 2.0) -> Tensor:
    """
    Return the cross-entropy of the rate, weighted by |rate - p| ** gamma so that what is predicted
    well counts little [1]_.

    References
    ----------
    .. [1] Lin et al. (2017). Focal loss for dense object detection. ICCV; for soft labels Li et al.
           (2020). Generalized focal
       loss. NeurIPS 33.
    """
    rates = _rates(detections, visits)
    return (rates - logits.sigmoid()).abs() ** gamma * binary_cross_entropy_with_logits(
        logits, rates, reduction="none"
    )


def asymmetric(
    logits: Tensor,
    detections: Tensor,
    visits: Tensor,
    *,
    gamma_absent: float = 4.0,
    gamma_present: float = 1.0,
    margin: float = 0.05,
) -> Tensor:
    """
    Return the asymmetric loss [1]_: absences, and among them the easy ones, count less than
    presences.

    References
    ----------
    .. [1] Ridnik et al. (2021). Asymmetric loss for multi-label classification. ICCV.
    """
    rates, p = _rates(detections, visits), logits.sigmoid()
    shifted = (p - margin).clamp(min=0)
    present = rates * (1 - p) ** gamma_present * logsigmoid(logits)
    absent = (1 - rates) * shifted**gamma_absent * torch.log1p(-shifted.clamp(max=1 - 1e-6))
    return -(present + absent)


SIMPLE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "binomial": binomial,
    "bce": cross_entropy,
    "mse": squared_error,
    "mae": absolute_error,
    "focal": focal,
    "asymmetric": asymmetric,
}


class PresenceLoss(nn.Module):
    """
    The mean loss over sites and species.

    Parameters
    ----------
    name
        ``binomial``, ``beta_binomial`` (with one learned concentration per species), ``bce``,
        ``mse``, ``mae``, ``focal`` or ``asymmetric``.
    species
        Number of species.
    mean_visits
        The two likelihoods grow with n; divided by the mean n of the training sites they have the
        size of a cross-entropy, so that learning rates and the weight of a regulariser keep their
        meaning.
    species_weights
        (species,) >= 0; None: all 1.

    Examples
    --------
    >>> loss = PresenceLoss("binomial", species=1, mean_visits=2)
    >>> round(float(loss(torch.zeros(1, 1), torch.tensor([[1]]), torch.tensor([2]))), 4)  # log 2
    0.6931
    """

    species_weights: Tensor | None

    def __init__(
        self,
        name: PresenceName,
        *,
        species: int,
        mean_visits: float = 1.0,
        species_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if name not in get_args(PresenceName):
            raise DataError(
                f"The loss is one of {', '.join(get_args(PresenceName))}; {name!r} is none of them."
            )
        if not mean_visits > 0:
            raise DataError(f"The mean number of visits must be above 0; it is {mean_visits}.")
        if species_weights is not None and (
            len(species_weights) != species or bool((species_weights < 0).any())
        ):
            raise DataError(
                f"Species weights are {species} numbers of at least 0, one per species; got "
                f"{len(species_weights)}."
            )
        self.name = name
        self.scale = mean_visits if name in ("binomial", "beta_binomial") else 1.0
        self.register_buffer("species_weights", species_weights)
        # exp(3) = 20: a site's rate scatters as if the claim rested on 20 visits.
        self.log_concentration = (
            nn.Parameter(torch.full((species,), 3.0)) if name == "beta_binomial" else None
        )

    def elements(self, logits: Tensor, detections: Tensor, visits: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return the loss of each label, and which labels exist.

        Returns
        -------
        loss, known : Tensor of shape (n, species)
            A label is missing (loss 0) where the site has no visit or ``detections`` is negative or
            NaN.

        Raises
        ------
        DataError
            Logits and detections are not both (sites, species), or visits not (sites,).
        """
        if logits.shape != detections.shape or visits.shape != logits.shape[:1]:
            raise DataError(
                f"Logits {tuple(logits.shape)}, detections {tuple(detections.shape)} and visits "
                f"{tuple(visits.shape)} do not fit: (sites, species) twice, and (sites,)."
            )
        with torch.autocast(logits.device.type, enabled=False):
            logits, k, n = logits.float(), detections.float(), visits.float()[:, None]
            known = (n > 0) & (k >= 0)  # NaN >= 0 is false
            k, n = torch.where(known, k, 0.0), torch.where(known, n, 1.0)
            if self.log_concentration is not None:
                loss = beta_binomial(logits, k, n, self.log_concentration.clamp(-4, 10).exp())
            else:
                loss = SIMPLE[self.name](logits, k, n)
            return torch.where(known, loss / self.scale, 0.0), known

    def forward(
        self,
        logits: Tensor,
        detections: Tensor,
        visits: Tensor,
        *,
        site_weights: Tensor | None = None,
    ) -> Tensor:
        """
        Return the weighted mean over all labels that exist; 0 if none does.

        Parameters
        ----------
        logits
            (n, species).
        detections, visits
            (n, species) and (n,); a label is missing where the site has no visit or ``detections``
            is negative or NaN.
        site_weights
            (n,) >= 0; None: all 1.
        """
        loss, known = self.elements(logits, detections, visits)
        weights = known.float()
        if self.species_weights is not None:
            weights = weights * self.species_weights
        if site_weights is not None:
            weights = weights * site_weights[:, None]
        return (loss * weights).sum() / weights.sum().clamp(min=1e-12)


def _rates(detections: Tensor, visits: Tensor) -> Tensor:
    return detections / visits
