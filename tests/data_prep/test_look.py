"""Before anything is built, look says what files hold, as they were understood."""

import json
import zipfile

import numpy as np
import polars as pl
import pytest
import rasterio
import yaml
from affine import Affine
from rasterio.transform import from_origin

import butterfly_sdm as sdm
from butterfly_sdm.errors import MissingFileError
from butterfly_sdm.terminal import dot_map
from data_prep.look.look import is_scene, look
from data_prep.look.records import ColumnSeen, guess_columns

GBIF = "gbifID datasetKey scientificName species taxonRank eventDate decimalLatitude "
GBIF += "decimalLongitude kingdom"


def write(path, header, *rows, separator=","):
    lines = [header, *rows] if separator != "\t" else [header.replace(" ", "\t"), *rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def gbif(tmp_path):
    rows = [
        "1\tk\tPieris rapae (Linnaeus, 1758)\tPieris rapae\tSPECIES\t2018-06-03\t51.1\t-1.5\tA",
        "2\tk\tPieris rapae\tPieris rapae\tSPECIES\t2018-06-03\t51.2\t-1.5\tA",
        "3\tk\tAglais io\tAglais io\tSPECIES\t2018-06-03T10:00\t51.1\t-1.5\tA",
        "4\tk\tPieris\t\tGENUS\t2018-06-04\t51.1\t-1.5\tA",
        "5\tk\tAglais io\tAglais io\tSPECIES\t2019-07\t51.1\t-1.5\tA",
    ]
    return write(tmp_path / "gbif.txt", GBIF, *rows, separator="\t")


def test_a_download_is_told_column_by_column(tmp_path):
    seen = look([gbif(tmp_path)]).records
    meaning = {column.name: column.meaning for column in seen.columns}
    assert meaning["eventDate"] == "eventDate"
    assert meaning["kingdom"] == ""  # ignored, and still shown
    values = {column.name: column.values for column in seen.columns}
    assert values["eventDate"] == ("2018-06-03", "2018-06-03T10:00", "2018-06-04")
    assert values["kingdom"] == ("A",)


def test_it_shows_itself_in_tables_and_in_words_without_its_numbers(tmp_path):
    row = "Aglais <script>,2018-06-03,51.1,-1.5"
    found = look([write(tmp_path / "a.csv", "species,eventDate,latitude,longitude", row)])
    page = found._repr_html_()
    assert all(section.title in page for section in found.sections)
    assert "Aglais" in page and "<script>" not in page
    assert repr(found) == str(found) and "DataFrame" not in repr(found)


def test_counts_names_dates_and_losses_are_those_of_a_build_without_filters(tmp_path):
    seen = look([gbif(tmp_path)]).records
    assert seen.table.visits.sum() == 2  # 51.1 and 51.2 on 3 June
    assert seen.table.detections.sum().to_dict() == {"Aglais io": 1, "Pieris rapae": 2}
    spellings = dict(zip(seen.names["species"], seen.names["spellings"], strict=True))
    assert set(spellings["Pieris rapae"]) == {"Pieris rapae", "Pieris rapae (Linnaeus, 1758)"}
    assert (seen.first_day, seen.last_day) == ("2018-06-03", "2018-06-04")
    read = {shape.example: shape.meaning for shape in seen.dates}
    assert read["2019-07"] == "date is a period"
    assert read["2018-06-03T10:00"] == "2018-06-03"
    assert seen.left_out["rank above species"] == (("Pieris, GENUS", 1),)
    assert seen.left_out["date is a period"] == (("2019-07", 1),)


def test_the_lines_to_paste_build_the_same_survey(tmp_path):
    found = look([gbif(tmp_path)])
    records = yaml.safe_load(found.yaml)["build"]["records"]
    assert records["years"] == [2018, 2018]
    assert sdm.load_config(yaml.safe_load(found.yaml)).build.records.min_records == 0


def test_odd_headers_are_suggested_by_their_values_and_said_to_be(tmp_path):
    rows = ["Pieris rapae;3.6.2020;11.101;48.021", "Aglais io;14.6.2020;11.101;48.021"]
    path = write(tmp_path / "odd.csv", "Falter;Wann;x_coord;y_coord", *rows)
    found = look([path])
    assert found.understood
    assert dict(found.records.suggested) == {
        "scientificName": "Falter",
        "eventDate": "Wann",
        "decimalLongitude": "x_coord",
        "decimalLatitude": "y_coord",
    }
    assert found.records.table.visits.tolist() == [2]
    assert "by its values" in str(found)
    assert "check them" in found.yaml


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("SU3112", "SU41"), {"gridReference": "c"}),
        (("2018", "May"), {}),
        (("Small Copper", "Red Admiral"), {"scientificName": "c"}),
        (("Small Heron", "Red Knot"), {}),
        (("3 June 2018",), {"eventDate": "c"}),
        ((), {}),
    ],
)
def test_only_values_that_all_fit_are_suggested(values, expected):
    assert guess_columns([ColumnSeen("t", "c", "", values)]) == expected


