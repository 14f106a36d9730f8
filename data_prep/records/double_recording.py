"""
Recognise what is told twice: a visit by two recording schemes (one day, one square, the same
species), a record by two files.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import shapely

from data_prep.records.places.grid_references import square_names
from data_prep.records.places.sites import Places

SQUARE_M = 1_000


def double_recordings(rows: pl.DataFrame, places: Places) -> tuple[pl.DataFrame, int]:
    """
    Find visits that are told a second time under another site.

    Two visits are one when they have one day, sites whose centres lie in one square of 1 km,
    disjoint schemes, and exactly the same species seen. The one at the site with more records stays
    (then the one whose footprint comes first in the alphabet of its bytes, so that the order of
    rows does not matter). Within one site nothing needs to be dropped: a visit counts once however
    many schemes tell it.

    Parameters
    ----------
    rows
        Columns ``site``, ``day``, ``taxon``, ``present``, ``source_number``, ``is_event``.
    places
        The sites.

    Returns
    -------
    DataFrame
        ``site`` and ``day`` of the visits to leave out.
    int
        Rows beyond the first that name one species on one visit of one site in several schemes.
    """
    nothing = pl.DataFrame(schema={"site": rows.schema["site"], "day": rows.schema["day"]})
    if rows["source_number"].n_unique() < 2:
        return nothing, 0
    seen = rows.filter(pl.col("present") & (pl.col("taxon") >= 0))
    told = (
        seen.select("site", "day", "taxon", "source_number")
        .unique()
        .group_by("site", "day", "taxon")
        .len()
    )
    shared = int((told["len"] - 1).sum())
    lists = seen.group_by("site", "day").agg(
        pl.col("taxon").unique().sort().alias("species"),
        pl.col("source_number").unique().sort().alias("schemes"),
    )
    sites = seen["site"].unique().sort()
    centres = shapely.centroid(places.footprints[sites.to_numpy()])
    squares = square_names(shapely.get_x(centres), shapely.get_y(centres), SQUARE_M)
    records = rows.filter(~pl.col("is_event")).group_by("site").len("records")
    shapes = [shapely.to_wkb(places.footprints[site]) for site in sites.to_list()]
    rank = np.argsort(np.argsort(np.array(shapes, dtype=object)))
    about = pl.DataFrame(
        {
            "site": sites,
            "square": squares,
            "rank": rank,
        }
    ).join(records, on="site", how="left")
    groups = (
        lists.join(about.filter(pl.col("square") != ""), on="site")
        .filter(pl.len().over("day", "square", "species") > 1)
        .sort(["day", "square", "records", "rank"], descending=[False, False, True, False])
        .group_by("day", "square", "species", maintain_order=True)
        .agg("site", "schemes")
    )
    doubles: list[tuple[int, object]] = []
    for day, _, _, members, schemes in groups.iter_rows():
        kept: list[set[int]] = []
        for site, of_site in zip(members, schemes, strict=True):
            if any(not other & set(of_site) for other in kept):
                doubles.append((site, day))
            else:
                kept.append(set(of_site))
    return pl.DataFrame(doubles, schema=nothing.schema, orient="row"), shared


def told_before(rows: pl.DataFrame) -> np.ndarray:
    """
    Tell which rows are records that a file before theirs has told: one id, one day, one species.

    Parameters
    ----------
    rows
        Columns ``file``, ``record`` (hash of the id, 0 for none), ``day``, ``taxon``.

    Returns
    -------
    ndarray
        (rows,) true where the same record stands in a file with a smaller number.
    """
    first = pl.col("file").min().over("record", "day", "taxon")
    named = (pl.col("record") != 0) & (pl.col("taxon") >= 0)
    told: np.ndarray = rows.select(again=named & (pl.col("file") > first))["again"].to_numpy()
    return told
