"""Train the best known predictor of British butterflies on the published data and predict every unseen site."""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
from pyproj import Transformer

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.config import load_config
from butterfly_sdm.data.dataset import Dataset, DatasetCard
from butterfly_sdm.data.splits import Split, spatial_folds
from butterfly_sdm.evaluation.compare import compare, score_interval
from butterfly_sdm.evaluation.scores import score_predictions
from butterfly_sdm.pipeline import make_predictor

CONFIG = Path(__file__).parents[1] / "configs" / "s2bms_best.yaml"
FOLDS = {"distance_m": 2900.0, "n_folds": 10}  # gives the distances to training sites that validation sites have


def read_dataset(folder: Path) -> Dataset:
    """Return all sites, those of the test part without visits; GeoCLIP embeddings are covariates geoclip_000 and on."""
    sites = pd.read_csv(folder / "sites.csv").set_index("site_id")
    presence = pd.read_csv(folder / "presence.csv").set_index("site_id")
    covariates = pd.read_csv(folder / "covariates.csv").set_index("site_id").reindex(sites.index)
    with np.load(folder / "geoclip.npz", allow_pickle=False) as stored:
        embedding = pd.DataFrame(stored["embedding"], index=stored["site_id"].astype(str)).reindex(sites.index)
    embedding.columns = [f"geoclip_{number:03d}" for number in range(embedding.shape[1])]
    species = [name for name in presence.columns if name not in ("lon", "lat", "n_visits")]
    visits = presence["n_visits"].reindex(sites.index).fillna(0).astype(int)
    detections = presence[species].mul(presence["n_visits"], axis=0).round().reindex(sites.index).fillna(0).astype(int)
    east, north = Transformer.from_crs(4326, 27700, always_xy=True).transform(sites["lon"], sites["lat"])
    footprints = gpd.GeoSeries.from_wkt(sites["footprint_wkt"], index=sites.index)
    table = gpd.GeoDataFrame(
        {"easting": east, "northing": north, "lon": sites["lon"], "lat": sites["lat"], "visits": visits},
        geometry=footprints,
        crs=4326,
    )
    numbers = pd.concat([covariates, embedding], axis=1)
    parts = [tuple(sites.index[sites["split"] == name]) for name in ("train", "val", "test")]
    card = DatasetCard(name="s2bms", species=tuple(species), covariates=dict.fromkeys(numbers.columns, ""))
    return Dataset(card, table, detections, covariates=numbers, split=Split(*parts, method="official"))


def describe(dataset: Dataset, predictions: dict[str, pd.DataFrame], sites: list[str]) -> None:
    """Print the scores of each, its interval, and the paired interval of the first against the others."""
    names = list(predictions)
    mean = predictions["mean rate"]
    for name in names:
        scores = score_predictions(dataset, sites, predictions[name], reference=mean, name=name)
        interval = score_interval(dataset, sites, predictions[name])
        print(
            f"{name:18s} mse {100 * scores['mse']:.4f}e-2 [{100 * interval.low:.4f}, {100 * interval.high:.4f}]"
            f"  mae {100 * scores['mae']:.3f}e-2  top-10 {scores['top10']:.2%}  top-5 {scores['top5']:.2%}",
            flush=True,
        )
    for name in names[1:]:
        print(compare(dataset, sites, predictions[names[0]], predictions[name], names=(names[0], name)).verdict, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=os.environ.get("BUTTERFLY_SDM_SHARED"), help="folder of the real data")
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"))
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--model", type=Path, help="also save the fitted model (training part only) in this folder")
    parser.add_argument(
        "--test-from",
        choices=["train", "labelled"],
        default="labelled",
        help="learn for the test sites from the training part alone, or from training and validation (default)",
    )
    parser.add_argument(
        "--cross-validate", type=int, metavar="FOLDS", help="instead: this many of ten folds of the training part"
    )
    arguments = parser.parse_args()
    if arguments.shared is None:
        parser.error("name the folder of the real data: --shared DIR, or set BUTTERFLY_SDM_SHARED")
    dataset = read_dataset(Path(arguments.shared, "data", "s2bms"))
    settings = load_config(arguments.config)
    train, validation, test = (list(dataset.split.part(part)) for part in ("train", "validation", "test"))  # type: ignore[union-attr]
    makers = {
        settings.name: lambda: make_predictor(settings),
        "mean rate": lambda: make_baseline("mean_rate"),
        "trees": lambda: make_baseline("trees", max_features=0.35),
    }
    if arguments.cross_validate:
        found: dict[str, list[pd.DataFrame]] = {}
        for fold in spatial_folds(dataset.sites.loc[train], **FOLDS)[: arguments.cross_validate]:  # type: ignore[arg-type]
            fitted = {name: make().fit(dataset, fold.train) for name, make in makers.items()}
            for name, model in [*fitted.items(), *getattr(fitted[settings.name], "fitted", {}).items()]:
                found.setdefault(name, []).append(model.predict(dataset, fold.validation))
            print(f"{fold.method} done", flush=True)
        joined = {name: pd.concat(tables) for name, tables in found.items()}
        describe(dataset, joined, list(joined["mean rate"].index))
        return
    start = time.perf_counter()
    model = makers[settings.name]().fit(dataset, train)
    if arguments.model:
        model.save(arguments.model)  # type: ignore[attr-defined]
    predicted = model.predict(dataset, validation)
    known = train if arguments.test_from == "train" else train + validation
    final = model if arguments.test_from == "train" else makers[settings.name]().fit(dataset, known)
    pd.concat([predicted, final.predict(dataset, test)]).to_csv(arguments.out, float_format="%.6f")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = time.perf_counter() - start
    print(
        f"{arguments.out}: {len(validation)} validation, {len(test)} test sites; {seconds:.0f} s, {memory:.1f} GiB", flush=True
    )
    others = {name: make().fit(dataset, train).predict(dataset, validation) for name, make in list(makers.items())[1:]}
    describe(dataset, {settings.name: predicted} | others, validation)


if __name__ == "__main__":
    main()
