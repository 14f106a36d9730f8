"""Pictures for notebooks: what they show, and what they say when they cannot."""

from __future__ import annotations

import re
from pathlib import Path

import geopandas as gpd
import matplotlib
import numpy as np
import pandas as pd
import pytest
import rasterio
from matplotlib.colors import to_hex
from rasterio.transform import from_origin
from shapely import box

from butterfly_sdm.data.dataset import Dataset, DatasetCard, TileCard
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import DataError, MissingFileError, RasterError
from butterfly_sdm.figures import (
    Picture,
    save_scores,
    show_agreement,
    show_bands,
    show_correlations,
    show_differences,
    show_drivers,
    show_effort,
    show_embedding,
    show_history,
    show_ladder,
    show_maps,
    show_rates,
    show_reliability,
    show_site_factor,
    show_tiles,
)
from butterfly_sdm.figures.embedding import principal_plane
from butterfly_sdm.figures.map_pictures import read_bands, show_trust
from butterfly_sdm.figures.palette import RAMP

SPECIES = ("Pieris napi", "Maniola jurtina", "Aglais io")
PNG = b"\x89PNG\r\n\x1a\n"


def dataset(bands: tuple[str, ...] = ("red", "green", "blue", "nir")) -> Dataset:
    rng = np.random.default_rng(0)
    ids = [f"S{number}" for number in range(12)]
    visits = rng.integers(3, 60, 12)
    sites = gpd.GeoDataFrame(
        {
            "easting": rng.uniform(0, 30_000, 12),
            "northing": rng.uniform(0, 30_000, 12),
            "visits": visits,
            "tile_row": np.where(np.arange(12) < 9, np.arange(12), -1),
        },
        index=pd.Index(ids, name="site_id"),
        geometry=[box(0, 0, 1, 1)] * 12,
        crs=4326,
    )
    detections = pd.DataFrame(
        rng.binomial(visits[:, None], 0.4, (12, 3)), index=sites.index, columns=list(SPECIES)
    )
    tiles = rng.integers(0, 4000, (9, len(bands), 16, 16)).astype(np.uint16)
    card = DatasetCard(
        name="small",
        species=SPECIES,
        position_crs="EPSG:27700",
        tiles=TileCard(bands=bands, size_px=16, resolution_m=10),
    )
    return Dataset(
        card, sites, detections, tiles, None, Split(tuple(ids[:6]), tuple(ids[6:9]), tuple(ids[9:]))
    )


@pytest.fixture
def species_map(tmp_path: Path) -> Path:
    values = np.stack([np.full((40, 60), level, dtype=np.float32) for level in (0.1, 0.2, 0.3)])
    values[:, :5] = -9999
    path = tmp_path / "map.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=40,
        width=60,
        count=3,
        dtype="float32",
        nodata=-9999,
        crs="EPSG:32630",
        transform=from_origin(500_000, 5_700_000, 320, 320),
    ) as raster:
        raster.write(values)
        raster.descriptions = SPECIES
    return path


def texts(picture: Picture) -> str:
    return "\n".join(
        text.get_text()
        for axes in picture.axes
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)
    )


def test_a_picture_shows_itself_in_a_notebook_and_saves_itself(tmp_path: Path):
    picture = show_effort(dataset())
    assert picture._repr_png_().startswith(PNG)
    assert picture.save(tmp_path / "effort.png").read_bytes().startswith(PNG)
    assert b"<svg" in picture.save(tmp_path / "effort.svg").read_bytes()


def test_drawing_leaves_the_global_state_of_matplotlib_alone():
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams), plt.get_fignums()
    show_effort(dataset())
    show_tiles(dataset())
    assert (dict(matplotlib.rcParams), plt.get_fignums()) == before


def test_tiles_are_labelled_with_their_site_visits_and_commonest_species():
    data = dataset()
    said = texts(show_tiles(data, ["S2", "S5"], species=1))
    assert f"S2 · {data.visits['S2']} visits" in said
    best = data.rates.loc["S5"].idxmax()
    assert f"{best} {data.rates.loc['S5', best]:.0%}" in said


def test_true_colour_takes_bands_by_name_whatever_their_order():
    usual, turned = dataset(), dataset(("nir", "blue", "red", "green"))
    turned.tiles[:] = usual.tiles[:, [3, 2, 0, 1]]
    for false_colour in (False, True):
        one, other = (
            show_tiles(data, ["S0"], false_colour=false_colour).axes[0].images[0]
            for data in (usual, turned)
        )
        np.testing.assert_array_equal(one.get_array(), other.get_array())


def test_pixels_without_a_measurement_are_white():
    data = dataset()
    data.tiles[0, :, :4, :4] = 0
    shown = show_tiles(data, ["S0"]).axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown[:4, :4], 1.0)


def test_tiles_without_the_bands_of_a_colour_are_refused():
    with pytest.raises(DataError, match="nir is needed for these colours"):
        show_tiles(dataset(("red", "green", "blue")), false_colour=True)


