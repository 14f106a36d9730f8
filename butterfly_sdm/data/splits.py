"""Divide sites into training, validation and test parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from butterfly_sdm.core.cards import check_version
from butterfly_sdm.core.files import read_json, write_json
from butterfly_sdm.errors import ArtefactError, DataError

FORMAT_VERSION = 1
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """
    Lists of site ids, one per part; no site is in two parts.

    Attributes
    ----------
    train, validation, test
        Site ids. ``validation`` and ``test`` may be empty.
    method
        How the parts were made, in words.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    method: str = "given"

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part in PARTS:
            for site in getattr(self, part):
                if site in seen:
                    raise DataError(
                        f"Site {site} is in {seen[site]} and in {part}. A site belongs to one part "
                        "of a split."
                    )
                seen[site] = part

    def part(self, name: str) -> tuple[str, ...]:
        """
        Return the site ids of one part.

        Raises
        ------
        DataError
            The split has no part of that name, or it is empty.
        """
        if name not in PARTS:
            raise DataError(f"A split has the parts {', '.join(PARTS)}; {name!r} is none of them.")
        sites: tuple[str, ...] = getattr(self, name)
        if not sites:
            raise DataError(
                f"The {name} part of the split is empty. Choose another part, or another split of "
                "the data set."
            )
        return sites

    def part_of(self) -> dict[str, str]:
        """Return the name of the part for every site."""
        return {site: part for part in PARTS for site in getattr(self, part)}

    def to_json(self, path: Path) -> None:
        """Write the split as ``split.json``."""
        write_json(
            path,
            {
                "format": "butterfly_sdm split",
                "format_version": FORMAT_VERSION,
                "method": self.method,
            }
            | {part: list(getattr(self, part)) for part in PARTS},
        )

    @classmethod
    def from_json(cls, path: Path) -> Split:
        """
        Read ``split.json``.

        Raises
        ------
        MissingFileError, ArtefactError
            The file is absent or not a split.
        """
        value: Any = read_json(path)
        if not isinstance(value, Mapping) or not all(
            isinstance(value.get(part, []), list)
            and all(isinstance(site, str) for site in value.get(part, []))
            for part in PARTS
        ):
            raise ArtefactError(
                f"{path} is not a split: it needs lists of site ids under {', '.join(PARTS)}."
            )
        if "format_version" in value:  # a split made by hand needs none
            check_version(
                value["format_version"],
                FORMAT_VERSION,
                f"The split {path}",
                "butterfly-sdm build CONFIG",
            )
        unknown = set(value) - {*PARTS, "format", "format_version", "method"}
        if unknown:
            raise ArtefactError(
                f"{path} has the unknown part {sorted(unknown)[0]!r}; the parts are "
                f"{', '.join(PARTS)}."
            )
        return cls(
            **{part: tuple(value.get(part, [])) for part in PARTS},
            method=str(value.get("method", "given")),
        )


def neighbour_clusters(sites: pd.DataFrame, *, distance_m: float) -> np.ndarray:
    """
    Return, per site, the number of its cluster: sites nearer than ``distance_m``, directly or
    through others, are in one.

    Parameters
    ----------
    sites
        With ``easting`` and ``northing`` in metres.

    Returns
    -------
    array of shape (sites,)
        Numbers from 0, in the order in which the clusters first occur.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    position = sites[["easting", "northing"]].to_numpy(dtype=float)
    pairs = KDTree(position).query_pairs(distance_m, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(position),) * 2)
    return connected_components(links, directed=False)[1]


def spatial_folds(
    sites: pd.DataFrame, *, distance_m: float = 4000.0, n_folds: int = 5, seed: int = 0
) -> list[Split]:
    """
    Divide sites into folds of about equal size; each fold is the validation part once and the rest
    its training part.

    Sites nearer to each other than ``distance_m``, directly or through others, stay in one fold, so
    that no validation site has a training site that near. Where sites lie so dense that this leaves
    fewer clusters than folds, squares of that side are dealt out instead, which have neighbours
    beyond their edges; the words of the folds say so.

    Parameters
    ----------
    sites
        Index ``site_id``, columns ``easting`` and ``northing`` in metres.
    distance_m
        Several times the ground a tile shows is honest; 4,000 m is that of the published split.
    n_folds
        At least 2.
    seed
        Of the order in which clusters are dealt out.

    Returns
    -------
    list of Split
        One per fold, whose sites are its ``validation``.

    Raises
    ------
    DataError
        There are fewer clusters, and fewer squares, than folds.
    """
    if n_folds < 2:
        raise DataError(f"n_folds = {n_folds}: cross-validation needs at least 2 folds.")
    cluster_of = neighbour_clusters(sites, distance_m=distance_m)
    words = f"clusters of sites nearer than {distance_m:g} m"
    if (clusters := cluster_of.max(initial=-1) + 1) < n_folds:
        squares = np.floor(sites[["easting", "northing"]].to_numpy(float) / distance_m)
        cluster_of = np.unique(squares, axis=0, return_inverse=True)[1].reshape(-1)
        words = f"squares of {distance_m:g} m"
        if cluster_of.max(initial=-1) + 1 < n_folds:
            raise DataError(
                f"Sites nearer than {distance_m:g} m stay together and form {clusters} clusters, "
                f"fewer than the {n_folds} "
                "folds, and so are squares of that side. Lower the distance "
                "(evaluate.fold_distance_m) or the number of folds."
            )
    sizes = np.bincount(cluster_of)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[
        np.argsort(-sizes[order], kind="stable")
    ]  # the largest first, so that the small ones even the folds out
    fold_of_cluster = np.empty(len(sizes), dtype=int)
    filled = np.zeros(n_folds)
    for cluster in order:
        fold_of_cluster[cluster] = filled.argmin()
        filled[fold_of_cluster[cluster]] += sizes[cluster]
    fold_of = fold_of_cluster[cluster_of]
    ids = sites.index.to_numpy()
    method = f"of {n_folds}: {words}, seed {seed}"
    return [
        Split(
            tuple(ids[fold_of != fold]),
            tuple(ids[fold_of == fold]),
            method=f"fold {fold + 1} {method}",
        )
        for fold in range(n_folds)
    ]
