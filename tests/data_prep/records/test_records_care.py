"""
Rows left out can be looked at, visits told twice are found, sensitive species are protected,
readers can be added.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import butterfly_sdm
from butterfly_sdm.core import registry as core_registry
from butterfly_sdm.errors import DataError, PluginError, RecordsError
from data_prep.checking import check_dataset
from data_prep.records import occurrences
from data_prep.records.count import read_survey, survey
from data_prep.records.occurrences import read_occurrences
from data_prep.records.options import RecordsOptions
from data_prep.records.readers import registry
from data_prep.records.sensitive import SensitiveSpecies
from tests.data_prep.records.making_records import (
    LAX,
    archive,
    core,
    counted,
    counting,
    meta,
    row,
    square,
    text,
    zipped,
)

NAPI, IO, ARION = "Pieris napi", "Aglais io", "Maculinea arion"


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_every_row_that_was_left_out_is_written_with_its_reason(tmp_path, suffix):
    rows = [
        row(0, ident=1),
        row(0, "soon", ident=2),
        row(0, ident=1),
        row(1, "2018-06-04", ident=4),
        row(0, "2018-06-05", ident=5),
    ]
    lines = text(rows) + "broken\n"
    path = zipped(tmp_path / "a.zip", {"meta.xml": meta(core()), "occurrence.txt": lines})
    table = survey(
        read_occurrences([path], scratch=tmp_path),
        counting(min_records=2),
        explain=tmp_path / f"dropped{suffix}",
    )
    held = (
        pl.read_parquet(tmp_path / "dropped.parquet")
        if suffix == ".parquet"
        else pl.read_csv(tmp_path / "dropped.csv")
    )
    assert held.select("file", "row", "reason").rows() == [
        ("a.zip", 2, "unreadable date"),
        ("a.zip", 3, "duplicate record"),
        ("a.zip", 4, "too few records at the site"),
        ("a.zip", 6, "malformed row"),
    ]
    assert held["eventDate"][0] == "soon" and held["text"][3] == "broken"
    assert len(held) == sum(n for reason, n in table.rows.items() if reason.startswith("dropped"))


def test_rows_left_out_are_written_as_parquet_or_csv_only(tmp_path):
    with pytest.raises(RecordsError, match=r"as .parquet or .csv; rows.xls is neither"):
        survey(
            read_occurrences([archive(tmp_path / "a.zip", [row(0)])], scratch=tmp_path),
            LAX,
            explain=tmp_path / "rows.xls",
        )


@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.sampled_from(["2018-06-03", "", "x", "2018"]), st.integers(0, 9)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_the_rows_written_are_those_the_account_counts(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("explain")
    rows = [row(site, date, ident=n) for site, date, n in drawn] + [
        row(7, ident=99),
        row(7, "2018-06-04", ident=100),
    ]
    occurrences = read_occurrences([archive(folder / "a.zip", rows)], scratch=folder)
    table = survey(occurrences, counting(min_records=2), explain=folder / "dropped.parquet")
    told = pl.read_parquet(folder / "dropped.parquet").group_by("reason").len()
    assert {f"dropped: {reason}": n for reason, n in told.rows()} == {
        k: n for k, n in table.rows.items() if k.startswith("dropped")
    }


def two_schemes(second=(NAPI, IO), *, day="2018-06-03", site=0, source="BC"):
    """
    One visit of the first scheme, and one of the second at a slightly larger footprint of the same
    square.
    """
    shape = square(0.0202, 51.9999) if site == 0 else square(0.5)
    first = [row(1, "2018-06-03", s, ident=i) for i, s in enumerate((NAPI, IO))]
    other = [
        row(1, day, s, ident=10 + i, institutionCode=source, footprintWKT=shape)
        for i, s in enumerate(second)
    ]
    # so that the first scheme's site has more records
    more = [row(1, f"2018-07-0{d}", NAPI, ident=20 + d) for d in range(1, 4)]
    return [*first, *other, *more]


def test_a_visit_told_by_two_schemes_is_recognised_by_day_square_and_species(tmp_path):
    table = counted(archive(tmp_path / "a.zip", two_schemes()), scratch=tmp_path)
    assert table.rows["dropped: double recording"] == 2
    assert list(table.visits) == [4]
    kept = counted(
        archive(tmp_path / "a.zip", two_schemes()),
        scratch=tmp_path,
        rules=counting(double_recording="keep"),
    )
    assert sorted(kept.visits) == [1, 4]


@pytest.mark.parametrize(
    "other", [{"second": (NAPI,)}, {"day": "2018-06-04"}, {"site": 1}, {"source": "UKBMS"}]
)
def test_other_species_days_places_or_one_scheme_alone_are_no_double_recording(tmp_path, other):
    table = counted(archive(tmp_path / "a.zip", two_schemes(**other)), scratch=tmp_path)
    assert "dropped: double recording" not in table.rows
    assert len(table.visits) == 2


def test_one_site_in_two_schemes_counts_once_and_is_flagged(tmp_path):
    rows = [row(0, ident=1), row(0, ident=2, institutionCode="BC")]
    table = counted(archive(tmp_path / "a.zip", rows), scratch=tmp_path)
    assert list(table.visits) == [1] and table.detections.to_numpy().tolist() == [[1]]
    assert table.rows["flagged: the same species on one visit in two schemes"] == 1


def sensitive_rows():
    return [
        row(0, "2018-06-03", ARION, ident=1),
        row(0, "2018-06-04", NAPI, ident=2),
        row(1, "2018-06-03", ARION, ident=3),
        row(1, "2018-06-03", IO, ident=4),
        row(1, "soon", ARION, ident=5),
    ]


def test_a_withheld_species_is_in_no_table(tmp_path):
    rules = counting(sensitive={ARION: "withhold"})
    occurrences = read_occurrences(
        [archive(tmp_path / "a.zip", sensitive_rows())], scratch=tmp_path
    )
    table = survey(occurrences, rules, explain=tmp_path / "dropped.csv")
    assert table.species == (IO, NAPI) and table.coarse is None
    # that somebody looked is no secret, unless only what is withheld was seen
    assert table.visits.tolist() == [1, 1]
    assert table.visit_table.visits["list_length"].tolist() == [1, 1]
    assert "Withheld as sensitive: 1 species." in table.notes
    assert ARION not in set(table.names["accepted"])
    written = (tmp_path / "dropped.csv").read_text()
    assert "unreadable date" in written
    assert "Maculinea" not in written and "52.005" not in written


def test_a_coarsened_species_is_told_as_sums_over_squares(tmp_path):
    rules = counting(sensitive={ARION: "10km"})
    occurrences = read_occurrences(
        [archive(tmp_path / "a.zip", sensitive_rows())], scratch=tmp_path
    )
    table = survey(occurrences, rules, explain=tmp_path / "dropped.csv")
    assert ARION not in table.species and table.coarse is not None
    assert table.coarse.to_dict("records") == [
        {"species": ARION, "square": "TL33", "size_m": 10_000, "detections": 2, "visits": 3}
    ]
    held = pl.read_csv(tmp_path / "dropped.csv")
    assert (
        held["gridReference"].to_list() == ["TL33"]
        if "gridReference" in held.columns
        else "52.005" not in str(held)
    )


def test_predictions_of_sensitive_species_are_withheld_or_averaged_over_squares(tmp_path):
    table = counted(archive(tmp_path / "a.zip", sensitive_rows()), scratch=tmp_path)
    policy = SensitiveSpecies({ARION: "10km", IO: "withhold"})
    shown = policy.protect(table.rates, table.sites)
    assert list(shown.columns) == [ARION, NAPI]
    assert shown[ARION].tolist() == [0.75, 0.75]  # 1 of 2 and 1 of 1
    assert shown[NAPI].tolist() == table.rates[NAPI].tolist()


def test_a_policy_and_a_survey_of_nothing_but_withheld_species_are_checked(tmp_path):
    with pytest.raises(RecordsError, match="has 'hide'; it may be withhold, 1km, 2km, 10km"):
        SensitiveSpecies({ARION: "hide"})
    config = RecordsOptions(
        path=archive(tmp_path / "a.zip", [row(0, species=ARION)]),
        min_records=0,
        sensitive={ARION: "withhold"},
    )
    with pytest.raises(RecordsError, match="All species are sensitive"):
        read_survey(config, scratch=tmp_path)


class BirdReader:
    """Another package's reader: one word a line."""

    name, summary = "birds", "one word a line"

    def recognises(self, path):
        return path.suffix == ".birds"

    def open(self, path, columns):
        made = path.with_suffix(".csv")
        made.write_text("date,species,gridref\n" + path.read_text())
        return registry.open_records(made)


