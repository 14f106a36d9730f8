"""
Train the best known predictor of British butterflies on the published data and predict every unseen
site.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path

import pandas as pd

import butterfly_sdm as bs
from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.config import load_config
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.division import spatial_folds
from butterfly_sdm.evaluation.compare import compare, score_interval
from butterfly_sdm.evaluation.scores import score_predictions
from butterfly_sdm.predictors import make_predictor

CONFIG = Path(__file__).parents[1] / "configs" / "s2bms_best.yaml"
# gives the distances to training sites that validation sites have
FOLDS = {
    "distance_m": 2900.0,
    "n_folds": 10,
}


def describe(dataset: Dataset, predictions: dict[str, pd.DataFrame]) -> None:
    """
    Print the scores of each, its interval, and the paired interval of the first against the others.
    """
    names = list(predictions)
    sites = list(predictions[names[0]].index)
    for name in names:
        scores = score_predictions(
            dataset, sites, predictions[name], reference=predictions["mean rate"], name=name
        )
        interval = score_interval(dataset, sites, predictions[name])
        print(
            f"{name:18s} mse {100 * scores['mse']:.4f}e-2 [{100 * interval.low:.4f}, "
            f"{100 * interval.high:.4f}]"
            f"  mae {100 * scores['mae']:.3f}e-2  top-10 {scores['top10']:.2%}  top-5 "
            f"{scores['top5']:.2%}",
            flush=True,
        )
    for name in names[1:]:
        print(
            compare(
                dataset, sites, predictions[names[0]], predictions[name], names=(names[0], name)
            ).verdict,
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shared", type=Path, help="folder of the real data; by default BUTTERFLY_SDM_SHARED"
    )
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs", "s2bms_best"),
        help="folder of the data set and the run",
    )
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"))
    parser.add_argument(
        "--cross-validate",
        type=int,
        metavar="FOLDS",
        help="only: this many of ten folds of the training part",
    )
    arguments = parser.parse_args()
    if arguments.shared is not None:
        os.environ["BUTTERFLY_SDM_SHARED"] = str(arguments.shared.resolve())
    if "BUTTERFLY_SDM_SHARED" not in os.environ:
        parser.error("name the folder of the real data: --shared DIR, or set BUTTERFLY_SDM_SHARED")
    start = time.perf_counter()
    settings = load_config(arguments.config)
    dataset = bs.build(settings, arguments.runs / "dataset")
    train, validation, test = (
        list(dataset.split.part(part)) for part in ("train", "validation", "test")
    )  # type: ignore[union-attr]
    makers = {
        settings.name: lambda: make_predictor(
            settings.train.model, settings.train.fit, settings.seed
        ),
        "mean rate": lambda: make_baseline("mean_rate"),
        "trees": lambda: make_baseline("trees", max_features=0.35),
    }
    if arguments.cross_validate:
        found: dict[str, list[pd.DataFrame]] = {}
        for fold in spatial_folds(dataset.sites.loc[train], **FOLDS)[: arguments.cross_validate]:  # type: ignore[arg-type]
            fitted = {name: make().fit(dataset, fold.train) for name, make in makers.items()}
            for name, model in [
                *fitted.items(),
                *getattr(fitted[settings.name], "fitted", {}).items(),
            ]:
                found.setdefault(name, []).append(model.predict(dataset, fold.validation))
            print(f"{fold.method} done", flush=True)
        describe(dataset, {name: pd.concat(tables) for name, tables in found.items()})
        return
    predicted = bs.train(settings, arguments.runs / "run", dataset=dataset).predictor.predict(
        dataset, validation
    )
    final = makers[settings.name]().fit(dataset, train + validation)
    pd.concat([predicted, final.predict(dataset, test)]).to_csv(arguments.out, float_format="%.6f")
    seconds, memory = (
        time.perf_counter() - start,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    )
    print(
        f"{arguments.out}: {len(validation)} validation, {len(test)} test sites; {seconds:.0f} s, "
        f"{memory:.1f} GiB",
        flush=True,
    )


if __name__ == "__main__":
    main()
