"""The picture of seasons: peaks by their days, visits below, and what it says when it cannot."""

from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from shapely import box

from butterfly_sdm.data.dataset import Dataset, DatasetCard
from butterfly_sdm.data.visits import VisitTable
from butterfly_sdm.errors import DataError
from butterfly_sdm.figures import show_seasons
from butterfly_sdm.figures.season_pictures import peaks

SPECIES = ("Pieris napi", "Aglais io", "Maniola $jurtina")
WEEKS = np.arange(14, 40)


def dataset(visits: int = 40) -> Dataset:
    """Return a data set of one site, visited in the weeks from 14 on."""
    rng = np.random.default_rng(0)
    days = np.sort(rng.integers(13 * 7, 30 * 7, visits))
    date = pd.Timestamp("2019-01-01") + pd.to_timedelta(days, "D")
    seen = rng.random((visits, 3)) < [0.2, 0.9, 0.5]
    frame = pd.DataFrame({"site": np.zeros(visits, np.uint32), "date": date})
    frame["date"] = frame["date"].astype("datetime64[s]")
    frame["list_length"] = seen.sum(axis=1).astype(np.uint16)
    visit, species = np.nonzero(seen)
    sightings = {"visit": visit.astype(np.uint32), "species": species.astype(np.uint16)}
    table = VisitTable(frame, pd.DataFrame(sightings))
    index = pd.Index(["S1"], name="site_id")
    columns = {"easting": [0.0], "northing": [0.0], "visits": [visits]}
    return Dataset(
        DatasetCard(name="small", species=SPECIES, position_crs="EPSG:27700"),
        gpd.GeoDataFrame(columns, index=index, geometry=[box(0, 0, 1, 1)], crs=4326),
        pd.DataFrame([seen.sum(axis=0)], index=index, columns=list(SPECIES)),
        visit_table=table,
    )


def curves(*tops: float) -> pd.DataFrame:
    """Return a curve with peaks in weeks 20 and 30 for each species, the second lower."""
    shape = np.exp(-((WEEKS - 20) ** 2) / 8)
    tables = [
        pd.DataFrame({"species": name, "week": WEEKS, "detectability": top * value})
        for name, top in zip(SPECIES, tops, strict=False)
        for value in [shape + 0.3 * np.exp(-((WEEKS - 30) ** 2) / 8)]
    ]
    table = pd.concat(tables)
    return table.assign(lower=table["detectability"] * 0.9, upper=table["detectability"] * 1.1)


def texts(picture) -> list[str]:
    titles = [axes.get_title(loc="left") for axes in picture.axes]
    return titles + [text.get_text() for axes in picture.axes for text in axes.texts]


def test_each_species_has_its_curve_its_peaks_and_the_visits_below():
    made, own = dataset(), curves(0.5, 0.2, 0.9)
    picture = show_seasons(made, own)
    assert [text for text in texts(picture) if text in SPECIES] == ["Aglais io", "Pieris napi"]
    assert any("Maniola" in text for text in texts(picture))
    assert sum(text == "peak 17 May, 26 Jul" for text in texts(picture)) == 3
    bars = [sum(bar.get_height() for bar in axes.patches) for axes in picture.axes[-3:]]
    assert bars == [40, 40, 40]
    drawn = picture.axes[0].lines[0]
    expected = own.loc[own["species"] == "Aglais io", "detectability"].to_numpy()
    np.testing.assert_allclose(drawn.get_ydata(), expected)
    assert drawn.get_xdata()[0] == 13 * 7 + 4  # the middle of week 14
    assert picture._repr_png_().startswith(b"\x89PNG")


def test_species_are_drawn_as_they_are_asked_for():
    assert len(show_seasons(dataset(), curves(0.5, 0.2), ["Pieris napi"]).axes) == 2
    with pytest.raises(DataError, match=r"no curve of Maniola .jurtina; there are curves"):
        show_seasons(dataset(), curves(0.5, 0.2), [SPECIES[2]])


def test_a_data_set_without_dates_is_refused():
    with pytest.raises(DataError, match="keeps no dates of visits"):
        show_seasons(replace(dataset(), visit_table=None), curves(0.5))


@pytest.mark.parametrize(("second", "expected"), [(0.5, [20, 30]), (0.06, [20, 30]), (0.04, [20])])
def test_a_peak_below_a_twentieth_of_the_highest_is_not_told(second, expected):
    curve = np.exp(-((WEEKS - 20) ** 2) / 8) + second * np.exp(-((WEEKS - 30) ** 2) / 8)
    assert peaks(WEEKS, curve).tolist() == expected


def test_a_curve_that_rises_to_its_edge_has_no_peak_there():
    assert peaks(WEEKS, WEEKS / 100).tolist() == []
