"""A linear probe: logistic regression on frozen embeddings of sites, from a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from scipy.special import expit

from butterfly_sdm.baselines.linear import fit_logistic, mean_and_deviation
from butterfly_sdm.baselines.saved import ArrayPredictor
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError, MissingFileError


@dataclass
class Probe(ArrayPredictor):
    """
    Logistic regression on embeddings that some other model made: what its representation knows
    about species.

    Parameters
    ----------
    embeddings
        ``.npz`` with ``site_id`` and ``embedding``, or Parquet or CSV with ``site_id`` and one
        column per dimension.
    components
        Principal components of the training sites that are kept; 0: the embeddings as they are.
    penalty, visits_power
        As in :class:`~butterfly_sdm.baselines.linear.Linear`.
    """

    embeddings: str
    components: int = 64
    penalty: float = 0.03
    visits_power: float = 0.5
    kind: ClassVar[str] = "probe"
    needed: ClassVar[str] = "mean axes deviation slopes intercept"

    def _embedded(self, sites: Sequence[str]) -> np.ndarray:
        path = Path(self.embeddings)
        stat = path.stat() if path.is_file() else None
        table = _read_once(path, (stat.st_size, stat.st_mtime_ns) if stat else None)
        absent = [site for site in sites if site not in table.index]
        if absent:
            raise DataError(
                f"{self.embeddings} has no embedding of site {absent[0]} and {len(absent) - 1} "
                "more."
            )
        return np.asarray(table.loc[list(sites)], dtype=float)

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        values = self._embedded(sites)
        mean = values.mean(axis=0)
        count = min(self.components or values.shape[1], *values.shape)
        axes = (
            np.linalg.svd(values - mean, full_matrices=False)[2][:count].T
            if self.components
            else np.eye(values.shape[1])
        )
        _, deviation = mean_and_deviation((values - mean) @ axes)
        k, n = dataset.counts(sites)
        # One scale for all axes: the leading ones of an embedding say most.
        deviation = np.full_like(deviation, np.sqrt((deviation**2).mean()))
        design = (values - mean) @ axes / deviation
        slopes, intercept = fit_logistic(design, k / n[:, None], n**self.visits_power, self.penalty)
        return {
            "mean": mean,
            "axes": axes,
            "deviation": deviation,
            "slopes": slopes,
            "intercept": intercept,
        }

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        values = self._embedded(sites)
        if values.shape[1] != len(self.state["mean"]):
            raise DataError(
                f"{self.embeddings} has {values.shape[1]} dimensions; the probe was fitted to "
                f"{len(self.state['mean'])}."
            )
        design = (values - self.state["mean"]) @ self.state["axes"] / self.state["deviation"]
        return np.asarray(expit(design @ self.state["slopes"] + self.state["intercept"]))


@lru_cache(maxsize=1)  # a fit and its scores ask for the same table several times
def _read_once(path: Path, stamp: tuple[int, int] | None) -> pd.DataFrame:
    del stamp  # a file that has changed is another one
    return read_embeddings(path)


def read_embeddings(path: Path) -> pd.DataFrame:
    """
    Read a table of embeddings, index ``site_id``.

    Raises
    ------
    MissingFileError, DataError
        The file is absent, or not such a table.
    """
    if not path.is_file():
        raise MissingFileError(f"There are no embeddings at {path}.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                table = pd.DataFrame(
                    arrays["embedding"],
                    index=pd.Index(arrays["site_id"].astype(str), name="site_id"),
                )
        else:
            table = (
                pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
            ).set_index("site_id")
        return table[~table.index.duplicated()].astype(float)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} is not a table of embeddings ({error}). It needs site_id and one number per "
            "dimension."
        ) from error
