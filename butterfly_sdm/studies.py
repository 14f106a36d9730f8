"""
What is done around the four verbs: a ladder of predictors, a paired comparison, a search of
settings, a report.

As in :mod:`butterfly_sdm.pipeline`, each function takes a config or runs and writes a folder or a
page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from butterfly_sdm.config import Config, dump_config, load_config
from butterfly_sdm.core.cards import fingerprint
from butterfly_sdm.core.files import atomic_path, write_text
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Embedding, FitContext
from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.models.options import SearchOptions
from butterfly_sdm.pipeline import (
    ConfigLike,
    Run,
    check_species,
    dataset_for,
    dataset_of,
    open_run,
    out_folder,
)
from butterfly_sdm.predictors import make_predictor
from butterfly_sdm.progress import Progress, silent

if TYPE_CHECKING:
    from butterfly_sdm.evaluation import Comparison, Ladder


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
    from butterfly_sdm.evaluation import run_ladder
    from butterfly_sdm.evaluation.bootstrap import grid_blocks

    settings = load_config(config, overrides)
    options = settings.evaluate
    if not options.ladder:
        raise ConfigError(
            "evaluate.ladder is empty. List its predictors, such as: ladder: [{kind: "
            "nearest_sites}]"
        )
    folder = Path(out) if out is not None else out_folder(settings) / "ladder"
    data = dataset if isinstance(dataset, Dataset) else dataset_for(settings, dataset, progress)
    return run_ladder(
        data,
        [step.model_dump() for step in options.ladder],
        part=options.part,
        n_folds=options.folds,
        distance_m=options.fold_distance_m,
        blocks=grid_blocks(data.sites, side_m=options.block_m),
        repeats=options.bootstrap,
        folder=folder,
        seed=settings.seed,
        progress=progress,
    )


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
    """

    table: pd.DataFrame
    comparisons: dict[str, Comparison]
    change: tuple[str, ...]

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
        ``key=value`` pairs, such as ``train.fit.regulariser.weight=0``.
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
    >>> compare_change("experiment.yaml", ["train.fit.regulariser.weight=0"], seeds=5)  # doctest: +SKIP
    """
    from butterfly_sdm.data.splits import spatial_folds
    from butterfly_sdm.evaluation.compare import compare
    from butterfly_sdm.evaluation.plots import plot_differences

    overrides = tuple(overrides)
    plain, changed = load_config(config, overrides), load_config(config, (*overrides, *change))
    if not change or plain.train == changed.train:
        raise ConfigError(
            f"The change {', '.join(change) or '(none)'} changes nothing of train. Name another "
            "key or value."
        )
    data = dataset if isinstance(dataset, Dataset) else dataset_for(plain, dataset, progress)
    if data.split is None:
        raise DataError(
            f"The data set {data.card.name!r} has no split. Add build.split and build it again."
        )
    folder = Path(out) if out is not None else out_folder(plain) / "comparison"
    sites = [site for site in (*data.split.train, *data.split.validation) if data.visits[site] > 0]
    options = plain.evaluate
    folds = spatial_folds(
        data.sites.loc[sites],
        distance_m=options.fold_distance_m,
        n_folds=max(2, options.folds),
        seed=plain.seed,
    )
    held: dict[str, list[pd.DataFrame]] = {"changed": [], "as it is": []}
    for seed in range(plain.seed, plain.seed + seeds):
        for name, settings in (("changed", changed), ("as it is", plain)):
            held[name].append(
                _out_of_fold(
                    settings.model_copy(update={"seed": seed}), data, folds, folder, progress
                )
            )
    rows, comparisons = {}, {}
    pairs = {
        f"seed {plain.seed + place}": (held["changed"][place], held["as it is"][place])
        for place in range(seeds)
    }
    if seeds > 1:
        pairs["mean of all seeds"] = tuple(sum(tables) / seeds for tables in held.values())  # type: ignore[assignment]
    for name, (first, second) in pairs.items():
        scored = first.index.intersection(second.index)
        result = compare(
            data,
            list(scored),
            first.loc[scored],
            second.loc[scored],
            names=("changed", "as it is"),
            repeats=options.bootstrap,
        )
        comparisons[name] = result
        rows[name] = {
            "changed": result.per_species["changed"].mean(),
            "as_it_is": result.per_species["as it is"].mean(),
            "difference": result.difference.estimate,
            "low": result.difference.low,
            "high": result.difference.high,
            "species_changed_ahead": result.first_wins,
            "species_as_it_is_ahead": result.second_wins,
            "sites": result.sites,
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("seeds")
    with atomic_path(folder / "comparison.csv") as temporary:
        table.to_csv(temporary)
    plot_differences(table, folder / "comparison.png", change=", ".join(change))
    return Ablation(table, comparisons, tuple(change))


def _out_of_fold(
    settings: Config, data: Dataset, folds: Sequence[Any], folder: Path, progress: Progress
) -> pd.DataFrame:
    """
    Return the predictions of every site by a model that has not seen it; read them if they are
    there already.
    """
    from butterfly_sdm.evaluation.evaluate import scorable_sites

    parts = []
    for place, fold in enumerate(folds):
        key = fingerprint(
            {
                "train": settings.train.model_dump(mode="json", exclude={"dataset"}),
                "seed": settings.seed,
                "dataset": data.fingerprint,
                "fold": [fold.train, fold.validation],
            }
        )
        path = folder / "out_of_fold" / f"{key}.parquet"
        if not path.is_file():
            model, fit = settings.train.model, settings.train.fit
            unfitted = make_predictor(model, fit, settings.seed)
            predictor = unfitted.fit(data, scorable_sites(data, fold.train, [unfitted]))
            table = predictor.predict(data, scorable_sites(data, fold.validation, [predictor]))
            with atomic_path(path) as temporary:
                table.to_parquet(temporary)
        parts.append(pd.read_parquet(path))
        progress(f"folds, seed {settings.seed}", place + 1, len(folds))
    return pd.concat(parts)


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
    from butterfly_sdm.evaluation.compare import compare
    from butterfly_sdm.evaluation.evaluate import scorable_sites

    one, settings = open_run(first, ())
    two, _ = open_run(second, ())
    data = dataset_of(one, dataset)
    for run in (one, two):
        check_species(run.predictor, data)
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
    tables = [run.predictor.predict(data, sites) for run in (one, two)]
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
    from butterfly_sdm.models.network_predictor import NetworkPredictor
    from butterfly_sdm.models.search import search as search_network

    settings = load_config(config, overrides)
    options = settings.search
    if not options.space:
        raise ConfigError(
            "search.space is empty. Name settings, such as: "
            "space: {train.fit.learning_rate: {low: 1.0e-4, high: 0.01, log: true}}"
        )
    if settings.train.model.kind != "network":
        raise ConfigError(
            f"train.model.kind is {settings.train.model.kind}; search draws settings of a network."
        )
    space: dict[str, Any] = {}
    homes: dict[str, str] = {}  # where a setting of the network stands in the config
    for key, choice in options.space.items():
        name = key.removeprefix("train.fit.").removeprefix("train.model.")
        if name == key or name in ("kind", "members", "options"):
            raise ConfigError(
                f"search.space.{key}: a search draws settings of train.fit and train.model, such "
                "as train.fit.epochs."
            )
        bounds = not isinstance(choice, tuple)
        for value in (choice.low, choice.high) if bounds else choice:  # type: ignore[union-attr]
            load_config(settings, [_assignment(key, value)])  # says what is wrong with it
        space[name] = choice
        homes[name] = key
    data = dataset if isinstance(dataset, Dataset) else dataset_for(settings, dataset, progress)
    if data.split is None:
        raise DataError(
            f"The data set {data.card.name!r} has no split. Add build.split and build it again."
        )
    folder = Path(out) if out is not None else out_folder(settings) / "search"
    single = load_config(settings, ["train.model.members=1"])
    found = search_network(
        data,
        data.split.train,
        options.model_copy(update={"space": space}),
        context=FitContext(data.split.validation, folder, progress),
        settings=NetworkPredictor(
            single.train.model, single.train.fit, seed=settings.seed
        ).settings(),
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
    write_text(folder / "best.yaml", dump_config(winner))
    return Search(found.trials, tuple(best), folder / "best.yaml")


def _assignment(key: str, value: Any) -> str:
    return f"{key}={yaml.safe_dump(value).splitlines()[0]}"


def report(
    runs: Sequence[Run | str | Path],
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
        The first is described, the others stand beside it.
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

    if not runs:
        raise DataError("There is no run to report on. Name at least one.")
    findings = []
    for given in runs:
        opened, settings = open_run(given, ())
        data = dataset_of(opened, dataset)
        check_species(opened.predictor, data)
        kinds = tuple(
            dict.fromkeys([*settings.evaluate.baselines, "regional_rate", "nearest_sites"])
        )
        findings.append(
            collect_findings(
                opened.predictor,
                data,
                opened.split,
                name=str(opened.card.get("name") or opened.folder.name),
                part=settings.evaluate.part,
                baselines=kinds,
                config=settings.model_dump(mode="json"),
                folder=opened.folder,
                importance_repeats=1
                if isinstance(opened.predictor, Embedding)
                else 3,  # a network predicts slowly
                seed=settings.seed,
                progress=progress,
            )
        )
    target = Path(out) if out is not None else open_run(runs[0], ())[0].folder / "report.html"
    # The page places sites exactly, so a species that may only be told coarsely is left out of it
    # too.
    settings = open_run(runs[0], ())[1]
    withheld = tuple(settings.build.records.sensitive) if settings.build is not None else ()
    return write_report(findings, target, withheld=withheld)
