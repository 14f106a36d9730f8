"""
Every kind of predictor x CRS x layer x what the data set holds: a map that tells what ``predict``
tells at the same places, or one sentence before any work is done.
"""

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window
from shapely.geometry import box

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.data.dataset import Dataset, DatasetCard, TileCard
from butterfly_sdm.data.predictor import UNKNOWN_CRS, Members, Predictor, Sees
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import ButterflySDMError, DataError, ModelError, RasterError
from butterfly_sdm.imagery.scene import Scene, open_scene
from butterfly_sdm.map_of_run import MapOfRun
from butterfly_sdm.mapping import MapOptions
from butterfly_sdm.mapping.layers import NAMED, Layer
from butterfly_sdm.mapping.surfaces.networks import embedders
from butterfly_sdm.models.ensemble import Ensemble
from butterfly_sdm.models.network_predictor import NetworkPredictor
from tests.mapping.world import BANDS, map_of, read, write_scene

ROWS, COLS, SIDE = 4, 6, 320  # positions down and across, metres
TILE_PX = 96
SPECIES = ("Aglais io", "Pieris napi")
CORNERS = {
    "EPSG:27700": (400_000, 300_160),  # Britain
    "EPSG:32617": (640_000, 4_240_000),  # Virginia
    "EPSG:32755": (320_000, 5_808_000),  # Victoria
}
HOLDS = [frozenset(held) for held in ((), ("tiles",), ("covariates",), ("tiles", "covariates"))]
QUICK_NETWORK = {
    "backbone": "test_resnet",
    "window_px": 32,
    "margin_px": 32,
    "embedding": 8,
    "head_width": 8,
    "epochs": 1,
    "batch_size": 16,
    "augment": False,
    "regulariser": None,
    "accelerator": "cpu",
}
INPUTS = [
    dict(zip(("image", "covariates", "position"), on, strict=True))
    for on in product((True, False), repeat=3)
    if any(on)
]


def network(**inputs: bool) -> NetworkPredictor:
    return NetworkPredictor(**QUICK_NETWORK, **inputs)


def tabular(kind: str, image: bool, covariates: bool, position: bool, **options) -> Predictor:
    return make_baseline(kind, bands=image, covariates=covariates, position=position, **options)


def kinds() -> dict[str, object]:
    """Return what makes an unfitted predictor, by name."""
    found = {
        "mean_rate": lambda: make_baseline("mean_rate"),
        "regional_rate": lambda: make_baseline("regional_rate"),
        "nearest_sites": lambda: make_baseline("nearest_sites", neighbours=5),
        "random_features": lambda: make_baseline("random_features", filters=4),
        "gaussian_process": lambda: make_baseline("gaussian_process", steps=3),
        "perceptron": lambda: make_baseline("perceptron", networks=1, epochs=2),
        "stacking": lambda: make_baseline(
            "stacking",
            members="nearest_sites,trees,random_features",
            weights="0.5,0.3,0.2",
            **{"trees.trees": 5, "random_features.filters": 4},
        ),
        "ensemble": lambda: Ensemble.of_networks(2, **QUICK_NETWORK),
        "ensemble beside": lambda: Ensemble.of_networks(
            2, **QUICK_NETWORK, covariates=True, position=True
        ),
        "mixed ensemble": lambda: Ensemble(
            [make_baseline("nearest_sites"), tabular("linear", False, True, True)]
        ),
    }
    quick = {"trees": {"trees": 5}, "boosting": {"rounds": 3}, "linear": {}, "maxent": {}}
    for inputs in INPUTS:
        words = " ".join(name for name, on in inputs.items() if on)
        found[f"network {words}"] = lambda inputs=inputs: network(**inputs)
        for kind, options in quick.items():
            found[f"{kind} {words}"] = lambda k=kind, i=inputs, o=options: tabular(k, **i, **o)
    return found