def test_a_file_nobody_understands_shows_its_columns_and_what_is_missing(tmp_path):
    found = look([write(tmp_path / "none.csv", "a,b", "1,x", "2,y")])
    assert not found.understood
    assert "no date column" in found.records.missing
    assert [(c.name, c.values) for c in found.records.columns] == [
        ("a", ("1", "2")),
        ("b", ("x", "y")),
    ]
    assert "--column" in str(found)


def test_a_named_column_is_taken_and_put_into_the_lines(tmp_path):
    path = write(tmp_path / "a.csv", "what,day,GridRef,seen", "Pieris rapae,?,SU31,2018-06-03")
    named = {"scientificName": "what", "eventDate": "seen"}
    found = look([path], columns=named)
    assert found.records.table.visits.tolist() == [1]
    assert yaml.safe_load(found.yaml)["build"]["records"]["columns"] == named


@pytest.mark.parametrize(
    ("told", "scheme", "visits"),
    [(("yes", "no"), "complete", 1), (("", ""), "ukbms", 1), (("yes", "yes"), "complete", 2)],
)
def test_lists_are_taken_for_complete_only_where_the_column_says_so(told, scheme, visits, tmp_path):
    header = "Taxon,Date,Gridref,Checklist ID,Complete list"
    rows = [f"Pieris rapae,2018-06-03,SU3112,L{n},{word}" for n, word in enumerate(told)]
    found = look([write(tmp_path / "lists.csv", header, *rows)])
    assert yaml.safe_load(found.yaml)["build"]["records"]["scheme"] == scheme
    assert found.records.table.visits.sum() == visits


def test_two_tables_of_walks_are_read_together(tmp_path):
    home = tmp_path / "ukbms"
    home.mkdir()
    visits = write(home / "visits.csv", "SITE_NO,VISIT_DATE", "1,01/06/2018", "1,02/06/2018")
    counts = write(
        home / "counts.csv", "SITE_NO,VISIT_DATE,SPECIES_NAME,COUNT", "1,01/06/2018,Aglais io,2"
    )
    write(home / "sites.csv", "SITE_NO,GRIDREF", "1,SU3112")
    seen = look([visits, counts]).records
    assert seen.paths == (home,)
    assert seen.table.visits.tolist() == [2]
    assert seen.table.detections.to_numpy().tolist() == [[1]]
    assert {column.table for column in seen.columns} == {"visits.csv", "counts.csv", "sites.csv"}


@pytest.mark.parametrize("name", ["damaged.zip", "damaged.parquet", "empty.csv", "picture.bin"])
def test_a_damaged_or_foreign_file_is_told_in_a_sentence(name, tmp_path):
    (tmp_path / name).write_bytes(b"" if name == "empty.csv" else b"PK\x03\x04 no such thing")
    found = look([tmp_path / name])
    assert not found.understood
    assert name in found.records.missing


def test_a_parquet_table_and_a_zipped_one_are_told_as_the_text_is(tmp_path):
    path = gbif(tmp_path)
    whole = look([path]).records
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "gbif.txt")
    pl.read_csv(path, separator="\t", infer_schema=False).write_parquet(tmp_path / "a.parquet")
    for other in ("a.zip", "a.parquet"):
        seen = look([tmp_path / other]).records
        assert seen.table.detections.equals(whole.table.detections)
        assert [(c.name, c.meaning, c.values) for c in seen.columns] == [
            (c.name, c.meaning, c.values) for c in whole.columns
        ]
        assert seen.layout[0].startswith(f"{other}: gbif, ")


