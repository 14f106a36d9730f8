"""
Predictors that see covariates in groups, and a location embedding by its principal components.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from butterfly_sdm.baselines.inputs.components import principal_axes
from butterfly_sdm.baselines.inputs.numbers import covariate_table
from butterfly_sdm.baselines.inputs.transforms import (
    fill_from_nearest,
    group_columns,
    log_counts,
    position_km,
    split_columns,
    transform_codes,
    transformed,
)
from butterfly_sdm.baselines.saved import ArrayPredictor
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import DataError, ModelError

# a change of a land-cover root fraction by 1/3 counts as much as one standard deviation of climate
FRACTION_WEIGHT = 3.0


@dataclass
class GroupedInputs(ArrayPredictor):
    """
    The part of a predictor that turns covariates into numbers of comparable size; scales come from
    the training sites.

    Parameters
    ----------
    groups
        Prefixes of covariate names, separated by commas; the columns of each prefix form a group,
        the rest another.
    embedding
        Prefix of the columns that are one location embedding; empty: none.
    components
        How many principal components of the embedding.
    density_km
        Distances, separated by commas, within which the other sites of the data set are counted,
        with visits or without: where people survey says something of the place. The counts join the
        last group. Empty: none.
    only
        Which covariates, as in :func:`~butterfly_sdm.data.groups.chosen_covariates`; empty: all.
    """

    groups: str = ""
    embedding: str = ""
    components: int = 40
    density_km: str = ""
    only: str = ""
    newer: ClassVar[tuple[str, ...]] = ("only",)

    def _look(self, dataset: Dataset) -> Sees:
        return Sees.of(dataset, covariates=True, position=True, only=self.only)

    @property
    def radii_km(self) -> list[float]:
        """
        The distances of ``density_km``.

        Raises
        ------
        ModelError
            One is no positive number.
        """
        try:
            radii = [float(part) for part in self.density_km.split(",") if part.strip()]
        except ValueError:
            radii = [0.0]
        if any(radius <= 0 for radius in radii):
            raise ModelError(
                f"density_km = {self.density_km!r}; it needs distances in km, such as '3,10,30', "
                "or nothing."
            )
        return radii

    def _fit_inputs(
        self, dataset: Dataset, sites: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """
        Return scaling statistics and the standardised columns of each group; chooses which
        covariates are seen.
        """
        table = covariate_table(dataset, sites, self.sees.covariates)
        # a constant says nothing
        table = table.loc[:, table.notna().any() & (table.max() > table.min())]
        columns = [str(name) for name in table.columns]
        embedded = [name for name in columns if self.embedding and name.startswith(self.embedding)]
        if self.embedding and not embedded:
            raise DataError(
                f"No covariate begins with {self.embedding!r}. Build with the embedding, or leave "
                "embedding empty."
            )
        plain = [name for name in columns if name not in set(embedded)]
        prefixes = [part.strip() for part in self.groups.split(",") if part.strip()]
        groups = group_columns(plain, prefixes) if plain or prefixes else {}
        order = [name for names in groups.values() for name in names]
        self._sees = replace(self.sees, covariates=(*order, *embedded))
        state: dict[str, np.ndarray] = {}
        if order:
            values = table[order].to_numpy()
            state["codes"] = transform_codes(values)
            values = transformed(values, state["codes"])
            state["centre"] = np.nanmean(values, axis=0)
            # Fractions keep their common scale: a land cover that hardly occurs shall hardly count.
            spread = np.where(state["codes"] == 1, 1 / FRACTION_WEIGHT, np.nanstd(values, axis=0))
            state["spread"] = np.maximum(spread, 1e-9)
        state["group_sizes"] = np.array([len(names) for names in groups.values()], dtype=np.int64)
        if embedded:
            values = table[embedded].to_numpy()
            state["embedding_centre"] = np.nanmean(values, axis=0)
            values = np.nan_to_num(values - state["embedding_centre"])
            state["axes"] = principal_axes(values, self.components)
        if self.radii_km:
            state["places"] = position_km(dataset, dataset.site_ids)
            counts = log_counts(state["places"], position_km(dataset, sites), self.radii_km)
            state["density_scale"] = np.stack(
                [counts.mean(axis=0), np.maximum(counts.std(axis=0), 1e-9)]
            )
        features = self._features(state, dataset, sites)
        state["features"] = np.concatenate([*features, np.empty((len(sites), 0))], axis=1)
        state["position"] = position_km(dataset, sites)
        state["sizes"] = np.array([part.shape[1] for part in features], dtype=np.int64)
        return state, features

    def _features(
        self, state: dict[str, np.ndarray], dataset: Dataset, sites: Sequence[str]
    ) -> list[np.ndarray]:
        """Return one array (sites, columns) per covariate group, then the embedding."""
        table = covariate_table(dataset, sites, self.sees.covariates)
        sizes = state["group_sizes"]
        total = int(sizes.sum())
        parts: list[np.ndarray] = []
        if total:
            values = transformed(table.iloc[:, :total].to_numpy(dtype=float), state["codes"])
            values = (values - state["centre"]) / state["spread"]
            parts = split_columns(values, sizes)
        place = position_km(dataset, sites)
        if "places" in state:
            centre, spread = state["density_scale"]
            density = (log_counts(state["places"], place, self.radii_km) - centre) / spread
            parts = [*parts[:-1], np.concatenate([*parts[-1:], density], axis=1)]
        if "axes" in state:
            values = table.iloc[:, total:].to_numpy(dtype=float) - state["embedding_centre"]
            parts.append(values @ state["axes"])
        known, at = (
            (split_columns(state["features"], state["sizes"]), state["position"])
            if "position" in state
            else (parts, place)
        )
        return [
            fill_from_nearest(part, place, other, at)
            for part, other in zip(parts, known, strict=True)
        ]
