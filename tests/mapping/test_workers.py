import time

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import DataError
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.models.ensemble import Ensemble
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.models.presence_net import Architecture, PresenceNet
from tests.mapping.world import BANDS, Windows, map_of, read, write_scene
from tests.trust.faults import processes


def fitted(seed: int = 0, **modalities) -> NetworkPredictor:
    """Return a network predictor with random weights."""
    predictor = NetworkPredictor(
        window_px=64, margin_px=32, embedding=16, accelerator="cpu", batch_size=16, **modalities
    )
    predictor.species = ("Species a", "Species b")
    names = ("warmth",) if modalities.get("covariates") else ()
    crs = "EPSG:27700" if modalities.get("position") else None
    predictor.sees = Sees(BANDS, 64, 32, 10.0, names, crs)
    torch.manual_seed(seed)
    network = PresenceNet(
        Architecture(
            species=2,
            bands=BANDS,
            embedding=16,
            window_px=64,
            margin_px=32,
            covariates=len(names),
            position=modalities.get("position", False),
        )
    )
    network.mean.copy_(torch.tensor([0.07, 0.08, 0.05, 0.32]))
    network.std.copy_(torch.tensor([0.05, 0.05, 0.05, 0.1]))
    network.position_mean.copy_(torch.tensor([401_000.0, 299_000.0]))
    network.position_std.fill_(1000.0)
    nn.init.normal_(network.classifier[-1].weight, std=1.0)
    predictor.network = network.eval()
    return predictor


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return open_scene(
        write_scene(tmp_path_factory.mktemp("scene") / "scene.tif", width=256, height=192)
    )


@pytest.mark.slow
def test_several_processes_give_the_same_map(scene, tmp_path):
    predictor = fitted()
    one = map_of(predictor, scene, tmp_path / "one.tif", audit=5, block_px=128, beside=())
    two = map_of(
        predictor,
        scene,
        tmp_path / "two.tif",
        audit=5,
        block_px=128,
        beside=(),
        workers=2,
    )
    np.testing.assert_allclose(read(one), read(two), atol=2e-6)
    assert not list(tmp_path.glob("*.partial"))


def test_a_dask_cluster_gives_the_same_map(scene, tmp_path):
    distributed = pytest.importorskip("distributed")
    predictor = fitted()
    with (
        distributed.LocalCluster(
            1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp"
        ) as cluster,
    ):
        address = cluster.scheduler_address
        far = map_of(
            predictor,
            scene,
            tmp_path / "far.tif",
            audit=0,
            block_px=128,
            dask=address,
            beside=(),
        )
    near = map_of(predictor, scene, tmp_path / "near.tif", audit=0, block_px=128, beside=())
    np.testing.assert_allclose(read(far), read(near), atol=2e-6)


def test_an_ensemble_of_networks_is_mapped_densely_with_its_spread(scene, tmp_path):
    ensemble = Ensemble([Windows(seed=1), Windows(seed=2)])
    options = {"audit": 0, "beside": (), "layers": ["spread"]}
    dense = map_of(ensemble, scene, tmp_path / "dense.tif", **options)
    assert dense.mode == "dense"
    one, two = (
        read(map_of(member, scene, tmp_path / "m.tif", audit=0)) for member in ensemble.members
    )
    np.testing.assert_allclose(read(dense)[:3], (one + two) / 2, atol=2e-6)
    np.testing.assert_allclose(
        read(dense)[3], np.std([one, two], axis=0, ddof=1).mean(axis=0), atol=2e-6
    )
    exact = map_of(ensemble, scene, tmp_path / "exact.tif", mode="exact", **options)
    assert np.nanmax(np.abs(read(exact) - read(dense))) < 0.2
    assert read(exact)[3].shape == read(dense)[3].shape


def test_covariates_and_position_are_seen_beside_the_image(scene, tmp_path):
    predictor = fitted(covariates=True, position=True)
    with rasterio.open(scene.paths[0]) as source:
        profile = source.profile | {"count": 1, "dtype": "float32", "nodata": -1.0}
    warmth = np.linspace(0, 2, 256 * 192, dtype=np.float32).reshape(192, 256)
    with rasterio.open(tmp_path / "warmth.tif", "w", **profile) as target:
        target.write(warmth, 1)
    options = {"covariates": {"warmth": tmp_path / "warmth.tif"}, "beside": ()}
    dense = map_of(predictor, scene, tmp_path / "dense.tif", mode="dense", audit=100, **options)
    exact = map_of(predictor, scene, tmp_path / "exact.tif", mode="exact", **options)
    apart = np.abs(read(dense) - read(exact))
    assert np.nanmax(apart) == pytest.approx(dense.audit["max_abs"], abs=2e-6)
    assert dense.audit["correlation"] > 0.5
    with pytest.raises(DataError, match="no raster is given for 'warmth'"):
        map_of(predictor, scene, tmp_path / "none.tif")


def _map(scene, out, begun) -> None:
    def slow(task, done, total):
        begun.set()
        time.sleep(0.05)

    options = {"block_px": 64, "audit": 5, "beside": ()}
    map_of(Windows(), open_scene(scene), out, progress=slow, **options)


@pytest.mark.slow
def test_a_map_killed_at_random_moments_ends_as_the_same_bytes(tmp_path):
    path = write_scene(tmp_path / "scene.tif")
    generator = np.random.default_rng(0)

    def run(name: str, kill: bool = False) -> bool:
        begun = processes.Event()
        process = processes.Process(target=_map, args=(path, tmp_path / name, begun))
        process.start()
        assert begun.wait(300)
        process.join(float(generator.uniform(0.0, 1.0)) if kill else None)
        process.kill()
        process.join()
        assert kill or process.exitcode == 0
        return process.exitcode != 0

    run("whole.tif")
    kills = 0
    while kills < 30 and run("map.tif", kill=True):
        kills += 1
    run("map.tif")
    assert kills >= 2
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
