"""What a network knows of detection: curves of the season, and claims from its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.quantities import Quantity
from butterfly_sdm.errors import ModelError
from butterfly_sdm.losses.options import DetectionName
from butterfly_sdm.season.claims import (
    TAIL,
    SiteRates,
    claims_of_effects,
    mixed_quantile,
    surveyed,
)
from butterfly_sdm.season.occupancy import fit_species
from butterfly_sdm.season.options import season_options
from butterfly_sdm.season.seasons import Seasons
from butterfly_sdm.season.site_effects import posterior, prior

RATES = ("standardised_rate", "rate_in_week", "raw_rate")
LEAST = -6e4  # of numbers of 16 bits


@dataclass(frozen=True, eq=False)
class Detection:
    """
    The curves that a network was fitted with.

    Attributes
    ----------
    name
        The loss: ``season``, where logits are middles of the effects of sites, or ``occupancy``,
        where they are log-odds of presence.
    seasons
        The curves; of ``occupancy``, where a species is present.
    start
        (species,) logits of a network that knows nothing.
    quantity
        What it claims.
    """

    name: DetectionName
    seasons: Seasons
    start: np.ndarray
    quantity: Quantity = field(default_factory=Quantity)

    @classmethod
    def fit(
        cls,
        name: DetectionName,
        dataset: Dataset,
        sites: Sequence[str],
        season: Mapping[str, Any],
        *,
        seed: int,
    ) -> Self:
        """
        Fit the curves to the visits of ``sites``, before the network.

        Raises
        ------
        DataError
            The data set keeps no visits with dates.
        """
        options = season_options(season)
        if name == "season":
            known = Seasons.of(dataset, sites, options, seed=seed)
            return cls(name, known, np.zeros(len(known.species)))
        blank = Seasons.blank(dataset, sites, options)
        numbers = _numbers(dataset, sites)
        known, fits = fit_species(blank, blank.counts(dataset, sites), numbers, seed=None)
        curve = known.coefficients.shape[1]
        odds = [(numbers @ one.theta[curve:-2]).mean() for one in fits]
        return cls(name, known, np.clip(odds, -3, 3))

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of what it can claim."""
        return RATES if self.name == "season" else (*RATES, "presence")

    def asked_for(self, quantity: Quantity) -> Detection:
        """
        Return the same with another quantity.

        Raises
        ------
        ModelError
            It is the interval of presence, which a network has none of.
        """
        if quantity.name == "presence" and quantity.bound != "mean":
            raise ModelError(
                "A network tells no interval of presence. Use train.model.kind: occupancy, or ask "
                "for the interval of a rate."
            )
        return replace(self, quantity=quantity)

    def evidence(self, dataset: Dataset, sites: Sequence[str]) -> Tensor:
        """
        Return (sites, species, nodes) the log-likelihood of the visits to each site, in 16 bits,
        its largest being 0 for ``season``.
        """
        counts = self.seasons.counts(dataset, sites)
        shape = len(counts), len(self.seasons.species), len(self.seasons.grid)
        out = torch.empty(shape, dtype=torch.float16)
        for place in range(shape[1]):
            value = self.seasons.likelihood(counts, place)
            if self.name == "season":
                value = value - value.max(axis=1, keepdims=True)
            out[:, place] = torch.from_numpy(np.maximum(value, LEAST)).half()
        return out

    def claims(self, dataset: Dataset, sites: Sequence[str], logits: np.ndarray) -> np.ndarray:
        """Return (sites, species) the quantity asked for, from the logits of a network."""
        if self.name == "season":
            return claims_of_effects(
                self.seasons, self.seasons.tau, dataset, sites, logits, self.quantity
            )
        psi = expit(logits)
        if self.quantity.name == "presence":
            return np.asarray(psi)
        rates, out = SiteRates(self.seasons, dataset, sites, self.quantity), np.empty(psi.shape)
        for place, tau in enumerate(self.seasons.tau):
            weight = np.exp(prior(np.zeros(len(psi)), float(tau), self.seasons.grid))
            present, nodes = psi[:, place], rates.of(place)
            if self.quantity.bound == "mean":
                out[:, place] = present * (weight * nodes).sum(axis=1)
            else:
                share = TAIL if self.quantity.bound == "lower" else 1 - TAIL
                out[:, place] = mixed_quantile(present, nodes, weight, share)
        return out

    def surveyed(self, dataset: Dataset, sites: Sequence[str], logits: np.ndarray) -> np.ndarray:
        """
        Return mean, lower and upper end (3, sites, species) of the quantity at sites, from logits
        and the visits to the site itself.
        """
        if self.name == "season":
            return surveyed(self.seasons, self.seasons.tau, dataset, sites, logits, self.quantity)
        counts = self.seasons.counts(dataset, sites)
        rates, out = (
            SiteRates(self.seasons, dataset, sites, self.quantity),
            np.empty((3, *logits.shape)),
        )
        for place, tau in enumerate(self.seasons.tau):
            log_prior = prior(np.zeros(len(logits)), float(tau), self.seasons.grid)
            weight, marginal = posterior(self.seasons.likelihood(counts, place), log_prior)
            seen = np.asarray(counts.of_species(place)[0].sum(axis=1)).ravel() > 0
            here = np.where(seen, 1.0, expit(logits[:, place] + marginal))
            if self.quantity.name == "presence":
                out[:, :, place] = here
                continue
            nodes = rates.of(place)
            out[0, :, place] = here * (weight * nodes).sum(axis=1)
            for row, share in ((1, TAIL), (2, 1 - TAIL)):
                out[row, :, place] = mixed_quantile(here, nodes, weight, share)
        return out

    def to_card(self) -> dict[str, Any]:
        """Return what ``model.json`` keeps beside :meth:`to_arrays`."""
        return {
            "name": self.name,
            "start": self.start.tolist(),
            "quantity": self.quantity.to_dict(),
            "season": self.seasons.to_card(),
        }

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays to save."""
        return self.seasons.to_arrays()

    @classmethod
    def from_saved(cls, card: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """
        Read what :meth:`to_card` and :meth:`to_arrays` gave.

        Raises
        ------
        KeyError, TypeError, ValueError
            Something is missing or does not fit.
        """
        known = Seasons.from_saved(card["season"], arrays)
        return cls(
            card["name"], known, np.array(card["start"]), Quantity.from_dict(card["quantity"])
        )


def _numbers(dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
    """
    Return the numbers that presence follows from while the curves are fitted: covariates, or
    positions where there are none.
    """
    table = dataset.covariates
    if table is None:
        table = dataset.sites[["easting", "northing"]]
    values = table.to_numpy(dtype=float)[dataset.rows(sites)]
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    mean = filled.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    away = np.where(known, values - mean, 0.0)
    spread = np.sqrt((away**2).mean(axis=0))
    scaled = np.clip(away / np.where(spread > 1e-9, spread, 1.0), -3, 3)
    return np.column_stack([np.ones(len(scaled)), scaled])
