"""Names, presence and missing values as people write them; every k of n is counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from butterfly_sdm.errors import RecordsError
from data_prep.records.columns import match_columns
from data_prep.records.count import SurveyTable
from data_prep.records.names import read_name
from tests.data_prep.records.making_records import counted, counting

AT = "51.5,-1.5"


def table(tmp_path: Path, header: str, *rows: str, **rules: object) -> SurveyTable:
    """Count a table of one place; each row is led by its day of June 2018."""
    lines = [f"eventDate,decimalLatitude,decimalLongitude,{header}"]
    for row in rows:
        day, _, rest = row.partition(",")
        lines.append(f"2018-06-{int(day):02},{AT},{rest}")
    path = tmp_path / "records.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return counted(path, scratch=tmp_path, rules=counting(**rules))


def k_and_n(survey: SurveyTable) -> tuple[dict[str, int], int]:
    return {s: int(survey.detections[s].sum()) for s in survey.species}, int(survey.visits.sum())


def test_a_name_counts_in_any_case_with_underscores_and_hard_spaces(tmp_path):
    rows = (
        "1,VANESSA ATALANTA",
        "2,vanessa_atalanta",
        "3,Vanessa Atalanta",
        "4,Vanessa\u00a0atalanta",
        "5,VANESSA ATALANTA (LINNAEUS 1758)",
        "6,Satyrium W-album",
        "6,SATYRIUM W-ALBUM",
    )
    told = table(tmp_path, "scientificName", *rows)
    assert k_and_n(told) == ({"Satyrium w-album": 1, "Vanessa atalanta": 5}, 6)


@pytest.mark.parametrize(
    "text",
    [
        "Azure damselfly pair",
        "Common blue damselfly",
        "Dark green fritillary",
        "Common blue",
        "Wall Brown",
        "Large red damselfly",
        "P. rapae",
        "SMWH",
        "17",
    ],
)
def test_nothing_is_cut_out_of_a_common_name_or_a_code(text):
    assert read_name(text).kind == "unread"
    assert read_name("", text).kind == "unread"


@pytest.mark.parametrize(
    ("text", "species"),
    [
        ("Aglais io io", "Aglais io"),
        ("Aricia artaxerxes salmacis (Stephens, 1831)", "Aricia artaxerxes"),
        ("Aricia artaxerxes ssp. salmacis", "Aricia artaxerxes"),
        ("Papilio machaon britannicus Seitz, 1907", "Papilio machaon"),
        ("Hesperia comma (Linnaeus, 1758)", "Hesperia comma"),
        ("Pieris napi female", "Pieris napi"),
    ],
)
def test_what_may_follow_a_binomial_is_left_away(text, species):
    assert read_name(text).accepted == species


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Papilio Linnaeus, 1758", "higher"),
        ("PIERIDAE", "higher"),
        ("Melitaea sp.", "higher"),
        ("unknown moth", "higher"),
        ("Melitaea nr. athalia", "uncertain"),
        ("Melitaea athalia ?", "uncertain"),
        ("Anas platyrhynchos X Anas acuta", "hybrid"),
        ("Anas platyrhynchos x acuta hybrid", "hybrid"),
        ("No moths seen", "nothing"),
        ("none recorded", "nothing"),
        ("nil", "nothing"),
    ],
)
def test_texts_that_name_no_species_are_told_apart(text, kind):
    assert read_name(text).kind == kind


def test_synonyms_mean_the_whole_text_in_any_case(tmp_path):
    rows = ("1,Small White", "2,small white", "3,SMWH", "4,Artogeia rapae", "5,Small white moth")
    synonyms = {
        "Small white": "Pieris rapae",
        "SMWH": "Pieris rapae",
        "Artogeia rapae": "Pieris rapae",
    }
    told = table(tmp_path, "Species", *rows, synonyms=synonyms)
    assert k_and_n(told) == ({"Pieris rapae": 4}, 4)
    assert told.rows["dropped: name not understood"] == 1
    assert "'Small white moth' (1)" in " ".join(told.notes)


def test_the_scientific_column_wins_over_the_common_one_beside_it(tmp_path):
    rows = ("1,Azure damselfly,Coenagrion puella", "2,Small White,Pieris rapae", "3,,Aglais io")
    told = table(tmp_path, "Species,Scientific name", *rows)
    assert k_and_n(told) == ({"Aglais io": 1, "Coenagrion puella": 1, "Pieris rapae": 1}, 3)
    header = ("Date", "Grid ref", "English name")
    assert match_columns(header, {}, "x")["English name"] == "species"


def test_names_that_are_not_understood_are_counted_with_the_commonest(tmp_path):
    rows = ("1,Small White", "2,Small White", "3,Peacock", "4,Pieris rapae")
    told = table(tmp_path, "Species", *rows)
    assert k_and_n(told) == ({"Pieris rapae": 1}, 1)
    assert told.rows["dropped: name not understood"] == 3
    assert "3 rows: 'Small White' (2), 'Peacock' (1)" in " ".join(told.notes)
    with pytest.raises(RecordsError, match=r"not understood.*'Peacock' \(1\).*records.synonyms"):
        table(tmp_path, "Species", "1,Small White", "2,Peacock")


def test_visits_without_a_sighting_and_hybrids_show_effort(tmp_path):
    rows = (
        "1,No moths",
        "2,none",
        "3,Nothing recorded",
        "4,Pieris napi × Pieris rapae",
        "5,Pieris napi",
    )
    assert k_and_n(table(tmp_path, "scientificName", *rows)) == ({"Pieris napi": 1}, 5)


def test_rank_words_that_nobody_knows_leave_it_to_the_form(tmp_path):
    rows = ("1,Aglais io,ssp", "2,Aglais io,Espèce", "3,Aglais io,nonsense", "4,Aglais,nonsense")
    told = table(tmp_path, "scientificName,taxonRank", *rows)
    assert k_and_n(told) == ({"Aglais io": 3}, 3)
    assert told.rows["dropped: rank above species"] == 1


def test_an_aggregate_in_a_species_column_is_none_of_its_species(tmp_path):
    rows = ("1,Thymelicus lineola agg.", "2,Leptidea sinapis/juvernica", "3,Aglais io")
    assert k_and_n(table(tmp_path, "Species", *rows)) == ({"Aglais io": 1}, 3)


def test_words_for_a_missing_value_are_blank_in_any_column(tmp_path):
    rows = (
        "1,Aglais io,NA,NULL,#N/A,nan",
        "2,Aglais io,None,\\N,n/a,NaN",
        "3,None,#REF!,,,0",
        "4,Aglais io,Aglais io,SPECIES,PRESENT,0",
    )
    told = table(tmp_path, "scientificName,species,taxonRank,occurrenceStatus,count", *rows)
    assert k_and_n(told) == ({"Aglais io": 2}, 4)
    rows = ("1,Aglais io,NA", "2,Aglais io,NA12", "3,Aglais io,#N/A")
    told = table(tmp_path, "scientificName,gridReference", *rows)
    assert told.visits["NA12"] == 1 and int(told.visits.sum()) == 3 and len(told.sites) == 2


def test_an_event_id_that_is_missing_is_no_event(tmp_path):
    rows = ("1,Aglais io,NA", "1,Pieris napi,", "2,Aglais io,v1", "2,Pieris napi,v2")
    told = table(tmp_path, "scientificName,eventID", *rows, scheme="event")
    assert k_and_n(told) == ({"Aglais io": 2, "Pieris napi": 2}, 3)


def test_a_quantity_of_zero_is_absence_where_it_counts_individuals(tmp_path):
    header = "scientificName,organismQuantity,organismQuantityType,individualCount"
    rows = (
        "1,Aglais io,0,individuals,",
        "2,Aglais io,0.0,specimens,",
        "3,Aglais io,0,% cover,",
        "4,Aglais io,0,individuals,2",
        "5,Aglais io,7,individuals,",
    )
    assert k_and_n(table(tmp_path, header, *rows)) == ({"Aglais io": 3}, 5)


def test_rejected_captive_and_fossil_records_are_left_out_by_name(tmp_path):
    header = "scientificName,Zero abundance,Verification status 1,captive_cultivated,basisOfRecord"
    rows = (
        "1,Aglais io,Y,Accepted,,",
        "2,Aglais io,,Not accepted,,",
        "3,Aglais io,,Rejected,,",
        "4,Aglais io,,Unconfirmed - not reviewed,false,HUMAN_OBSERVATION",
        "5,Aglais io,,,true,",
        "6,Aglais io,,,,FossilSpecimen",
        "7,Aglais io,,,,PRESERVED_SPECIMEN",
    )
    told = table(tmp_path, header, *rows)
    assert k_and_n(told) == ({"Aglais io": 2}, 3)
    assert told.rows["dropped: rejected identification"] == 2
    assert told.rows["dropped: captive or cultivated"] == 1
    assert told.rows["dropped: fossil or living specimen"] == 1


def test_a_column_called_status_is_presence_only_if_its_values_say_so(tmp_path):
    rows = ("1,Aglais io,Resident", "2,Aglais io,Migrant", "3,Aglais io,No")
    told = table(tmp_path, "scientificName,Status", *rows)
    assert k_and_n(told) == ({"Aglais io": 3}, 3)
    assert "Status holds 'Migrant', 'No', 'Resident'" in " ".join(told.notes)
    rows = ("1,Aglais io,Present", "2,Aglais io,absent", "3,Aglais io,")
    assert k_and_n(table(tmp_path, "scientificName,Status", *rows)) == ({"Aglais io": 2}, 3)
    rows = ("1,Aglais io,present", "2,Aglais io,not seen", "3,Aglais io,pressent")
    told = table(tmp_path, "scientificName,Status", *rows)
    assert k_and_n(told) == ({"Aglais io": 1}, 2)
    assert told.rows["dropped: unknown status"] == 1


def test_wanted_and_sensitive_species_may_be_given_in_any_spelling(tmp_path):
    rows = ("1,MACULINEA ARION", "2,Aglais io", "2,Pieris napi")
    told = table(tmp_path, "scientificName", *rows, species=("AGLAIS IO", "Pieris napi"))
    assert k_and_n(told) == ({"AGLAIS IO": 1, "Pieris napi": 1}, 2)
    synonyms = {"Large Blue": "Maculinea arion"}
    for spelled in ("Large Blue", "maculinea arion"):
        rules = {"sensitive": {spelled: "withhold"}, "synonyms": synonyms}
        told = table(tmp_path, "scientificName", *rows, **rules)
        assert told.species == ("Aglais io", "Pieris napi")
        assert "Maculinea arion" not in set(told.names["accepted"])


def test_english_names_of_the_table_that_comes_along_are_known(tmp_path):
    rows = ("1,small white", "2,Marbled White", "3,LARGE SKIPPER", "4,Ladoga camilla", "5,Emperor")
    told = table(tmp_path, "Common name", *rows, synonyms="s2bms")
    expected = ("Limenitis camilla", "Melanargia galathea", "Ochlodes sylvanus", "Pieris rapae")
    assert k_and_n(told) == (dict.fromkeys(expected, 1), 4)
    assert told.spellings["Pieris rapae"] == ("small white",)
    assert "Pieris rapae from 'small white'" in " ".join(told.notes)


def test_accepted_names_of_a_user_join_the_recorded_ones_in_any_case(tmp_path):
    rows = ("1,Peacock", "2,Aglais io", "3,AGLAIS IO (L.)", "4,Inachis io")
    synonyms = {"peacock": "aglais io", "inachis io": "Aglais Io"}
    told = table(tmp_path, "Taxon", *rows, synonyms=synonyms)
    assert k_and_n(told) == ({"Aglais io": 4}, 4)
    assert told.spellings == {"Aglais io": ("AGLAIS IO (L.)", "Aglais io", "Inachis io", "Peacock")}


def test_the_card_lists_the_spellings_of_the_species_that_are_told(tmp_path):
    rows = ("1,Maculinea arion", "1,Aglais io", "2,AGLAIS IO", "3,Pieris napi")
    told = table(tmp_path, "Taxon", *rows, sensitive={"Maculinea arion": "withhold"})
    assert told.spellings == {
        "Aglais io": ("AGLAIS IO", "Aglais io"),
        "Pieris napi": ("Pieris napi",),
    }
    wanted = table(tmp_path, "Taxon", *rows, species=("Pieris napi",))
    assert set(wanted.spellings) == {"Pieris napi"}
