"""What was seen at places, as people have it: lists, counts of visits, single sightings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import pandas as pd

from butterfly_sdm.community.dated import DatedLists, lists_of_sites
from butterfly_sdm.community.evidence import Evidence, Thinned, share_told
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError, did_you_mean

#: Columns of a table of records, beside the place.
COLUMNS = ("species", "date", "complete", "visits", "detections", "seen")
YES = frozenset("yes y true t 1 present".split())
NO = frozenset("no n false f 0 absent".split())


@dataclass(frozen=True, eq=False)
class Given:
    """
    What is known of places, whatever the order in which it came.

    Attributes
    ----------
    detections, visits
        (place, species) k of n: visits that saw it, of those on which it was looked for.
    effort
        (place, species) visits of which at least one saw it, nobody knows how many; 0: none.
    lists
        Index ``place`` (one row per partial list), a column per species: 1 where it was told.
    days
        Columns ``place``, ``date``, ``complete``: the visits that had a date, as it was written.
    dated
        Of the lists above those whose day can be read, for runs that know seasons. Index ``place``;
        ``date`` (datetime64), ``complete`` and a column per species: 1 where it was told.
    unknown
        Names that are no species of the model: how many rows.
    """

    detections: pd.DataFrame
    visits: pd.DataFrame
    effort: pd.DataFrame
    lists: pd.DataFrame
    days: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["place", "date", "complete"])
    )
    unknown: Mapping[str, int] = field(default_factory=dict)
    dated: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["date", "complete"]))

    def __post_init__(self) -> None:
        k, n = self.detections.to_numpy(float), self.visits.to_numpy(float)
        if not self.detections.index.equals(self.visits.index):
            raise DataError("Detections and visits do not list the same places in the same order.")
        wrong = ~((k >= 0) & (k <= n)) | ~np.isfinite(n)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise DataError(
                f"{self.detections.columns[column]} was seen on {k[row, column]:g} of "
                f"{n[row, column]:g} visits to {self.detections.index[row]}. Detections lie "
                "between 0 and the visits."
            )

    @classmethod
    def of_counts(cls, detections: pd.DataFrame, visits: pd.DataFrame | pd.Series | float) -> Self:
        """
        Return k of n.

        Parameters
        ----------
        detections
            (place, species) visits on which it was seen.
        visits
            All visits: one number, one per place, or (place, species), 0 where nothing is known.

        Raises
        ------
        DataError
            More detections than visits, or other places.
        """
        k = detections.astype(float)
        if isinstance(visits, pd.DataFrame):
            n = visits.reindex(index=k.index, columns=k.columns).astype(float).fillna(0)
        else:
            column = np.asarray(visits, dtype=float).reshape(-1, 1)
            n = pd.DataFrame(
                np.broadcast_to(column, k.shape).copy(), index=k.index, columns=k.columns
            )
        return cls(k, n, k * 0, k.iloc[:0])

    @classmethod
    def nothing(cls, species: Sequence[str]) -> Self:
        """Return no knowledge of any place."""
        empty = pd.DataFrame(columns=list(species), index=pd.Index([], name="place"), dtype=float)
        return cls.of_counts(empty, 0)

    @classmethod
    def of_visits(cls, dataset: Dataset, sites: Sequence[str]) -> Self:
        """
        Return all visits of ``sites`` of a ``dataset``, those with a date as lists of their day.
        """
        k, n = dataset.detections.loc[list(sites)], dataset.visits.loc[list(sites)]
        lists = lists_of_sites(dataset, sites)
        index = pd.Index(np.asarray(sites, dtype=object)[lists.row], name="place")
        dated = pd.DataFrame(lists.listed.astype(float), index=index, columns=dataset.species)
        more = {"date": lists.date.astype("datetime64[s]"), "complete": lists.complete}
        return replace(cls.of_counts(k, n), dated=dated.assign(**more))

    @property
    def places(self) -> list[str]:
        """Places of which something is known, sorted."""
        known = (self.visits.to_numpy() > 0).any(axis=1) | (self.effort.to_numpy() > 0).any(axis=1)
        return sorted({*self.detections.index[known], *self.lists.index})

    def __add__(self, other: Given) -> Given:
        """Return what both know."""

        def joined(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
            return pd.concat([a, b]).groupby(level=0).sum().rename_axis("place")

        effort = pd.concat([self.effort, other.effort]).groupby(level=0).max()
        unknown = dict(self.unknown)
        for name, rows in other.unknown.items():
            unknown[name] = unknown.get(name, 0) + rows
        return Given(
            joined(self.detections, other.detections),
            joined(self.visits, other.visits),
            effort.rename_axis("place"),
            pd.concat([self.lists, other.lists]),
            pd.concat([self.days, other.days], ignore_index=True),
            unknown,
            pd.concat([part.dated for part in (self, other) if len(part.dated)])
            if len(self.dated) + len(other.dated)
            else self.dated,
        )

    def without(self, species: Sequence[str]) -> Given:
        """Return it as if nobody had looked for some species."""
        names = [name for name in species if name in self.visits.columns]
        if not names:
            return self
        blank = dict.fromkeys(names, 0.0)
        return Given(
            self.detections.assign(**blank),
            self.visits.assign(**blank),
            self.effort.assign(**blank),
            self.lists.assign(**blank),
            self.days,
            self.unknown,
            self.dated.drop(columns=names, errors="ignore").assign(**blank)
            if len(self.dated)
            else self.dated,
        )

    def only(self, places: Sequence[str]) -> Given:
        """Return what is known of some places."""
        wanted = set(places)
        cut = [
            table[table.index.isin(wanted)]
            for table in (self.detections, self.visits, self.effort, self.lists)
        ]
        days = self.days[self.days["place"].isin(wanted)]
        dated = self.dated[self.dated.index.isin(wanted)]
        return Given(cut[0], cut[1], cut[2], cut[3], days, self.unknown, dated)

    def undated(self) -> Given:
        """Return what is known beside the lists whose day can be read."""
        if not len(self.dated):
            return self
        species = list(self.visits.columns)
        whole = self.dated["complete"].to_numpy(dtype=bool)
        told = self.dated[species].astype(float)

        def less(table: pd.DataFrame, dated: pd.DataFrame) -> pd.DataFrame:
            by_place = dated.groupby(level=0).sum()
            return table.sub(by_place.reindex(table.index, fill_value=0.0)).clip(lower=0.0)

        # a species that nobody looked for, being withheld, was on no visit
        asked = (told[whole] * 0 + 1).where(self.visits.reindex(told.index[whole]) > 0, 0.0)
        left = Counter(map(tuple, told[~whole].reset_index().to_numpy().tolist()))
        kept = []
        for entry in map(tuple, self.lists.reset_index().to_numpy().tolist()):
            kept.append(left[entry] <= 0)
            left[entry] -= 1
        return Given(
            less(self.detections, told[whole]),
            less(self.visits, asked),
            self.effort,
            self.lists[np.array(kept, dtype=bool)],
            self.days,
            self.unknown,
        )

    def evidence(self, predictions: pd.DataFrame) -> Evidence:
        """
        Return it as arrays for the places and species of predictions, in their order.

        Parameters
        ----------
        predictions
            (place, species); they say how many species a partial list could have told.
        """
        shape, columns = predictions.shape, list(predictions.columns)

        def taken(table: pd.DataFrame) -> np.ndarray:
            if table.empty:
                return np.zeros(shape)
            filled = table.reindex(index=predictions.index, columns=columns).to_numpy(float)
            return np.asarray(np.nan_to_num(filled))

        effort = taken(self.effort)
        return Evidence(
            taken(self.detections),
            taken(self.visits),
            self._thinned(predictions),
            effort if effort.any() else None,
        )

    def dated_lists(self, predictions: pd.DataFrame) -> DatedLists:
        """Return the lists whose day can be read, in an order that depends on them alone."""
        rows = predictions.index.get_indexer(self.dated.index)
        if not len(rows):
            none = np.zeros((0, predictions.shape[1]), dtype=bool)
            return DatedLists(rows, np.zeros(0, "datetime64[s]"), none[:, 0], none)
        listed = self.dated[list(predictions.columns)].to_numpy(float) > 0
        lists = DatedLists(
            rows,
            self.dated["date"].to_numpy().astype("datetime64[s]"),
            self.dated["complete"].to_numpy(dtype=bool),
            listed,
        )
        order = np.lexsort((*listed.T[::-1], lists.complete, lists.date, rows))
        return lists.taken(order[rows[order] >= 0])

    def _thinned(self, predictions: pd.DataFrame) -> list[Thinned]:
        """Return the partial lists in an order that depends on what they tell alone."""
        rows = predictions.index.get_indexer(self.lists.index)
        listed = self.lists[list(predictions.columns)].to_numpy() > 0
        order = [i for i in np.lexsort((*listed.T[::-1], rows)) if rows[i] >= 0]
        turn: dict[int, int] = {}
        parts: list[Thinned] = []
        for i in order:
            row = int(rows[i])
            number = turn[row] = turn.get(row, -1) + 1
            if number == len(parts):
                shape = predictions.shape
                parts.append(Thinned(np.zeros(shape, dtype=bool), np.zeros(shape[0])))
            parts[number].listed[row] = listed[i]
        q = predictions.to_numpy(float)
        return [Thinned(part.listed, share_told(part.listed, q)) for part in parts]


def undated_visits(given: Given) -> float:
    """Return how many visits and lists have no day that can be read."""
    left = given.undated()
    whole = left.visits.max(axis=1).sum() if left.visits.size else 0.0
    return float(whole + len(left.lists))


def read_given(
    table: pd.DataFrame,
    species: Sequence[str],
    *,
    name_of: Callable[[str], str] = str,
    usual_visits: float = 1.0,
) -> Given:
    """
    Read a table of records, one row per species and place.

    Parameters
    ----------
    table
        ``place`` and ``species``, and of these what is known: ``date`` (rows of one place and date
        are one list; a day, or any name of a visit); ``complete`` (yes: all that was seen is on the
        list, and ``species`` is blank for a visit that saw nothing; no or left out: a partial
        list, of which nobody knows what is missing); ``visits`` and ``detections`` (k of n of that
        species); ``seen`` (yes or no: a species that was asked for beforehand, on ``visits`` visits
        if they are told). Any other columns are left alone.
    species
        Of the model.
    name_of
        Turns a name of the table into the one of the model, if it knows it.
    usual_visits
        Taken where ``seen`` does not say on how many visits.

    Returns
    -------
    Given
        With the names it does not know counted under ``unknown``.

    Raises
    ------
    DataError
        A column is missing, a cell means nothing, or no row names a species of the model.
    """
    for column in ("place", "species"):
        if column not in table.columns:
            raise DataError(
                f"The table of what was seen has no column {column}; it has "
                f"{', '.join(map(str, table.columns[:8]))}. Rename the one that is meant."
            )
    rows = pd.DataFrame(
        {
            column: table[column].astype("string").fillna("").str.strip().astype(object)
            if column in table.columns
            else ""
            for column in ("place", *COLUMNS)
        }
    ).reset_index(drop=True)
    names = {text: name_of(text) for text in rows["species"].unique() if text}
    rows["name"] = rows["species"].map(names).fillna("")
    strange = rows[(rows["species"] != "") & ~rows["name"].isin(list(species))]
    known = rows.drop(strange.index)
    if len(strange) and not (known["name"] != "").any():
        name = strange["species"].iloc[0]
        raise DataError(
            f"The model knows none of the species seen, such as {name!r}."
            + (did_you_mean(name, species) or " Use the names of the run.")
        )
    counted = known["detections"] != ""
    asked = ~counted & (known["seen"] != "")
    parts = [
        _counts(known[counted], species),
        _asked(known[asked], species, usual_visits),
        _lists(known[~counted & ~asked], strange, species),
    ]
    total = Given.nothing(species)
    for part in parts:
        total = total + part
    unknown = strange["species"].value_counts().to_dict()
    return replace(total, unknown=unknown)


def _numbers(rows: pd.DataFrame, column: str, blank: float | None = None) -> pd.Series:
    """Return a column as numbers, 0 and more."""
    text = rows[column]
    values = pd.to_numeric(text, errors="coerce")
    if blank is not None:
        values = values.where(text != "", blank)
    bad = ~(values >= 0) | ~np.isfinite(values)
    if bad.any():
        first = rows[bad].iloc[0]
        raise DataError(
            f"{column} of {first['species']} at {first['place']} is {first[column]!r}; it is a "
            "number of visits, 0 or more."
        )
    return values.astype(float)


def _wide(
    rows: pd.DataFrame, values: pd.Series, species: Sequence[str], how: str = "sum"
) -> pd.DataFrame:
    table = pd.DataFrame({"place": rows["place"], "name": rows["name"], "value": values})
    table = table[table["name"] != ""]
    wide = table.pivot_table("value", "place", "name", aggfunc=how, fill_value=0.0)
    return wide.reindex(columns=list(species), fill_value=0.0).astype(float)


def _counts(rows: pd.DataFrame, species: Sequence[str]) -> Given:
    if rows.empty:
        return Given.nothing(species)
    k, n = _numbers(rows, "detections"), _numbers(rows, "visits")
    return Given.of_counts(_wide(rows, k, species), _wide(rows, n, species))


def _asked(rows: pd.DataFrame, species: Sequence[str], usual: float) -> Given:
    """Read certain presences (at least one of the visits saw it) and absences (none did)."""
    if rows.empty:
        return Given.nothing(species)
    answer = rows["seen"].str.lower()
    bad = ~answer.isin(YES | NO)
    if bad.any():
        first = rows[bad].iloc[0]
        raise DataError(
            f"seen of {first['species']} at {first['place']} is {first['seen']!r}; it is yes or no."
        )
    visits = _numbers(rows, "visits", blank=usual)
    yes = answer.isin(YES)
    absent = _wide(rows[~yes], visits[~yes], species)
    found = _wide(rows[yes], visits[yes], species, "max")
    places = absent.index.union(found.index)
    n = absent.reindex(places, fill_value=0.0)
    effort = found.reindex(places, fill_value=0.0)
    return Given(n * 0, n, effort, n.iloc[:0])


def _lists(rows: pd.DataFrame, strange: pd.DataFrame, species: Sequence[str]) -> Given:
    """Read complete and partial lists: the rows of a place and a date."""
    lists = pd.concat([rows, strange[(strange["detections"] == "") & (strange["seen"] == "")]])
    if lists.empty:
        return Given.nothing(species)
    told = lists["complete"].str.lower()
    bad = ~told.isin(YES | NO | {""})
    if bad.any():
        first = lists[bad].iloc[0]
        raise DataError(f"complete is {first['complete']!r} at {first['place']}; it is yes or no.")
    lists = lists.assign(whole=told.isin(YES))
    by = lists.groupby(["place", "date"], sort=True)
    whole = by["whole"].agg(["min", "max"])
    mixed = whole[whole["min"] != whole["max"]]
    if len(mixed):
        place, date = mixed.index[0]
        raise DataError(
            f"The list of {place}{f' on {date}' if date else ''} is complete in one row and not in "
            "another. A list is one or the other."
        )
    codes = by.ngroup().to_numpy()
    listed = np.zeros((len(whole), len(species)))
    column = pd.Index(list(species)).get_indexer(lists["name"].where(lists["name"] != "", None))
    listed[codes[column >= 0], column[column >= 0]] = 1
    place = whole.index.get_level_values("place")
    complete = whole["min"].to_numpy()
    table = pd.DataFrame(listed, index=pd.Index(place, name="place"), columns=list(species))
    k = table[complete].groupby(level=0).sum()
    n = (table[complete] * 0 + 1).groupby(level=0).sum()
    partial = table[~complete]
    days = pd.DataFrame(
        {"place": place, "date": whole.index.get_level_values("date"), "complete": complete}
    )
    day = pd.to_datetime(days["date"], errors="coerce", format="ISO8601").to_numpy()
    dated = table.assign(date=day.astype("datetime64[s]"), complete=complete)
    dated = dated[~np.isnat(day) & (complete | table.any(axis=1).to_numpy())]
    days = days[days["date"] != ""]
    return Given(k, n, k * 0, partial[partial.any(axis=1)], days, dated=dated)
