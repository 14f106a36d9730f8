"""Extremely randomised trees on covariates, position and band statistics of a site."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from butterfly_sdm.baselines.inputs.leaves import leaves
from butterfly_sdm.baselines.inputs.table import TablePredictor
from butterfly_sdm.data.dataset import Dataset

CHUNK_ROWS = 512


@dataclass
class Trees(TablePredictor):
    """
    Extremely randomised trees [1]_, all species at once, each site weighted by its visits.

    Without bootstrap samples a forest is nothing but a set of weights on the training sites: the
    share of trees in which a site falls into the same leaf, times the site's own weight. It is kept
    and applied in this form, which also says which training sites a prediction rests on
    (:meth:`site_weights`). The predictions are those of scikit-learn.

    Parameters
    ----------
    trees
        How many.
    min_samples_leaf
        Fewest training sites in a leaf.
    max_features
        Share of the inputs tried at each cut.
    visits_power
        0: all sites weigh alike; 1: all visits.
    covariates, position, bands, only, embedding, components
        What the trees see, as in
        :class:`~butterfly_sdm.baselines.inputs.table.TablePredictor`. Missing numbers
        become the median of the training sites.
    seed
        Of the random cuts.

    References
    ----------
    .. [1] P. Geurts, D. Ernst, L. Wehenkel (2006), Extremely randomized trees. Machine Learning 63,
           3-42.
    """

    trees: int = 300
    min_samples_leaf: int = 2
    max_features: float = 1.0
    visits_power: float = 1.0
    seed: int = 0
    kind: ClassVar[str] = "trees"
    needed: ClassVar[str] = "median children feature threshold roots leaf_of_site rates weight"

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        from sklearn.ensemble import ExtraTreesRegressor

        table = self._numbers(dataset, sites)
        median = table.median().fillna(0.0)  # a column without any number says nothing: all 0
        # scikit-learn's trees compare 32-bit numbers
        seen = table.fillna(median).to_numpy(dtype=np.float32)
        k, n = dataset.counts(sites)
        rates = k / n[:, None]
        weight = n**self.visits_power
        forest = ExtraTreesRegressor(
            self.trees,
            min_samples_leaf=self.min_samples_leaf,
            max_features=self.max_features,
            random_state=self.seed,
        ).fit(seen, rates if rates.shape[1] > 1 else rates[:, 0], sample_weight=weight)
        parts = [estimator.tree_ for estimator in forest.estimators_]
        # (trees,)
        roots = np.concatenate([[0], np.cumsum([part.node_count for part in parts])[:-1]])
        # (nodes, 2)
        children = np.concatenate(
            [
                np.where(
                    (pair := np.column_stack([part.children_left, part.children_right])) < 0,
                    -1,
                    pair + root,
                )
                for part, root in zip(parts, roots, strict=True)
            ]
        )
        state = {
            "median": median.to_numpy(dtype=np.float64),
            "children": children.astype(np.int32),
            "feature": np.concatenate([part.feature for part in parts]).astype(np.int16),
            "threshold": np.concatenate([part.threshold for part in parts]),
            "roots": roots.astype(np.int32),
            "rates": rates,
            "weight": weight,
        }
        return state | {"leaf_of_site": leaves(state, seen)}

    def site_weights(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        """
        Return (sites, training sites) how much each prediction rests on each training site; rows
        sum to 1.
        """
        seen = self._seen(dataset, sites)
        return np.concatenate(
            [self._weights(seen[i : i + CHUNK_ROWS]) for i in range(0, len(seen), CHUNK_ROWS)]
        )

    def _seen(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        values = self._numbers(dataset, sites).to_numpy(dtype=np.float64)
        return np.where(np.isnan(values), self.state["median"], values).astype(np.float32)

    def _weights(self, seen: np.ndarray) -> np.ndarray:
        """Return (rows, training sites)."""
        # (training sites,), (training sites, trees)
        weight, leaf_of_site = self.state["weight"], self.state["leaf_of_site"]
        nodes = len(self.state["feature"])
        ends = leaves(self.state, seen)  # (rows, trees)
        total = np.zeros((len(seen), len(weight)))
        leaf_weight = np.zeros(nodes)
        for tree in range(leaf_of_site.shape[1]):
            members = leaf_of_site[:, tree]
            leaf_weight[:] = 0.0
            np.add.at(leaf_weight, members, weight)
            same = ends[:, tree, None] == members[None, :]
            total += same * (weight / leaf_weight[members])
        return np.asarray(total / leaf_of_site.shape[1])

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        return np.asarray(self.site_weights(dataset, sites) @ self.state["rates"])
