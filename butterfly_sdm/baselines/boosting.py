"""
Gradient-boosted trees, one model per species, on covariates, position and band statistics of a
site.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from butterfly_sdm.baselines.inputs.leaves import leaves
from butterfly_sdm.baselines.inputs.table import TablePredictor
from butterfly_sdm.data.dataset import Dataset


@dataclass
class Boosting(TablePredictor):
    """
    Histogram gradient boosting of the logistic likelihood [1]_, species by species, each site
    weighted by its visits.

    Each site enters as a detection with weight k and a non-detection with weight n - k. The trees
    are kept as plain arrays: input, threshold, where missing numbers go, children, value.

    Parameters
    ----------
    rounds
        Trees per species.
    learning_rate
        Share of each tree's answer that is added.
    max_depth, min_samples_leaf
        Of one tree.
    penalty
        On squared leaf values.
    visits_power
        A site counts ``n ** visits_power`` visits.
    covariates, position, bands, only, embedding, components
        What the trees see, as in :class:`~butterfly_sdm.baselines.inputs.table.TablePredictor`;
        missing numbers are kept.
    seed
        Of the share of inputs tried.

    References
    ----------
    .. [1] J. H. Friedman (2001), Greedy function approximation: a gradient boosting machine. Annals
           of Statistics 29.
    """

    rounds: int = 50
    learning_rate: float = 0.12
    max_depth: int = 3
    min_samples_leaf: int = 20
    penalty: float = 5.0
    visits_power: float = 0.5
    seed: int = 0
    kind: ClassVar[str] = "boosting"
    needed: ClassVar[str] = (
        "base roots species_of_tree feature threshold missing_left children value"
    )

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        from sklearn.ensemble import HistGradientBoostingClassifier

        table = self._numbers(dataset, sites)
        values = table.to_numpy(dtype=np.float64)
        k, n = dataset.counts(sites)
        weight = n**self.visits_power
        twice, outcome = np.vstack([values, values]), np.repeat([1, 0], len(values))
        base, trees = np.zeros(k.shape[1]), []
        for column in range(k.shape[1]):
            rate = k[:, column] / n
            weights = np.r_[rate * weight, (1 - rate) * weight]
            if not 0 < rate.sum() < len(rate):  # always or never detected: nothing to learn
                base[column] = 20.0 if rate.sum() else -20.0
                continue
            model = HistGradientBoostingClassifier(
                max_iter=self.rounds,
                learning_rate=self.learning_rate,
                max_depth=self.max_depth,
                min_samples_leaf=self.min_samples_leaf,
                l2_regularization=self.penalty,
                max_features=0.5,
                max_bins=32,
                early_stopping=False,
                random_state=self.seed,
            ).fit(twice, outcome, sample_weight=weights / weights.mean())
            base[column] = float(model._baseline_prediction.ravel()[0])
            trees += [(column, rounds[0].nodes) for rounds in model._predictors]
        return {"base": base} | _stacked(trees)

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        from scipy.special import expit

        values = self._numbers(dataset, sites).to_numpy(dtype=np.float64)
        logits = np.tile(self.state["base"], (len(values), 1))
        if len(self.state["roots"]):
            added = self.state["value"][leaves(self.state, values)]  # (sites, trees)
            np.add.at(logits.T, self.state["species_of_tree"], added.T)
        return np.asarray(expit(logits))


def _stacked(trees: Sequence[tuple[int, Any]]) -> dict[str, np.ndarray]:
    """Return all trees in one set of node arrays; children of a leaf are -1."""
    sizes = [len(nodes) for _, nodes in trees]
    roots = np.r_[0, np.cumsum(sizes)].astype(np.int32)
    parts: dict[str, list[np.ndarray]] = {
        name: [] for name in ("feature", "threshold", "missing_left", "children", "value")
    }
    for (_, nodes), root in zip(trees, roots[:-1], strict=True):
        leaf = nodes["is_leaf"].astype(bool)
        children = np.column_stack([nodes["left"], nodes["right"]]).astype(np.int64) + root
        parts["children"].append(np.where(leaf[:, None], -1, children).astype(np.int32))
        parts["feature"].append(np.where(leaf, 0, nodes["feature_idx"]).astype(np.int16))
        parts["threshold"].append(np.where(leaf, 0.0, nodes["num_threshold"]))
        parts["missing_left"].append(nodes["missing_go_to_left"].astype(bool))
        parts["value"].append(nodes["value"])
    empty = {
        "children": np.empty((0, 2), np.int32),
        "missing_left": np.empty(0, bool),
        "feature": np.empty(0, np.int16),
    }
    arrays = {
        name: np.concatenate(part) if part else empty.get(name, np.empty(0))
        for name, part in parts.items()
    }
    return arrays | {
        "roots": roots[:-1],
        "species_of_tree": np.array([column for column, _ in trees], dtype=np.int32),
    }