def raster(path, names=("red", "green", "blue", "nir"), levels=(400, 600, 300, 3000)):
    noise = np.random.default_rng(0).normal(0, 30, (len(levels), 300, 300))
    values = (noise + np.array(levels)[:, None, None]).astype("uint16")
    profile = {"count": len(levels), "width": 300, "height": 300, "dtype": "uint16", "nodata": 0}
    place = {"crs": "EPSG:27700", "transform": from_origin(430000, 115000, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", **profile, **place) as file:
        file.write(values)
        if names:
            file.descriptions = names
    return path


def test_a_scene_is_told_band_by_band(tmp_path):
    found = look([raster(tmp_path / "scene.tif")])
    assert found.records is None
    assert [band.name for band in found.scene.bands] == ["red", "green", "blue", "nir"]
    assert found.scene.bands[3].median == pytest.approx(0.3, abs=0.002)
    assert found.scene.facts["resolution"] == "10 m"
    assert found.scene.facts["CRS"] == "EPSG:27700"
    assert found.scene.doubts == ()


def test_exchanged_bands_are_doubted(tmp_path):
    found = look([raster(tmp_path / "scene.tif", levels=(3000, 600, 300, 400))])
    assert found.scene.doubts


def test_bands_without_names_are_shown_with_the_usual_order_to_check(tmp_path):
    found = look([raster(tmp_path / "scene.tif", names=None)])
    assert not found.understood
    assert "does not say what its 4 bands are" in found.scene.missing
    assert yaml.safe_load(found.yaml)["build"]["scenes"]["bands"] == [
        "red",
        "green",
        "blue",
        "nir",
    ]
    assert "no file confirms" in found.yaml


def test_embeddings_are_told_where_to_be_named(tmp_path):
    values = np.ones((16, 20, 20), np.float32)
    values[:, :5] = np.nan
    place = {"crs": "EPSG:32630", "transform": from_origin(500_000, 5_700_000, 10, 10)}
    shape = {"count": 16, "height": 20, "width": 20, "dtype": "float32", "nodata": np.nan}
    with rasterio.open(tmp_path / "e.tif", "w", driver="GTiff", **place, **shape) as out:
        out.write(values)
    (tmp_path / "region.zarr").mkdir()
    item = {"stac_version": "1.0.0", "type": "Feature", "id": "one", "properties": {}}
    asset = {"data": {"href": "e.tif"}}
    (tmp_path / "item.json").write_text(json.dumps(item | {"assets": asset, "links": []}))
    for name in ("e.tif", "region.zarr", "item.json"):
        found = look([tmp_path / name])
        assert found.records is None and "state scenes.embeddings" in found.scene.missing
    assert look([tmp_path / "e.tif"]).scene.bands[3].median == 1


def test_a_scene_of_other_pixels_than_tiles_have_says_so(tmp_path):
    path = raster(tmp_path / "scene.tif")
    assert "tiles have" not in look([path]).scene.facts["resolution"]
    with rasterio.open(path, "r+") as out:
        out.transform *= Affine.scale(3)
    told = look([path]).scene.facts["resolution"]
    assert told == "30 m; tiles have 10 m unless tiles.resolution_m says otherwise"


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(MissingFileError, match=r"nothing at .*none\.csv"):
        look([tmp_path / "none.csv"])


def test_rasters_are_told_from_records(tmp_path):
    (tmp_path / "S2A.SAFE").mkdir()
    assert is_scene(tmp_path / "S2A.SAFE")
    assert not is_scene(gbif(tmp_path))
    (tmp_path / "item.json").write_text('{"stac_version": "1.0.0"}')
    assert is_scene(tmp_path / "item.json")


def test_pictures_and_lines_are_written(tmp_path):
    sdm.look([gbif(tmp_path), raster(tmp_path / "scene.tif")], tmp_path / "out")
    held = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert held == ["build.yaml", "records.png", "scene.png"]


def test_the_map_in_the_terminal_puts_north_up_and_keeps_to_its_width():
    assert dot_map([0.0, 0.0], [1.0, 0.0], width=10, height=2) == ["⠁", "⡀"]
    lines = dot_map([-3.0, 1.0], [50.0, 50.2], width=40, height=20)
    assert max(map(len, lines)) <= 40
    assert len(lines) <= 20
    assert dot_map([5.0], [50.0]) == ["⠁"]
    assert dot_map([], []) == []
    assert dot_map([float("nan")], [1.0]) == []


def test_english_names_are_explained_by_the_table_that_comes_along(tmp_path):
    rows = ["2018-06-03,SU1234,Small White", "2018-06-04,SU1234,Peacock"]
    path = write(tmp_path / "a.csv", "date,gridref,butterfly", *rows)
    found = look([path])
    assert found.understood
    assert found.records.table.detections.sum().to_dict() == {"Aglais io": 1, "Pieris rapae": 1}
    assert yaml.safe_load(found.yaml)["build"]["records"]["synonyms"] == "s2bms"
    more = look([write(tmp_path / "b.csv", "date,gridref,butterfly", *rows, "2018-06-04,SU1,XYZ")])
    names = yaml.safe_load(more.yaml)["build"]["records"]["synonyms"]
    assert names == {"Small White": "Pieris rapae", "Peacock": "Aglais io"}
    assert "add what these are, if they are species: XYZ" in more.yaml


def test_a_column_per_species_is_told_as_such(tmp_path):
    rows = ["2018-06-03,SU1234,3,0,Ann", "2018-06-04,SU1234,,,Ann"]
    path = write(tmp_path / "a.csv", "date,gridref,Pieris rapae,Aglais io,who", *rows)
    found = look([path])
    meanings = {column.name: column.meaning for column in found.records.columns}
    assert meanings["Pieris rapae"] == "count of Pieris rapae" and meanings["who"] == ""
    assert "one column per species" in found.records.layout[0]
    assert found.records.table.visits.sum() == 2


def test_long_reading_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.look.records.LONG_TO_COUNT", 1)
    told = []
    look([gbif(tmp_path)], progress=lambda task, done, total: told.append((task, done == total)))
    assert ("reading records", True) in told and ("counting", True) in told
