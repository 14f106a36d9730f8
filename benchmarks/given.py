"""
What else lives here: how far predictions get better once something was seen at a place or near it.

Prints the table of docs/measured/given.md on the British butterflies, whether the intervals hold,
and what it costs; with --given it writes conditional predictions of the test sites.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import binom

import butterfly_sdm as bs
from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.community import scaled_linear
from butterfly_sdm.community.calibration import draw_visits
from butterfly_sdm.community.community import Community
from butterfly_sdm.community.evidence import Evidence
from butterfly_sdm.community.given import Given, read_given
from butterfly_sdm.config import load_config
from butterfly_sdm.data.dataset import Dataset, DatasetCard
from butterfly_sdm.data.division import spatial_folds
from butterfly_sdm.evaluation.bootstrap import grid_blocks, mean_interval
from butterfly_sdm.predictors import make_predictor

CONFIG = Path(__file__).parents[1] / "configs" / "s2bms_best.yaml"
FOLDS = 5
DISTANCE_M = 2900.0  # gives the distances to training sites that validation sites have
#: Kinds of models that are mapped with new records: the cheapest there is, and a small network.
MAPPED = {
    "nearest": ["train.model={kind: nearest_sites}", "map.stride_px=8"],
    "network": ["train.fit.epochs=1", "community.folds=2", "train.model.members=1"],
}
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(21)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def mean_predictions(dataset: Dataset, settings: bs.Config, runs: Path) -> dict[str, pd.DataFrame]:
    """Return predictions out of fold, and of the sites outside the training part; kept in files."""
    train = list(dataset.split.train)
    others = [site for site in dataset.site_ids if site not in set(train)]
    folds = spatial_folds(dataset.sites.loc[train], distance_m=DISTANCE_M, n_folds=FOLDS)
    parts = {f"fold_{i}": (fold.train, fold.validation) for i, fold in enumerate(folds)}
    parts["held_out"] = (train, others)
    found = {}
    for name, (known, asked) in parts.items():
        path = runs / "mean" / f"{name}.parquet"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            start = time.process_time()
            predictor = make_predictor(settings.train.model, settings.train.fit, settings.seed)
            predictor.fit(dataset, list(known)).predict(dataset, list(asked)).to_parquet(path)
            print(f"{name}: {time.process_time() - start:.0f} CPU s", flush=True)
        found[name] = pd.read_parquet(path)
    return found


def out_of_fold(predictions: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.Series]:
    folds = {int(name[5:]): table for name, table in predictions.items() if "fold_" in name}
    fold_of = pd.concat([pd.Series(i, index=table.index) for i, table in folds.items()])
    return pd.concat(folds.values()), fold_of


class Sites:
    """Sites that the mean and the community have not seen, with what was found there."""

    def __init__(self, dataset: Dataset, predictions: pd.DataFrame) -> None:
        self.dataset, self.q = dataset, predictions.clip(0, 1)
        self.k, self.n = dataset.counts(list(predictions.index))
        self.block = grid_blocks(dataset.sites.loc[predictions.index])

    def take(self, use: np.ndarray) -> Sites:
        return Sites(self.dataset, self.q[use])

    def given(self, k: np.ndarray, n: np.ndarray | float) -> Given:
        table = pd.DataFrame(k, index=self.q.index, columns=self.q.columns)
        counts = n if np.isscalar(n) else pd.DataFrame(n, index=table.index, columns=table.columns)
        return Given.of_counts(table, counts)


def settings_of(sites: Sites, draws: int) -> Iterator[tuple[str, Sites, list[tuple]]]:
    """Yield 1, 2 and 5 visits and half of the species: what is known, what is asked, what is so."""
    rng = np.random.default_rng(1)
    for visits in (1, 2, 5):
        part = sites.take(sites.n > visits + 5)
        drawn = []
        for _ in range(draws):
            k = draw_visits(part.k, part.n, visits, rng)
            rest = (part.k - k) / (part.n - visits)[:, None]
            drawn.append((k, np.full_like(k, visits), rest, np.ones(k.shape, dtype=bool)))
        yield f"{visits} visit{'s' * (visits > 1)}", part, drawn
    width = sites.k.shape[1]
    drawn = []
    rate = sites.k / sites.n[:, None]
    for _ in range(draws // 2):
        first = np.tile(np.arange(width) < width // 2, (len(sites.k), 1))
        half = rng.permuted(first, axis=1)
        for known in (half, ~half):  # so that every species is asked equally often
            drawn.append((sites.k * known, sites.n[:, None] * known, rate, ~known))
    yield "half", sites, drawn


def table(community: Community, sites: Sites, draws: int) -> None:
    """Print the mean squared errors with paired intervals over blocks."""
    alone_in = np.diag(np.diag(community.linear))
    for name, part, drawn in settings_of(sites, draws):
        errors = {"model alone": 0.0, "species by species": 0.0, "joint": 0.0}
        for k, n, rate, asked in drawn:
            q = part.q.to_numpy()
            claims = {
                "model alone": q,
                "species by species": scaled_linear.condition(q, alone_in, Evidence(k, n)),
                "joint": community.condition(part.q, part.given(k, n)).probability.to_numpy(),
            }
            for method, claim in claims.items():
                each = ((claim - rate) ** 2 * asked).sum(axis=1) / asked.sum(axis=1)
                errors[method] = errors[method] + 100 * each / len(drawn)
        joint = errors["joint"]
        text = "  ".join(f"{method} {error.mean():.4f}" for method, error in errors.items())
        for other in ("model alone", "species by species"):
            gain = mean_interval(joint - errors[other], part.block)
            text += f"  less than {other} {gain.estimate:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        print(f"{name:9s} {len(part.k)} sites  {text}", flush=True)


def inside(low: np.ndarray, high: np.ndarray, k: np.ndarray, n: np.ndarray, rng) -> np.ndarray:
    """
    Return whether a count lies in the middle 90 % of what an interval of rates implies for it: ends
    of whole numbers are drawn, so that a right interval holds 90 % and not more.
    """
    ends = logit(np.clip(low, 1e-9, 1 - 1e-9)), logit(np.clip(high, 1e-9, 1 - 1e-9))
    middle, sd = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2 / 1.6449
    below, exactly = np.zeros_like(low), np.zeros_like(low)
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        rate = expit(middle + sd * node)
        below += weight * binom.cdf(k - 1, n, rate)
        exactly += weight * binom.pmf(k, n, rate)
    u = below + rng.random(k.shape) * exactly
    return (u > 0.05) & (u < 0.95)


def coverage(
    name: str, pairs: list[tuple[Community, Sites]], truth: pd.DataFrame | None = None
) -> None:
    """Print how often the intervals hold where 0, 1, 2 and 5 visits are known."""
    for visits in (0, 1, 2, 5):
        rng = np.random.default_rng(visits)
        rows = []
        for community, sites in pairs:
            part = sites.take(sites.n > visits + 5)
            k = draw_visits(part.k, part.n, visits, rng)
            left = part.n - visits
            belief = community.condition(part.q, part.given(k, visits), visits=left)
            low, high = belief.low.to_numpy(), belief.high.to_numpy()
            count = part.k - k
            found = {"rates": inside(low, high, count, left[:, None], rng).mean(axis=1)}
            if truth is not None:
                so = truth.loc[part.q.index, part.q.columns].to_numpy()
                found["true rates"] = ((low <= so) & (so <= high)).mean(axis=1)
            number, span = (count > 0).sum(axis=1), belief.richness
            found["richness"] = (span["low"] <= number) & (number <= span["high"])
            found["width"] = span["high"] - span["low"]
            found["error"] = np.abs(span["expected"] - number)
            rows.append(pd.DataFrame(found, index=part.q.index).assign(block=part.block))
        all_rows = pd.concat(rows)
        text = []
        for column in all_rows.columns.drop("block"):
            span = mean_interval(all_rows[column].to_numpy(float), all_rows["block"])
            text.append(f"{column} {span.estimate:.3f} [{span.low:.3f}, {span.high:.3f}]")
        print(f"{name}: {visits} known, {len(all_rows)} sites  {'  '.join(text)}", flush=True)


def partial_lists(pairs: list[tuple[Community, Sites]], draws: int) -> None:
    """Print what five species of a day tell of all others, beside the whole list."""
    rng, errors, blocks = np.random.default_rng(0), {}, []
    for community, sites in pairs:
        part = sites.take(sites.n > 6)
        blocks.append(part.block)
        total: dict[str, np.ndarray] = {}
        for _ in range(draws):
            day = draw_visits(part.k, part.n, 1, rng)
            rank = np.argsort(np.argsort(-(day + rng.random(day.shape)), axis=1), axis=1)
            told = day * (rank < 5)
            rest, asked = (part.k - day) / (part.n - 1)[:, None], told == 0
            lists = pd.DataFrame(told, index=part.q.index, columns=part.q.columns)
            lists = lists[lists.any(axis=1)].rename_axis("place")
            empty = part.given(day * 0, 0)
            ways = {
                "nothing": empty,
                "listed only": part.given(told, told),
                "unlisted absent": part.given(told, 1.0),
                "partial": Given(empty.detections, empty.visits, empty.effort, lists),
                "whole list": part.given(day, 1.0),
            }
            for way, given in ways.items():
                claim = community.condition(part.q, given).probability.to_numpy()
                each = ((claim - rest) ** 2 * asked).sum(axis=1) / asked.sum(axis=1)
                total[way] = total.get(way, 0.0) + 100 * each / draws
        for way, error in total.items():
            errors.setdefault(way, []).append(error)
    block, joined = pd.concat(blocks), {way: np.concatenate(e) for way, e in errors.items()}
    for way, error in joined.items():
        gain = mean_interval(error - joined["nothing"], block)
        print(f"five told, {way}: {error.mean():.4f}, against nothing {_signed(gain)}", flush=True)
    print(
        "partial against whole:",
        _signed(mean_interval(joined["partial"] - joined["whole list"], block)),
    )


def _signed(span) -> str:
    return f"{span.estimate:+.4f} [{span.low:+.4f}, {span.high:+.4f}]"


def near_records(pairs: list[tuple[Community, Sites]], draws: int) -> None:
    """Print what new records of half of the sites say of the other half, by distance."""
    rng, rows = np.random.default_rng(0), []
    for community, sites in pairs:
        for _ in range(draws):
            known = rng.random(len(sites.k)) < 0.5
            told, asked = sites.take(known), sites.take(~known)
            at, there = (
                part.dataset.sites.loc[part.q.index, ["easting", "northing"]].to_numpy(float)
                for part in (told, asked)
            )
            records = community.records(
                told.q, told.given(told.k, told.n[:, None] + 0 * told.k), at
            )
            two = draw_visits(asked.k, asked.n, 2, rng)
            rate, rest = asked.k / asked.n[:, None], (asked.k - two) / (asked.n - 2)[:, None]

            own = asked.given(two, 2.0)
            away = np.hypot(*(there[:, None] - at[None]).transpose(2, 0, 1)).min(axis=1)
            by = (community, asked, there)
            rows.append(
                pd.DataFrame(
                    {
                        "away": away,
                        "block": asked.block,
                        "none": _error(*by, None, None, rate),
                        "near": _error(*by, None, records, rate),
                        "two": _error(*by, own, None, rest),
                        "two and near": _error(*by, own, records, rest),
                    }
                )
            )
    found = pd.concat(rows)
    for low, high in ((0, 5e3), (5e3, 15e3), (15e3, np.inf)):
        part = found[(found["away"] >= low) & (found["away"] < high)]
        for before, after in (("none", "near"), ("two", "two and near")):
            gain = mean_interval((part[after] - part[before]).to_numpy(), part["block"])
            print(
                f"{low / 1e3:g} to {high / 1e3:g} km from a record ({len(part)} sites), "
                f"{before}: {part[before].mean():.4f} -> {part[after].mean():.4f}, {_signed(gain)}",
                flush=True,
            )


def _error(community, asked, there, given, records, so) -> np.ndarray:
    claim = community.condition(asked.q, given, positions=there, records=records).probability
    return 100 * ((claim.to_numpy() - so) ** 2).mean(axis=1)


def speed(community: Community, sites: Sites) -> None:
    """Print the CPU time of 10,000 places that each have a list of their own."""
    rng = np.random.default_rng(0)
    q = np.tile(sites.q.to_numpy(), (10_000 // len(sites.q) + 1, 1))[:10_000]
    ids = pd.Index([f"p{i}" for i in range(len(q))], name="place")
    predictions = pd.DataFrame(q, index=ids, columns=sites.q.columns)
    seen = pd.DataFrame((rng.random(q.shape) < q).astype(float), index=ids, columns=sites.q.columns)
    start = time.process_time()
    community.condition(predictions, Given.of_counts(seen, 1.0))
    print(f"10,000 places x {q.shape[1]} species: {time.process_time() - start:.1f} CPU s")


def map_cost(folder: Path) -> None:
    """Print what 100 new records add to the cost of a map, dense and position by position."""
    region = bs.simulate_region(folder / "small_region", size_px=2048, n_sites=150, n_species=24)
    flat = ["map.audit=0", "map.beside=[]", "build.split.buffer_m=0"]
    rng = np.random.default_rng(0)
    for kind, more in MAPPED.items():
        changes = [*flat, *more]
        dataset = bs.build(region.config, folder / "region_data", overrides=changes)
        run = bs.train(region.config, folder / kind, dataset=dataset, overrides=changes)
        bs.fit_community(run, overrides=changes)
        # whatever neighbours were found to share: here all records are to pull
        at = run.folder / "community"
        key = json.loads((at / "community.json").read_text())["key"]
        replace(bs.Run.open(run.folder).community, share=0.5, reach_m=10_000.0).save(
            at, more={"key": key}
        )
        run = bs.Run.open(run.folder)
        left, bottom, right, top = dataset.sites.total_bounds
        given = pd.DataFrame(
            {
                "lon": rng.uniform(left, right, 100).round(5),
                "lat": rng.uniform(bottom, top, 100).round(5),
                "species": rng.choice(dataset.species, 100),
                "seen": "yes",
            }
        )
        path = folder / "records.csv"
        given.to_csv(path, index=False)
        spent: dict[str, list[float]] = {"plain": [], "with records": []}
        for _ in range(3):
            for name, seen in (("plain", None), ("with records", path)):
                start = time.process_time()
                bs.predict_map(run, out=folder / "map.tif", given=seen, overrides=changes)
                spent[name].append(time.process_time() - start)
        plain, moved = (float(np.median(spent[name])) for name in spent)
        print(f"map, {kind}: {plain:.1f} CPU s, with 100 records {moved:.1f}: {moved / plain:.2f}")


def simulated(folder: Path) -> tuple[list[tuple[Community, Sites]], pd.DataFrame]:
    """Return communities of a simulated region with the sites they have not seen, and its truth."""
    region = bs.simulate_region(folder, size_px=4096, n_sites=600, n_species=24)
    truth = pd.read_csv(region.truth_table, dtype={"site_id": str}).set_index("site_id")
    detections = pd.read_csv(region.truth_detections, dtype={"site_id": str}).set_index("site_id")
    names = list(region.species)
    covariates = pd.read_csv(region.covariates, dtype={"site_id": str}).set_index("site_id")
    import geopandas as gpd

    columns = {
        "easting": truth["easting"],
        "northing": truth["northing"],
        "visits": truth["visits"],
    }
    shapes = gpd.points_from_xy(truth["easting"], truth["northing"], crs="EPSG:27700")
    sites = gpd.GeoDataFrame(columns, geometry=shapes, index=truth.index).to_crs(4326)
    dataset = Dataset(
        DatasetCard(name="simulated", species=tuple(names), position_crs="EPSG:27700"),
        sites,
        detections.loc[truth.index, names].astype("int64"),
        covariates=covariates.reindex(truth.index).select_dtypes("number"),
    )
    dataset = _only_visited(dataset)
    outer = spatial_folds(dataset.sites, distance_m=1500.0, n_folds=5)
    fitted = []
    for part in outer:
        inner = spatial_folds(dataset.sites.loc[list(part.train)], distance_m=1500.0, n_folds=5)
        held = {}
        for number, fold in enumerate(inner):
            trees = make_baseline("trees").fit(dataset, list(fold.train))
            held[f"fold_{number}"] = trees.predict(dataset, list(fold.validation))
        community = Community.fit(dataset, *out_of_fold(held))
        asked = (
            make_baseline("trees")
            .fit(dataset, list(part.train))
            .predict(dataset, list(part.validation))
        )
        fitted.append((community, Sites(dataset, asked)))
    return fitted, truth[names]


def season(draws: int) -> None:
    """
    Print what the days of given visits are worth, on simulated visits whose season is known.

    Every site was visited ten times within eight weeks of its own. Compared are the community that
    knows the season, the same with the days of what is given ignored, and one that ignores all
    days; against the true rates over the season.
    """
    sys.path.insert(0, str(CONFIG.parents[1]))
    from butterfly_sdm.season.seasons import Seasons
    from tests.community.worlds import dated_world
    from tests.season.worlds import WEEKS

    worlds = []
    for seed in range(3):
        dataset, q, truth, fold_of, chances = dated_world(sites=1200, seed=seed)
        train, asked = list(dataset.split.train), list(dataset.split.validation)
        seasons = Seasons.of(dataset, train)
        fitted = [
            Community.fit(dataset, q.loc[train], fold_of.loc[train], seasons=one)
            for one in (seasons, None)
        ]
        prior = q.loc[asked].rename_axis("place")
        worlds.append((prior, truth.loc[asked].to_numpy(), chances[dataset.rows(asked)], *fitted))
    rng = np.random.default_rng(4)
    weeks_of: dict[str, Callable[[tuple[int, int]], np.ndarray]] = {
        "in spring": lambda shape: rng.integers(0, 9, shape),
        "any time": lambda shape: rng.integers(0, WEEKS, shape),
        "evenly": lambda shape: (
            (rng.random((shape[0], 1)) + np.arange(shape[1])) * (WEEKS / shape[1])
        ).astype(int),
    }
    for visits in (1, 2, 5):
        for name, draw_weeks in weeks_of.items():
            parts = []
            for world in worlds:
                shape = len(world[0]), visits
                weeks = (draw_weeks(shape) for _ in range(max(draws // 5, 1)))
                parts.append(_with_days(*world, weeks))
            found = pd.concat(parts)
            inside_ = found.pop("inside").mean()
            text = "  ".join(f"{method} {each.mean():.3f}" for method, each in found.items())
            for other in ("days of given visits ignored", "all days ignored"):
                less = (found["days"] - found[other]).to_numpy()
                half = 1.96 * less.std() / np.sqrt(len(less))
                text += f"  less than {other} {less.mean():+.3f} [{less.mean() - half:+.3f}, "
                text += f"{less.mean() + half:+.3f}]"
            print(f"{visits} visits {name}: {text}  inside {inside_:.3f}", flush=True)


def _with_days(
    prior: pd.DataFrame,
    so: np.ndarray,
    chances: np.ndarray,
    knows: Community,
    ignorant: Community,
    weeks: Iterable[np.ndarray],
) -> pd.DataFrame:
    """Return the errors of each way at each place, and the share inside; means over draws."""
    from tests.community.worlds import lists_in_weeks

    drawn = []
    for draw, seen_in in enumerate(weeks):
        told = lists_in_weeks(chances, prior.index, list(prior.columns), seen_in, seed=draw)
        bare = replace(told, dated=told.dated.iloc[:0])
        belief = knows.condition(prior, told)
        claims = {
            "model alone": prior,
            "days": belief.probability,
            "days of given visits ignored": knows.condition(prior, bare).probability,
            "all days ignored": ignorant.condition(prior, bare).probability,
        }
        found = {
            method: 100 * ((claim.to_numpy() - so) ** 2).mean(axis=1)
            for method, claim in claims.items()
        }
        held = (belief.low.to_numpy() <= so) & (so <= belief.high.to_numpy())
        drawn.append(pd.DataFrame(found | {"inside": held.mean(axis=1)}, index=prior.index))
    return sum(drawn[1:], drawn[0]) / len(drawn)


def _only_visited(dataset: Dataset) -> Dataset:
    keep = dataset.sites["visits"] > 0
    table = None if dataset.covariates is None else dataset.covariates[keep]
    return replace(
        dataset, sites=dataset.sites[keep], detections=dataset.detections[keep], covariates=table
    )


def write_predictions(
    community: Community, sites: Sites, visits: Path, out: Path, target: list[str]
) -> None:
    """Write what is predicted of the test sites given a file of visits to them."""
    text = pd.read_csv(visits, dtype=str)
    text = text.rename(columns={"site_id": "place"})
    given = read_given(text, community.species, usual_visits=community.visits)
    belief = community.condition(sites.q.loc[target], given)
    belief.probability.rename_axis("site_id").to_csv(out)
    for name in ("low", "high"):
        getattr(belief, name).rename_axis("site_id").to_csv(out.with_stem(f"{out.stem}_{name}"))
    belief.richness.rename_axis("site_id").to_csv(out.with_stem(f"{out.stem}_richness"))
    told = len(set(given.places) & set(target))
    print(f"{out}: {len(target)} test sites, of {told} of which something is known", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, help="the real data; else BUTTERFLY_SDM_SHARED")
    parser.add_argument("--runs", type=Path, default=Path("runs", "given"), help="what is kept")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument(
        "--only",
        nargs="*",
        help="table, validation, folds, lists, near, speed, simulator, map, season",
    )
    parser.add_argument("--given", type=Path, help="CSV of visits to test sites: see docs/given.md")
    parser.add_argument("--out", type=Path, default=Path("predictions_given.csv"))
    arguments = parser.parse_args()
    if arguments.shared is not None:
        os.environ["BUTTERFLY_SDM_SHARED"] = str(arguments.shared)
    every = "table validation folds lists near speed simulator map season".split()
    wanted = set(arguments.only or every)
    if "season" in wanted:
        season(arguments.draws)
        if wanted == {"season"}:
            return
    settings = load_config(CONFIG)
    dataset = bs.build(settings, arguments.runs / "dataset")
    predictions = mean_predictions(dataset, settings, arguments.runs)
    oof, fold_of = out_of_fold(predictions)
    start = time.process_time()
    community = Community.fit(dataset, oof, fold_of)
    print(
        f"community fitted in {time.process_time() - start:.1f} CPU s; {_said(community)}",
        flush=True,
    )
    held = predictions["held_out"]
    if arguments.given is not None:
        target = list(dataset.split.test)
        write_predictions(community, Sites(dataset, held), arguments.given, arguments.out, target)
        return
    validation = Sites(dataset, held.loc[list(dataset.split.validation)])
    steps: dict[str, Callable[[], None]] = {
        "table": lambda: table(community, validation, arguments.draws),
        "validation": lambda: coverage("validation", [(community, validation)]),
        "speed": lambda: speed(community, validation),
    }
    if wanted & {"folds", "lists", "near"}:
        pairs = []
        for fold in range(FOLDS):
            known = fold_of.index[fold_of != fold]
            part = Community.fit(dataset, oof.loc[known], fold_of.loc[known])
            pairs.append((part, Sites(dataset, oof[~oof.index.isin(known)])))
        steps |= {
            "folds": lambda: coverage("training folds", pairs),
            "lists": lambda: partial_lists(pairs, 4),
            "near": lambda: near_records(pairs, 4),
        }
    if "simulator" in wanted:
        fitted, truth = simulated(arguments.runs / "region")
        steps["simulator"] = lambda: coverage("simulator", fitted, truth)
    steps["map"] = lambda: map_cost(arguments.runs)
    for name, step in steps.items():
        if name in wanted:
            step()


def _said(community: Community) -> str:
    return (
        f"{community.sites} sites, neighbours share {community.share:g} within "
        f"{community.reach_m / 1000:g} km, usual visits {community.visits:g}"
    )


if __name__ == "__main__":
    main()