def test_effort_names_the_parts_of_the_split_with_their_sizes():
    legend = show_effort(dataset()).axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        "train (6)",
        "validation (3)",
        "test (3)",
    ]


def test_rates_of_an_unknown_species_are_refused():
    assert "Pieris napi" in texts(show_rates(dataset(), "Pieris napi"))
    with pytest.raises(DataError, match="has no species 'Pieris rapae'"):
        show_rates(dataset(), "Pieris rapae")


def test_layers_are_read_by_name_with_nodata_as_nan_and_their_pixel_size(species_map: Path):
    (layer,) = read_bands(species_map, ["Maniola jurtina"], most_px=30)
    assert layer.values.shape == (20, 30)
    assert layer.pixel_m == 640
    assert np.isnan(layer.values[:2]).all()
    np.testing.assert_allclose(layer.values[4:], 0.2, rtol=1e-6)


def test_maps_are_shown_beside_each_other_on_one_scale_per_species(
    species_map: Path, tmp_path: Path
):
    alone = show_maps(species_map)
    assert all(name in texts(alone) for name in SPECIES)
    both = show_maps({"predicted": species_map, "true": species_map}, ["Aglais io"])
    limits = [axes.images[0].get_clim() for axes in both.axes if axes.images]
    assert len(limits) == 2
    assert limits[0] == limits[1] == pytest.approx((0, 0.3))


def test_numbers_have_one_palette_in_every_picture_as_in_the_files_of_a_map(species_map: Path):
    data, one = dataset(), np.full((1, 2, 2), 0.5)
    for picture in (
        show_maps(species_map),
        show_trust(species_map, "Pieris napi", {"Aglais io": 0.2}),
        show_bands(one, {"a": ""}, extent=(0, 1, 0, 1), axis_unit="km"),
        show_effort(data),
        show_rates(data, "Pieris napi"),
        show_embedding(np.eye(12), np.arange(12.0), "rate"),
    ):
        drawn = [
            part
            for axes in picture.axes
            for part in (*axes.images, *axes.collections)
            if part.get_array() is not None and part.colorbar
        ]
        ends = {tuple(to_hex(part.cmap(end)) for end in (0.0, 1.0)) for part in drawn}
        assert ends == {(RAMP[0], RAMP[-1])}


def test_a_band_that_is_not_there_and_a_file_that_is_not_there_are_named(
    species_map: Path, tmp_path: Path
):
    with pytest.raises(RasterError, match="has no band 'Pieris rapae'"):
        show_maps(species_map, ["Pieris rapae"])
    with pytest.raises(MissingFileError, match="butterfly-sdm map RUN"):
        show_maps(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("not a raster")
    with pytest.raises(RasterError, match="cannot be opened as a raster"):
        show_maps(tmp_path / "text.tif")


def test_history_draws_training_and_validation_of_one_measure_in_one_panel():
    history = pd.DataFrame(
        {
            "epoch": [0, 1],
            "train_loss": [2.0, 1.0],
            "validation_loss": [2.1, 1.4],
            "validation_mse": [0.2, 0.1],
        }
    )
    picture = show_history(history, reference=0.3)
    assert [axes.get_title() for axes in picture.axes] == ["loss", "mean squared error"]
    assert len(picture.axes[0].lines) == 2
    assert len(picture.axes[1].lines) == 2  # validation and the reference


def test_a_run_without_history_is_refused(tmp_path: Path):
    with pytest.raises(MissingFileError, match="Only networks that were trained leave one"):
        show_history(tmp_path)


def test_the_principal_plane_keeps_what_varies_most():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(200, 3)) * [5, 2, 0.01] @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    plane, kept = principal_plane(points)
    assert kept > 0.9999
    np.testing.assert_allclose(np.sort(plane.std(0))[::-1], [5, 2], rtol=0.2)


def test_an_embedding_needs_a_number_for_every_point():
    with pytest.raises(DataError, match="4 points and 3 numbers"):
        show_embedding(np.eye(4), np.arange(3), "rate")
    with pytest.raises(DataError, match="at least 3"):
        show_embedding(np.eye(2), np.arange(2), "rate")
    assert len(show_embedding({"on": np.eye(4), "off": np.eye(4)}, np.arange(4), "rate").axes) == 3


def test_reliability_draws_the_curve_beside_the_diagonal():
    curve = pd.DataFrame({"predicted": [0.1, 0.4], "observed": [0.2, 0.3], "visits": [100, 50]})
    axes = show_reliability(curve, title="network").axes[0]
    diagonal, line = axes.lines
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    np.testing.assert_array_equal(line.get_ydata(), [0.2, 0.3])
    assert axes.get_title() == "network"


