"""The networks that a predictor consists of: what a map needs of them beyond ``predict``."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Embedding, Predictor
from butterfly_sdm.models.ensemble import Ensemble
from butterfly_sdm.models.network_predictor import NetworkPredictor


def networks_of(predictor: Predictor) -> Sequence[NetworkPredictor]:
    """Return the networks whose mean a predictor is: itself, or its members; none if it is none."""
    parts = predictor.members if isinstance(predictor, Ensemble) else [predictor]
    networks = [part for part in parts if isinstance(part, NetworkPredictor)]
    return networks if len(networks) == len(parts) else []


def embedders(predictor: Predictor) -> Sequence[Embedding]:
    """Return what tells embeddings: the predictor, or its members; none if one of them does not."""
    parts = predictor.members if isinstance(predictor, Ensemble) else [predictor]
    found = [part for part in parts if isinstance(part, Embedding)]
    return found if len(found) == len(parts) else []


def embed(predictor: Predictor, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
    """
    Return the embeddings (sites, length); of an ensemble those of its members side by side.

    Side by side, a place is unlike the training sites where it is so to the members on average. The
    mean of embeddings would mean nothing, as each member has axes of its own.
    """
    tables = [part.embed(dataset, sites) for part in embedders(predictor)]
    return pd.concat(tables, axis=1, ignore_index=True)
