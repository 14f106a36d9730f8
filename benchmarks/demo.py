"""
The demo, from simulating to the map: CPU seconds of one thread per verb, and how good it is.

    OMP_NUM_THREADS=1 python benchmarks/demo.py OUT --seeds 0 1 2 [--set KEY=VALUE ...]

The settings are those that ``butterfly-sdm demo`` writes, with what ``--set`` changes. No site of
the validation or test part decides anything about the fit, so both judge it.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import torch
from scipy.ndimage import map_coordinates

import butterfly_sdm as bs
from butterfly_sdm.baselines import make_baseline

SECONDS, ALIKE = 110, 0.87


def map_against_truth(map_tif: Path, truth_tif: Path) -> dict[str, float]:
    """Return the correlations of a map with the true probability at its positions."""
    with rasterio.open(map_tif) as mapped, rasterio.open(truth_tif) as known:
        names = [name for name in mapped.descriptions if name in known.descriptions]
        values = mapped.read([mapped.descriptions.index(n) + 1 for n in names], masked=True)
        truth = known.read([known.descriptions.index(n) + 1 for n in names])
        at, to = mapped.transform, known.transform
    values = values.filled(np.nan)
    x = at.c + (np.arange(values.shape[2]) + 0.5) * at.a
    y = at.f + (np.arange(values.shape[1]) + 0.5) * at.e
    places = np.meshgrid((y - to.f) / to.e - 0.5, (x - to.c) / to.a - 0.5, indexing="ij")
    good = np.isfinite(values).all(axis=0)
    for axis, place in enumerate(places):
        good &= (place >= 0) & (place <= truth.shape[axis + 1] - 1)
    there = np.stack([map_coordinates(band, places, order=1) for band in truth])
    alike = [np.corrcoef(p[good], q[good])[0, 1] for p, q in zip(values, there, strict=True)]
    return {"median": float(np.median(alike)), "lowest": float(min(alike))}


def errors(run: bs.Run) -> dict[str, dict[str, float]]:
    """Return the mean square error of the run and of simple predictors on both held-out parts."""
    data = run.dataset
    fitted = {"network": run.predictor}
    for name in ("mean_rate", "nearest_sites", "trees"):
        fitted[name] = make_baseline(name).fit(data, run.split.train)
    table: dict[str, dict[str, float]] = {}
    for name, predictor in fitted.items():
        table[name] = {}
        for part in ("validation", "test"):
            sites = list(getattr(run.split, part))
            claimed = predictor.predict(data, sites)[list(data.species)].to_numpy()
            table[name][part] = float(((claimed - data.rates.loc[sites].to_numpy()) ** 2).mean())
    return table


def walk(out: Path, seed: int, overrides: list[str]) -> dict[str, object]:
    """Walk the demo and return what it cost and how good it is."""
    clock, seconds = time.process_time, {}

    def timed(name, function, *args, **kwargs):
        start = clock()
        result = function(*args, **kwargs)
        seconds[name] = clock() - start
        return result

    shutil.rmtree(out, ignore_errors=True)
    region = timed("simulate", bs.simulate_region, out / "region", seed=seed)
    data = timed("build", bs.build, region.config, out / "dataset", overrides=overrides)
    run = timed("train", bs.train, region.config, out / "run", dataset=data, overrides=overrides)
    timed("evaluate", bs.evaluate, run)
    mapped = timed("map", bs.predict_map, run, out=out / "map.tif")
    return {
        "seed": seed,
        "cpu_s": {name: round(value, 1) for name, value in seconds.items()},
        "all": round(sum(seconds.values()), 1),
        "map": map_against_truth(mapped.path, out / "region" / "truth.tif"),
        "audit": mapped.audit,
        "mse": errors(run),
    }


def main() -> None:
    """Print one line per seed and whether the aims are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in given.seeds:
        found = walk(given.out / f"seed{seed}", seed, given.overrides)
        print(json.dumps(found, default=float), flush=True)
        mse = pd.DataFrame(found["mse"]).T.add_prefix("mse_")
        rows.append(
            {"seed": seed, "cpu_s": found["all"], **found["map"], **mse.loc["network"].to_dict()}
            | {f"trees_{k}": v for k, v in mse.loc["trees"].items()}
        )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="%.4f"))
    print(f"at most {SECONDS} CPU s: {bool((table['cpu_s'] <= SECONDS).all())}")
    print(f"median correlation of map and truth at least {ALIKE}: ", end="")
    print(bool((table["median"] >= ALIKE).all()))


if __name__ == "__main__":
    main()
