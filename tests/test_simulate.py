"""The simulated region: its files, its truth, and how the two agree."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from pyproj import Transformer
from rasterio.windows import Window
from shapely import from_wkt

from butterfly_sdm.config import load_config
from butterfly_sdm.core.files import sha256
from butterfly_sdm.errors import DataError
from butterfly_sdm.simulate import HABITATS, SPECIES, Looking, Region, simulate_region
from butterfly_sdm.simulate.looking import Detection
from data_prep.records.count import read_survey

SMALL = {
    "size_px": 768,
    "n_sites": 18,
    "n_species": 5,
    "mean_visits": 12.0,
    "window_px": 128,
    "tile_px": 128,
}


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Region:
    return simulate_region(tmp_path_factory.mktemp("region"), seed=4, **SMALL)


@pytest.fixture(scope="module")
def records(region: Region) -> pd.DataFrame:
    with zipfile.ZipFile(region.records) as archive, archive.open("occurrence.txt") as file:
        return pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)


def counted(records: pd.DataFrame, region: Region) -> tuple[pd.DataFrame, pd.Series]:
    """Count detections and visits in the plainest way."""
    sites = pd.read_csv(region.sites)
    kept = records[
        records.year.isin(["2018", "2019"])
        & (records.institutionCode == "SIMULATED")
        & (records.decimalLatitude != "")
        & (records.taxonRank == "SPECIES")
        & (records.occurrenceStatus == "PRESENT")
    ]
    kept = kept.assign(day=kept.eventDate.str[:10]).merge(
        sites, left_on="footprintWKT", right_on="footprint_wkt"
    )
    once = kept.drop_duplicates(["site_id", "day", "species"])
    detections = pd.crosstab(once.site_id, once.species)[list(region.species)]
    return detections, once.groupby("site_id").day.nunique()


def test_one_seed_gives_the_same_bytes_and_another_seed_other_bytes(tmp_path: Path, region: Region):
    again = simulate_region(tmp_path / "again", seed=4, **SMALL)
    other = simulate_region(tmp_path / "other", seed=5, **SMALL)
    for first, second, third in zip(region.files, again.files, other.files, strict=True):
        assert sha256(first) == sha256(second), first.name
        assert sha256(first) != sha256(third), first.name


def test_a_finished_region_is_left_as_it_is_and_a_damaged_one_is_made_again(tmp_path: Path):
    region = simulate_region(tmp_path, seed=1, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in region.files}
    assert simulate_region(tmp_path, seed=1, **SMALL) == region
    assert {path: path.stat().st_mtime_ns for path in region.files} == before
    wanted = sha256(region.truth_map)
    region.truth_map.unlink()
    simulate_region(tmp_path, seed=1, **SMALL)
    assert sha256(region.truth_map) == wanted


def test_counting_the_archive_gives_back_the_detections_and_visits_of_the_truth(
    region: Region, records: pd.DataFrame
):
    detections, visits = counted(records, region)
    truth = pd.read_csv(region.truth_detections).set_index("site_id")
    table = pd.read_csv(region.truth_table).set_index("site_id")
    truth = truth[truth.sum(axis=1) > 0]
    pd.testing.assert_frame_equal(detections, truth, check_names=False)
    assert visits.to_dict() == table.recorded_visits[table.recorded_visits > 0].to_dict()
    assert (table.recorded_visits <= table.visits).all()
    assert table.visits.between(3, 100).all()


def test_the_archive_holds_every_kind_of_row_that_must_not_count(records: pd.DataFrame):
    assert {"2016", "2017", "2018", "2019", "2020", "2021"} & set(records.year) >= {
        "2016",
        "2018",
        "2019",
        "2020",
    }
    assert set(records.institutionCode) == {"SIMULATED", "OTHER"}
    assert set(records.occurrenceStatus) == {"PRESENT", "ABSENT"}
    assert set(records.taxonRank) == {"SPECIES", "GENUS"}
    assert (records.loc[records.taxonRank == "GENUS", "species"] == "").all()
    assert (records.loc[records.hasCoordinate == "false", "footprintWKT"] == "").all()
    assert records.eventDate.str.len().isin([10, 19]).all()
    assert set(records.eventDate.str.len()) == {10, 19}
    assert records.gbifID.is_unique
    assert records.duplicated(
        [name for name in records if name not in ("gbifID", "occurrenceID")]
    ).any()
    areas = (
        records.footprintWKT[records.footprintWKT != ""]
        .drop_duplicates()
        .map(lambda text: from_wkt(text).area)
    )
    assert (areas > 0.0002).sum() == 1


def test_absent_and_genus_rows_fall_on_dates_that_are_visits_anyway(
    region: Region, records: pd.DataFrame
):
    scheme = records[
        records.year.isin(["2018", "2019"])
        & (records.institutionCode == "SIMULATED")
        & (records.footprintWKT != "")
    ]
    visit = scheme.footprintWKT + scheme.eventDate.str[:10]
    counts = (scheme.taxonRank == "SPECIES") & (scheme.occurrenceStatus == "PRESENT")
    assert set(visit[~counts]) <= set(visit[counts])


def test_the_archive_describes_its_columns_as_a_gbif_download_does(
    region: Region, records: pd.DataFrame
):
    with zipfile.ZipFile(region.records) as archive:
        meta = archive.read("meta.xml").decode()
        assert set(archive.namelist()) == {"meta.xml", "metadata.xml", "occurrence.txt"}
    assert len(records.columns) == 34
    assert meta.count("<field ") == 33
    assert (
        f'<field index="{list(records.columns).index("eventDate")}" '
        'term="http://rs.tdwg.org/dwc/terms/eventDate"/>' in meta
    )


def test_the_archive_has_the_columns_of_the_real_one(records: pd.DataFrame, shared: Path):
    with (
        zipfile.ZipFile(shared / "data" / "s2bms" / "records_dwca.zip") as archive,
        archive.open("occurrence.txt") as file,
    ):
        assert list(records.columns) == file.readline().decode().rstrip("\n").split("\t")


def test_two_scenes_overlap_and_name_their_bands(region: Region):
    with rasterio.open(region.scenes[0]) as west, rasterio.open(region.scenes[1]) as east:
        for scene in (west, east):
            assert scene.descriptions == ("red", "green", "blue", "nir")
            assert scene.crs.to_epsg() == 32630
            assert (scene.dtypes[0], scene.nodata, scene.res) == ("uint16", 0, (10, 10))
        assert west.bounds.left < east.bounds.left < west.bounds.right < east.bounds.right
        shift = round((east.bounds.left - west.bounds.left) / 10)
        shared_px = Window(shift, 0, west.width - shift, west.height)
        ours, theirs = (
            west.read(window=shared_px),
            east.read(window=Window(0, 0, shared_px.width, west.height)),
        )
    both = (ours > 0).all(0) & (theirs > 0).all(0)
    assert 0.2 < both.mean() < 1
    np.testing.assert_array_equal(ours[:, both], theirs[:, both])
    assert not ((ours == 0).any(0) & (ours > 0).any(0)).any()  # nodata hits all bands at once


def test_over_vegetation_nir_is_above_green_above_red_above_blue(region: Region):
    with rasterio.open(region.scenes[0]) as scene, rasterio.open(region.habitats) as raster:
        pixels = scene.read()
        habitat = raster.read(1)[:, : scene.width]
        assert json.loads(raster.tags()["classes"])["0"] == "woodland"
    for name in ("woodland", "grassland", "heath"):
        there = (habitat == HABITATS.index(name)) & (pixels[0] > 0)
        red, green, blue, nir = (float(np.median(band[there])) for band in pixels)
        assert nir > green > red > blue, name
    there = (habitat == HABITATS.index("water")) & (pixels[0] > 0)
    assert np.median(pixels[3][there]) < np.median(pixels[2][there])


def test_footprints_are_squares_of_a_kilometre_inside_the_landscape_and_far_from_its_edge(
    region: Region,
):
    sites = pd.read_csv(region.sites)
    truth = pd.read_csv(region.truth_table)
    assert sites.footprint_wkt.is_unique
    shapes = sites.footprint_wkt.map(from_wkt)
    np.testing.assert_allclose(sites.lon, shapes.map(lambda shape: shape.centroid.x), atol=1e-5)
    assert shapes.map(lambda shape: shape.area).lt(0.0002).all()
    to_grid = Transformer.from_crs("EPSG:4326", "EPSG:27700", always_xy=True)
    x, y = to_grid.transform(sites.lon, sites.lat)
    np.testing.assert_allclose(truth.easting, x, atol=0.2)
    np.testing.assert_allclose(truth.northing, y, atol=0.2)
    sides = [
        to_grid.transform(*shape.bounds[:2]) + to_grid.transform(*shape.bounds[2:])
        for shape in shapes
    ]
    lengths = np.array([[right - left, top - bottom] for left, bottom, right, top in sides])
    assert (np.abs(lengths - 1000) < 60).all()


def test_the_truth_map_and_the_truth_at_sites_come_from_one_function(region: Region):
    truth = pd.read_csv(region.truth_table)
    sites = pd.read_csv(region.sites)
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32630", always_xy=True).transform(
        sites.lon, sites.lat
    )
    with rasterio.open(region.truth_map) as raster:
        assert raster.descriptions == region.species == SPECIES[:5]
        assert raster.res == (320, 320)
        at_sites = np.array(list(raster.sample(zip(x, y, strict=True))))
        everywhere = raster.read()
    assert np.isfinite(everywhere).all()
    assert ((everywhere > 0) & (everywhere < 1)).all()
    difference = np.abs(at_sites - truth[list(region.species)].to_numpy())
    assert difference.mean() < 0.03  # a cell is 320 m wide, a site lies somewhere in it
    assert (
        np.corrcoef(at_sites.ravel(), truth[list(region.species)].to_numpy().ravel())[0, 1] > 0.97
    )


def test_the_truth_follows_its_formula(region: Region):
    with rasterio.open(region.habitats) as raster:
        habitat = raster.read(1)
    with rasterio.open(region.truth_map) as raster:
        truth = raster.read()
    row, column = 12, 11
    window = habitat[
        row * 32 + 16 - 64 : row * 32 + 16 + 64, column * 32 + 16 - 64 : column * 32 + 16 + 64
    ]
    share = np.bincount(window.ravel(), minlength=7) / window.size
    usual = np.array([0.20, 0.30, 0.28, 0.09, 0.08, 0.02, 0.03])
    # Maniola jurtina, who does not mind the temperature
    answer = 0.7 * np.array([-1, 4, 0, 1, -3, -3, 6])
    logit = np.log(0.42 / 0.58) + answer @ (share - usual)
    assert truth[0, row, column] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)


def test_rates_from_records_come_from_the_true_probabilities(tmp_path: Path):
    region = simulate_region(tmp_path, seed=2, **(SMALL | {"mean_visits": 90.0}))
    truth, seen = pd.read_csv(region.truth_table), pd.read_csv(region.truth_detections)
    n = truth.visits.to_numpy()[:, None]
    p, k = truth[list(region.species)].to_numpy(), seen[list(region.species)].to_numpy()
    z = (k - n * p) / np.sqrt(n * p * (1 - p))
    assert abs(z.mean()) < 0.3
    assert 0.8 < z.std() < 1.2


def test_sites_lie_in_clusters_and_visits_spread_widely(tmp_path: Path):
    region = simulate_region(tmp_path, seed=0, size_px=1536, n_sites=60)
    truth = pd.read_csv(region.truth_table)
    steps = (
        truth[["easting", "northing"]].to_numpy()[:, None]
        - truth[["easting", "northing"]].to_numpy()[None]
    )
    apart = np.hypot(steps[..., 0], steps[..., 1])
    np.fill_diagonal(apart, np.inf)
    assert (apart.min(1) < 1500).mean() > 0.5
    assert truth.visits.quantile(0.9) > 3 * truth.visits.quantile(0.1)


def test_the_config_it_writes_is_a_config_and_names_files_that_exist(region: Region):
    config = load_config(region.config)
    assert config.build is not None
    assert config.build.records.path == region.records
    assert config.build.scenes is not None
    assert config.build.scenes.paths == region.scenes
    model = config.train.model
    assert model.window_px + 2 * model.margin_px == config.build.tiles.size_px == 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size_px": 500}, "multiple of 32 and at least 512"),
        ({"n_species": 99}, "knows 24 species"),
        ({"n_sites": 4000}, "Ask for fewer sites, or a larger size_px"),
        ({"mean_visits": 0.0}, "between 3 and 100"),
        ({"window_px": 33}, "even and positive"),
        ({"tile_px": 100}, "multiple of 32"),
    ],
)
def test_impossible_sizes_are_refused_and_leave_nothing(
    tmp_path: Path, change: dict[str, int], message: str
):
    with pytest.raises(DataError, match=message):
        simulate_region(tmp_path / "region", **(SMALL | change))
    assert not (tmp_path / "region").exists()


def test_progress_is_told_until_the_end(tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    simulate_region(tmp_path, seed=3, **SMALL, progress=lambda *event: told.append(event))
    assert told[-1] == ("simulate", 768, 768)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


LOOKING = Looking(
    seasons=True,
    year_days=4.0,
    latitude_days=12.0,
    window_days=70,
    windows="latitude",
    effort=0.8,
    occupied=0.6,
)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Region:
    return simulate_region(tmp_path_factory.mktemp("uneven"), seed=4, looking=LOOKING, **SMALL)


def test_a_region_without_looking_has_the_bytes_it_always_had(region: Region):
    with zipfile.ZipFile(region.records) as archive:
        records = hashlib.sha256(archive.read("occurrence.txt")).hexdigest()
    assert records.startswith("df149b3659272ab4")
    assert sha256(region.truth_table).startswith("b4d625e5d11fda32")
    assert sha256(region.folder / "region.json").startswith("06e405e6ff1c8087")


def test_records_of_uneven_visits_tell_all_visits_their_days_and_durations(uneven: Region):
    config = load_config(uneven.config)
    table = read_survey(config.build.records, scratch=uneven.folder / "scratch")
    truth = pd.read_csv(uneven.truth_table, index_col="site_id")
    detections = pd.read_csv(uneven.truth_detections, index_col="site_id")
    assert table.visits.to_dict() == truth["visits"].to_dict()
    assert (truth["visits"] == truth["recorded_visits"]).all() and truth["visits"].max() <= 70
    held = table.detections.reindex(columns=uneven.species, fill_value=0)
    assert held.to_numpy().tolist() == detections.loc[held.index].to_numpy().tolist()
    visits = table.visit_table.visits
    days = visits.groupby("site")["date"].agg(["min", "max"])
    assert ((days["max"] - days["min"]).dt.days < 70).all()
    assert visits["duration"].between(5, 480).mean() > 0.95
    first = days["min"].dt.dayofyear.to_numpy()
    assert np.corrcoef(first, truth.loc[table.visits.index, "northing"])[0, 1] > 0.8


def test_nothing_is_seen_where_it_does_not_live(uneven: Region):
    read = {
        name: pd.read_csv(getattr(uneven, f"truth_{name}"), index_col="site_id").to_numpy()
        for name in ("presence", "presence_probability", "rates", "detections")
    }
    assert set(np.unique(read["presence"])) == {0, 1}
    away = read["presence"] == 0
    assert away.any() and not read["detections"][away].any() and not read["rates"][away].any()
    assert (read["detections"][~away] == 0).any()  # false zeros
    chance = read["presence_probability"]
    spread = np.sqrt((chance * (1 - chance)).sum())
    assert abs(read["presence"].sum() - chance.sum()) < 4 * spread
    expected = pd.read_csv(uneven.truth_table)[list(uneven.species)].to_numpy()
    np.testing.assert_allclose(expected[~away], (chance * read["rates"])[~away], atol=2e-6)


def test_standardised_rates_and_curves_are_those_of_the_formula():
    usual = np.array([-1.0, 0.5])
    detection = Detection.draw(LOOKING, ("Pieris napi", "Aglais io"), usual, seed=3)
    effect, north = np.array([[-2.0, 0.3]]), np.array([0.9])

    def chance(species: int, place: int, minutes: float) -> float:
        year, day = divmod(place, 183)
        own = day - 12.0 * (0.9 - 0.5) - detection.late[species, year]

        def odds(at: float) -> float:
            return 0.003 + sum(
                weight * np.exp(-0.5 * ((at - peak) / width) ** 2)
                for weight, peak, width in zip(
                    detection.weights[species],
                    detection.peaks[species],
                    detection.widths[species],
                    strict=True,
                )
            )

        season = np.log(odds(own) / np.mean([odds(at) for at in range(183)]))
        logit = effect[0, species] + season + 0.8 * np.log2(minutes / 60)
        return float(1 / (1 + np.exp(-logit)))

    found = detection.chance(effect, north, np.array([200]), np.array([30.0]))[0]
    np.testing.assert_allclose(found, [chance(species, 200, 30.0) for species in (0, 1)])
    rates = detection.standardised(effect, north)[0]
    by_loops = [np.mean([chance(species, day, 60.0) for day in range(366)]) for species in (0, 1)]
    np.testing.assert_allclose(rates, by_loops)
    curves = detection.curves()
    assert len(curves) == 366 and curves["date"].iloc[183] == "2019-04-01"
    assert curves["Pieris napi"].max() > 3 * curves["Pieris napi"].min()


def test_longer_visits_see_more_and_without_options_nothing_changes():
    usual = np.array([0.0])
    plain = Detection.draw(Looking(), ("Pieris napi",), usual, seed=0)
    effect = np.array([[-1.0], [0.4]])
    np.testing.assert_allclose(
        plain.standardised(effect, np.array([0.1, 0.9])), 1 / (1 + np.exp(-effect))
    )
    assert plain.presence_probability(effect).tolist() == [[1.0], [1.0]]
    told = Detection.draw(Looking(effort=0.5), ("Pieris napi",), usual, seed=0)
    minutes = told.chance(
        np.zeros((3, 1)), np.zeros(3), np.zeros(3, int), np.array([30.0, 60.0, 120.0])
    )
    np.testing.assert_allclose(minutes[:, 0], 1 / (1 + np.exp([0.5, 0.0, -0.5])))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"window_days": 0}, "a window has 1 to 183 days"),
        ({"window_days": 400}, "a window has 1 to 183 days"),
        ({"windows": "north"}, "may be 'random' or 'latitude'"),
        ({"occupied": 1.0}, "a share between 0 and 1"),
        ({"year_days": 3.0}, "set seasons to True"),
    ],
)
def test_a_way_of_looking_that_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(DataError, match=said):
        Looking(**wrong)
