"""
Whatever the order, duplication and division of the rows, the counts are the same; whatever the
bytes, nothing crashes.
"""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from butterfly_sdm.errors import RecordsError
from data_prep.records.count import survey
from data_prep.records.occurrences import read_occurrences
from tests.data_prep.records.making_records import (
    COLUMNS,
    archive,
    core,
    counted,
    counting,
    meta,
    row,
    text,
    zipped,
)

SPECIES = ["Pieris napi", "Aglais io", "Maniola jurtina", ""]
DATES = ["2018-06-03", "2018-06-03T00:00:00", "2018-06-04", "2019-07-01", "2017-06-03", "", "soon"]
records = st.lists(
    st.builds(
        row,
        st.integers(0, 3),
        st.sampled_from(DATES),
        st.sampled_from(SPECIES),
        status=st.sampled_from(["PRESENT", "PRESENT", "ABSENT", "", "odd"]),
        ident=st.integers(0, 60),
    ),
    min_size=1,
    max_size=25,
)
RULES = counting(min_records=2, years=(2018, 2019), institutions=("UKBMS",))
quick = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def tables(files: list[list[dict[str, str]]]):
    """Read the rows, one archive per list; None if no site is left."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [archive(Path(folder) / f"{n}.zip", rows) for n, rows in enumerate(files)]
        try:
            return counted(*paths, scratch=Path(folder), rules=RULES)
        except RecordsError as error:
            assert "No site is left" in str(error) or "No record of presence" in str(error)
            return None


def same(one, other) -> None:
    assert (one is None) == (other is None)
    if one is None:
        return
    pd.testing.assert_frame_equal(one.detections, other.detections)
    pd.testing.assert_series_equal(one.visits, other.visits)
    assert one.sites.geometry.equals(other.sites.geometry)


@quick
@given(records, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, other = tables([rows]), tables([shuffled])
    same(one, other)
    assert one is None or one.rows == other.rows


@quick
@given(records, st.data())
def test_the_same_row_again_is_counted_as_a_duplicate_and_changes_nothing(rows, data):
    more = data.draw(st.lists(st.sampled_from(rows), max_size=10))
    one, other = tables([rows]), tables([rows + more])
    same(one, other)
    if one is not None:
        assert other.rows.get("dropped: duplicate record", 0) - one.rows.get(
            "dropped: duplicate record", 0
        ) == len(more)


@quick
@given(records, st.integers(0, 25))
def test_dividing_the_rows_into_files_changes_nothing(rows, cut):
    parts = [part for part in (rows[:cut], rows[cut:]) if part]
    same(tables([rows]), tables(parts))


@quick
@given(records)
def test_detections_lie_between_none_and_all_visits_and_every_row_is_accounted_for(rows):
    table = tables([rows])
    if table is None:
        return
    k, n = table.detections.to_numpy(), table.visits.to_numpy()
    assert (k >= 0).all() and (k <= n[:, None]).all() and (n >= 1).all()
    dropped = sum(number for reason, number in table.rows.items() if reason.startswith("dropped"))
    assert table.rows["read"] == len(rows) == table.rows["kept"] + dropped


@quick
@given(records)
def test_the_counts_are_those_of_a_plain_count_in_python(rows):
    table = tables([rows])
    unique = list({tuple(r.items()): r for r in rows}.values())
    good = [
        (r["footprintWKT"], r["eventDate"][:10], r["species"], r["occurrenceStatus"])
        for r in unique
        if r["eventDate"][:4] in ("2018", "2019") and r["occurrenceStatus"] != "odd"
    ]
    enough = {site for site, *_ in good if sum(other == site for other, *_ in good) >= 2}
    effort = [entry for entry in good if entry[0] in enough and entry[2]]
    visits = {(site, date) for site, date, *_ in effort}
    seen = {(site, date, species) for site, date, species, status in effort if status != "ABSENT"}
    if table is None:
        assert not seen
        return
    assert table.visits.sum() == len(visits)
    assert table.detections.to_numpy().sum() == len(seen)


@quick
@given(st.lists(st.binary(max_size=60), max_size=12), st.sampled_from(["", "&quot;"]))
def test_rows_of_any_bytes_are_read_or_counted_as_malformed(lines, quote):
    good = text([row(0, ident=1)]).encode()
    with tempfile.TemporaryDirectory() as folder:
        body = good + b"\n".join(lines)
        path = zipped(
            Path(folder) / "a.zip", {"meta.xml": meta(core(quote=quote)), "occurrence.txt": body}
        )
        occurrences = read_occurrences([path], scratch=Path(folder))
        assert occurrences.read >= 1
        assert occurrences.malformed == len(occurrences.malformed_rows()) <= occurrences.read
        try:
            survey(occurrences, counting())
        except RecordsError as error:
            assert "out of range" in str(error)


@quick
@given(st.lists(st.integers(1, 14), min_size=1, max_size=12))
def test_exactly_the_rows_with_a_wrong_number_of_columns_are_malformed(widths):
    lines = ["\t".join(["x"] * (width - 1) + ["y"]) for width in widths]
    with tempfile.TemporaryDirectory() as folder:
        body = text([row(0, ident=1)]) + "\n".join(lines)
        path = zipped(Path(folder) / "a.zip", {"meta.xml": meta(core()), "occurrence.txt": body})
        occurrences = read_occurrences([path], scratch=Path(folder))
    assert occurrences.read == 1 + len(widths)
    assert occurrences.malformed == sum(width != len(COLUMNS) for width in widths)


@quick
@given(records, st.integers(40, 2000))
def test_the_size_of_the_blocks_changes_nothing(rows, size):
    from data_prep.records.files.delimited import DelimitedText, Layout

    body = text(rows).encode()

    def read(block_bytes: int):
        layout = Layout("\t", None, COLUMNS)
        held = DelimitedText(
            "x",
            lambda: io.BytesIO(body),
            layout,
            {"eventDate": "eventDate", "species": "species"},
            block_bytes,
        )
        blocks = [block for block, _ in held.blocks()]
        return [r for b in blocks for r in b.rows.rows()], [n for b in blocks for n in b.numbers]

    assert read(size) == read(1 << 20)
    assert read(size)[1] == list(range(1, len(rows) + 1))


@quick
@given(
    st.lists(st.lists(st.text("ab\u00e9 \U0001f98b,", max_size=30), max_size=6), max_size=30),
    st.sampled_from(["\t", ";"]),
    st.integers(1, 4),
    st.sampled_from([1 << 7, 1 << 20]),
    st.booleans(),
)
def test_cutting_cells_at_once_and_row_by_row_is_the_same(
    lines, separator, width, piece_bytes, ended
):
    from data_prep.records.files import delimited

    body = "\n".join(separator.join(line) for line in lines) + "\n" * ended
    columns = tuple("abcd"[:width])
    wanted = {column: f"term {column}" for column in columns if column != "b"}
    layout = delimited.Layout(separator, None, columns)
    whole = body.encode()
    pieces = [whole[i : i + piece_bytes // 2] for i in range(0, len(whole), piece_bytes // 2)]
    expected = delimited.cut_rows(whole, layout, wanted)
    cutter = delimited._Cutter(layout, wanted)
    for blank in (None, frozenset(wanted.values()), frozenset({"term a"})):  # of blocks before
        cutter.blank = blank
        with mock.patch.object(delimited, "CUT_BYTES", piece_bytes):
            block, _ = cutter(pieces or [b""])
        assert block.rows.rows() == expected.rows.rows()
        assert block.rows.columns == expected.rows.columns
        assert block.numbers.to_list() == expected.numbers.to_list()
        assert block.malformed.rows() == expected.malformed.rows()
        for term, alike in block.same.items():
            assert set(block.rows[term]) <= {alike}


@quick
@given(
    st.lists(st.lists(st.text('ab \u00e9\n;"', max_size=20), min_size=1, max_size=4), max_size=20),
    st.lists(st.text('ab;\n"', max_size=12), max_size=3),
    st.integers(2, 3),
)
def test_quoted_cells_cut_at_once_are_those_that_a_csv_reader_finds(lines, stray, width):
    from data_prep.records.files import delimited

    held = io.StringIO()
    csv.writer(held, delimiter=";", lineterminator="\n").writerows(lines)
    body = (held.getvalue() + "\n".join(stray)).encode()
    columns = tuple("abc"[:width])
    wanted = {column: f"term {column}" for column in columns if column != "b"}
    layout = delimited.Layout(";", '"', columns)
    expected = delimited.cut_rows(body, layout, wanted)
    block = delimited.cut_at_once([body], layout, wanted)
    if lines and not stray and all(len(line) == width for line in lines):
        assert block is not None
    if block is not None:
        assert block.rows.rows() == expected.rows.rows()
        assert block.numbers.to_list() == expected.numbers.to_list()


def test_every_distinct_text_keeps_one_number_however_many_there_are():
    from data_prep.records.occurrences import _Dictionary, hashed, mixed

    terms = ("scientificName", "taxonRank")
    dictionary = _Dictionary(terms)
    random = np.random.default_rng(0)
    blocks = [random.integers(0, 30_000, 20_000) for _ in range(4)]
    told = []
    for block in blocks:
        texts = pl.DataFrame(
            {
                "scientificName": [f"a rather long name {n}" for n in block],
                "taxonRank": [str(n % 3) for n in block],
            }
        )
        held = {series.name: series for series in texts}
        numbers = dictionary.number(held, mixed(hashed(held), terms))
        told.append((texts, numbers))
    table = dictionary.table()
    assert len(table) == len(np.unique(np.concatenate(blocks))) == table["code"].n_unique()
    assert table["scientificName"].is_sorted()
    by_number = table.sort("code").drop("code")
    for texts, numbers in told:
        assert by_number[numbers].equals(texts)
