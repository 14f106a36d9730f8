"""Make splits: parts of groups of neighbouring sites, or parts read from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from butterfly_sdm.data.splits import PARTS, Split, neighbour_clusters
from butterfly_sdm.errors import DataError, MissingFileError

NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def group_sites(
    sites: pd.DataFrame,
    *,
    method: str,
    distance_m: float = 4000.0,
    regions: pd.Series | None = None,
) -> tuple[np.ndarray, str]:
    """
    Put sites into groups that a split keeps together.

    Parameters
    ----------
    sites
        Index ``site_id``; columns ``easting`` and ``northing`` in metres.
    method
        ``clusters``: sites nearer than ``distance_m`` to each other, directly or through others (as
        published, with 4 km). ``blocks``: squares of that side. ``regions``: by ``regions``.
        ``random``: every site alone, which leaks.
    regions
        (site,) name of the region of each site.

    Returns
    -------
    group : ndarray of int, shape (sites,)
    words : str
        What the groups are.

    Raises
    ------
    DataError
        The method is unknown.
    """
    if method == "clusters":
        return neighbour_clusters(
            sites, distance_m=distance_m
        ), f"clusters of sites nearer than {distance_m:g} m"
    if method == "blocks":
        squares = np.floor(sites[["easting", "northing"]].to_numpy(float) / distance_m).astype(
            np.int64
        )
        return np.unique(squares, axis=0, return_inverse=True)[1].reshape(
            -1
        ), f"blocks of {distance_m:g} m"
    if method == "regions" and regions is not None:
        return np.unique(regions.to_numpy(dtype=str), return_inverse=True)[1], "regions"
    if method == "random":
        return np.arange(len(sites)), "random: every site alone"
    raise DataError(
        f"split.method = {method!r} is unknown here; choose clusters, blocks, regions, random or "
        "file."
    )


def make_split(
    sites: pd.DataFrame,
    *,
    method: str = "clusters",
    distance_m: float = 4000.0,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> tuple[Split, np.ndarray]:
    """
    Divide sites into training, validation and test parts.

    Parameters
    ----------
    sites
        Index ``site_id``; columns ``easting`` and ``northing`` in metres.
    method, distance_m
        Which sites stay together, see :func:`group_sites`.
    fractions
        Shares of the sites in the three parts; groups are dealt out so that the parts come near to
        them.
    seed
        Of the order in which groups are dealt out.

    Returns
    -------
    split : Split
    block : ndarray of int, shape (sites,)
        The group of each site.

    Raises
    ------
    DataError
        The fractions do not sum to 1, or there are too few groups for the parts asked for.
    """
    if abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"split.fractions sum to {sum(fractions):g}; the shares of the three parts must sum to "
            "1."
        )
    block, words = group_sites(sites, method=method, distance_m=distance_m)
    part_of_block = _deal(np.bincount(block), fractions, seed)
    if part_of_block is None:
        raise DataError(
            f"The {len(sites)} sites form {block.max() + 1} groups ({words}), too few for the "
            f"parts {_words(fractions)}. "
            f"{'' if method == 'blocks' else 'Sites this dense need split.method: blocks. Or '}"
            f"{'Lower' if method == 'blocks' else 'lower'} split.distance_m, or ask for fewer "
            "parts."
        )
    ids = sites.index.to_numpy()
    part = part_of_block[block]
    train, validation, test = (tuple(ids[part == number]) for number in range(3))
    return Split(train, validation, test, method=f"{words}, seed {seed}"), block


def make_folds(
    sites: pd.DataFrame,
    *,
    method: str = "clusters",
    distance_m: float = 4000.0,
    folds: int = 5,
    seed: int = 0,
) -> tuple[list[Split], np.ndarray]:
    """
    Divide sites into folds of about equal size; each is the validation part once and the rest its
    training part.

    Returns
    -------
    splits : list of Split
    block : ndarray of int, shape (sites,)

    Raises
    ------
    DataError
        There are fewer groups than folds.
    """
    block, words = group_sites(sites, method=method, distance_m=distance_m)
    fold_of_block = _deal(np.bincount(block), [1 / folds] * folds, seed)
    if fold_of_block is None:
        raise DataError(
            f"The {len(sites)} sites form {block.max() + 1} groups ({words}), fewer than the "
            f"{folds} folds. "
            "Lower split.distance_m or split.folds."
        )
    ids, fold_of = sites.index.to_numpy(), fold_of_block[block]
    return [
        Split(
            tuple(ids[fold_of != fold]),
            tuple(ids[fold_of == fold]),
            method=f"fold {fold + 1} of {folds}: {words}, seed {seed}",
        )
        for fold in range(folds)
    ], block


def split_by_region(
    regions: pd.Series, *, validation: Sequence[str], test: Sequence[str] = ()
) -> Split:
    """
    Validate and test on whole regions and train on the others.

    Parameters
    ----------
    regions
        (site,) name of the region of each site; missing where it is in none, such sites are trained
        on.

    Raises
    ------
    DataError
        A region has no site, or is asked for twice.
    """
    names = regions.fillna("").astype(str)
    for name in (*validation, *test):
        if not (names == name).any():
            raise DataError(
                f"No site lies in the region {name!r}; the regions are "
                f"{', '.join(sorted(set(names) - {''})[:12])}."
            )
    if set(validation) & set(test):
        raise DataError(
            f"The region {sorted(set(validation) & set(test))[0]!r} is asked for in validation and "
            "in test."
        )
    held = names.isin([*validation, *test])
    return Split(
        tuple(regions.index[~held]),
        tuple(regions.index[names.isin(validation)]),
        tuple(regions.index[names.isin(test)]),
        method=f"regions: validation {', '.join(validation)}; test {', '.join(test) or 'none'}",
    )


def leave_out_near(split: Split, sites: pd.DataFrame, *, buffer_m: float) -> Split:
    """
    Leave training sites out that are nearer than ``buffer_m`` to a site of another part (and
    validation sites near test).

    Parameters
    ----------
    sites
        Index ``site_id``; columns ``easting`` and ``northing`` in metres.

    Raises
    ------
    DataError
        No training site is left.
    """
    from scipy.spatial import KDTree

    if buffer_m <= 0:
        return split

    def apart(ids: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
        if not ids or not others:
            return ids
        tree = KDTree(sites.loc[list(others), ["easting", "northing"]].to_numpy(float))
        distance, _ = tree.query(sites.loc[list(ids), ["easting", "northing"]].to_numpy(float))
        return tuple(site for site, metres in zip(ids, distance, strict=True) if metres >= buffer_m)

    validation = apart(split.validation, split.test)
    train = apart(split.train, (*validation, *split.test))
    if not train:
        raise DataError(
            f"No training site is {buffer_m:g} m away from all sites of the other parts. Lower "
            "split.buffer_m."
        )
    return Split(train, validation, split.test, method=f"{split.method}; buffer of {buffer_m:g} m")


def read_split(path: str | Path, site_ids: Sequence[str]) -> tuple[Split, int]:
    """
    Read a split from a file.

    Parameters
    ----------
    path
        ``split.json``, or a table (CSV, Parquet) with the columns ``site_id`` and ``split`` (train,
        val or validation, test).
    site_ids
        Sites of the data set; others in the file are ignored.

    Returns
    -------
    split : Split
        Parts in the order of ``site_ids``. Sites the file does not name are in no part.
    ignored : int
        How many sites of the file the data set does not have.

    Raises
    ------
    MissingFileError, ArtefactError, DataError
        The file is absent, no split, names an unknown part, or none of the sites.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no split file {path}. Check split.path.")
    if path.suffix == ".json":
        part_of = Split.from_json(path).part_of()
    else:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str)
        for column in ("site_id", "split"):
            if column not in table.columns:
                raise DataError(
                    f"{path} has no column {column}; a split is a table of site_id and split."
                )
        twice = table["site_id"].duplicated()
        if twice.any():
            raise DataError(
                f"{path} has site {table.loc[twice, 'site_id'].iloc[0]} twice. A site belongs to "
                "one part."
            )
        table = table.dropna(subset=["split"])
        unknown = [
            name for name in table["split"].unique() if str(name).strip().lower() not in NAMES
        ]
        if unknown:
            raise DataError(
                f"{path} names the part {unknown[0]!r}; the parts are {', '.join(NAMES)}."
            )
        part_of = {
            str(site): NAMES[str(name).strip().lower()]
            for site, name in zip(table["site_id"], table["split"], strict=True)
        }
    parts = {part: tuple(site for site in site_ids if part_of.get(site) == part) for part in PARTS}
    if not any(parts.values()):
        raise DataError(
            f"{path} names none of the {len(site_ids)} sites of the data set (such as "
            f"{site_ids[0]})."
        )
    return Split(**parts, method=f"given by {path.name}"), len(set(part_of) - set(site_ids))


