"""
Seasons of 62 species at 50,000 sites with a million visits: processor time and peak memory.

    python benchmarks/season_speed.py [SPECIES]

Makes the visits, then fits curves and effective visits in a process of its own; SPECIES: fit only
the first so many of the 62 (all sightings are there).
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import pandas as pd

from butterfly_sdm.data.visits import VisitTable
from butterfly_sdm.season.cells import CellCounts
from butterfly_sdm.season.effective import season_labels
from butterfly_sdm.season.seasons import Seasons


def make(fitted: int = 62, sites: int = 50_000, visits: int = 1_000_000, species: int = 62) -> None:
    """Make the table, then fit it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        site = np.sort(rng.integers(0, sites, visits)).astype(np.uint32)
        day = rng.normal(200, 45, visits).clip(1, 364).astype(int)
        year = rng.integers(2010, 2020, visits)
        first = (year - 1970).astype("datetime64[Y]").astype("datetime64[D]")
        date = first + (day - 1).astype("timedelta64[D]")
        order = np.lexsort((date, site))
        site, day, date = site[order], day[order], date[order]
        level, peak = rng.uniform(-6, 1, species), rng.uniform(110, 250, species)
        parts = []
        for place in range(species):
            effect = level[place] + 1.2 * rng.normal(size=sites)[site] + 1.2
            p = 1 / (1 + np.exp(-(effect - 0.5 * ((day - peak[place]) / 25) ** 2)))
            seen = np.flatnonzero(rng.random(visits) < p).astype(np.uint32)
            parts.append((seen, np.full(len(seen), place, np.uint16)))
        visit, column = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.lexsort((column, visit))
        length = np.bincount(visit, minlength=visits).astype(np.uint16)
        pd.DataFrame(
            {"site": site, "date": date.astype("datetime64[s]"), "list_length": length}
        ).to_parquet(f"{folder}/visits.parquet")
        pd.DataFrame({"visit": visit[order], "species": column[order]}).to_parquet(
            f"{folder}/sightings.parquet"
        )
        subprocess.run(
            [sys.executable, __file__, "fit", folder, str(sites), str(fitted)], check=True
        )


def fit(folder: str, sites: str, species: str) -> None:
    read = [pd.read_parquet(f"{folder}/{name}.parquet") for name in ("visits", "sightings")]
    table = VisitTable(*read)
    names = [str(place) for place in range(int(species))]
    latitude = np.random.default_rng(0).uniform(50, 58, int(sites))
    print(f"{len(table):,} visits, {len(table.sightings):,} sightings")
    rows, begin = np.arange(int(sites)), time.process_time()
    seasons = Seasons.fit(table, names, rows, gradient=latitude)
    fitted = time.process_time()
    bands = seasons.calendar.band_of(latitude, len(rows))
    counts = CellCounts.of(table, seasons.calendar, rows, bands=bands)
    labels, _ = season_labels(seasons, counts)
    done = time.process_time()
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"cells {seasons.calendar.shape}, link {seasons.link}, labels {labels.shape}")
    print(f"curves {fitted - begin:.1f} CPU s, effective visits {done - fitted:.1f}")
    print(f"in all {done - begin:.1f} CPU s, peak {used.ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["fit"]:
        fit(*sys.argv[2:])
    else:
        make(*map(int, sys.argv[1:]))
