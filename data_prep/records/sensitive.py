"""Protect the places of sensitive species in every table that is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from butterfly_sdm.errors import ConfigError, MissingFileError, RecordsError
from data_prep.records.names import accepted_name, read_synonyms
from data_prep.records.options import Protection, RecordsOptions
from data_prep.records.places.grid_references import square_names

ACTIONS: tuple[str, ...] = get_args(Protection)
LEFT_OUT = "name left out"  # with a number, in the place of the name of a withheld species


@dataclass(frozen=True)
class SensitiveSpecies:
    """
    What may be told of which species.

    Attributes
    ----------
    actions
        Species: ``withhold`` (it appears in no table), or ``1km``, ``2km``, ``10km`` (only sums
        over squares of that size do).

    Examples
    --------
    >>> SensitiveSpecies({"Maculinea arion": "withhold"}).actions
    {'Maculinea arion': 'withhold'}
    """

    actions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for species, action in self.actions.items():
            if action not in ACTIONS:
                raise RecordsError(
                    f"records.sensitive: {species} has {action!r}; it may be {', '.join(ACTIONS)}."
                )

    def __bool__(self) -> bool:
        return bool(self.actions)

    def named(self, names: Iterable[str], synonyms: Mapping[str, str]) -> SensitiveSpecies:
        """
        Return the same with every one of ``names`` that is another spelling of a sensitive species:
        in capitals, an old or an English name.

        >>> SensitiveSpecies({"MACULINEA ARION": "10km"}).named(["Maculinea arion"], {}).actions
        {'MACULINEA ARION': '10km', 'Maculinea arion': '10km'}
        """
        told = {accepted_name(species, synonyms): a for species, a in self.actions.items()}
        spelled = {name: accepted_name(name, synonyms) for name in names}
        also = {name: told[meant] for name, meant in spelled.items() if meant in told}
        return SensitiveSpecies({**self.actions, **also})

    def size_m(self, species: str) -> int | None:
        """Return the size of the squares in which a species may be told, None for none."""
        found = re.fullmatch(r"(\d+)km", self.actions.get(species, ""))
        return int(found[1]) * 1_000 if found else None

    def split(
        self, detections: pd.DataFrame, visits: pd.Series, sites: gpd.GeoDataFrame
    ) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
        """
        Take the sensitive species out of a table of sites.

        Parameters
        ----------
        detections
            (site, species) counts.
        visits
            (site,) visits.
        sites
            Footprints of the sites.

        Returns
        -------
        DataFrame
            (site, species) of the other species.
        DataFrame
            ``species``, ``square``, ``size_m``, ``detections``, ``visits``: the coarsened species,
            summed over squares. A square with one site alone is left out, whatever was seen there:
            its sum would tell the site.
        tuple of str
            What was done, in sentences.
        """
        held = [species for species in detections.columns if species in self.actions]
        notes = []
        parts = []
        for species in held:
            size = self.size_m(species)
            if size is not None:
                parts.append(
                    _sums(species, size, detections[species], visits, _squares(sites, size))
                )
        withheld = [species for species in held if self.size_m(species) is None]
        if withheld:
            notes.append(f"Withheld as sensitive: {len(withheld)} species.")
        for action in ACTIONS[1:]:
            of_action = [species for species in held if self.actions[species] == action]
            if of_action:
                notes.append(
                    f"Told only as sums over squares of {action} with several sites: "
                    f"{', '.join(of_action)}."
                )
        columns = ["species", "square", "size_m", "detections", "visits"]
        coarse = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
        return detections.drop(columns=held), coarse, tuple(notes)

    def protect(self, values: pd.DataFrame, sites: gpd.GeoDataFrame) -> pd.DataFrame:
        """
        Make a table of rates or predictions fit to be published.

        Parameters
        ----------
        values
            (site, species) numbers.
        sites
            Footprints of the same sites.

        Returns
        -------
        DataFrame
            Without the withheld species; a coarsened species has at every site the mean over the
            sites of its square.
        """
        kept = values.drop(
            columns=[s for s in values.columns if self.actions.get(s) == "withhold"]
        ).copy()
        for species in kept.columns:
            size = self.size_m(species)
            if size is not None:
                square = pd.Series(_squares(sites, size), index=values.index)
                kept[species] = (
                    kept[species].groupby(square).transform("mean").where(square != "", np.nan)
                )
        return kept


def without_withheld(settings: dict[str, Any], records: RecordsOptions) -> dict[str, Any]:
    """
    Return the settings of an experiment as they may travel with its results: in the place of the
    name of every withheld species, in any spelling or synonym, stands that it was left out.

    Parameters
    ----------
    settings
        As plain values, with ``build.records.sensitive``.
    records
        The section ``build.records`` that they hold.
    """
    named = records.synonyms if isinstance(records.synonyms, Mapping) else {}
    synonyms = read_synonyms(named)
    with suppress(MissingFileError, RecordsError):  # a table that lies on another machine
        synonyms = read_synonyms(records.synonyms)
    held = [name for name, action in records.sensitive.items() if action == "withhold"]
    meant = {accepted_name(name, synonyms) for name in held}
    spelled = [*named, *named.values(), *held]
    secret = {name for name in spelled if accepted_name(name, synonyms) in meant} | meant
    numbers = {name: f"{LEFT_OUT} {number}" for number, name in enumerate(held, 1)}
    told: dict[str, Any] = _telling(
        settings, secret | {name.casefold() for name in secret}, synonyms
    )
    marks = {numbers.get(name, name): action for name, action in records.sensitive.items()}
    told["build"]["records"]["sensitive"] = marks
    return told


def _telling(value: Any, secret: set[str], synonyms: Mapping[str, str]) -> Any:
    """Return plain values without the entries that are, or are called by, a secret name."""

    def hidden(one: Any) -> bool:
        if not isinstance(one, str) or Path(one).is_absolute():
            return False
        return bool(secret & {one, one.casefold(), accepted_name(one, synonyms)})

    if isinstance(value, Mapping):
        free = {k: v for k, v in value.items() if not (hidden(k) or hidden(v))}
        return {key: _telling(one, secret, synonyms) for key, one in free.items()}
    if isinstance(value, list | tuple):
        return [_telling(one, secret, synonyms) for one in value if not hidden(one)]
    return value


def refuse_left_out(records: RecordsOptions) -> None:
    """
    Refuse to count records by settings from which names of withheld species were left out: these
    species would be told.

    Raises
    ------
    ConfigError
        A name was left out.
    """
    left = [name for name in records.sensitive if name.startswith(LEFT_OUT)]
    if left:
        raise ConfigError(
            f"build.records.sensitive holds {left[0]!r}: these are settings of a run, which do not "
            "repeat the names of withheld species. Write the name in its place (and its synonyms "
            "in build.records.synonyms, if there are any) to build from them."
        )


def _squares(sites: gpd.GeoDataFrame, size_m: int) -> list[str]:
    """
    Return the grid reference of the square around the centre of each site, ``""`` near the poles.
    """
    centres = shapely.centroid(sites.geometry.to_numpy())
    return square_names(shapely.get_x(centres), shapely.get_y(centres), size_m)


def _sums(
    species: str, size_m: int, k: pd.Series, n: pd.Series, squares: list[str]
) -> pd.DataFrame:
    frame = pd.DataFrame({"square": squares, "detections": k.to_numpy(), "visits": n.to_numpy()})
    # nowhere is no square to tell
    frame = frame[(frame["square"] != "") & frame["square"].duplicated(keep=False)]
    summed = frame.groupby("square", as_index=False).sum()
    summed.insert(0, "species", species)
    summed.insert(2, "size_m", size_m)
    return summed
