"""
What is done around the four verbs: a ladder of predictors, a paired comparison, a search of
settings, a report.

As in :mod:`butterfly_sdm.pipeline`, each function takes a config or runs and writes a folder or a
page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import geopandas as gpd
import numpy as np
import pandas as pd
import yaml

from butterfly_sdm import figures
from butterfly_sdm.config import Config, ConfigLike, dump_config, load_config
from butterfly_sdm.core.cards import fingerprint, listed
from butterfly_sdm.core.executor import open_executor
from butterfly_sdm.core.files import write_table, write_text
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.division import spatial_folds
from butterfly_sdm.data.predictor import Embedding, FitContext
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import ButterflySDMError, ConfigError, DataError
from butterfly_sdm.evaluation.compare import Comparison, compare
from butterfly_sdm.evaluation.dated import as_looked_at
from butterfly_sdm.evaluation.evaluate import scorable_sites
from butterfly_sdm.evaluation.ladder import Ladder, run_ladder
from butterfly_sdm.models.options import SearchOptions
from butterfly_sdm.pipeline import covariate_rasters, dataset_for, square_of_reference
from butterfly_sdm.planning.options import PlanOptions
from butterfly_sdm.predictors import make_predictor
from butterfly_sdm.progress import Progress, silent
from butterfly_sdm.run import Run, dataset_of, open_run, out_folder
from butterfly_sdm.season.use import used_season

if TYPE_CHECKING:
    from butterfly_sdm.evaluation.report.findings import Findings
    from butterfly_sdm.evaluation.report.page import OnMap
    from butterfly_sdm.planning import Plan, Replay


def ladder(
    config: ConfigLike,
    out: str | Path | None = None,
    *,
    dataset: Dataset | str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
) -> Ladder:
    """
    Fit and score every predictor of ``evaluate.ladder`` on the same sites, also in spatial
    cross-validation.

    Parameters
    ----------
    config
        Config; a data set that is not there yet is built first.
    out
        Folder of the tables and plots; by default ``ladder`` in the config's ``out``.
    dataset
        A data set or its folder, if not the one of the config.

    Returns
    -------
    Ladder
        One row per predictor, with intervals.

    Raises
    ------
    ConfigError, DataError, ModelError
        The config has no ladder, or a step of it is wrong.
    """
    settings = load_config(config, overrides)
    if not settings.evaluate.ladder:
        raise ConfigError(
            "evaluate.ladder is empty. List its predictors, such as: ladder: [{kind: "
            "nearest_sites}]"
        )
    folder = Path(out) if out is not None else out_folder(settings) / "ladder"
    data = dataset_for(settings, dataset, progress)
    return run_ladder(data, settings.evaluate, folder=folder, seed=settings.seed, progress=progress)


@dataclass(frozen=True)
class Ablation:
    """
    One experiment with and without a change, on the same folds with the same seeds.

    Attributes
    ----------
    table
        One row per seed, and one for the mean prediction of all seeds: score of both, difference
        (changed - as it is) with its interval, species on which each is ahead.
    comparisons
        By row of the table; first the changed experiment, second the experiment as it is.
    change
        What was changed, as ``key=value``.
    folder
        Of the table, the picture and the predictions.
    """

    table: pd.DataFrame
    comparisons: dict[str, Comparison]
    change: tuple[str, ...]
    folder: Path

    def summary(self) -> dict[str, str]:
        """Return the verdict per seed and of all seeds."""
        return {name: comparison.verdict for name, comparison in self.comparisons.items()}


def compare_change(
    config: ConfigLike,
    change: Sequence[str],
    out: str | Path | None = None,
    *,
    seeds: int = 3,
    dataset: Dataset | str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
) -> Ablation:
    """
    Train an experiment as it is and changed on the same spatial folds with the same seeds, and
    compare them in pairs.

    Training and validation sites of the split are dealt into ``evaluate.folds`` folds; test sites
    stay out. Every fit is kept, so that an interrupted comparison goes on where it was.

    Parameters
    ----------
    config
        The experiment.
    change
        ``key=value`` pairs, such as ``train.fit.regulariser.form=soft``.
    out
        Folder of ``comparison.csv``, ``comparison.png`` and the predictions; by default
        ``comparison`` in the config's ``out``.
    seeds
        How many: the config's, and those that follow it.

    Returns
    -------
    Ablation
        Both, beside each other, with the interval of their difference.

    Raises
    ------
    ConfigError
        Nothing is changed, or a key is wrong.
    ConfigError, DataError, ModelError
        A setting is wrong, or the data set does not serve the model.

    Examples
    --------
    >>> change = ["train.fit.regulariser.form=soft"]
    >>> compare_change("experiment.yaml", change, seeds=5)  # doctest: +SKIP
    """
    overrides = tuple(overrides)
    plain, changed = load_config(config, overrides), load_config(config, (*overrides, *change))
    if not change or plain.train == changed.train:
        raise ConfigError(
            f"The change {', '.join(change) or '(none)'} changes nothing of train. Name another "
            "key or value."
        )
    data = dataset_for(plain, dataset, progress)
    folder = Path(out) if out is not None else out_folder(plain) / "comparison"
    folds = _folds(data, plain)
    experiments = [
        settings.model_copy(update={"seed": plain.seed + place})
        for place in range(seeds)
        for settings in (changed, plain)
    ]
    tables = _out_of_fold(experiments, data, folds, folder / "out_of_fold", progress)
    pairs = {
        f"seed {plain.seed + place}": (tables[2 * place], tables[2 * place + 1])
        for place in range(seeds)
    }
    if seeds > 1:
        pairs["mean of all seeds"] = (sum(tables[::2]) / seeds, sum(tables[1::2]) / seeds)
    comparisons = {
        name: _compare_changed(data, *pair, plain.evaluate.bootstrap)
        for name, pair in pairs.items()
    }
    table = pd.DataFrame.from_dict(
        {name: _ablation_row(result) for name, result in comparisons.items()}, orient="index"
    ).rename_axis("seeds")
    with listed(folder / "comparison.json", "comparison") as files:
        files.append(folder / "comparison.csv")
        write_table(files[-1], table)
        picture = figures.show_differences(table, change=", ".join(change))
        files.append(picture.save(folder / "comparison.png"))
    return Ablation(table, comparisons, tuple(change), folder)


def _folds(data: Dataset, settings: Config) -> list[Split]:
    """Deal the training and validation sites with a visit into folds; test sites stay out."""
    split = data.needed_split()
    return spatial_folds(
        data.sites.loc[
            [site for site in (*split.train, *split.validation) if data.visits[site] > 0]
        ],
        distance_m=settings.evaluate.fold_distance_m,
        n_folds=max(2, settings.evaluate.folds),
        seed=settings.seed,
    )


def _compare_changed(
    data: Dataset, changed: pd.DataFrame, plain: pd.DataFrame, repeats: int
) -> Comparison:
    sites = list(changed.index.intersection(plain.index))
    return compare(
        data,
        sites,
        changed.loc[sites],
        plain.loc[sites],
        names=("changed", "as it is"),
        repeats=repeats,
    )


def _ablation_row(result: Comparison) -> dict[str, float]:
    return {
        "changed": result.per_species["changed"].mean(),
        "as_it_is": result.per_species["as it is"].mean(),
        "difference": result.difference.estimate,
        "low": result.difference.low,
        "high": result.difference.high,
        "species_changed_ahead": result.first_wins,
        "species_as_it_is_ahead": result.second_wins,
        "sites": result.sites,
    }


def _out_of_fold(
    experiments: Sequence[Config],
    data: Dataset,
    folds: Sequence[Split],
    folder: Path,
    progress: Progress,
) -> list[pd.DataFrame]:
    """Return, per experiment, the predictions of every site by a model that has not seen it."""
    options = experiments[0].evaluate
    jobs = [(settings, fold) for settings in experiments for fold in folds]
    tables = []
    with open_executor(options.workers, options.dask) as (executor, _):
        run = map if executor is None else executor.map
        for done, table in enumerate(run(partial(_fit_fold, data, folder), jobs)):
            tables.append(table)
            seed = experiments[done // len(folds)].seed
            progress(f"folds, seed {seed}", done % len(folds) + 1, len(folds))
    return [pd.concat(tables[at : at + len(folds)]) for at in range(0, len(jobs), len(folds))]


def _fit_fold(data: Dataset, folder: Path, job: tuple[Config, Split]) -> pd.DataFrame:
    """Fit an experiment without a fold and predict the fold; read it where that was done before."""
    settings, fold = job
    key = fingerprint(
        {
            "train": settings.train.model_dump(mode="json", exclude={"dataset"}),
            "seed": settings.seed,
            "dataset": data.fingerprint,
            "fold": [fold.train, fold.validation],
        }
    )
    path = folder / f"{key}.parquet"
    if not path.is_file():
        season = used_season(settings.train.season, data, fold.train)
        predictor = make_predictor(settings.train.model, settings.train.fit, settings.seed, season)
        predictor.fit(data, scorable_sites(data, fold.train, [predictor]))
        asked = as_looked_at(predictor, data)
        table = asked.predict(data, scorable_sites(data, fold.validation, [predictor]))
        write_table(path, table)
    return pd.read_parquet(path)


def compare_runs(
    first: Run | str | Path,
    second: Run | str | Path,
    *,
    dataset: Dataset | str | Path | None = None,
    score: str = "mse",
) -> Comparison:
    """
    Compare two runs on the held-out sites of the first by a paired block bootstrap.

    Parameters
    ----------
    first, second
        Runs on one data set.
    score
        ``mse``, ``mae``, ``bce`` or ``deviance``.

    Returns
    -------
    Comparison
        The difference with its interval, over all species and for each.

    Raises
    ------
    DataError
        A site that is held out by the first was seen by the second.
    """
    one, settings = open_run(first, ())
    two, _ = open_run(second, ())
    data = dataset_of(two, dataset_of(one, dataset))
    sites = scorable_sites(
        data, one.split.part(settings.evaluate.part), [one.predictor, two.predictor]
    )
    seen = set(two.split.train) & set(sites)
    if seen:
        raise DataError(
            f"Site {sorted(seen)[0]} is held out by {one.folder} but was trained on by "
            f"{two.folder}. Compare runs of one split."
        )
    names = (one.folder.name, two.folder.name)
    if names[0] == names[1]:
        names = (str(one.folder), str(two.folder))
    tables = [as_looked_at(run.predictor, data).predict(data, sites) for run in (one, two)]
    return compare(data, sites, tables[0], tables[1], names=names, score=score)


@dataclass(frozen=True)
class Search:
    """
    What a search found.

    Attributes
    ----------
    table
        One row per trial, best first: ``score`` on the validation part and the value of every
        setting.
    best
        The best settings as ``key=value``.
    config
        YAML of the experiment with the best settings, ready for
        :func:`butterfly_sdm.pipeline.train`.
    """

    table: pd.DataFrame
    best: tuple[str, ...]
    config: Path


def search(
    config: ConfigLike,
    out: str | Path | None = None,
    *,
    dataset: Dataset | str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
) -> Search:
    """
    Try settings of a network drawn from ``search.space``, each judged on the validation part.

    A search that was interrupted continues, with the trials it would have had.

    Parameters
    ----------
    config
        Config with a section ``search``; what the space does not name is as in ``train``.
    out
        Folder of ``trials.csv`` and ``best.yaml``; by default ``search`` in the config's ``out``.
    dataset
        A data set or its folder, if not the one of the config.

    Returns
    -------
    Search
        All trials, and the config of the best. Its score on the validation part is too good, since
        it was chosen there.

    Raises
    ------
    ConfigError
        The space is empty or names something that is no setting of the network, or a value is not
        allowed.
    MissingPackageError
        Optuna is not installed.
    DataError
        The data set has no split to search in.

    Examples
    --------
    >>> search("experiment.yaml", overrides=["search.trials=50"])  # doctest: +SKIP
    """
    from butterfly_sdm.models.network_predictor import NetworkPredictor  # loads torch
    from butterfly_sdm.models.search import search as search_network

    settings = load_config(config, overrides)
    homes = _settings_searched(settings)
    data = dataset_for(settings, dataset, progress)
    split = data.needed_split()
    folder = Path(out) if out is not None else out_folder(settings) / "search"
    space = {name: settings.search.space[key] for name, key in homes.items()}
    model = settings.train.model.model_copy(update={"members": 1})
    network = NetworkPredictor(model, settings.train.fit, seed=settings.seed)
    card = folder / "search.json"
    card.unlink(missing_ok=True)  # until it has ended again
    found = search_network(
        data,
        split.train,
        settings.search.model_copy(update={"space": space}),
        context=FitContext(split.validation, folder, progress),
        settings=network.settings(),
        seed=settings.seed,
    )
    best = []
    for name, key in homes.items():
        first, _, second = name.partition(".")
        best.append(_assignment(key, found.best[first][second] if second else found.best[first]))
    winner = load_config(settings, [*best, f"name={settings.name}_best"])
    home = data.folder.resolve() if data.folder is not None else None
    winner = winner.model_copy(
        update={
            "out": folder.resolve() / "best",
            "train": winner.train.model_copy(update={"dataset": home}),
            "search": SearchOptions(),
        }
    )
    with listed(card, "search") as files:
        files += [folder / "trials.csv", folder / "best.yaml"]
        write_text(files[-1], dump_config(winner))
    return Search(found.trials, tuple(best), folder / "best.yaml")


def _settings_searched(settings: Config) -> dict[str, str]:
    """Return where in the config each setting of the network stands that is searched, by name."""
    if not settings.search.space:
        raise ConfigError(
            "search.space is empty. Name settings, such as: "
            "space: {train.fit.learning_rate: {low: 1.0e-4, high: 0.01, log: true}}"
        )
    if settings.train.model.kind != "network":
        raise ConfigError(
            f"train.model.kind is {settings.train.model.kind}; search draws settings of a network."
        )
    homes: dict[str, str] = {}
    for key, draw in settings.search.space.items():
        name = key.removeprefix("train.fit.").removeprefix("train.model.")
        if name == key or name in ("kind", "members", "options"):
            raise ConfigError(
                f"search.space.{key}: a search draws settings of train.fit and train.model, such "
                "as train.fit.epochs."
            )
        for value in draw if isinstance(draw, tuple) else (draw.low, draw.high):
            load_config(settings, [_assignment(key, value)])  # says what is wrong with it
        homes[name] = key
    return homes


def _assignment(key: str, value: Any) -> str:
    return f"{key}={yaml.safe_dump(value).splitlines()[0]}"


def report(
    runs: Run | str | Path | Sequence[Run | str | Path],
    out: str | Path | None = None,
    *,
    dataset: Dataset | str | Path | None = None,
    progress: Progress = silent,
) -> Path:
    """
    Write one self-contained page about one or more runs: how good, beside what, where to trust it.

    Parameters
    ----------
    runs
        A run, or several: the first is described, the others stand beside it.
    out
        The HTML page; by default ``report.html`` in the first run.

    Returns
    -------
    Path
        The page; Markdown and CSV lie beside it.

    Raises
    ------
    DataError, MissingFileError
        No run is named, or one or its data set is not there.
    """
    from butterfly_sdm.evaluation.report.findings import collect_findings
    from butterfly_sdm.evaluation.report.page import write_report

    if isinstance(runs, Run | str | Path):
        runs = [runs]
    if not runs:
        raise DataError("There is no run to report on. Name at least one.")
    findings = []
    opened_runs = [open_run(given, ()) for given in runs]
    for opened, settings in opened_runs:
        data = dataset_of(opened, dataset)
        kinds = tuple(
            dict.fromkeys([*settings.evaluate.baselines, "regional_rate", "nearest_sites"])
        )
        found = collect_findings(
            opened.predictor,
            data,
            settings.evaluate.model_copy(update={"baselines": kinds}),
            split=opened.split,
            name=str(opened.card.get("name") or opened.folder.name),
            config=settings.model_dump(mode="json"),
            folder=opened.folder,
            importance_repeats=1
            if isinstance(opened.predictor, Embedding)
            else 3,  # a network predicts slowly
            seed=settings.seed,
            progress=progress,
        )
        findings.append(replace(found, community=opened.community))
    first, settings = opened_runs[0]
    target = Path(out) if out is not None else first.folder / "report.html"
    # The page places sites exactly, so a species that may only be told coarsely is left out of it
    # too.
    withheld = tuple(settings.sensitive)
    on_map = _on_map(first, findings[0], withheld)
    return write_report(findings, target, withheld=withheld, on_map=on_map)


def _on_map(run: Run, findings: Findings, withheld: Sequence[str]) -> OnMap | None:
    """Return the map beside a run, if it is of that run, with its best species."""
    from butterfly_sdm.evaluation.report.page import OnMap
    from butterfly_sdm.figures import show_trust
    from butterfly_sdm.mapping.map_reader import MapReader
    from butterfly_sdm.mapping.sidecars import known_words

    path = run.folder.parent / "map.tif"
    if not path.is_file():
        return None
    try:
        made = MapReader(path)
    except ButterflySDMError:
        return None
    names = [name for name in made.species if name not in withheld]
    if made.tags.get("run") != run.card.get("key") or not names:
        return None
    factor = findings.scores.per_species["factor"].reindex(names).fillna(0)
    limits = {n: v for n, v in (made.tags.get("limits") or {}).items() if n in made.names}
    beyond = total = 0
    for _, values in made.blocks([names[0], *limits]) if limits else ():
        known = np.isfinite(values[1:]).any(axis=0)
        over = values[1:] > np.array(list(limits.values()))[:, None, None]
        total, beyond = total + int(known.sum()), beyond + int((over.any(axis=0) & known).sum())
    picture = show_trust(path, str(factor.idxmax()), limits)
    share = beyond / total if total else None
    return OnMap(path.name, picture, known_words(made.tags), share)


def plan(
    what: Run | Dataset | ConfigLike,
    candidates: gpd.GeoDataFrame | str | Path | None = None,
    out: str | Path | None = None,
    *,
    places: gpd.GeoDataFrame | str | Path | None = None,
    dataset: Dataset | str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
    **settings: Any,
) -> Plan:
    """
    Say where to survey next.

    Parameters
    ----------
    what
        A run, a data set, the folder of one of them, or the config it was made with.
    candidates
        Shapes, or a file of shapes, that may be surveyed; None: as ``plan.candidates``.
    out
        Folder of the files; None: ``plan`` beside the folder of the run or data set.
    places
        Where the map will be judged: shapes, a file of shapes, or a value of ``plan.places``.
    settings
        Others of the section ``plan``, such as ``sites=100, visits=10``; also ``seed``.

    Returns
    -------
    Plan
        Ranked sites, what they promise, and where the files lie.

    Raises
    ------
    ConfigError, MissingFileError, DataError, RasterError
        A setting or a file is wrong, nothing is left to choose from, or a species is protected.
    ArtefactError
        The folder holds something else.

    Examples
    --------
    >>> print(plan("runs/my_region/run", "squares.gpkg", sites=20))  # doctest: +SKIP
    """
    from butterfly_sdm.planning.outputs import read_promises, write_plan
    from butterfly_sdm.planning.plan import Sources, make_plan

    shapes = {"candidates": candidates, "places": places}
    files = {name: str(one) for name, one in shapes.items() if isinstance(one, str | Path)}
    given = _Given.of(what, dataset, overrides, settings | files)
    options, config = given.options, given.config
    sources = Sources(
        settings=given.process,
        rasters=covariate_rasters(config, given.covariates) if config is not None else {},
        policy=config.sensitive if config is not None else {},
        square_of=square_of_reference,
        promises=read_promises(options.held) if options.held is not None else None,
    )
    frames = {name: one for name, one in shapes.items() if isinstance(one, gpd.GeoDataFrame)}
    made = make_plan(
        given.data, options, sources=sources, seed=given.seed, progress=progress, **frames
    )
    return write_plan(made, given.folder("plan", out))


def replay_plan(
    what: Run | Dataset | ConfigLike,
    out: str | Path | None = None,
    *,
    dataset: Dataset | str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
    **settings: Any,
) -> Replay:
    """
    Hide sites of one's own data, let each method of planning choose, refit, and score the maps.

    Parameters
    ----------
    what
        A run, a data set, the folder of one of them, or the config it was made with.
    out
        Folder of tables and picture; None: ``replay`` beside the folder of the run or data set.
    settings
        Of the section ``plan.replay``, such as ``draws=24, start="towns"``; also ``species`` and
        ``seed``.

    Returns
    -------
    Replay
        What each method would have gained, with intervals, and how promises held.

    Raises
    ------
    ConfigError, DataError
        A setting is wrong, or there are too few sites.
    ArtefactError
        The folder holds something else.
    """
    from butterfly_sdm.planning.outputs import write_replay
    from butterfly_sdm.planning.replay import make_replay

    named = {key: settings.pop(key) for key in ("species", "seed") if key in settings}
    given = _Given.of(what, dataset, overrides, named | {"replay": settings})
    made = make_replay(
        given.data,
        given.options.replay,
        species=given.options.species,
        settings=given.process,
        seed=given.seed,
        progress=progress,
    )
    write_replay(made, given.folder("replay", out))
    return made


@dataclass(frozen=True)
class _Given:
    """What a plan is made of, whatever it was given by."""

    data: Dataset
    options: PlanOptions
    seed: int
    config: Config | None  # None: a data set alone
    beside: Path | None  # folder of the run or data set

    @classmethod
    def of(
        cls,
        what: Run | Dataset | ConfigLike,
        dataset: Dataset | str | Path | None,
        overrides: Iterable[str],
        settings: Mapping[str, Any],
    ) -> Self:
        changes = [f"plan.{key}={_as_yaml(value)}" for key, value in _flat(settings)]
        seed = [f"seed={settings['seed']}"] if "seed" in settings else []
        every = [*overrides, *seed, *(c for c in changes if not c.startswith("plan.seed="))]
        if isinstance(what, str | Path) and (Path(what) / "dataset.json").is_file():
            what = Dataset.open(what)
        if isinstance(what, Dataset):
            config = load_config({}, every)
            return cls(what, config.plan, config.seed, None, what.folder)
        opened, config = open_run(what, every)
        return cls(dataset_of(opened, dataset), config.plan, config.seed, config, opened.folder)

    @property
    def covariates(self) -> list[str]:
        """Names of the covariates of the data set."""
        table = self.data.covariates
        return [] if table is None else [str(name) for name in table.columns]

    @property
    def process(self) -> dict[str, Any] | None:
        """Settings of the Gaussian process in the run, also as a member of a blend; None: none."""
        if self.config is None:
            return None
        model = self.config.train.model
        name = "gaussian_process"
        if model.kind == name:
            return dict(model.options)
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in model.options.items()
            if key.startswith(f"{name}.")
        }
        return own or None

    def folder(self, name: str, out: str | Path | None) -> Path:
        """Return where to write."""
        if out is not None:
            return Path(out)
        return (self.beside.parent if self.beside is not None else Path()) / name


def _flat(settings: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def _as_yaml(value: Any) -> str:
    if isinstance(value, tuple | list):
        value = [str(one) if isinstance(one, Path) else one for one in value]
    return json.dumps(str(value) if isinstance(value, Path) else value)
