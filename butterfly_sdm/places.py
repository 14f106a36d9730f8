"""
Predictions at places somebody names, given what was seen there or near.

Beside the four verbs: :func:`fit_community` learns from a run how its species come and go together,
:func:`predict` tells what lives at places.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from butterfly_sdm.community.community import Belief, Community
from butterfly_sdm.community.given import Given, undated_visits
from butterfly_sdm.community.options import CommunityOptions
from butterfly_sdm.config import Config, ConfigLike
from butterfly_sdm.core.cards import fingerprint
from butterfly_sdm.core.executor import open_executor
from butterfly_sdm.core.files import read_json, write_table
from butterfly_sdm.core.work import resumable_folder
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.division import spatial_folds
from butterfly_sdm.errors import ModelError
from butterfly_sdm.ground import Ground, centres
from butterfly_sdm.predictors import make_predictor
from butterfly_sdm.progress import Progress, silent
from butterfly_sdm.run import COMMUNITY, Run, dataset_of, open_run
from butterfly_sdm.season.seasons import Seasons

if TYPE_CHECKING:
    import geopandas as gpd

log = logging.getLogger("butterfly_sdm.places")


def fit_community(
    run: Run | ConfigLike,
    *,
    dataset: Dataset | str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
) -> Community:
    """
    Learn how the species of a run come and go together, and keep it in the folder of the run.

    The model of the run is fitted anew for every fold of its training sites, so that what it does
    not explain is seen at sites it does not know. Interrupted, the same call continues.

    Parameters
    ----------
    run
        A run, its folder, or the config it was made with; its section ``community`` says how.
    dataset
        The data set, if it has moved.

    Returns
    -------
    Community
        One that is there already, made with the same settings, is not fitted again.

    Raises
    ------
    DataError
        There are too few training sites.
    """
    from butterfly_sdm.evaluation.compare import fit_each, folds_of
    from butterfly_sdm.evaluation.evaluate import scorable_sites

    opened, settings = open_run(run, overrides)
    options = settings.community or CommunityOptions()
    folder = opened.folder / COMMUNITY
    season = settings.train.season if opened.card.get("season") == "on" else None
    key = fingerprint(
        {"run": opened.card.get("key"), "options": options.model_dump(exclude={"workers"})}
        | ({} if season is None else {"season": season.model_dump(), "dated": 1})
    )
    card = folder / "community.json"
    if card.is_file() and read_json(card).get("key") == key:
        return Community.load(folder)
    data = dataset_of(opened, dataset)
    sites = scorable_sites(data, opened.split.train, [opened.predictor])
    folds = spatial_folds(
        data.sites.loc[sites],
        distance_m=options.distance_m,
        n_folds=options.folds,
        seed=settings.seed,
    )
    train = settings.train
    make = partial(make_predictor, train.model, train.fit, settings.seed, season)
    with resumable_folder(folder, key) as unfinished:
        paths = [unfinished / "folds" / f"{number}.parquet" for number in range(len(folds))]
        todo = [number for number, path in enumerate(paths) if not path.is_file()]
        parts = [(folds[number].train, folds[number].validation) for number in todo]
        done = len(folds) - len(todo)
        progress("community", done, len(folds))
        with open_executor(options.workers) as (executor, _):
            for number, (table, _) in zip(todo, fit_each(make, data, parts, executor), strict=True):
                write_table(paths[number], table)
                done += 1
                progress("community", done, len(folds))
        tables = [
            pd.read_parquet(path).set_axis(folds[i].validation) for i, path in enumerate(paths)
        ]
        community = Community.fit(
            data,
            pd.concat(tables),
            folds_of(folds),
            most_sites=options.most_sites,
            seed=settings.seed,
            seasons=None if season is None else Seasons.of(data, sites, season, seed=settings.seed),
        )
        community.save(unfinished, more={"key": key, "folds": folds[0].method})
        shutil.rmtree(unfinished / "folds")
    return Community.load(folder)


@dataclass(frozen=True, eq=False)
class PlacePredictions:
    """
    What lives at places.

    Attributes
    ----------
    species
        One row per place and species, the likeliest first: ``place``, ``species``, ``seen`` (visits
        that saw it), ``visits`` (on which it was looked for), ``prediction`` (of the model alone),
        ``probability`` (given what is known), and with a community its 90 % interval ``low`` to
        ``high``, ``found`` (chance that a usual survey sees it at all) and ``unseen_rank`` (1 for
        the likeliest that was not seen yet; 0 for those that were).
    places
        Index ``place``: ``lon``, ``lat``, ``species_seen``, and with a community ``richness``
        (species that a usual survey sees) with its closed 90 % interval ``low`` to ``high``.
    alike
        ``place``, ``site_id``, ``similarity``: the training sites most like each place; empty
        without a community.
    visits
        Of the survey that ``found`` and ``richness`` speak of; 0 without a community.
    notes
        What was left out or understood, in sentences.
    path
        Where it was written; None: nowhere.
    """

    species: pd.DataFrame
    places: pd.DataFrame
    alike: pd.DataFrame
    visits: float
    notes: tuple[str, ...] = ()
    path: Path | None = field(default=None, compare=False)

    def unseen(self, place: str, *, count: int = 10) -> pd.DataFrame:
        """Return the species not yet seen at a place, the likeliest first."""
        rows = self.species[(self.species["place"] == place) & (self.species["seen"] == 0)]
        return rows.sort_values("probability", ascending=False, kind="stable").head(count)

    def in_words(self, *, most: int = 5) -> list[tuple[str, list[str], list[list[str]]]]:
        """
        Return a title, a header and rows for each of the first few places: what was seen, and what
        is likely there and not seen yet.
        """
        words = []
        for place, row in self.places.head(most).iterrows():
            title = f"{place}: likely but not yet seen here"
            if "richness" in self.places:
                title += (
                    f" ({row['species_seen']:.0f} species seen; {self.visits:g} visits would see "
                    f"{row['richness']:.0f}, 90 %: {row['low']:.0f} to {row['high']:.0f})"
                )
            header, rows = ["species", "on a visit"], []
            interval = "found" in self.species
            if interval:
                header += ["90 %", f"in {self.visits:g} visits"]
            for _, one in self.unseen(str(place), count=8).iterrows():
                cells = [one["species"], f"{one['probability']:.1%}"]
                if interval:
                    cells += [f"{one['low']:.1%} to {one['high']:.1%}", f"{one['found']:.0%}"]
                rows.append(cells)
            words.append((title, header, rows))
        return words

    def save(self, path: Path) -> PlacePredictions:
        """Write ``NAME.csv`` and beside it ``NAME_places.csv`` and ``NAME_alike.csv``."""
        write_table(path, self.species, float_format="%.6g", index=False)
        beside = {"places": self.places.reset_index()}
        if len(self.alike):
            beside["alike"] = self.alike
        for name, table in beside.items():
            target = path.with_name(f"{path.stem}_{name}.csv")
            write_table(target, table, float_format="%.6g", index=False)
        return replace(self, path=path)


def predict(
    run: Run | ConfigLike,
    places: str | Path | Sequence[str] | gpd.GeoDataFrame,
    out: str | Path | None = None,
    *,
    given: str | Path | pd.DataFrame | Given | None = None,
    visits: float | None = None,
    dataset: Dataset | str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
) -> PlacePredictions:
    """
    Tell what lives at places, given what was seen there or near.

    Parameters
    ----------
    run
        A run, its folder, or the config it was made with.
    places
        A file (:func:`data_prep.asked.read_places`), a GeoDataFrame with unique ids, or ids of
        sites of the run's data set.
    out
        A CSV file to write, with two others beside it; None: nothing is written.
    given
        What was seen: a file or table with ``place`` and the columns of
        :func:`~butterfly_sdm.community.given.read_given`; rows without a place that is asked about
        need a position of their own, and speak of places around them.
    visits
        Of the survey that richness speaks of; None: as many as a training site usually had.
    dataset
        The data set, if it has moved.

    Returns
    -------
    PlacePredictions
        Where nothing is given, the prediction of the model as it is.

    Raises
    ------
    ModelError
        Something is given, and the run has no community.
    MissingFileError, DataError, RasterError, ConfigError
        A file is absent or not understood, or the model lacks what it needs at every place.
    """
    opened, settings = open_run(run, overrides)
    community = opened.community
    if given is not None:
        needed_community(opened)
    ground = Ground(opened, settings, dataset, progress)
    asked = ground.asked(places)
    hidden = hidden_species(settings, opened.predictor.species)
    told = Given.nothing(opened.predictor.species)
    if given is not None:
        told = ground.given(given, asked).without(hidden)
    plain, positions = ground.predicted(asked)
    belief = None
    shown = [name for name in opened.predictor.species if name not in hidden]
    if community is not None and shown:
        belief = _believed(community, ground, plain, positions, told, visits, hidden)
    if len(shown) < len(opened.predictor.species):
        ground.notes.append(
            f"{len(opened.predictor.species) - len(shown)} sensitive species are not told at "
            "single places: map.withhold, map.coarsen_m, build.records.sensitive."
        )
    species = _species_table(plain, belief, told, shown)
    alike = pd.DataFrame(columns=["place", "site_id", "similarity"])
    if community is not None and belief is not None:
        alike = community.alike(belief.probability[shown])
    at = centres(asked.geometry.loc[plain.index])
    table = pd.DataFrame({"lon": at.x, "lat": at.y}, index=plain.index.rename("place"))
    seen = species[species["seen"] > 0].groupby("place").size()
    table["species_seen"] = seen.reindex(table.index, fill_value=0)
    if belief is not None:
        names = {"expected": "richness", "low": "low", "high": "high"}
        table = table.join(belief.richness.rename(columns=names))
    usual = 0.0 if belief is None else float(belief.visits)
    found = PlacePredictions(species, table, alike, usual, tuple(ground.notes))
    return found if out is None else found.save(Path(out))


def hidden_species(settings: Config, species: Sequence[str]) -> list[str]:
    """Return the species whose places the settings do not let be told exactly."""
    told = settings.sensitive
    return [name for name in species if name in told]


def new_records(
    run: Run,
    settings: Config,
    given: str | Path | pd.DataFrame | Given,
    *,
    dataset: Dataset | str | Path | None = None,
    progress: Progress = silent,
) -> tuple[Given, gpd.GeoSeries]:
    """
    Return what was seen at places the model has not learned from, and where those lie (index
    ``place``, EPSG:4326): all that a map needs of new records. What is left out is logged.

    Raises
    ------
    ModelError
        The run has no community.
    DataError, MissingFileError
        The records are not understood, or none has a place.
    """
    community = needed_community(run)
    ground = Ground(run, settings, dataset, progress)
    nobody = _no_places()
    told = ground.given(given, nobody).without(hidden_species(settings, community.species))
    at = centres(ground.where(told.places))
    new = ground.unlearned(at)
    for note in ground.notes:
        log.warning(note)
    return told.only(list(new.index)), new


def needed_community(run: Run) -> Community:
    """
    Return the community of a run.

    Raises
    ------
    ModelError
        It has none.
    """
    if run.community is None:
        raise ModelError(
            f"The run {run.folder} has no community, which says what a sighting tells of other "
            f"species. Fit it once: butterfly-sdm community {run.folder}"
        )
    return run.community


def _no_places() -> gpd.GeoDataFrame:
    import geopandas as gpd

    return gpd.GeoDataFrame(index=pd.Index([], name="place", dtype=str), geometry=[], crs=4326)


def _believed(
    community: Community,
    ground: Ground,
    plain: pd.DataFrame,
    positions: np.ndarray,
    told: Given,
    visits: float | None,
    hidden: Sequence[str],
) -> Belief:
    """
    Return what is believed of places, given what was seen there and at others around; species that
    are hidden tell nothing of others, and do not count.
    """
    learned = [site for site in plain.index if site in community.out_of_fold.index]
    again = [site for site in learned if site in set(told.places)]
    q = plain
    if again:
        # The model has used these sites up: start from what it said without them.
        q = plain.copy()
        q.loc[again] = community.out_of_fold.loc[again, plain.columns].to_numpy()
        data = ground.data
        assert data is not None
        if community.seasons is None:
            own = Given.of_counts(data.detections.loc[again], data.visits.loc[again])
        else:
            own = Given.of_visits(data, again)
        told = told + own.without(hidden)
        ground.notes.append(
            f"{len(again)} places are training sites: there the model starts from what it said "
            "without them, and all visits of the data set count as given."
        )
    at = ground.where(told.places)
    new = ground.unlearned(centres(at))
    records, record_of = None, None
    if community.seasons is not None and (lost := undated_visits(told)):
        ground.notes.append(
            f"{lost:g} visits have no day that can be read, such as 2024-06-30: they count as "
            "visits on an average day of the season."
        )
    bands = ground.bands_of(plain.index)
    if len(new):
        near, spots = ground.predicted(at.loc[new.index])
        records = community.records(near, told, spots, bands=ground.bands_of(near.index))
        record_of = pd.Index(near.index).get_indexer(plain.index)
    return community.condition(
        q,
        told,
        positions=positions,
        records=records,
        record_of=record_of,
        visits=visits,
        counted=[name for name in community.species if name not in hidden],
        bands=bands,
    )


def _species_table(
    plain: pd.DataFrame, belief: Belief | None, told: Given, shown: Sequence[str]
) -> pd.DataFrame:
    """Return one row per place and species, places in their order and the likeliest first."""

    def column(table: pd.DataFrame) -> np.ndarray:
        return np.asarray(table[list(shown)].to_numpy(float).ravel())

    def counted(table: pd.DataFrame) -> np.ndarray:
        return column(table.reindex(index=plain.index, columns=plain.columns).fillna(0.0))

    seen = counted(told.detections) + counted(told.lists.groupby(level=0).sum())
    seen = np.maximum(seen, counted(told.effort) > 0)
    rows = pd.DataFrame(
        {
            "place": np.repeat(plain.index.to_numpy(), len(shown)),
            "species": np.tile(np.array(shown, dtype=object), len(plain)),
            "seen": seen,
            "visits": counted(told.visits),
            "prediction": column(plain),
            "probability": column(plain if belief is None else belief.probability),
        }
    )
    if belief is not None:
        for name in ("low", "high", "found"):
            rows[name] = column(getattr(belief, name))
    order = np.lexsort((-rows["probability"], np.repeat(np.arange(len(plain)), len(shown))))
    rows = rows.iloc[order].reset_index(drop=True)
    unseen = rows["seen"] == 0
    rows["unseen_rank"] = unseen.groupby(rows["place"], sort=False).cumsum().where(unseen, 0)
    return rows
