"""Presence apart from detection, species by species, on the numbers of a site."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.special import expit

from butterfly_sdm.baselines.inputs.table import TablePredictor
from butterfly_sdm.baselines.linear import mean_and_deviation
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.quantities import Quantity
from butterfly_sdm.errors import ModelError
from butterfly_sdm.season.claims import TAIL, SiteRates, mixed_quantile
from butterfly_sdm.season.occupancy import Problem, fit_species
from butterfly_sdm.season.options import season_options
from butterfly_sdm.season.seasons import Seasons
from butterfly_sdm.season.site_effects import NODES, prior


@dataclass
class OccupancyModel(TablePredictor):
    """
    Site occupancy [1]_: a species lives at a site with a probability that follows from the site's
    numbers, and is then seen on a visit with one that follows from week, effort and an effect of
    the site, whose mean may rise with presence.

    Its likelihood sums over presence and effect; claims are means over draws of the posterior.

    Parameters
    ----------
    season
        How dates are used; a mapping of :class:`~butterfly_sdm.season.options.SeasonOptions`.
    covariates, position, bands, only, embedding, components
        What presence follows from, as in
        :class:`~butterfly_sdm.baselines.inputs.table.TablePredictor`. Missing numbers become the
        mean.
    quadratic
        Add the square of every number.
    seed
        Of the draws.

    References
    ----------
    .. [1] D. I. MacKenzie et al. (2002), Estimating site occupancy rates when detection
           probabilities are less than one. Ecology 83, 2248-2255.
    """

    season: Mapping[str, Any] = field(default_factory=dict)
    quadratic: bool = False
    seed: int = 0
    position: bool = False
    kind: ClassVar[str] = "occupancy"
    needed: ClassVar[str] = "mean deviation theta draws season_grid season_coefficients"
    quantities: ClassVar[tuple[str, ...]] = (
        "standardised_rate",
        "rate_in_week",
        "raw_rate",
        "presence",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.options = season_options(self.season)
        self.quantity = Quantity()
        self.seasons: Seasons | None = None

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        values = self._numbers(dataset, sites).to_numpy(dtype=float)
        mean, deviation = mean_and_deviation(values)
        state = {"mean": mean, "deviation": deviation}
        numbers = self._design(values, state)
        blank = Seasons.blank(dataset, sites, self.options)
        counts = blank.counts(dataset, sites)
        self.seasons, fits = fit_species(blank, counts, numbers, seed=self.seed)
        curve = self.seasons.coefficients.shape[1]
        state["theta"] = np.array([one.theta for one in fits])
        state["draws"] = np.array([one.draws for one in fits])
        state["odds_mean"] = (numbers @ state["theta"][:, curve:-2].T).mean(axis=0)
        return state | self.seasons.to_arrays()

    def _design(self, values: np.ndarray, state: Mapping[str, np.ndarray]) -> np.ndarray:
        # Beyond the range of training a straight line has no say.
        scaled = np.clip(np.nan_to_num((values - state["mean"]) / state["deviation"]), -3, 3)
        squares = [scaled**2 - 1] if self.quadratic else []
        return np.hstack([np.ones((len(values), 1)), scaled, *squares])

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        seasons = self._fitted()
        values = self._numbers(dataset, sites).to_numpy(dtype=float)
        numbers = self._design(values, self.state)
        out = np.empty((len(sites), len(self.species)))
        rates = SiteRates(seasons, dataset, sites, self.quantity)
        for place in range(len(self.species)):
            out[:, place] = self._claim(numbers, rates, place)
        return out

    def _claim(self, numbers: np.ndarray, rates: SiteRates, place: int) -> np.ndarray:
        """Return the claim (sites,) of one species."""
        curve = self._fitted().coefficients.shape[1]
        draws, bound = self.state["draws"][place], self.quantity.bound
        odds = numbers @ draws[:, curve:-2].T  # (sites, draws)
        psi = expit(odds)
        if self.quantity.name == "presence":
            if bound == "mean":
                return np.asarray(psi.mean(axis=1))
            share = TAIL if bound == "lower" else 1 - TAIL
            return np.asarray(np.quantile(psi, share, axis=1))
        theta = self.state["theta"][place]
        away = numbers @ theta[curve:-2] - self.state["odds_mean"][place]
        nodes = rates.of(place)  # (sites, nodes)
        weight = np.exp(prior(theta[-1] * away, float(np.exp(theta[-2])), NODES))
        present = psi.mean(axis=1)
        if bound == "mean":
            return np.asarray(present * (weight * nodes).sum(axis=1))
        share = TAIL if bound == "lower" else 1 - TAIL
        return mixed_quantile(present, nodes, weight, share)

    def surveyed(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, pd.DataFrame]:
        """
        Return what numbers and own visits together say of sites: ``mean``, ``lower`` and
        ``upper`` (sites, species), of the quantity asked for. Presence is 1 where the species was
        seen.
        """
        seasons = self._fitted()
        values = self._numbers(dataset, sites).to_numpy(dtype=float)
        numbers = self._design(values, self.state)
        counts, basis = seasons.counts(dataset, sites), seasons.calendar.design[0]
        rates = SiteRates(seasons, dataset, sites, self.quantity)
        found = np.empty((3, len(numbers), len(self.species)))
        for place in range(len(self.species)):
            problem = Problem(*counts.of_species(place), basis, numbers, seasons.link)
            draws = self.state["draws"][place][::8]
            states = [problem.states(draw) for draw in draws]
            here = np.array([state["here"] for state in states])
            if self.quantity.name == "presence":
                ends = np.quantile(here, [TAIL, 1 - TAIL], axis=0)
                found[:, :, place] = [here.mean(axis=0), *ends]
                continue
            weight = np.mean([state["weight"] for state in states], axis=0)
            present, nodes = here.mean(axis=0), rates.of(place)
            found[0, :, place] = present * (weight * nodes).sum(axis=1)
            for row, share in ((1, TAIL), (2, 1 - TAIL)):
                found[row, :, place] = mixed_quantile(present, nodes, weight, share)
        index, columns = pd.Index(list(sites), name="site_id"), list(self.species)
        return {
            name: pd.DataFrame(values, index=index, columns=columns)
            for name, values in zip(("mean", "lower", "upper"), found, strict=True)
        }

    def asked_for(self, quantity: Quantity) -> OccupancyModel:
        """Return the same fitted predictor, whose ``predict`` gives this quantity."""
        other = copy.copy(self)
        other.quantity = quantity
        return other

    def _fitted(self) -> Seasons:
        if self.seasons is None:
            raise ModelError("The occupancy model was not fitted. Call fit, or load a run.")
        return self.seasons

    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        return super().settings() | {"season": dict(self.season)}

    def _more_of_card(self) -> dict[str, Any]:
        season = self.seasons.to_card() if self.seasons is not None else None
        return {"quantity": self.quantity.to_dict(), "season": season}

    def _take_card(self, card: Mapping[str, Any]) -> None:
        self.seasons = Seasons.from_saved(card["season"], self.state)
        self.quantity = Quantity.from_dict(card["quantity"])
