"""One visit is counted once: with its sections, and with everybody who kept its list."""

import pytest

from butterfly_sdm.errors import RecordsError
from tests.data_prep.records.making_records import core, counted, counting, meta, zipped

EVENT = ("eventID", "parentEventID", "eventDate", "decimalLatitude", "decimalLongitude")
SEEN = ("eventID", "occurrenceID", "scientificName")


def events(tmp_path, table, sightings):
    """Write an archive with an event core: rows of cells between blanks, - for none."""

    def tsv(header, rows):
        cells = [["" if c == "-" else c.replace("_", " ") for c in r.split()] for r in rows]
        return "\n".join("\t".join(r) for r in [header, *cells]) + "\n"

    description = meta(
        core(EVENT, kind="Event", files=("event.txt",)),
        core(SEEN, tag="extension", ids="coreid"),
    )
    held = {
        "meta.xml": description,
        "event.txt": tsv(EVENT, table),
        "occurrence.txt": tsv(SEEN, sightings),
    }
    return zipped(tmp_path / "walks.zip", held)


def told(tmp_path, table, sightings, **rules):
    """Count an archive by events."""
    path = events(tmp_path, table, sightings)
    return counted(path, scratch=tmp_path, rules=counting(**{"scheme": "event", **rules}))


def test_sections_without_a_place_of_their_own_are_their_walk(tmp_path):
    found = told(
        tmp_path,
        ["W 0 2019-06-03 51.5 -1.5", "a W - - -", "b W - - -", "V 0 2019-06-10 51.5 -1.5"],
        ["a 1 Aglais_io", "b 2 Aglais_io", "b 3 Pieris_napi"],
    )
    assert found.visits.tolist() == [2]
    assert found.detections.sum().to_dict() == {"Aglais io": 1, "Pieris napi": 1}
    assert any("2 events lie at the place" in note for note in found.notes)


def test_sections_that_repeat_the_place_of_their_walk_are_it_too(tmp_path):
    found = told(
        tmp_path,
        ["W 0 2019-06-03 51.5 -1.5", "a W 2019-06-03 51.5 -1.5", "b W 2019-06-03 51.5 -1.5"],
        ["W 1 Aglais_io", "b 2 Pieris_napi"],
    )
    assert found.visits.tolist() == [1] and found.detections.to_numpy().sum() == 2


def test_sections_elsewhere_are_visits_and_their_walk_is_none(tmp_path):
    found = told(
        tmp_path,
        ["W 0 2019-06-03 51.5 -1.5", "a W - 51.6 -1.5", "b W - 51.7 -1.5"],
        ["a 1 Aglais_io"],
        visit="site_date",
    )
    assert found.visits.tolist() == [1, 1] and found.detections["Aglais io"].sum() == 1
    assert found.sites.lat.min() > 51.55


def test_walks_on_days_of_their_own_are_visits_and_their_season_is_none(tmp_path):
    found = told(
        tmp_path,
        ["S 0 2019-04-01 51.5 -1.5", "a S 2019-06-03 - -", "b S 2019-06-10 - -", "c b - - -"],
        ["a 1 Aglais_io", "c 2 Aglais_io"],
    )
    assert found.visits.tolist() == [2] and found.detections["Aglais io"].tolist() == [2]


EBIRD = (
    "SCIENTIFIC NAME\tLATITUDE\tLONGITUDE\tOBSERVATION DATE\tSAMPLING EVENT IDENTIFIER\t"
    "ALL SPECIES REPORTED\tGROUP IDENTIFIER\n"
)


def lists(tmp_path, *rows):
    """Write lists at one place as eBird does: species, day, list, complete, group."""
    lines = []
    for entry in rows:
        species, day, name, complete, group = entry.split(",")
        lines.append(f"{species}\t51.5\t-1.5\t2019-06-{day}\t{name}\t{complete}\t{group}\n")
    path = tmp_path / "ebd.txt"
    path.write_text(EBIRD + "".join(lines))
    return path


def test_a_list_that_several_keep_is_one_visit(tmp_path):
    path = lists(
        tmp_path,
        "Aglais io,03,S1,1,G1",
        "Aglais io,03,S2,1,G1",
        "Pieris napi,03,S2,1,G1",
        "Aglais io,03,S3,1,",
        "Pieris napi,04,S4,1,G2",
        "Aglais io,05,S5,0,G3",
    )
    found = counted(path, scratch=tmp_path, rules=counting(scheme="complete"))
    assert found.visits.tolist() == [3]  # G1, S3, G2; G3 is incomplete
    assert found.detections.sum().to_dict() == {"Aglais io": 2, "Pieris napi": 2}
    assert found.rows["dropped: incomplete list"] == 1
    other = counted(path, scratch=tmp_path, rules=counting())
    assert any("do not name every species" in note for note in other.notes)


def test_species_that_are_numbers_are_told(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("date,lat,lon,species\n2019-06-03,51.5,-1.5,12\n2019-06-04,51.5,-1.5,7\n")
    with pytest.raises(RecordsError, match=r"species are numbers, such as 12, 7.*synonyms"):
        counted(path, scratch=tmp_path, rules=counting(higher_ranks="effort"))
