"""A period is no visit, in whichever words or columns it is told; a day is one in any spelling."""

from datetime import date

import polars as pl
import pytest

from data_prep.records.dates import REASONS, read_days
from tests.data_prep.records.making_records import counted, counting


def read(**columns: str) -> object:
    """Return the day of one record, or the reason why it has none."""
    cells = dict.fromkeys(("eventDate", "year", "month", "day"), "") | columns
    frame = pl.DataFrame({"code": [0], **{term: [text] for term, text in cells.items()}})
    found = read_days(frame, day_first=True)
    return found["day"][0] or REASONS[found["date_reason"][0]]


@pytest.mark.parametrize(
    "text",
    [
        "02/05/2019 to 9/5/2019",
        "2019-05-02 to 9 May 2019",
        "2019-05-02 2019-05-09",
        "2/5/2019 - 9/5/2019",
        "2/5/2019-9/5/2019",
        "2 May 2019 until 9 May 2019",
        "2019-05-02 & 2019-05-09",
        "2019-05-02 – 09",
        "2019-05-02 to June",
        "2019/05/02 to 2019/05/09",
        "2019",
        "2019/05",
    ],
)
def test_a_period_in_words_is_no_day(text):
    assert read(eventDate=text) == "date is a period"


@pytest.mark.parametrize(
    "text",
    [
        "2019/05/02",
        "2019/5/2",
        "2019.05.02",
        "2019-122",
        "02/05/2019 to 2/5/2019",
        "2019-05-02/2019-05-02",
        "2019-05-02 10:00 to 11:30",
        "2019-05-02 10:00 - 11:30",
        "2/5/2019, in the afternoon",
    ],
)
def test_a_day_is_read_in_any_of_its_spellings(text):
    assert read(eventDate=text) == date(2019, 5, 2)


def test_an_end_on_another_day_makes_a_period():
    assert read(eventDate="2/5/2019", eventDateEnd="2019-05-02") == date(2019, 5, 2)
    assert read(eventDate="2/5/2019", eventDateEnd="NA") == date(2019, 5, 2)
    assert read(eventDate="2/5/2019", eventDateEnd="14:30") == date(2019, 5, 2)
    assert read(eventDate="2/5/2019", eventDateEnd="3/5/2019") == "date is a period"
    assert read(eventDate="2019-05-02", eventDateEnd="2019") == "date is a period"
    assert read(eventDate="2019-05-02", eventDateEnd="soon") == "unreadable date"


def test_the_number_of_a_day_in_its_year_is_read():
    assert read(year="2020", startDayOfYear="60", endDayOfYear="60") == date(2020, 2, 29)
    assert read(year="2019", startDayOfYear="60", endDayOfYear="61") == "date is a period"
    assert read(eventDate="2019-366") == "unreadable date"
    assert read(eventDate="2020-366") == date(2020, 12, 31)


def test_periods_in_two_columns_are_left_out_of_the_count(tmp_path):
    table = tmp_path / "walks.csv"
    table.write_text(
        "date from,date to,lat,lon,species\n"
        "01/05/2019,31/05/2019,51.1,-1.8,Aglais io\n"
        "14/05/2019,14/05/2019,51.1,-1.8,Aglais io\n"
        "15/05/2019,,51.1,-1.8,Pieris napi\n"
    )
    found = counted(table, scratch=tmp_path)
    assert found.visits.sum() == 2
    assert found.detections.sum().to_dict() == {"Aglais io": 1, "Pieris napi": 1}
    assert found.rows["dropped: date is a period"] == 1


UKBMS = {
    "slashed": ("DATE", "3/6/2019", "DATE", "03/06/2019"),
    "iso": ("DATE", "2019-06-03", "DATE", "03/06/2019"),
    "with a time": ("DATE", "2019-06-03 00:00:00", "DATE", "2019-06-03"),
    "parts": ("YEAR,MONTH,DAY", "2019,6,3", "DATE", "2019-06-03"),
    "worded": ("DATE", "3 Jun 2019", "YEAR,MONTH,DAY", "2019,06,03"),
}


@pytest.mark.parametrize("case", UKBMS)
def test_counts_find_their_visit_however_its_day_is_written(case, tmp_path):
    head, visit, counts_head, count = UKBMS[case]
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "m_visit.csv").write_text(f"SITE_ID,{head}\n7,{visit}\n8,{visit}\n")
    (folder / "m_count.csv").write_text(
        f"SITE_ID,{counts_head},SPECIES,COUNT\n7,{count},Aglais io,2\n"
    )
    (folder / "m_site.csv").write_text("SITE_ID,GRIDREF\n7,SU1234\n8,SU1235\n")
    found = counted(folder, scratch=tmp_path, rules=counting())
    assert found.visits.to_dict() == {"SU1234": 1, "SU1235": 1}
    assert found.detections["Aglais io"].to_dict() == {"SU1234": 1, "SU1235": 0}
    assert not any("name an event" in note for note in found.notes)


def test_a_table_of_visits_without_days_is_refused(tmp_path):
    from butterfly_sdm.errors import RecordsError

    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "m_visit.csv").write_text("SITE_ID,YEAR,MONTH\n7,2019,6\n")
    (folder / "m_count.csv").write_text("SITE_ID,YEAR,MONTH,SPECIES\n7,2019,6,Aglais io\n")
    with pytest.raises(RecordsError, match="nor year, month and day"):
        counted(folder, scratch=tmp_path)
