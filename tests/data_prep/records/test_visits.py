"""What a visit is, which rows count, and that every rule says what it left out."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import ConfigError, MissingFileError, RecordsError
from data_prep.records.count import read_survey, record_sources, survey
from data_prep.records.occurrences import read_occurrences
from data_prep.records.options import RecordsOptions
from data_prep.records.places.sites import read_sites
from tests.data_prep.records.making_records import (
    COLUMNS,
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

NAPI, IO, JURTINA = "Pieris napi", "Aglais io", "Maniola jurtina"


def one(tmp_path, rows, rules=LAX, **reading):
    return counted(archive(tmp_path / "a.zip", rows), scratch=tmp_path, rules=rules, **reading)


def k_of_n(table):
    """Return (k of each species, n) of the only site."""
    (site,) = table.visits.index
    return dict(table.detections.loc[site]), int(table.visits[site])


def test_a_species_counts_once_per_visit_however_many_rows_and_individuals(tmp_path):
    rows = [row(0, "2018-06-03", NAPI, ident=i, individualCount="9") for i in range(4)] + [
        row(0, "2018-06-04", IO, ident=9)
    ]
    assert k_of_n(one(tmp_path, rows)) == ({IO: 1, NAPI: 1}, 2)


def test_a_date_with_a_time_is_the_same_visit(tmp_path):
    rows = [row(0, "2018-06-03", NAPI), row(0, "2018-06-03T11:30:00Z", IO)]
    assert k_of_n(one(tmp_path, rows)) == ({IO: 1, NAPI: 1}, 1)


def test_absence_shows_effort_and_detects_nothing_unless_the_scheme_drops_it(tmp_path):
    rows = [row(0, "2018-06-03", NAPI), row(0, "2018-06-04", NAPI, status="ABSENT")]
    assert k_of_n(one(tmp_path, rows)) == ({NAPI: 1}, 2)
    table = one(tmp_path, rows, counting(absent="drop"))
    assert k_of_n(table) == ({NAPI: 1}, 1)
    assert table.rows["dropped: absence not counted"] == 1


@pytest.mark.parametrize(("rule", "k", "n"), [("absent", 1, 2), ("present", 2, 2), ("drop", 1, 1)])
def test_a_count_of_zero_is_what_the_scheme_says(tmp_path, rule, k, n):
    rows = [row(0, "2018-06-03", NAPI), row(0, "2018-06-04", NAPI, individualCount="0")]
    assert k_of_n(one(tmp_path, rows, counting(zero_count=rule))) == ({NAPI: k}, n)


def test_a_genus_shows_no_effort_unless_the_scheme_says_so(tmp_path):
    rows = [
        row(0, "2018-06-03", NAPI),
        row(0, "2018-06-04", "", scientificName="Pieris Schrank, 1801"),
    ]
    table = one(tmp_path, rows)
    assert k_of_n(table) == ({NAPI: 1}, 1) and table.rows["dropped: rank above species"] == 1
    assert k_of_n(one(tmp_path, rows, counting(higher_ranks="effort"))) == ({NAPI: 1}, 2)


@pytest.mark.parametrize(
    ("rule", "k", "n"),
    [
        ("effort", {NAPI: 1}, 2),
        ("drop", {NAPI: 1}, 1),
        ("detect", {NAPI: 1, "Leptidea sinapis/juvernica": 1}, 2),
    ],
)
def test_an_aggregate_of_species_is_what_the_scheme_says(tmp_path, rule, k, n):
    rows = [
        row(0, "2018-06-03", NAPI),
        row(0, "2018-06-04", "", scientificName="Leptidea sinapis/juvernica", taxonRank=""),
    ]
    assert k_of_n(one(tmp_path, rows, counting(aggregates=rule))) == (k, n)


def test_a_subspecies_counts_for_its_species(tmp_path):
    rows = [
        row(
            0,
            "2018-06-03",
            "",
            scientificName="Pieris napi britannica Müller & Kautz, 1939",
            taxonRank="SUBSPECIES",
        )
    ]
    assert k_of_n(one(tmp_path, rows)) == ({NAPI: 1}, 1)


def test_other_species_show_effort_when_only_some_are_wanted(tmp_path):
    rows = [row(0, "2018-06-03", NAPI), row(0, "2018-06-04", IO)]
    table = one(tmp_path, rows, counting(species=(JURTINA, NAPI)))
    assert table.species == (JURTINA, NAPI)
    assert k_of_n(table) == ({JURTINA: 0, NAPI: 1}, 2)
    assert table.rows["flagged: shows effort, but no wanted species"] == 1


def test_synonyms_count_as_one_species_and_both_names_are_kept(tmp_path):
    rows = [row(0, "2018-06-03", "Ladoga camilla"), row(0, "2018-06-04", "Limenitis camilla")]
    table = one(tmp_path, rows, counting(synonyms={"Ladoga camilla": "Limenitis camilla"}))
    assert k_of_n(table) == ({"Limenitis camilla": 2}, 2)
    assert set(zip(table.names["accepted"], table.names["recorded"], strict=True)) == {
        ("Limenitis camilla", "Ladoga camilla"),
        ("Limenitis camilla", "Limenitis camilla"),
    }
    wanted = one(
        tmp_path,
        rows,
        counting(synonyms={"Ladoga camilla": "Limenitis camilla"}, species=("Ladoga camilla",)),
    )
    assert k_of_n(wanted) == ({"Ladoga camilla": 2}, 2)


def test_season_years_institutions_and_minima_say_what_they_left_out(tmp_path):
    rows = [
        row(0, "2018-06-03", ident=1),
        row(0, "2018-12-03", ident=2),
        row(0, "2017-06-03", ident=3),
        row(0, "2018-06-04", ident=4, institutionCode="BTO"),
        row(0, "2018-06-05", ident=5),
        row(1, "2018-06-03", ident=6),
        row(0, "2018-06-06", ident=7, decimalLatitude="", decimalLongitude="", footprintWKT=""),
        row(2, "2018-06-03", ident=8),
        row(2, "2018-06-03", ident=9),
    ]
    rules = counting(
        months=(4, 9),
        years=(2018, 2019),
        institutions=("UKBMS",),
        min_records=2,
        min_visits=2,
    )
    table = one(tmp_path, rows, rules)
    assert table.rows == {
        "read": 9,
        "dropped: another institution": 1,
        "dropped: no coordinates": 1,
        "dropped: outside the years": 1,
        "dropped: outside the season": 1,
        "dropped: too few records at the site": 1,
        "dropped: too few visits to the site": 2,
        "kept": 2,
    }
    assert table.years == (2018,)


def test_a_season_may_span_the_turn_of_the_year(tmp_path):
    rows = [row(0, f"2018-{month:02d}-03", ident=month) for month in range(1, 13)]
    table = one(tmp_path, rows, counting(months=(11, 2)))
    assert int(table.visits.iloc[0]) == 4


def test_a_footprint_that_is_too_large_is_left_out(tmp_path):
    rows = [row(0, ident=1), row(0, ident=2, footprintWKT=square(side=0.5))]
    table = one(tmp_path, rows, counting(max_footprint_deg2=0.0002))
    assert table.rows["dropped: footprint too large"] == 1 and len(table.visits) == 1


def test_only_long_lists_are_visits_when_records_are_incidental(tmp_path):
    rows = [row(0, "2018-06-03", s) for s in (NAPI, IO, JURTINA)] + [row(0, "2018-06-04", NAPI)]
    table = one(tmp_path, rows, counting(scheme="list_length"))
    assert k_of_n(table) == ({IO: 1, JURTINA: 1, NAPI: 1}, 1)
    assert table.rows["dropped: list too short"] == 1


def test_only_complete_lists_are_visits_when_the_scheme_asks_for_them(tmp_path):
    columns = (*COLUMNS, "eventID")
    rows = [
        row(0, "2018-06-03", NAPI, ident=1, eventID="a"),
        row(0, "2018-06-03", IO, ident=2, eventID="b"),
        row(0, "2018-06-03", IO, ident=3, eventID="c"),
    ]
    for r, complete in zip(rows, ("true", "1", "false"), strict=True):
        r["all species reported"] = complete
    (tmp_path / "a.csv").write_text(text(rows, (*columns, "all species reported"), separator="\t"))
    table = counted(tmp_path / "a.csv", scratch=tmp_path, rules=counting(scheme="complete"))
    assert k_of_n(table) == ({IO: 1, NAPI: 1}, 2)  # two lists of one day are two visits
    assert table.rows["dropped: incomplete list"] == 1


def events_archive(tmp_path, *, with_core=True):
    """
    Four events at one place, one of them in a survey that holds its place; two saw nothing, one row
    lacks an event.
    """
    events = [
        {
            "eventID": "S",
            "eventDate": "",
            "decimalLatitude": "52.005",
            "decimalLongitude": "0.005",
            "footprintWKT": square(),
        },
        *(
            {"eventID": f"v{d}", "parentEventID": "S", "eventDate": f"2018-06-{d:02d}"}
            for d in range(1, 5)
        ),
    ]
    seen = [
        {"id": "v1", "scientificName": NAPI, "occurrenceStatus": "PRESENT"},
        {"id": "v1", "scientificName": IO, "occurrenceStatus": "PRESENT"},
        {"id": "v2", "scientificName": NAPI, "occurrenceStatus": "PRESENT"},
        {"id": "v9", "scientificName": NAPI, "occurrenceStatus": "PRESENT"},
    ]
    event_columns = (
        "eventID",
        "parentEventID",
        "eventDate",
        "decimalLatitude",
        "decimalLongitude",
        "footprintWKT",
    )
    seen_columns = ("id", "scientificName", "occurrenceStatus")
    if with_core:
        described = meta(
            core(event_columns, kind="Event", files=("event.txt",)),
            core(seen_columns, tag="extension", ids="coreid"),
        )
        return zipped(
            tmp_path / "e.zip",
            {
                "meta.xml": described,
                "event.txt": text(events, event_columns),
                "occurrence.txt": text(seen, seen_columns),
            },
        )
    rows = [
        {
            **events[0],
            "eventDate": f"2018-06-0{s['id'][1]}",
            "scientificName": s["scientificName"],
            "gbifID": str(i),
        }
        for i, s in enumerate(seen[:3])
    ]
    return archive(tmp_path / "o.zip", rows)


@pytest.mark.parametrize("scheme", ["ukbms", "event"])
def test_an_event_core_knows_visits_that_saw_nothing_so_its_rates_are_lower(tmp_path, scheme):
    rules = counting(scheme=scheme)
    by_events = counted(events_archive(tmp_path), scratch=tmp_path, rules=rules)
    by_records = counted(events_archive(tmp_path, with_core=False), scratch=tmp_path, rules=LAX)
    assert k_of_n(by_events) == ({IO: 1, NAPI: 2}, 4)
    assert k_of_n(by_records) == ({IO: 1, NAPI: 2}, 2)
    assert (by_events.rates.to_numpy() < by_records.rates.to_numpy()).all()
    assert "event core" in " ".join(by_events.notes) and "2 on which nothing was seen" in " ".join(
        by_events.notes
    )
    assert "occurrence core" in " ".join(by_records.notes)
    assert (
        "e.zip: 1 of its records name an event that its table of events does not hold."
        in by_events.notes
    )
    assert by_events.rows["read"] == 4 and by_events.rows["dropped: no coordinates"] == 1


def test_an_event_core_without_a_table_of_occurrences_is_refused(tmp_path):
    path = zipped(
        tmp_path / "e.zip",
        {
            "meta.xml": meta(core(("eventID", "eventDate"), kind="Event", files=("event.txt",))),
            "event.txt": "eventID\teventDate\n1\t2018-06-03\n",
        },
    )
    with pytest.raises(RecordsError, match="event core but no table of occurrences"):
        read_occurrences([path], scratch=tmp_path)


def test_coordinates_out_of_range_are_refused_or_dropped_as_the_rules_say(tmp_path):
    rows = [row(0, ident=1), row(0, ident=2, decimalLatitude="523.4")]
    with pytest.raises(
        RecordsError,
        match=r"Coordinates out of range: latitude 523.4, .*set records.out_of_range: drop",
    ):
        one(tmp_path, rows)
    table = one(tmp_path, rows, counting(out_of_range="drop"))
    assert table.rows["dropped: coordinates out of range"] == 1


def test_coordinates_that_are_no_numbers_are_counted(tmp_path):
    table = one(
        tmp_path, [row(0, ident=1), row(0, ident=2, decimalLatitude="fifty two", footprintWKT="")]
    )
    assert table.rows["dropped: unreadable coordinates"] == 1


def test_points_are_brought_to_squares_of_the_national_grid(tmp_path):
    header = ("eventDate", "species", "lat", "lon", "coordinateUncertaintyInMeters", "grid ref")
    rows = [
        ("2018-06-03", NAPI, "51.1789", "-1.8262", "50", ""),
        ("2018-06-04", NAPI, "51.1790", "-1.8270", "", ""),
        ("2018-06-05", IO, "", "", "", "SU12344212"),
        ("2018-06-06", IO, "", "", "", "SU14"),
        ("2018-06-07", IO, "51.1789", "-1.8262", "5000", ""),
        ("2018-06-08", IO, "48.85", "2.35", "", ""),
        ("2018-06-09", IO, "", "", "", "nonsense"),
    ]
    (tmp_path / "a.csv").write_text("\n".join(",".join(r) for r in (header, *rows)) + "\n")
    table = counted(tmp_path / "a.csv", scratch=tmp_path, rules=counting(grid_m=1_000))
    assert list(table.visits.index) == ["SU1242"]
    assert k_of_n(table) == ({IO: 1, NAPI: 2}, 3)
    assert table.rows["dropped: place larger than the grid square"] == 2
    assert table.rows["dropped: outside the grid"] == 1
    assert table.rows["dropped: unreadable grid reference"] == 1
    fine = counted(
        tmp_path / "a.csv",
        scratch=tmp_path,
        rules=counting(max_uncertainty_m=100),
    )
    assert fine.rows["dropped: place too uncertain"] == 1
    assert {"SU12344212", "SU14"} < set(fine.visits.index)


def test_british_eastings_and_northings_are_places_too(tmp_path):
    (tmp_path / "a.csv").write_text(
        "date,species,easting,northing\n2018-06-03,Pieris napi,412300,142100\n"
    )
    table = counted(tmp_path / "a.csv", scratch=tmp_path, rules=counting(grid_m=1_000))
    assert list(table.visits.index) == ["SU1242"]


def test_the_footprint_of_a_point_reaches_as_far_as_its_uncertainty(tmp_path):
    (tmp_path / "a.csv").write_text(
        "date,species,lat,lon,uncertainty\n2018-06-03,Pieris napi,52,0,707.1\n"
    )
    table = counted(tmp_path / "a.csv", scratch=tmp_path)
    area = table.sites.to_crs("EPSG:27700").area.iloc[0]
    assert area == pytest.approx(1e6, rel=0.02)


def test_a_footprint_in_another_system_is_the_same_place(tmp_path):
    metres = gpd.GeoSeries.from_wkt([square()], crs="EPSG:4326").to_crs("EPSG:27700").iloc[0]
    columns = (*COLUMNS, "footprintSRS")
    rows = [
        row(0, ident=1),
        row(
            0,
            "2018-06-04",
            ident=2,
            footprintWKT=shapely.to_wkt(metres, rounding_precision=6),
            footprintSRS="EPSG:27700",
        ),
    ]
    (tmp_path / "a.tsv").write_text(text(rows, columns))
    assert counted(tmp_path / "a.tsv", scratch=tmp_path).visits.tolist() == [2]


def test_an_unreadable_footprint_gives_way_to_the_point(tmp_path):
    rows = [row(0, ident=1), row(0, ident=2, footprintWKT="POLYGON((oops")]
    assert len(one(tmp_path, rows).visits) == 2
    strict = one(tmp_path, rows, counting(place="footprint"))
    assert strict.rows["dropped: unreadable footprint"] == 1


def test_listed_sites_have_their_ids_and_other_places_are_left_out(tmp_path):
    (tmp_path / "sites.csv").write_text(
        f'site_id,footprint_wkt\nB,"{square(0.02)}"\nA,"{square(0.0)}"\n'
    )
    occurrences = read_occurrences(
        [archive(tmp_path / "a.zip", [row(n, ident=n) for n in range(3)])], scratch=tmp_path
    )
    table = survey(occurrences, LAX, sites=read_sites(tmp_path / "sites.csv"))
    assert list(table.visits.index) == ["A", "B"]
    assert table.rows["dropped: not a listed site"] == 1


def test_a_listed_site_id_is_a_place(tmp_path):
    (tmp_path / "sites.csv").write_text("site_id,grid_reference\n101,SU1234\n")
    (tmp_path / "a.csv").write_text(
        "date,species,site id\n2018-06-03,Pieris napi,101\n2018-06-03,Pieris napi,102\n"
    )
    table = survey(
        read_occurrences([tmp_path / "a.csv"], scratch=tmp_path),
        LAX,
        sites=read_sites(tmp_path / "sites.csv"),
    )
    assert list(table.visits.index) == ["101"]
    assert table.rows["dropped: no coordinates"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,footprint_wkt\nA,x\n", "needs the column site_id"),
        ("site_id,colour\nA,red\n", "does not say where its sites are"),
        ("site_id,footprint_wkt\nA,POLYGON((\n", "footprint of A is no WKT polygon"),
        (f'site_id,footprint_wkt\nA,"{square()}"\nA,"{square(1)}"\n', "names the site 'A' twice"),
    ],
)
def test_a_table_of_sites_that_cannot_be_used_says_why(tmp_path, content, message):
    (tmp_path / "sites.csv").write_text(content)
    with pytest.raises(RecordsError, match=message):
        read_sites(tmp_path / "sites.csv")
    with pytest.raises(MissingFileError, match="no table of sites"):
        read_sites(tmp_path / "absent.csv")


def test_two_sites_with_one_footprint_are_refused(tmp_path):
    (tmp_path / "sites.csv").write_text(f'site_id,footprint_wkt\nA,"{square()}"\nB,"{square()}"\n')
    occurrences = read_occurrences([archive(tmp_path / "a.zip", [row(0)])], scratch=tmp_path)
    with pytest.raises(RecordsError, match="gives A and B the same footprint"):
        survey(occurrences, LAX, sites=read_sites(tmp_path / "sites.csv"))


def test_when_no_site_is_left_the_commonest_reason_and_the_way_out_are_named(tmp_path):
    with pytest.raises(
        RecordsError,
        match=r"No site is left: of 1 rows 1 for too few records at the site .*Lower "
        r"records.min_records",
    ):
        one(tmp_path, [row(0)], counting(min_records=200))
    with pytest.raises(RecordsError, match=r"Widen records.years"):
        one(tmp_path, [row(0)], counting(min_records=200, years=(1990, 1991)))


def test_a_config_names_sources_with_checksums(tmp_path):
    path = archive(tmp_path / "a.zip", [row(0, ident=1), row(0, "2018-06-04", ident=2)])
    config = RecordsOptions(
        path=path, min_records=1, species=(NAPI,), synonyms="s2bms", months=(4, 9), grid_m=10_000
    )
    table = read_survey(config, scratch=tmp_path)
    assert k_of_n(table) == ({NAPI: 2}, 2)
    (source,) = record_sources(config)
    assert (source.role, source.name, source.bytes) == (
        "records",
        "a.zip",
        path.stat().st_size,
    ) and len(source.sha256 or "") == 64


def test_licence_and_citation_come_from_the_archive(tmp_path):
    eml = (
        "<eml:eml "
        'xmlns:eml="eml://ecoinformatics.org/eml-2.1.1"><dataset><title>Walks</title><intellectualRights><para>'
        "CC BY 4.0</para></intellectualRights></dataset><additionalMetadata><metadata><gbif>"
        "<citation>Walkers (2019)</citation></gbif></metadata></additionalMetadata></eml:eml>"
    )
    path = zipped(
        tmp_path / "a.zip",
        {"meta.xml": meta(core()), "occurrence.txt": text([row(0)]), "metadata.xml": eml},
    )
    (source,) = record_sources(RecordsOptions(path=path))
    assert (source.licence, source.citation) == ("CC BY 4.0", "Walkers (2019)")


def test_rates_are_detections_per_visit(tmp_path):
    table = one(
        tmp_path, [row(0, f"2018-06-0{d}", NAPI if d < 2 else IO, ident=d) for d in range(1, 5)]
    )
    assert np.allclose(table.rates.loc[:, [IO, NAPI]], [[0.75, 0.25]])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scheme": "bbs"}, "'bbs' is no recording scheme. Known are ukbms, complete"),
        ({"weather": "fine"}, "weather is an unknown key"),
        ({"months": [0, 13]}, r"months.0 = 0: .* greater than or equal to 1"),
        ({"min_list_length": 0}, "min_list_length = 0: .* greater than or equal to 1"),
    ],
)
def test_an_unknown_scheme_or_rule_is_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        load_settings(RecordsOptions, {"path": "a.zip", **settings})


def test_a_rule_that_is_stated_goes_before_the_scheme_and_the_others_are_the_scheme_s():
    said = counting(scheme="event", higher_ranks="drop").as_scheme_says()
    assert (said.visit, said.higher_ranks, said.complete_only) == ("event", "drop", False)
    assert said.as_scheme_says() == said


def test_the_settings_of_older_data_sets_are_stored_as_they_were():
    assert not {"higher_ranks", "complete_only"} & set(LAX.model_dump(mode="json"))


def test_synonyms_may_stand_in_the_settings_themselves(tmp_path):
    rows = [row(0, "2018-06-03", NAPI, ident=1), row(0, "2018-06-04", IO, ident=2)]
    assert k_of_n(one(tmp_path, rows, counting(synonyms={NAPI: IO}))) == ({IO: 2}, 2)


def test_a_grid_reference_alone_is_no_point(tmp_path):
    columns = (*COLUMNS, "gridReference")
    nowhere = {"decimalLatitude": "", "decimalLongitude": "", "gridReference": "SU1234"}
    rows = [row(0, ident=1), row(0, "2018-06-04", ident=2, **nowhere)]
    (tmp_path / "a.csv").write_text(text(rows, columns, separator=";"))
    table = counted(tmp_path / "a.csv", scratch=tmp_path, rules=counting(place="point"))
    assert table.rows["dropped: no coordinates"] == 1 and table.visits.to_list() == [1]
