"""Walks and their sections: which events of a survey are visits, and which are parts of one."""

from __future__ import annotations

import polars as pl

from data_prep.records import efforts

_NO_PLACE_OR_DATE = (
    *("eventID", "parentEventID", "recordID", "groupID", "completeness"),
    *efforts.TERMS,
)
_LEVELS = 4  # section, walk, survey, project


def one_visit_each(events: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """
    Count no walk beside its own sections.

    A section at the place and on the day of its walk is a part of that visit: a species counts once
    a visit, in however many sections it was seen. Where the sections have places or days of their
    own, they are the visits, and what only holds them together is none.

    Parameters
    ----------
    events
        Text columns; ``eventID``, and where known ``parentEventID``. Places and dates of events
        that have none are already those of their parents.

    Returns
    -------
    DataFrame
        The events with ``visitID`` (of the visit they are part of) and ``is_visit``.
    list of str
        What was understood, in sentences.
    """
    if "parentEventID" not in events.columns:
        return events.with_columns(visitID=pl.col("eventID"), is_visit=True), []
    where = [term for term in events.columns if term not in _NO_PLACE_OR_DATE]
    parents = events.select(
        pl.col("eventID").alias("parentEventID"),
        pl.col(where).name.suffix("_parent"),
        has_parent=True,
    )
    same = [pl.col(term) == pl.col(f"{term}_parent") for term in where]
    part = pl.col("has_parent").fill_null(False) & (pl.col("eventID") != pl.col("parentEventID"))
    joined = events.join(parents, on="parentEventID", how="left", maintain_order="left").select(
        "eventID",
        "parentEventID",
        part.alias("child"),
        (part & pl.all_horizontal(pl.lit(True), *same)).fill_null(False).alias("part"),
    )
    above = dict(joined.filter("part").select("eventID", "parentEventID").iter_rows())
    visit_of = {}
    for name in events["eventID"].to_list():
        visit = name
        for _ in range(_LEVELS):
            visit = above.get(visit, visit)
        visit_of[name] = visit
    whole = {visit_of[name] for name in above}
    held = set(joined.filter("child")["parentEventID"].to_list()) - whole
    visits = [visit_of[name] == name and name not in held for name in visit_of]
    events = events.with_columns(
        pl.Series("visitID", list(visit_of.values()), dtype=pl.String),
        pl.Series("is_visit", visits, dtype=pl.Boolean),
    )
    notes = []
    if above:
        notes.append(
            f"{len(above):,} events lie at the place and on the day of the event they belong to "
            "(sections of a walk): with it they are one visit."
        )
    if held - set(above):
        notes.append(
            f"{len(held - set(above)):,} events only hold others together: they are no visits."
        )
    return events, notes