def test_an_embedded_picture_has_circles_that_tell_their_names_where_the_lines_are():
    table = pd.DataFrame({"mse": [0.2, 0.3], "mse_low": [0.1, 0.2], "mse_high": [0.3, 0.4]})
    page = show_ladder(table.set_axis(["<one>", "two"]), floor=0.15).embed('a "label" & more')
    assert re.search(r'aria-label="a &quot;label&quot; &amp; more"', page)
    assert not re.search(r"\bid=|href|clip|font-family|<metadata", page)
    assert "&lt;one&gt;: 0.20000" in page and "noise floor" in page
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>([\d.]+)', page)
    bars = re.findall(r'd="M([\d.]+) ([\d.]+)L([\d.]+) \2" style="fill:none;stroke:#01665e', page)
    assert [dot[2] for dot in dots] == ["0.20000", "0.30000"]
    for (x, y, _), (low, height, high) in zip(dots, bars, strict=True):
        assert float(x) == pytest.approx((float(low) + float(high)) / 2, abs=0.2)
        assert y == height


def test_predictors_without_a_score_are_left_out_of_the_ladder():
    table = pd.DataFrame({"mse": [0.2, np.nan], "cv_mse": [0.3, np.nan]}, index=["one", "other"])
    said = texts(show_ladder(table))
    assert "one: 0.20000" in said and "other" not in said


def test_sites_are_coloured_by_how_many_times_better_they_are():
    sites = pd.DataFrame(
        {"easting": [0, 9e3, 2e4], "northing": [0, 5e3, 1e3], "factor": [0.01, 1, 100]},
    )
    page = show_site_factor(sites, behind=sites[["easting", "northing"]]).embed("sites")
    faces = re.findall(r'<circle [^>]*fill="(#\w+)"', page)
    assert faces == ["#8c510a", "#c9c9c9", "#01665e"]
    assert "4 times better" in page and "5 km" in page


def test_the_pictures_of_a_scoring_are_saved_by_name(tmp_path: Path):
    species = pd.DataFrame({"rate": [0.1, 0.4], "predicted": [0.2, 0.4], "factor": [0.5, 2.0]})
    sites = pd.DataFrame({"easting": [0, 1], "northing": [0, 1], "factor": [1, 2]})
    beside = pd.DataFrame({"mse": [0.1, 0.2], "noise_floor": 0.05}, index=["model", "mean_rate"])
    saved = save_scores(tmp_path, species.set_axis(["a", "b"]), sites, beside)
    names = ["species_rates.png", "species_factor.png", "site_factor.png", "ladder.png"]
    assert [path.name for path in saved] == names
    unscored = species.assign(factor=np.nan)
    assert len(save_scores(tmp_path, unscored, sites, None)) == 1


def test_drivers_and_differences_say_their_numbers():
    drivers = pd.DataFrame({"share": [0.5, -1e-5], "deviation": [0.02, np.nan]}, index=["a_b", "c"])
    said = texts(show_drivers(drivers))
    assert "a b" in said and "+50.0% ± 2.0%" in said and " 0.0%" in said
    table = pd.DataFrame({"difference": [-1, 0.1], "low": [-2, -1], "high": [-0.5, 1]})
    faces = show_differences(table, change="x").axes[0].collections[1].get_facecolor()
    assert not np.array_equal(*faces)


def test_bands_of_a_map_stand_side_by_side_with_their_units_and_coordinates():
    values = np.stack([np.full((2, 3), 0.5), np.full((2, 3), np.nan)])
    units = {"Aglais io": "probability", "richness": "species"}
    picture = show_bands(values, units, extent=(500, 530, 20, 40), axis_unit="km")
    said = texts(picture)
    assert all(word in said for word in (*units, *units.values(), "km"))
    assert picture.axes[0].images[0].get_extent() == [500, 530, 20, 40]


def test_a_name_with_dollars_is_text_and_an_empty_ladder_is_drawn():
    table = pd.DataFrame({"mse": [0.2]}, index=["$a_$ \\frac"])
    assert "$a $ \\frac: 0.20000" in show_ladder(table).embed("ladder")
    assert show_ladder(table.iloc[:0]).embed("nothing").startswith("<svg")
    seen = pd.Series([0.1, 0.3], index=["$\\x$", "b"])
    show_agreement(seen, seen[::-1], xlabel="", ylabel="", name_farthest=2)._repr_png_()


def test_correlations_put_species_alike_beside_each_other_and_tell_their_numbers():
    names = ["Aglais io", "Pieris napi", "Aglais urticae", "Pieris rapae"]
    r = np.full((4, 4), -0.6)
    r[np.ix_([0, 2], [0, 2])] = r[np.ix_([1, 3], [1, 3])] = 0.7
    np.fill_diagonal(r, 1)
    picture = show_correlations(pd.DataFrame(r, index=names, columns=names))
    shown = [label.get_text() for label in picture.axes[0].get_yticklabels()]
    assert {frozenset(shown[:2]), frozenset(shown[2:])} == {
        frozenset(names[::2]),
        frozenset(names[1::2]),
    }
    page = picture.embed("correlations")
    assert "Aglais urticae and Aglais io: +0.70" in page or (
        "Aglais io and Aglais urticae: +0.70" in page
    )
    assert page.count("-0.60") == 4
    with pytest.raises(DataError, match="square table"):
        show_correlations(pd.DataFrame(r[:2], columns=names))
