"""
A network trained the package's way says nearly the same of a window seen alone and within a large
block.
"""

import pytest

from butterfly_sdm import pipeline
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.simulate import simulate_region
from tests.mapping.world import map_of


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_over_a_real_scene_a_dense_map_agrees_with_window_by_window(tmp_path, shared):
    region = simulate_region(
        tmp_path / "region", size_px=1024, n_sites=48, n_species=6, tile_px=256
    )
    settings = [
        "train.fit.epochs=8",
        "train.fit.batch_size=8",
        "train.fit.accelerator=cpu",
        "train.model.window_px=128",
        "train.model.margin_px=64",
        "build.split.buffer_m=0",
    ]
    dataset = pipeline.build(region.config, tmp_path / "dataset", overrides=settings)
    run = pipeline.train(region.config, tmp_path / "run", dataset=dataset, overrides=settings)
    network = run.predictor
    sees = network.model
    assert (sees.window_px, sees.margin_px, sees.padding) == (128, 64, "replicate")
    # it learned to tell places apart
    assert float(network.predict(dataset, dataset.sites_with_tiles).std().max()) > 0.02
    scene = open_scene(shared / "data/sentinel2/scene_10m_virginia.tif")
    audit = map_of(network, scene, tmp_path / "map.tif", mode="dense", audit=200, beside=()).audit
    said = f"mean {audit['mean_abs']:.4f}, p99 {audit['p99_abs']:.4f}, max {audit['max_abs']:.4f}"
    print(f"dense against window by window: {said}, r {audit['correlation']:.5f}")  # noqa: T201 - a measurement
    assert audit["mean_abs"] <= 0.005
    assert audit["p99_abs"] <= 0.03