def read_regions(path: str | Path, sites: pd.DataFrame) -> pd.Series:
    """
    Return the region each site lies in.

    Parameters
    ----------
    path
        Polygons with a column ``name``, in any format that GeoPandas reads.
    sites
        Index ``site_id``; columns ``lon`` and ``lat``.

    Returns
    -------
    Series of str, shape (sites,)
        Missing where a site lies in no region; the first by name where it lies in several.

    Raises
    ------
    MissingFileError, DataError
        The file is absent, holds no polygons or has no column ``name``.
    """
    import geopandas as gpd

    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"There is no file of regions {path}. Check split.regions.")
    try:
        polygons = gpd.read_file(path)
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as polygons: {error}. Give a GeoPackage, GeoJSON or Shapefile."
        ) from error
    if "name" not in polygons.columns or polygons.crs is None:
        raise DataError(
            f"{path} needs a column name and a CRS; it has {', '.join(map(str, polygons.columns))}."
        )
    points = gpd.GeoDataFrame(
        index=sites.index, geometry=gpd.points_from_xy(sites["lon"], sites["lat"]), crs=4326
    )
    joined = gpd.sjoin(
        points.to_crs(polygons.crs),
        polygons[["name", "geometry"]],
        how="left",
        predicate="intersects",
    )
    return joined.sort_values("name").groupby(level=0)["name"].first().reindex(sites.index)


def _deal(sizes: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray | None:
    """
    Return the part of each group, the largest first, each to the part that lacks most; None if
    impossible.
    """
    asked = np.asarray(fractions, float)
    if len(sizes) < np.count_nonzero(asked):
        return None
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    target = asked * sizes.sum()
    filled = np.zeros(len(asked))
    part = np.zeros(len(sizes), dtype=int)
    for position, group in enumerate(order):
        lacking = np.where(asked > 0, target - filled, -np.inf)
        empty = np.flatnonzero((asked > 0) & (filled == 0))
        if len(order) - position <= len(empty):  # as many groups left as parts without any
            lacking[np.setdiff1d(np.arange(len(asked)), empty)] = -np.inf
        part[group] = int(lacking.argmax())
        filled[part[group]] += sizes[group]
    return part


def _words(fractions: Sequence[float]) -> str:
    return ", ".join(
        f"{part} {fraction:g}"
        for part, fraction in zip(PARTS, fractions, strict=True)
        if fraction > 0
    )
