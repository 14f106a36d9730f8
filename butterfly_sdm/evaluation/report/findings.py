"""Everything a report says about one run, computed once."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from butterfly_sdm.baselines.inputs.numbers import site_numbers
from butterfly_sdm.community.community import Community
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.division import neighbour_clusters, spatial_folds
from butterfly_sdm.data.predictor import Predictor, Sees
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import DataError
from butterfly_sdm.evaluation.applicability import Applicability
from butterfly_sdm.evaluation.bootstrap import Interval, bootstrap_blocks
from butterfly_sdm.evaluation.calibration import Reliability, reliability
from butterfly_sdm.evaluation.compare import Comparison, compare, score_interval
from butterfly_sdm.evaluation.drivers import (
    input_groups,
    permutation_importance,
    used_groups,
)
from butterfly_sdm.evaluation.evaluate import (
    predictions_beside,
    scorable_sites,
    scores_beside,
)
from butterfly_sdm.evaluation.options import EvaluateOptions
from butterfly_sdm.evaluation.scores import Scores
from butterfly_sdm.evaluation.uncertainty import cross_coverage
from butterfly_sdm.progress import Progress, silent

DEFAULTS = EvaluateOptions(baselines=("regional_rate", "nearest_sites"))


@dataclass(frozen=True)
class Findings:
    """
    What is known about one run.

    Attributes
    ----------
    name, part
        Of the run, and of the part of the split it was scored on.
    dataset, split
        What it was fitted to and scored on.
    scores
        With the baselines beside it.
    predictions
        (site, species) of the scored sites.
    interval
        Of the MSE.
    comparisons
        With each baseline, by name.
    reliability
        Calibration over all species.
    coverage
        Of 90 % intervals, per species and all; None with too few sites.
    dissimilarity
        Of the scored sites; None without covariates and tiles.
    threshold
        Of the area of applicability.
    importance
        Of groups of inputs that the model takes; None if not asked for.
    not_used
        Groups of inputs of the data set that the model does not take.
    distance_m
        From each scored site to the nearest training site.
    model, config
        ``model.json`` and the resolved config.
    ladder
        Table of a ladder on the same data, if there is one.
    community
        How its species come and go together, if that was learned.
    """

    name: str
    part: str
    dataset: Dataset
    split: Split
    scores: Scores
    predictions: pd.DataFrame
    interval: Interval
    comparisons: Mapping[str, Comparison]
    reliability: Reliability
    coverage: pd.DataFrame | None
    dissimilarity: pd.Series | None
    threshold: float | None
    importance: pd.DataFrame | None
    distance_m: pd.Series
    not_used: tuple[str, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    ladder: pd.DataFrame | None = None
    community: Community | None = None


def collect_findings(
    predictor: Predictor,
    dataset: Dataset,
    options: EvaluateOptions = DEFAULTS,
    *,
    split: Split | None = None,
    name: str = "model",
    config: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    importance_repeats: int = 3,
    seed: int = 0,
    progress: Progress = silent,
) -> Findings:
    """
    Score a fitted predictor and judge its calibration, intervals, applicability and drivers on
    held-out sites.

    Parameters
    ----------
    predictor
        Fitted to the training part of ``split``.
    options
        The part it is judged on, and the baselines beside it.
    split
        None: that of the data set.
    name
        Of the predictor, for the report.
    config
        The resolved config, for the ODMAP protocol.
    folder
        Run folder: its ``model.json`` and ``ladder.csv`` are read if they are there.
    importance_repeats
        Shufflings per group of inputs; 0: no importance.

    Returns
    -------
    Findings
        All that a report tells.

    Raises
    ------
    DataError
        The data set has no split, its part is empty, or no site can be scored.
    """
    split = split or dataset.needed_split()
    sites = scorable_sites(dataset, split.part(options.part), [predictor])
    tables = predictions_beside(
        predictor,
        dataset,
        split,
        sites,
        baselines=options.baselines,
        name=name,
        seed=seed,
        progress=progress,
    )
    predictions = tables[name]
    blocks = bootstrap_blocks(dataset.sites.loc[list(sites)])
    train = list(split.part("train"))
    dissimilarity, threshold = _applicability(dataset, train, sites, predictor.sees.needs_tile)
    groups = input_groups(dataset)
    used = used_groups(groups, predictor.sees)
    importance = None
    if importance_repeats and used:
        importance = permutation_importance(
            predictor,
            dataset,
            sites,
            groups=used,
            repeats=importance_repeats,
            seed=seed,
            progress=progress,
        )
    return Findings(
        name=name,
        part=options.part,
        dataset=dataset,
        split=split,
        scores=scores_beside(dataset, sites, tables),
        predictions=predictions,
        interval=score_interval(dataset, sites, predictions, blocks=blocks, seed=seed),
        comparisons={
            other: compare(
                dataset, sites, predictions, table, names=(name, other), blocks=blocks, seed=seed
            )
            for other, table in tables.items()
            if other != name
        },
        reliability=reliability(dataset, sites, predictions),
        coverage=_coverage(dataset, sites, predictions, seed),
        dissimilarity=dissimilarity,
        threshold=threshold,
        importance=importance,
        not_used=tuple(name for name in groups if name not in used),
        distance_m=_distance(dataset, train, sites),
        model=_read(folder, "model.json"),
        config=config or {},
        ladder=_read_ladder(folder),
    )


def _coverage(
    dataset: Dataset, sites: Sequence[str], predictions: pd.DataFrame, seed: int
) -> pd.DataFrame | None:
    """
    Return the coverage of intervals learned on some of the held-out sites and tried on others.
    """
    try:
        folds = spatial_folds(
            dataset.sites.loc[list(sites)], distance_m=4000.0, n_folds=4, seed=seed
        )
        fold_of = pd.Series(
            {site: number for number, fold in enumerate(folds) for site in fold.validation}
        )
        return cross_coverage(dataset, predictions, fold_of)[0]
    except DataError:  # too few sites or clusters for intervals
        return None


def _applicability(
    dataset: Dataset, train: Sequence[str], sites: Sequence[str], bands: bool
) -> tuple[pd.Series | None, float | None]:
    bands = bands and dataset.tiles is not None
    if dataset.covariates is None and not bands:
        return None, None
    if bands:
        have = set(dataset.sites_with_tiles)
        train = [site for site in train if site in have]
    try:
        looked = Sees.of(dataset, image=bands, covariates=True)
        table = site_numbers(dataset, [*train, *sites], looked)
        fold_of = pd.Series(
            neighbour_clusters(dataset.sites.loc[list(train)], distance_m=4000.0), index=list(train)
        )
        area = Applicability.fit(table.loc[list(train)], fold_of=fold_of)
    except DataError:  # too few training sites, or nothing that varies
        return None, None
    return area.dissimilarity(
        table.loc[list(sites)].fillna(table.loc[list(train)].mean())
    ), area.threshold


def _distance(dataset: Dataset, train: Sequence[str], sites: Sequence[str]) -> pd.Series:
    from scipy.spatial import KDTree

    position = dataset.sites[["easting", "northing"]]
    distance = KDTree(position.loc[list(train)].to_numpy(dtype=float)).query(
        position.loc[list(sites)].to_numpy(dtype=float)
    )[0]
    return pd.Series(distance, index=list(sites), name="distance_m")


def _read(folder: Path | None, name: str) -> dict[str, Any]:
    path = None if folder is None else Path(folder) / name
    if path is None or not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _read_ladder(folder: Path | None) -> pd.DataFrame | None:
    path = None if folder is None else Path(folder) / "ladder.csv"
    return (
        pd.read_csv(path, index_col="predictor", keep_default_na=True)
        if path is not None and path.is_file()
        else None
    )
