"""Combine predictors by weights learned from predictions of sites that no member had seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.baselines.saved import visited
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.division import spatial_folds
from butterfly_sdm.data.predictor import FitContext, Predictor, Sees, seen_by_all
from butterfly_sdm.data.saved_models import (
    PREDICTORS,
    card_in_doubt,
    read_model,
    write_model,
)
from butterfly_sdm.errors import ModelError


class Stacking:
    """
    A weighted mean of other predictors [1]_.

    The training sites are divided into folds of whole clusters of neighbouring sites; every member
    predicts each fold from the others, and the weights (per species, none negative, summing to 1,
    drawn towards those of all species together) minimise the squared error of these predictions.
    Then every member is fitted to all training sites.

    Parameters
    ----------
    members
        Kinds of the members, separated by commas; a second member of a kind is written
        ``kind:name``.
    weights
        Weights of the members, separated by commas, where they are known already; empty: learn
        them.
    folds
        How many folds.
    distance_m
        Training sites nearer than this are in one fold.
    shrinkage
        How many sites' worth of evidence the weights common to all species count for, in the
        weights of each.
    seed
        Of the folds.
    options
        Hyper-parameters of members, as ``"member.parameter": value``.

    References
    ----------
    .. [1] L. Breiman (1996), Stacked regressions. Machine Learning 24, 49-64.

    Examples
    --------
    >>> Stacking(members="trees,mean_rate", **{"trees.trees": 100}).names
    ('trees', 'mean_rate')
    """

    kind: ClassVar[str] = "stacking"
    seed: int = 0

    def __init__(
        self,
        members: str = "gaussian_process,trees",
        weights: str = "",
        folds: int = 5,
        distance_m: float = 4000.0,
        shrinkage: float = 1000.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.members, self.weights, self.folds, self.distance_m = (
            members,
            weights,
            folds,
            distance_m,
        )
        self.shrinkage, self.seed, self.options = shrinkage, seed, options
        entries = [part.strip() for part in members.split(",") if part.strip()]
        self._kinds = {
            (entry.partition(":")[2] or entry): entry.partition(":")[0] for entry in entries
        }
        if (
            not entries
            or len(self._kinds) != len(entries)
            or not all(map(str.isidentifier, self._kinds))
        ):  # they name folders
            raise ModelError(
                f"members = {members!r}; it needs names that differ, such as "
                "'gaussian_process,trees:deep'."
            )
        if folds < 2 or distance_m < 0 or shrinkage < 0:
            raise ModelError(
                f"folds = {folds}, distance_m = {distance_m}, shrinkage = {shrinkage}; need >= 2, "
                ">= 0, >= 0."
            )
        self.species: tuple[str, ...] = ()
        self.fitted: dict[str, Predictor] = {}
        self.weight: np.ndarray = np.empty((0, 0))
        self.dataset_fingerprint = ""
        given = [float(part) for part in weights.split(",")] if weights else []
        if given and (len(given) != len(entries) or min(given) < 0 or sum(given) <= 0):
            raise ModelError(
                f"weights = {weights!r}; {len(entries)} members need as many weights, none "
                "negative, not all 0."
            )
        self._given = np.array(given) / sum(given) if given else None
        for key in options:
            if key.partition(".")[0] not in self._kinds or "." not in key:
                raise TypeError(
                    f"option {key!r} is none of stacking; write 'member.parameter' with one of "
                    f"{self.names}"
                )
        for name in self.names:
            self._make(name)  # wrong options shall be known before hours of work

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members."""
        return tuple(self._kinds)

    @property
    def sees(self) -> Sees:
        """What the members look at together."""
        return seen_by_all((self.fitted.get(name) or self._make(name)).sees for name in self.names)

    def _make(self, name: str) -> Predictor:
        own = {
            key.partition(".")[2]: value
            for key, value in self.options.items()
            if key.partition(".")[0] == name
        }
        return make_baseline(self._kinds[name], **own)

    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        names = ("members", "weights", "folds", "distance_m", "shrinkage", "seed")
        return {name: getattr(self, name) for name in names} | self.options

    def fit(
        self, dataset: Dataset, sites: Sequence[str], *, context: FitContext | None = None
    ) -> Self:
        """
        Learn the weights and the members from ``sites`` and no others; sites without a visit are
        passed over. Nothing of ``context`` is needed.

        Raises
        ------
        DataError
            No site has a visit, or there are fewer clusters than folds.
        """
        used = visited(dataset, sites)
        k, n = dataset.counts(used)
        if self._given is not None:
            self.weight = np.tile(self._given, (k.shape[1], 1))
        else:
            self.weight = blend_weights(
                self.out_of_fold(dataset, used), k / n[:, None], shrinkage=self.shrinkage
            )
        self.fitted = {name: self._make(name).fit(dataset, used) for name in self.names}
        self.species = dataset.species
        self.dataset_fingerprint = dataset.fingerprint
        return self

    def out_of_fold(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        """
        Return (members, sites, species) predictions of each site by members that were fitted to
        other folds.
        """
        place = {site: row for row, site in enumerate(sites)}
        table = dataset.sites.iloc[dataset.rows(sites)]
        out = np.empty((len(self.names), len(sites), len(dataset.species)))
        for fold in spatial_folds(
            table, distance_m=self.distance_m, n_folds=self.folds, seed=self.seed
        ):
            held = [place[site] for site in fold.validation]
            for member, name in enumerate(self.names):
                model = self._make(name).fit(dataset, fold.train)
                out[member, held] = model.predict(dataset, fold.validation).to_numpy()
        return out

    def predict(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """
        Return the presence probability, in [0, 1], of shape (sites, species).

        Raises
        ------
        ModelError
            The model was not fitted.
        """
        if not self.species:
            raise ModelError(
                "The stacking model was not fitted yet. Call fit(dataset, sites) before predict, "
                "or load a run."
            )
        parts = [self.fitted[name].predict(dataset, sites) for name in self.names]
        total = sum(
            part.to_numpy() * weight for part, weight in zip(parts, self.weight.T, strict=True)
        )
        return pd.DataFrame(
            np.clip(total, 0.0, 1.0), index=parts[0].index, columns=list(self.species)
        )

    def save(self, folder: Path) -> None:
        """
        Write ``model.json`` and one folder per member into ``folder``.

        Raises
        ------
        ModelError
            The model was not fitted.
        """
        for name, member in self.fitted.items():
            member.save(Path(folder) / f"member_{name}")
        content = {
            "settings": self.settings(),
            "dataset": self.dataset_fingerprint,
            "weights": dict(zip(self.names, self.weight.T.tolist(), strict=False)),
        }
        write_model(folder, self.kind, self, content)

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
        card = read_model(folder, cls.kind)
        with card_in_doubt(folder):
            model = cls(**card["settings"])
            model.weight = np.array([card["weights"][name] for name in model.names], dtype=float).T
            if model.weight.shape != (len(card["species"]), len(model.names)):
                raise ValueError("weights of another shape")
        model.species = tuple(card["species"])
        model.dataset_fingerprint = str(card.get("dataset", ""))
        model.fitted = {
            name: PREDICTORS.load(kind).load(folder / f"member_{name}")
            for name, kind in model._kinds.items()
        }
        return model


def blend_weights(predictions: np.ndarray, rates: np.ndarray, *, shrinkage: float) -> np.ndarray:
    """
    Return (species, members) convex weights of least squared error, drawn towards those of all
    species together.

    Parameters
    ----------
    predictions
        (members, sites, species) out of fold.
    rates
        (sites, species).
    shrinkage
        Number of sites the common weights count for.
    """
    sites = rates.shape[0]
    # (members, sites, species); weights sum to 1, so the blend's error is the blend of errors
    errors = predictions - rates
    gram = np.einsum("msk,nsk->kmn", errors, errors) / sites  # (species, members, members)
    common = _simplex(gram.mean(axis=0), np.full(len(predictions), 1 / len(predictions)), 0.0)
    share = shrinkage / (shrinkage + sites)
    own = []
    for matrix in gram:
        # The pull is measured in this species' own squared error, so that rare and common species
        # are drawn alike.
        pull = share / max(1 - share, 1e-9) * np.trace(matrix) / len(matrix)
        own.append(common if share >= 1 else _simplex(matrix, common, pull))
    return np.stack(own)


def _simplex(gram: np.ndarray, centre: np.ndarray, pull: float) -> np.ndarray:
    """Minimise w'Gw + pull |w - centre|² over weights that are not negative and sum to 1."""
    from scipy.optimize import minimize

    scale = max(float(np.trace(gram)) / len(gram), 1e-15)
    gram, pull = gram / scale, pull / scale
    found = minimize(
        lambda w: w @ gram @ w + pull * ((w - centre) ** 2).sum(),
        centre,
        jac=lambda w: 2 * gram @ w + 2 * pull * (w - centre),
        bounds=[(0.0, 1.0)] * len(centre),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones_like(w)},
        method="SLSQP",
        options={"maxiter": 200, "ftol": 1e-12},
    )
    weight = np.clip(found.x, 0.0, None)
    return np.asarray(weight / weight.sum())
