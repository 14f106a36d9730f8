"""Which covariates a plan sees, in which groups, and the process that is fitted to them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from butterfly_sdm.baselines.gaussian_process import GaussianProcess
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError
from butterfly_sdm.planning.belief import Process

MOST_FITTED = 500  # sites of which the kernel is learned; the work grows with their third power
MOST_KNOWN = 2000  # sites from which the rates of the places are told
FEWEST_FITTED = 8
GROUP_COLUMNS = 3  # as many covariates with one prefix are a group
EMBEDDING_COLUMNS = 60  # as many are an embedding


def fit_process(
    dataset: Dataset,
    sites: Sequence[str],
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Process:
    """
    Fit the process of a plan.

    Parameters
    ----------
    dataset
        Its covariates are those that candidates and places have too.
    sites
        To learn from; of many the kernel is learned from 500 drawn at random.
    settings
        Of a Gaussian process in the run (``groups``, ``embedding``, ...); those that speak of
        covariates that are not there, and ``density_km``, are passed over. None: by the names of
        the covariates.
    seed
        Of that draw.

    Raises
    ------
    DataError
        Too few sites have a visit.
    """
    visits = dataset.visits.to_numpy()[dataset.rows(sites)]
    used = [site for site, n in zip(sites, visits, strict=True) if n > 0]
    if len(used) < FEWEST_FITTED:
        raise DataError(
            f"{len(used)} sites with visits are too few to plan from; {FEWEST_FITTED} are the "
            "least. Survey some anywhere first, spread out."
        )
    table = dataset.covariates
    names = [] if table is None else [str(name) for name in table.columns]
    model = GaussianProcess(**process_settings(names, settings))
    model.fit(dataset, _drawn(used, MOST_FITTED, seed))
    if len(used) > MOST_FITTED:
        used = _drawn(used, MOST_KNOWN, seed)
        model = model.given(dataset, used)
    return Process.of(dataset, used, model)


def _drawn(sites: list[str], most: int, seed: int) -> list[str]:
    if len(sites) <= most:
        return sites
    rows = np.random.default_rng(seed).choice(len(sites), most, replace=False)
    return [sites[row] for row in np.sort(rows)]


def process_settings(
    names: Sequence[str], given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """
    Return the settings of a Gaussian process for these covariates.

    Parameters
    ----------
    names
        Of the covariates.
    given
        Settings to follow as far as the covariates are there.

    Examples
    --------
    >>> process_settings(["bio_1", "bio_2", "bio_3", "roads"])
    {'groups': 'bio_', 'embedding': ''}
    """
    told = {key: value for key, value in (given or {}).items() if key != "density_km"}
    if "groups" in told or "embedding" in told:
        groups, embedding = str(told.get("groups", "")).split(","), str(told.get("embedding", ""))
    else:
        prefixes = Counter(re.split(r"(?<=_)|(?=\d)", name)[0] for name in names)
        groups = [one for one, n in prefixes.items() if GROUP_COLUMNS <= n < EMBEDDING_COLUMNS]
        groups = [one for one in groups if prefixes[one] < len(names)]
        wide = [one for one, n in prefixes.items() if n >= EMBEDDING_COLUMNS]
        embedding = max(wide, key=lambda one: prefixes[one], default="")

    def there(prefix: str) -> bool:
        return bool(prefix) and any(name.startswith(prefix) for name in names)

    groups = [one.strip() for one in groups if there(one.strip())]
    return told | {
        "groups": ",".join(groups),
        "embedding": embedding if there(embedding) else "",
    }