def points(monkeypatch, *found):
    monkeypatch.setattr(
        core_registry,
        "entry_points",
        lambda group: list(found) if group == "butterfly_sdm.readers" else [],
    )


def test_a_reader_of_another_package_is_found_by_its_entry_point(tmp_path, monkeypatch):
    points(monkeypatch, EntryPoint("birds", f"{__name__}:BirdReader", registry.READERS.group))
    (tmp_path / "a.birds").write_text("2018-06-03,Pieris napi,SU1234\n")
    assert dict(counted(tmp_path / "a.birds", scratch=tmp_path).visits) == {"SU1234": 1}
    assert registry.readers()["birds"] == "one word a line"


def test_a_broken_reader_is_listed_with_its_error_and_keeps_no_other_from_reading(
    tmp_path, monkeypatch
):
    points(monkeypatch, EntryPoint("broken", "no_such_module:Reader", registry.READERS.group))
    assert "No module named 'no_such_module'" in registry.readers()["broken"]
    assert len(counted(archive(tmp_path / "a.zip", [row(0)]), scratch=tmp_path).visits) == 1
    with pytest.raises(PluginError, match=r"'broken' .* cannot be loaded"):
        registry.reader("broken")


class FailingReader(BirdReader):
    """A reader that cannot even be made."""

    def __init__(self):
        raise RuntimeError("no licence")