KINDS = kinds()
DAILY = {
    "mean_rate",
    "regional_rate",
    "nearest_sites",
    "random_features",
    "gaussian_process",
    "perceptron",
    "stacking",
    "ensemble",
    "mixed ensemble",
    "trees position",
    "linear position",
    "trees image covariates position",
    "linear covariates",
    "network image",
    "network image covariates position",
}
LEARNED = ("network", "ensemble", "perceptron")  # take a second or more to fit


def daily_crs(kind: str) -> str:
    """Return the CRS in which a kind is mapped daily: they take turns."""
    if kind.startswith(LEARNED):
        return "EPSG:32755"
    turn = [name for name in sorted(DAILY) if not name.startswith(LEARNED)].index(kind)
    return list(CORNERS)[turn % len(CORNERS)]


def cases():
    for kind, crs, held in product(KINDS, CORNERS, HOLDS):
        daily = kind in DAILY and held == HOLDS[-1] and crs == daily_crs(kind)
        marks = () if daily else pytest.mark.slow
        holds = " and ".join(sorted(held)) or "nothing"
        yield pytest.param(kind, crs, held, id=f"{kind}-{crs}-{holds}", marks=marks)


@cache
def scene_in(crs: str) -> Scene:
    folder = Path(mkdtemp(prefix="matrix"))
    left, top = CORNERS[crs]
    shape = {"width": COLS * 32, "height": ROWS * 32}
    return open_scene(write_scene(folder / "scene.tif", **shape, left=left, top=top, crs=crs))


@cache
def covariate_rasters(crs: str) -> dict[str, Path]:
    """Return rasters whose pixels are those of the map."""
    scene, files = scene_in(crs), {}
    for seed, name in enumerate(("rain", "warmth")):
        files[name] = Path(scene.paths[0]).with_name(f"{name}.tif")
        values = np.random.default_rng(seed).normal(10, 2, (1, ROWS, COLS)).astype(np.float32)
        grid = scene.transform * Affine.scale(32)
        with rasterio.open(
            files[name],
            "w",
            driver="GTiff",
            width=COLS,
            height=ROWS,
            count=1,
            dtype="float32",
            crs=crs,
            transform=grid,
        ) as target:
            target.write(values)
    return files


@cache
def sites_in(crs: str, held: frozenset[str]) -> Dataset:
    """Return a data set whose sites lie in the middles of the pixels of a map."""
    scene = scene_in(crs)
    rows, cols = (part.ravel() for part in np.indices((ROWS, COLS)))
    x, y = scene.transform.c + SIDE * (cols + 0.5), scene.transform.f - SIDE * (rows + 0.5)
    ids = pd.Index([f"s{number:02d}" for number in range(len(rows))], name="site_id")
    tiles = covariates = None
    if "tiles" in held:
        tiles = np.empty((len(rows), len(BANDS), TILE_PX, TILE_PX), np.uint16)
        for number, (row, col) in enumerate(zip(rows, cols, strict=True)):
            corner = 32 * col + 16 - TILE_PX // 2, 32 * row + 16 - TILE_PX // 2
            values, valid = scene.read(Window(*map(int, corner), TILE_PX, TILE_PX))
            tiles[number] = np.where(valid, values, scene.nodata)
    if "covariates" in held:
        covariates = pd.DataFrame(index=ids)
        for name, path in covariate_rasters(crs).items():
            with rasterio.open(path) as source:
                covariates[name] = source.read(1).ravel().astype(float)
    random = np.random.default_rng(1)
    rate = 0.2 + 0.6 * np.column_stack([cols / COLS, random.uniform(size=len(rows))])
    rate[cols < 2] = 0  # MaxEnt knows presences only: where they are everywhere it says nothing
    table = {
        "easting": x,
        "northing": y,
        "visits": 20,
        "block": cols // 2,
        "tile_row": np.arange(len(rows)) if tiles is not None else -1,
    }
    return Dataset(
        DatasetCard(
            name="made",
            species=SPECIES,
            position_crs=crs,
            tiles=None
            if tiles is None
            else TileCard(bands=BANDS, size_px=TILE_PX, resolution_m=10.0),
        ),
        gpd.GeoDataFrame(pd.DataFrame(table, index=ids)),
        pd.DataFrame(random.binomial(20, rate), index=ids, columns=list(SPECIES)),
        tiles,
        covariates,
        Split(tuple(ids), ()),
    )


