"""Divide sites into parts or folds of groups of neighbours, or as a file says."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from butterfly_sdm.data.options import SplitOptions
from butterfly_sdm.data.splits import PARTS, Split
from butterfly_sdm.errors import DataError, MissingFileError

SPELLED = {"training": "train", "val": "validation", "valid": "validation"}


def make_split(
    sites: pd.DataFrame, options: SplitOptions, *, seed: int = 0
) -> tuple[Split, pd.Series]:
    """
    Divide sites into training, validation and test parts.

    Parameters
    ----------
    sites
        Index ``site_id``; columns ``easting`` and ``northing`` in metres; ``lon`` and ``lat`` for
        regions.
    options
        Which sites stay together, and the shares of the parts (groups are dealt out so that the
        parts come near to them), the fold or the regions. A split in a file is read by
        :func:`read_split`.
    seed
        Of the order in which groups are dealt out.

    Returns
    -------
    split : Split
    block : Series of int, shape (sites,)
        The group of each site.

    Raises
    ------
    DataError
        There are too few groups for the parts asked for, or the regions do not serve.
    """
    if options.method == "regions" and options.regions is not None:
        regions = read_regions(options.regions, sites)
        _, block = np.unique(regions.fillna("").to_numpy(dtype=str), return_inverse=True)
        split = split_by_region(
            regions, validation=options.validation_regions, test=options.test_regions
        )
    elif options.folds is not None:
        folds, block = _folds(sites, options.method, options.distance_m, options.folds, seed)
        split = folds[options.fold - 1]
    else:
        block, words = _groups(sites, options.method, options.distance_m)
        part_of_block = _deal(np.bincount(block), options.fractions, seed)
        if part_of_block is None:
            asked = zip(PARTS, options.fractions, strict=True)
            parts = ", ".join(f"{part} {share:g}" for part, share in asked if share > 0)
            blocks = options.method == "blocks"
            raise DataError(
                f"The {len(sites)} sites form {block.max() + 1} groups ({words}), too few for the "
                f"parts {parts}. {'' if blocks else 'Sites this dense need split.method: blocks. '}"
                f"{'Lower' if blocks else 'Or lower'} split.distance_m, or ask for fewer parts."
            )
        ids, part = sites.index.to_numpy(), part_of_block[block]
        train, validation, test = (tuple(ids[part == number]) for number in range(3))
        split = Split(train, validation, test, method=f"{words}, seed {seed}")
    return split, pd.Series(block, index=sites.index, name="block")


def spatial_folds(
    sites: pd.DataFrame,
    *,
    method: str = "clusters",
    distance_m: float = 4000.0,
    n_folds: int = 5,
    seed: int = 0,
) -> list[Split]:
    """
    Divide sites into folds of about equal size; each fold is the validation part once and the rest
    its training part.

    With clusters, sites nearer to each other than ``distance_m``, directly or through others, stay
    in one fold, so that no validation site has a training site that near. Where sites lie so dense
    that this leaves fewer clusters than folds, squares of that side are dealt out instead, which
    have neighbours beyond their edges; the words of the folds say so.

    Parameters
    ----------
    sites
        Index ``site_id``, columns ``easting`` and ``northing`` in metres.
    method
        ``clusters``, ``blocks`` (squares) or ``random`` (every site alone, which leaks).
    distance_m
        Several times the ground a tile shows is honest; 4,000 m is that of the published split.
    n_folds
        At least 2.
    seed
        Of the order in which groups are dealt out.

    Returns
    -------
    list of Split
        One per fold, whose sites are its ``validation``.

    Raises
    ------
    DataError
        There are fewer clusters, and fewer squares, than folds.
    """
    return _folds(sites, method, distance_m, n_folds, seed)[0]


def _folds(
    sites: pd.DataFrame, method: str, distance_m: float, n_folds: int, seed: int
) -> tuple[list[Split], np.ndarray]:
    """Return the folds, and the group of each site."""
    if n_folds < 2:
        raise DataError(f"n_folds = {n_folds}: cross-validation needs at least 2 folds.")
    group, words = _groups(sites, method, distance_m)
    found = f"{group.max(initial=-1) + 1} {words}"
    fold_of_group = _deal(np.bincount(group), [1 / n_folds] * n_folds, seed)
    if fold_of_group is None and method == "clusters":
        group, _ = _groups(sites, "blocks", distance_m)
        words = f"squares of {distance_m:g} m"
        found += f", and {group.max(initial=-1) + 1} {words}"
        fold_of_group = _deal(np.bincount(group), [1 / n_folds] * n_folds, seed)
    if fold_of_group is None:
        raise DataError(
            f"The {len(sites)} sites form {found}, fewer than the {n_folds} folds. Lower the "
            "distance (distance_m of build.split, evaluate.fold_distance_m) or the number of folds."
        )
    ids, fold_of = sites.index.to_numpy(), fold_of_group[group]
    return [
        Split(
            tuple(ids[fold_of != fold]),
            tuple(ids[fold_of == fold]),
            method=f"fold {fold + 1} of {n_folds}: {words}, seed {seed}",
        )
        for fold in range(n_folds)
    ], group


def _groups(sites: pd.DataFrame, method: str, distance_m: float) -> tuple[np.ndarray, str]:
    """Return the number of the group of each site that stays together, and what groups are."""
    if method == "clusters":
        groups = neighbour_clusters(sites, distance_m=distance_m)
        return groups, f"clusters of sites nearer than {distance_m:g} m"
    if method == "blocks":
        squares = np.floor(sites[["easting", "northing"]].to_numpy(float) / distance_m)
        groups = np.unique(squares, axis=0, return_inverse=True)[1].reshape(-1)
        return groups, f"blocks of {distance_m:g} m"
    if method == "random":
        return np.arange(len(sites)), "random: every site alone"
    raise DataError(f"Sites are grouped by clusters, blocks or random; {method!r} is none of them.")


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
    return np.asarray(connected_components(links, directed=False)[1])


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
        names = table["split"].astype(str).str.strip().str.lower().replace(SPELLED)
        unknown = table["split"][~names.isin(PARTS)].tolist()
        if unknown:
            raise DataError(
                f"{path} names the part {unknown[0]!r}; the parts are {', '.join(PARTS)}."
            )
        part_of = dict(zip(table["site_id"].astype(str), names, strict=True))
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
