"""Any predictor of k of n, told when people looked: it learns and predicts standardised rates."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from butterfly_sdm.baselines.saved import visited
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import FitContext, Predictor, Sees
from butterfly_sdm.data.quantities import Quantity
from butterfly_sdm.data.saved_models import (
    PREDICTORS,
    card_in_doubt,
    load_predictor,
    read_arrays,
    read_model,
    with_seed,
    write_model,
)
from butterfly_sdm.errors import ModelError
from butterfly_sdm.season.claims import PriorLine, claims, effect_of_rate, surveyed
from butterfly_sdm.season.effective import SeasonLabels
from butterfly_sdm.season.options import season_options
from butterfly_sdm.season.seasons import Seasons

log = logging.getLogger("butterfly_sdm.baselines.seasonal")


@dataclass
class Seasonal:
    """
    Season curves, and a predictor of another kind that learns from effective visits.

    A curve of detectability over the year is fitted per species together with effects of sites;
    what the visits of a site then say of its rate over a whole season goes to the predictor as k
    of n (see :mod:`butterfly_sdm.season.effective`).

    Parameters
    ----------
    predictor
        Kind of the other predictor, or an unfitted one.
    options
        Its hyper-parameters.
    season
        How dates are used; a mapping of :class:`~butterfly_sdm.season.options.SeasonOptions`.
    folds
        Folds of training sites that are predicted by fits to the others: how far effects of sites
        lie from predictions, and what the prediction of a surveyed site is that joins its visits.
        0: none; intervals are then those of sites of which nothing is known, and wider.
    seed
        Deals sites to folds, and of the other predictor unless its options say another.

    Attributes
    ----------
    seasons
        The curves.
    lines
        What a prediction says of the effect of a site, per species.
    """

    predictor: str | Predictor = "trees"
    options: Mapping[str, Any] = field(default_factory=dict)
    season: Mapping[str, Any] = field(default_factory=dict)
    folds: int = 5
    seed: int = 0
    kind: ClassVar[str] = "seasonal"
    quantities: ClassVar[tuple[str, ...]] = ("standardised_rate", "rate_in_week", "raw_rate")

    def __post_init__(self) -> None:
        self.settings_of_season = season_options(self.season)
        if isinstance(self.predictor, str):
            cls = PREDICTORS.load(self.predictor)
            self.inner: Predictor = cls(**with_seed(cls, self.options, self.seed))
        else:
            self.inner = self.predictor
        if self.folds < 0 or self.folds == 1:
            raise ModelError(f"folds = {self.folds}; it has to be 0 or at least 2.")
        self.quantity = Quantity()
        self.seasons: Seasons | None = None
        self.lines: tuple[PriorLine, ...] = ()
        self.left_out = pd.DataFrame()
        self.dataset_fingerprint = ""

    @property
    def species(self) -> tuple[str, ...]:
        """Names of the species; empty before :meth:`fit`."""
        return tuple(self.inner.species) if self.seasons is not None else ()

    @property
    def sees(self) -> Sees:
        """What it looks at: what the other predictor does, and what the season shifts along."""
        sees = self.inner.sees
        along = None if self.seasons is None else self.seasons.calendar.shift_by
        if along in (None, "latitude", *sees.covariates):
            return sees
        return replace(sees, covariates=(*sees.covariates, str(along)))

    def fit(
        self, dataset: Dataset, sites: Sequence[str], *, context: FitContext | None = None
    ) -> Self:
        """
        Learn from the visits of ``sites`` and of no others.

        Parameters
        ----------
        context
            Handed on to the other predictor.

        Raises
        ------
        DataError
            None of the sites has a visit with a date, or the data set lacks what the other
            predictor needs.
        """
        context = context or FitContext()
        used = visited(dataset, sites)
        seasons = Seasons.of(dataset, used, self.settings_of_season, seed=self.seed)
        watched = visited(dataset, context.validation) if context.validation else []
        labels = SeasonLabels.over(dataset, seasons, [*used, *watched])
        blank = copy.deepcopy(self.inner)
        self.inner.fit(labels, used, context=context)
        self.lines = tuple(PriorLine(tau=float(tau)) for tau in seasons.tau)
        self.left_out = pd.DataFrame()
        if self.folds:
            self.left_out = self._left_out(blank, labels, used)
            self.lines = _lines(seasons, dataset, self.left_out)
        self.seasons, self.dataset_fingerprint = seasons, dataset.fingerprint
        return self

    def _left_out(self, blank: Predictor, labels: Dataset, used: Sequence[str]) -> pd.DataFrame:
        """Return predictions (sites, species) by fits that have not seen the site."""
        rng = np.random.default_rng(self.seed)
        fold_of = rng.permutation(len(used)) % self.folds
        parts = []
        for fold in range(min(self.folds, len(used))):
            learn = [site for site, own in zip(used, fold_of, strict=True) if own != fold]
            judge = [site for site, own in zip(used, fold_of, strict=True) if own == fold]
            if learn and judge:
                fitted = copy.deepcopy(blank).fit(labels, learn)
                parts.append(fitted.predict(labels, judge))
        return pd.concat(parts).loc[list(used)] if parts else pd.DataFrame()

    def predict(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """
        Return the quantity asked for, the standardised rate if none was: (sites, species), in [0,
        1]. What was seen at these sites is not looked at.

        Raises
        ------
        ModelError
            It was not fitted.
        DataError
            The data set lacks a site or what the model needs.
        """
        seasons = self._fitted()
        table = self.inner.predict(dataset, sites)
        if self.quantity == Quantity():
            return table
        found = claims(
            seasons, self.lines, dataset, sites, table.to_numpy(dtype=float), self.quantity
        )
        return pd.DataFrame(np.clip(found, 0, 1), index=table.index, columns=table.columns)

    def asked_for(self, quantity: Quantity) -> Seasonal:
        """Return the same fitted predictor, whose ``predict`` gives this quantity."""
        other = copy.copy(self)
        other.quantity = quantity
        return other

    def surveyed(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, pd.DataFrame]:
        """
        Return what prediction and own visits together say of sites: ``mean``, ``lower`` and
        ``upper`` (sites, species), of the quantity asked for.

        For sites it was fitted to, the prediction is that of a fit that has not seen the site.
        """
        seasons = self._fitted()
        sites = list(sites)
        table = self.inner.predict(dataset, sites)
        if len(self.left_out):
            known = [site for site in sites if site in self.left_out.index]
            table.loc[known] = self.left_out.loc[known].to_numpy()
        bands, weights = seasons.bands(dataset, sites), seasons.calendar.weights()
        middles = np.empty(table.shape)
        for place, line in enumerate(self.lines):
            rates, claim = seasons.node_rates(place, weights), table.to_numpy(float)[:, place]
            middles[:, place] = line.mean(effect_of_rate(rates, bands, claim, seasons.grid))
        tau = [line.tau for line in self.lines]
        found = surveyed(seasons, tau, dataset, sites, middles, self.quantity)
        names = ("mean", "lower", "upper")
        return {
            name: pd.DataFrame(values, index=table.index, columns=table.columns)
            for name, values in zip(names, found, strict=True)
        }

    def _fitted(self) -> Seasons:
        if self.seasons is None:
            raise ModelError(
                "The seasonal model was not fitted yet. Call fit(dataset, sites) before predict, "
                "or load a run."
            )
        return self.seasons

    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        kind = self.predictor if isinstance(self.predictor, str) else None
        return {
            "predictor": kind,
            "options": dict(self.options),
            "season": dict(self.season),
            "folds": self.folds,
            "seed": self.seed,
        }

    def save(self, folder: Path) -> None:
        """
        Write ``model.json``, ``model.safetensors`` and the other predictor, in ``predictor``, into
        ``folder``.

        Raises
        ------
        ModelError
            It was not fitted.
        """
        folder = Path(folder)
        if self.seasons is None:
            raise ModelError("The seasonal model was not fitted; there is nothing to save.")
        self.inner.save(folder / "predictor")
        content = {
            "settings": self.settings(),
            "quantity": self.quantity.to_dict(),
            "season": self.seasons.to_card(),
            "left_out": list(map(str, self.left_out.index)),
            "dataset": self.dataset_fingerprint,
        }
        arrays = self.seasons.to_arrays()
        arrays["lines"] = np.array([[one.level, one.slope, one.tau] for one in self.lines])
        arrays["left_out"] = self.left_out.to_numpy(dtype=np.float32)
        write_model(folder, self.kind, self, content, arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """
        Read what :meth:`save` wrote.

        Raises
        ------
        MissingFileError, ArtefactError
            A file is absent, damaged or of another kind of model.
        """
        folder = Path(folder)
        card, arrays = read_model(folder, cls.kind), read_arrays(folder)
        with card_in_doubt(folder):
            own = dict(card["settings"])
            model = cls(**(own | {"predictor": load_predictor(folder / "predictor")}))
            if own["predictor"] is not None:
                model.predictor = own["predictor"]
            model.seasons = Seasons.from_saved(card["season"], arrays)
            model.quantity = Quantity.from_dict(card["quantity"])
            model.lines = tuple(PriorLine(*map(float, one)) for one in arrays["lines"])
            model.left_out = pd.DataFrame(
                arrays["left_out"].astype(float),
                index=pd.Index(card["left_out"], name="site_id"),
                columns=list(card["species"]) if len(card["left_out"]) else None,
            )
            model.dataset_fingerprint = str(card.get("dataset", ""))
        return model


def _lines(seasons: Seasons, dataset: Dataset, left_out: pd.DataFrame) -> tuple[PriorLine, ...]:
    """Return what predictions of sites that were left out say of their effects, per species."""
    counts = seasons.counts(dataset, list(left_out.index))
    weights, out = seasons.calendar.weights(), []
    for place, tau in enumerate(seasons.tau):
        rates = seasons.node_rates(place, weights)
        claim = left_out.to_numpy()[:, place]
        told = effect_of_rate(rates, counts.bands, claim, seasons.grid)
        likelihood = seasons.likelihood(counts, place)
        out.append(PriorLine.fit(likelihood, seasons.grid, told, float(tau)))
    return tuple(out)