def test_a_reader_that_cannot_be_made_is_listed_with_its_error(monkeypatch):
    points(monkeypatch, EntryPoint("failing", f"{__name__}:FailingReader", registry.READERS.group))
    assert "RuntimeError: no licence" in registry.readers()["failing"]


def test_two_readers_with_one_name_are_an_error(monkeypatch):
    points(monkeypatch, EntryPoint("dwca", "elsewhere:Reader", registry.READERS.group))
    with pytest.raises(PluginError, match="Two packages offer a reader 'dwca'"):
        registry.readers()


def test_all_built_in_readers_are_listed():
    assert list(registry.readers())[: len(registry.BUILT_IN)] == list(registry.BUILT_IN)
    assert not any("cannot be loaded" in line for line in registry.readers().values())


def rare_places():
    """
    Return rows of two sites in the square TL33, of one alone in SU12, and of one where nothing else
    was seen.
    """
    more = [
        row(
            2,
            "2018-06-03",
            s,
            ident=i,
            footprintWKT=square(-1.8, 50.95),
            decimalLatitude="50.955",
            decimalLongitude="-1.795",
        )
        for i, s in ((6, ARION), (7, NAPI))
    ]
    return [
        *sensitive_rows(),
        *more,
        row(3, "2018-06-03", ARION, ident=8, footprintWKT=square(0.03, 52.02)),
    ]


def test_no_table_tells_a_coarsened_species_finer_than_its_squares(tmp_path):
    records = {
        "path": str(archive(tmp_path / "a.zip", rare_places())),
        "min_records": 0,
        "sensitive": {ARION: "10km"},
    }
    config = {"name": "rare", "build": {"records": records, "split": {"method": "random"}}}
    dataset = butterfly_sdm.build(config, tmp_path / "dataset", explain=tmp_path / "left_out.csv")
    assert dataset.coarse.to_dict("records") == [
        {"species": ARION, "square": "TL33", "size_m": 10_000, "detections": 3, "visits": 4}
    ]
    # two around TL33 and the one alone, of which only the other species is told
    assert len(dataset.sites) == 3
    assert dataset.species == (IO, NAPI) and dataset.detections.to_numpy().sum() == 3
    assert (
        "Left out, because nothing but sensitive species was seen there: 1 site."
        in dataset.card.notes
    )
    assert (
        f"Told only as sums over squares of 10km with several sites: {ARION}." in dataset.card.notes
    )
    assert "coarse.parquet" in dataset.card.files and check_dataset(tmp_path / "dataset") == []
    for path in (
        tmp_path / "dataset"
    ).iterdir():  # compressed pages would hide the name: read the tables
        if path.suffix == ".parquet" and path.stem != "coarse":
            assert ARION not in str(pl.read_parquet(path).to_dict())
    again = (tmp_path / "left_out.csv").read_text()
    # the finished one stays
    butterfly_sdm.build(config, tmp_path / "dataset", explain=tmp_path / "left_out.csv")
    assert (tmp_path / "left_out.csv").read_text() == again


def test_a_table_of_coarsened_species_that_tells_too_much_is_refused(tmp_path):
    records = {
        "path": str(archive(tmp_path / "a.zip", rare_places())),
        "min_records": 0,
        "sensitive": {ARION: "10km"},
    }
    dataset = butterfly_sdm.build(
        {"build": {"records": records, "split": {"method": "random"}}}, tmp_path / "dataset"
    )
    with pytest.raises(
        DataError, match="Pieris napi is told only as sums over squares, and per site as well"
    ):
        replace(dataset, coarse=dataset.coarse.assign(species=NAPI))
    with pytest.raises(DataError, match="more visits of a square than there were"):
        replace(dataset, coarse=dataset.coarse.assign(detections=5))
    with pytest.raises(DataError, match="has the columns"):
        replace(dataset, coarse=dataset.coarse.drop(columns="size_m"))


def test_explaining_reads_the_records_once(tmp_path, monkeypatch):
    read, add_file = [], occurrences._Coder.add_file
    monkeypatch.setattr(
        occurrences._Coder, "add_file", lambda *a, **k: read.append(a) or add_file(*a, **k)
    )
    records = {"path": str(archive(tmp_path / "a.zip", rare_places())), "min_records": 0}
    config = {"build": {"records": records, "split": {"method": "random"}}}
    butterfly_sdm.build(config, tmp_path / "dataset", explain=tmp_path / "left_out.csv")
    assert len(read) == 1 and "unreadable date" in (tmp_path / "left_out.csv").read_text()