@cache
def fitted(kind: str, crs: str, held: frozenset[str]) -> Predictor | None:
    """Return a fitted predictor; None if the data set does not hold what it learns from."""
    dataset = sites_in(crs, held)
    try:
        return KINDS[kind]().fit(dataset, dataset.site_ids)
    except ButterflySDMError:
        return None


def mapped(predictor: Predictor, crs: str, out: Path, **options):
    rasters = {name: covariate_rasters(crs)[name] for name in predictor.sees.covariates}
    given = {"covariates": rasters, "beside": (), "min_valid_fraction": 0.0} | options
    return map_of(predictor, scene_in(crs), out, **given)


def unlike(predictor: Predictor, dataset: Dataset, crs: str) -> list[Layer]:
    """Return the layers of applicability, as a run would ask for them."""
    run = SimpleNamespace(
        predictor=predictor, dataset=dataset, split=dataset.split, card={"dataset": "."}, folder="."
    )
    options = MapOptions(layers=("applicability",), covariates=covariate_rasters(crs))
    return MapOfRun(run, None, options).applicability(scene_in(crs))


def as_in_a_map(table: pd.DataFrame) -> np.ndarray:
    return table.to_numpy().T.reshape(-1, ROWS, COLS)


@pytest.mark.parametrize(("kind", "crs", "held"), cases())
def test_every_map_tells_what_its_predictor_predicts_there(kind, crs, held, tmp_path):
    predictor, dataset = fitted(kind, crs, held), sites_in(crs, held)
    if predictor is None:
        pytest.skip("cannot be fitted to such a data set, and says so")
    there = as_in_a_map(predictor.predict(dataset, dataset.site_ids))
    made = mapped(predictor, crs, tmp_path / "map.tif", mode="exact")
    np.testing.assert_allclose(read(made), there, atol=2e-6)
    if not kind.endswith("_rate"):
        assert there.std(axis=(1, 2)).max() > 1e-6  # else the test would see nothing

    wanted = dict.fromkeys(NAMED, True) | {
        "spread": isinstance(predictor, Members),
        "applicability": bool(embedders(predictor) or predictor.sees.covariates or held),
    }
    (tmp_path / "layers").mkdir()
    out = tmp_path / "layers" / "map.tif"

    def write(names: list[str]):
        layers = [name for name in names if name != "applicability"]
        if "applicability" in names:
            layers += unlike(predictor, dataset, crs)
        return mapped(predictor, crs, out, mode="exact", layers=layers, presence_above=0.5)

    for layer in (layer for layer, possible in wanted.items() if not possible):
        with pytest.raises(ModelError, match="Leave"):
            write([layer])
        assert not list(out.parent.iterdir())
    possible = [layer for layer, possible in wanted.items() if possible]
    values = read(write(possible))
    seen = bool(embedders(predictor) or predictor.sees.covariates)
    bands = sum(len(NAMED[name].names(SPECIES)) for name in possible if name in NAMED)
    unlike_bands = wanted["applicability"] + (seen and bool(held))
    assert len(values) == 2 + bands + unlike_bands + 2
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(values[:2], read(made))


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("network image", marks=pytest.mark.slow),
        pytest.param("ensemble", marks=pytest.mark.slow),
        "ensemble beside",
    ],
)
@pytest.mark.parametrize("crs", ["EPSG:32755"])
def test_networks_are_mapped_densely_with_spread_and_applicability_at_once(kind, crs, tmp_path):
    predictor, dataset = fitted(kind, crs, HOLDS[-1]), sites_in(crs, HOLDS[-1])
    spread = ["spread"] if isinstance(predictor, Members) else []
    layers = [*spread, *unlike(predictor, dataset, crs)]
    made, exact = (
        mapped(
            predictor, crs, tmp_path / f"{mode}.tif", mode=mode, layers=layers, audit=ROWS * COLS
        )
        for mode in ("dense", "exact")
    )
    assert made.mode == "dense"
    assert np.isfinite(read(made)).all()
    assert read(made).shape == read(exact).shape
    apart = np.abs(read(made) - read(exact))[:2]
    assert apart.max() == pytest.approx(made.audit["max_abs"], abs=2e-6)
    there = as_in_a_map(predictor.predict(dataset, dataset.site_ids))
    np.testing.assert_allclose(read(exact)[:2], there, atol=2e-6)


