"""MaxEnt for presence-only data, through elapid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from butterfly_sdm.baselines.inputs.table import TablePredictor
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import MissingPackageError, how_to_install


@dataclass
class MaxEnt(TablePredictor):
    """
    MaxEnt [1]_ per species: sites where it was recorded against all surveyed sites as background.

    Only the places of records enter the model, not how often a species was found there; the
    background of surveyed sites takes uneven recording out (target-group background [2]_). The
    suitability MaxEnt gives is not a detection rate; one factor per species, from the training
    sites, brings its mean to the mean rate so that scores can be compared.

    Parameters
    ----------
    features
        Feature classes of elapid, separated by blanks: linear, quadratic, hinge, product,
        threshold.
    regularisation
        The ``beta_multiplier`` of elapid; larger gives smoother responses.
    scaled
        Apply the factor.
    covariates, position, bands, only, embedding, components
        What the model sees, as in
        :class:`~butterfly_sdm.baselines.inputs.table.TablePredictor`. Missing numbers
        become the median.

    References
    ----------
    .. [1] S. J. Phillips, R. P. Anderson, R. E. Schapire (2006), Maximum entropy modeling of
           species geographic distributions.
       Ecological Modelling 190, 231-259.
    .. [2] S. J. Phillips et al. (2009), Sample selection bias and presence-only distribution
           models. Ecological
       Applications 19, 181-197.
    """

    features: str = "linear quadratic"
    regularisation: float = 1.5
    scaled: bool = True
    seed: int = 0
    kind: ClassVar[str] = "maxent"
    needed: ClassVar[str] = "background median slopes alpha entropy factor"

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        elapid = _elapid()
        table = self._numbers(dataset, sites)
        median = table.median().fillna(0.0)
        values = table.fillna(median).to_numpy(dtype=float)
        k, n = dataset.counts(sites)
        # Everything elapid learns beside the slopes comes from the range of the background, which
        # holds the presences too.
        state = {"background": values, "median": median.to_numpy(dtype=float)}
        design = self._transformer(values).transform(values)
        slopes = np.zeros((design.shape[1], k.shape[1]))
        alpha, entropy = np.zeros(k.shape[1]), np.zeros(k.shape[1])
        for column in range(k.shape[1]):
            present = k[:, column] > 0
            if present.any():
                model = elapid.MaxentModel(
                    feature_types=self.features.split(),
                    beta_multiplier=self.regularisation,
                    use_sklearn=True,
                    random_state=self.seed,
                )
                model.fit(
                    np.vstack([values[present], values]),
                    np.r_[np.ones(present.sum()), np.zeros(len(values))],
                )
                slopes[:, column], alpha[column], entropy[column] = (
                    model.beta_scores_,
                    model.alpha_,
                    model.entropy_,
                )
            else:
                alpha[column] = -np.inf  # never recorded: suitable nowhere
        state |= {"slopes": slopes, "alpha": alpha, "entropy": entropy}
        suitability = _cloglog(design, state)
        mean = suitability.mean(axis=0)
        factor = np.divide(
            (k / n[:, None]).mean(axis=0), mean, out=np.zeros(len(mean)), where=mean > 0
        )
        return state | {"factor": factor if self.scaled else np.ones(len(mean))}

    def _transformer(self, background: np.ndarray) -> Any:
        from elapid.features import MaxentFeatureTransformer

        return MaxentFeatureTransformer(feature_types=self.features.split()).fit(background)

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        _elapid()
        values = self._numbers(dataset, sites).to_numpy(dtype=float)
        values = np.where(np.isnan(values), self.state["median"], values)
        design = self._transformer(self.state["background"]).transform(values)
        return np.asarray(_cloglog(design, self.state) * self.state["factor"])


def _cloglog(design: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    logits = design @ state["slopes"] + state["alpha"] + state["entropy"]
    return np.asarray(1 - np.exp(-np.exp(np.clip(logits, None, 50))))


def _elapid() -> Any:
    try:
        import elapid
    except ImportError as error:
        raise MissingPackageError(
            f"MaxEnt needs elapid. Install it with: {how_to_install('sdm')}"
        ) from error
    return elapid
