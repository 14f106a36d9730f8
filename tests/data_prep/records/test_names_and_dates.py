"""Names and dates as recorders write them."""

from datetime import date

import pandas as pd
import polars as pl
import pytest

from butterfly_sdm.errors import MissingFileError, RecordsError
from data_prep.records.dates import REASONS, read_days
from data_prep.records.names import binomial, read_name, read_species, read_synonyms


def days(*texts: str, day_first: bool | None = None, **parts: str) -> list[object]:
    """Return the day of each text, or the reason why it is none."""
    columns = {part: [parts.get(part, "")] * len(texts) for part in ("year", "month", "day")}
    frame = pl.DataFrame({"code": list(range(len(texts))), "eventDate": list(texts), **columns})
    read = frame.join(
        read_days(frame, day_first=day_first), on="code", how="left", maintain_order="left"
    )
    found = read["day_right"].to_list()
    return [day or REASONS[reason] for day, reason in zip(found, read["date_reason"], strict=True)]


THIRD = date(2018, 6, 3)


def test_iso_dates_are_days_with_or_without_a_time():
    texts = (
        "2018-06-03",
        "2018-06-03T00:00:00",
        "2018-06-03T10:15Z",
        "2018-06-03 10:15",
        "20180603",
        "2018-6-3",
        " 2018-06-03 ",
    )
    assert days(*texts) == [THIRD] * len(texts)


def test_a_month_may_be_a_word():
    texts = ("3 June 2018", "03-Jun-2018", "3rd june, 2018", "3. Jun. 2018")
    assert days(*texts) == [THIRD] * len(texts)
    assert days("31 June 2018", "3 Juni 2018", "3 Ju 2018", "June 2018") == ["unreadable date"] * 4


def test_an_interval_within_a_day_is_that_day_and_a_longer_one_is_none():
    assert (
        days("2018-06-03/2018-06-03", "2018-06-03T10:00/2018-06-03T12:00", "2018-06-03T10:00/12:00")
        == [THIRD] * 3
    )
    assert (
        days("2018-06-03/2018-06-04", "2018-06-03/05", "2018-06/2018-07", "2018-06", "2018")
        == ["date is a period"] * 5
    )


def test_days_that_are_not_in_the_calendar_are_unreadable():
    assert days("2018-02-30", "soon", "31/04/2018", "2018-13-01") == ["unreadable date"] * 4
    assert days("") == ["no date"]


def test_the_order_of_day_and_month_is_told_by_the_setting_or_by_the_other_dates():
    assert days("3/6/2018", day_first=True) == [THIRD]
    assert days("6/3/2018", day_first=False) == [THIRD]
    assert days("3/6/2018", "13/6/2018") == [THIRD, date(2018, 6, 13)]
    assert days("6/3/2018", "6/13/2018") == [THIRD, date(2018, 6, 13)]
    assert days("3/6/2018") == ["ambiguous date"]
    assert days("3/6/2018", "13/6/2018", "6/13/2018")[0] == "ambiguous date"


def test_year_month_and_day_stand_in_for_a_missing_date():
    assert days("", year="2018", month="6", day="3") == [THIRD]
    assert days("2018-06", year="2018", month="6.0", day="3") == [THIRD]
    assert days("", year="2018", month="6") == ["date is a period"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Vanessa cardui (Linnaeus, 1758)", "Vanessa cardui"),
        ("Polygonia c-album", "Polygonia c-album"),
        ("Satyrium w-album (Knoch, 1782)", "Satyrium w-album"),
        ("Polyommatus (Lysandra) bellargus (Rottemburg, 1775)", "Polyommatus bellargus"),
        ("Aglais io io", "Aglais io"),
        ("Pieris", ""),
        ("Pieris Schrank, 1801", ""),
        ("Pieris sp.", ""),
        ("Pieris cf. napi", ""),
        ("Lepidoptera", ""),
        ("", ""),
    ],
)
def test_genus_and_species_are_found_beside_authors_and_subgenera(text, expected):
    assert binomial(text) == expected


@pytest.mark.parametrize(
    ("scientific", "species", "rank", "kind"),
    [
        ("Pieris napi (Linnaeus, 1758)", "Pieris napi", "SPECIES", "species"),
        ("Pieris Schrank", "", "GENUS", "higher"),
        ("", "", "GENUS", "higher"),
        ("", "", "SPECIES", "unnamed"),
        ("", "", "", "unnamed"),
        ("Leptidea sinapis/juvernica", "", "", "aggregate"),
        ("Pieris napi agg.", "", "", "aggregate"),
        ("Thymelicus lineola", "", "species aggregate", "aggregate"),
        ("BOLD:AAA1234", "", "UNRANKED", "unread"),
        ("pieris napi", "", "SPECIES", "species"),
    ],
)
def test_what_a_name_means_is_told_by_its_rank_or_its_form(scientific, species, rank, kind):
    assert read_name(scientific, species, rank).kind == kind


@pytest.mark.shared
def test_all_62_species_of_s2bms_have_an_accepted_name(shared):
    published = pd.read_csv(shared / "data/s2bms/presence.csv", nrows=1).columns[3:-1]
    synonyms = read_synonyms("s2bms")
    assert set(published) == set(synonyms)
    assert len(set(synonyms.values())) == 62
    assert synonyms["Ladoga camilla"] == "Limenitis camilla"
    assert all(binomial(name) == name for name in [*synonyms, *synonyms.values()])


def test_a_table_of_synonyms_is_followed_to_its_end(tmp_path):
    (tmp_path / "s.csv").write_text("# a comment\nrecorded,accepted,why\nA a,B b,x\nB b,C c,y\n")
    assert read_synonyms(tmp_path / "s.csv") == {"A a": "C c", "B b": "C c"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("old,new\nA a,B b\n", "needs the columns recorded and accepted; it has old, new"),
        ("recorded,accepted\nA a,\n", "a row without a recorded or an accepted name"),
        ("recorded,accepted\nA a,B b\nA a,C c\n", "gives 'A a' two accepted names"),
        ("recorded,accepted\nA a,B b\nB b,A a\n", "in a circle"),
    ],
)
def test_a_table_of_synonyms_that_contradicts_itself_is_refused(tmp_path, content, message):
    (tmp_path / "s.csv").write_text(content)
    with pytest.raises(RecordsError, match=message):
        read_synonyms(tmp_path / "s.csv")
    with pytest.raises(MissingFileError, match="no table of synonyms"):
        read_synonyms(tmp_path / "absent.csv")


def test_a_list_of_species_is_a_name_a_row_or_a_table(tmp_path):
    (tmp_path / "list.txt").write_text("Pieris napi\n\nAglais io\n")
    (tmp_path / "table.csv").write_text("id,species\n1,Pieris napi\n2,Aglais io\n")
    assert (
        read_species(tmp_path / "list.txt")
        == read_species(tmp_path / "table.csv")
        == ("Pieris napi", "Aglais io")
    )
    (tmp_path / "twice.txt").write_text("Pieris napi\nPieris napi\n")
    with pytest.raises(RecordsError, match="names 'Pieris napi' twice"):
        read_species(tmp_path / "twice.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(RecordsError, match="names no species"):
        read_species(tmp_path / "empty.txt")
    with pytest.raises(MissingFileError, match="no list of species"):
        read_species(tmp_path / "absent.txt")