OPTIONS = [
    {"dtype": "uint16"},
    {"dtype": "uint8"},
    {"grid": "EPSG:32618"},
    {"species": SPECIES[:1]},
    {"withhold": SPECIES[:1]},
    {"coarsen_m": {SPECIES[0]: 1000.0}},
    {"stride_px": 16},
    {"stride_px": 20},
    {"min_valid_fraction": 1.0},
    {"beside": ("stac", "styles", "picture")},
    {"area": box(640_000, 4_239_000, 641_000, 4_240_000)},
    {"presence_above": 0.5},
    {"layers": ["richness", "richness_variance"]},
    {"audit": 0},
    {"block_px": 64},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
@pytest.mark.parametrize(
    "kind",
    [
        "nearest_sites",
        pytest.param("trees image covariates position", marks=pytest.mark.slow),
        pytest.param("ensemble", marks=pytest.mark.slow),
    ],
)
def test_every_option_ends_in_a_map(kind, options, tmp_path):
    predictor = fitted(kind, "EPSG:32617", HOLDS[-1])
    if "area" in options:
        options = {"area": gpd.GeoDataFrame(geometry=[options["area"]], crs="EPSG:32617")}
    made = mapped(predictor, "EPSG:32617", tmp_path / "map.tif", **options)
    assert made.counts["predicted"] > 0
    assert np.isfinite(read(made)).any(axis=(1, 2)).all()


def test_what_sees_only_embeddings_of_sites_is_refused_before_any_work(tmp_path):
    dataset = sites_in("EPSG:27700", HOLDS[-1])
    table = pd.DataFrame(
        np.random.default_rng(0).normal(size=(ROWS * COLS, 4)), dataset.sites.index
    )
    table.columns = list("abcd")
    table.to_csv(tmp_path / "sites.csv")
    probe = make_baseline("probe", embeddings=str(tmp_path / "sites.csv"))
    probe.fit(dataset, dataset.site_ids)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="cannot be mapped"):
        mapped(probe, "EPSG:27700", tmp_path / "out" / "map.tif")
    assert not list((tmp_path / "out").iterdir())


def test_pixels_of_another_size_and_missing_bands_are_refused_for_baselines_too(tmp_path):
    trees = fitted("trees image covariates position", "EPSG:27700", HOLDS[-1])
    scene = scene_in("EPSG:27700")
    options = {"covariates": covariate_rasters("EPSG:27700")}
    with pytest.raises(RasterError, match="lacks nir"):
        map_of(trees, scene.select(BANDS[:3]), tmp_path / "map.tif", **options)
    coarse = replace(scene, resolution_m=20.0)
    with pytest.raises(RasterError, match="pixels of 10 m; the scene has 20 m"):
        map_of(trees, coarse, tmp_path / "map.tif", **options)
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_say_its_crs_is_refused_unless_it_is_named(tmp_path):
    nearest = fitted("nearest_sites", "EPSG:32755", HOLDS[0])
    made = mapped(nearest, "EPSG:32755", tmp_path / "map.tif")
    old = make_baseline("nearest_sites", neighbours=5)
    old.species, old.state = nearest.species, nearest.state
    old._sees = Sees(position_crs=UNKNOWN_CRS)
    with pytest.raises(ModelError, match=r"the CRS of its positions.*map\.position_crs"):
        mapped(old, "EPSG:32755", tmp_path / "old.tif")
    named = mapped(old, "EPSG:32755", tmp_path / "old.tif", position_crs="EPSG:32755")
    np.testing.assert_array_equal(read(named), read(made))
