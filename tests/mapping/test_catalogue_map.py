"""A map over a catalogue of remote products is that of their local copies, and streams."""

import numpy as np
import pytest
import rasterio

from butterfly_sdm.imagery.options import CompositeOptions, SceneOptions, StacOptions
from butterfly_sdm.mapping.surfaces import streaming
from data_prep.imagery.scenes import scene_of
from tests.data_prep.range_server import serving
from tests.data_prep.test_sparse_copies import SEARCH, make_catalogue
from tests.mapping.world import Windows, map_of, read

BANDS = ("red", "green", "blue", "nir")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue")
    return make_catalogue(folder, days=2, bands=BANDS)


def local(folder, tmp_path):
    options = SceneOptions(paths=(folder,), composite=CompositeOptions())
    return scene_of(options, bands=BANDS, scratch=tmp_path)[0]


def test_it_is_the_map_of_local_copies_and_copies_go_when_ground_is_done(
    catalogue, tmp_path, monkeypatch
):
    monkeypatch.setattr(streaming, "COPIES_BYTES", 0)
    expected = map_of(
        Windows(), local(catalogue, tmp_path), tmp_path / "a.tif", beside=(), block_px=256, audit=20
    )
    with serving(catalogue) as server:
        stac = StacOptions(url=f"{server.url}/catalog.json", **SEARCH)
        options = SceneOptions(stac=stac, composite=CompositeOptions())
        scene, _ = scene_of(options, bands=BANDS, scratch=tmp_path / "scratch")
        forgotten = []
        forget = scene.supply.forget

        def noted(paths):
            paths = list(paths)
            forgotten.append(sorted({path.split("/")[-2] for path in paths}))
            forget(paths)

        scene.supply.forget = noted
        made = map_of(Windows(), scene, tmp_path / "b.tif", beside=(), block_px=256, audit=20)
    np.testing.assert_array_equal(read(made), read(expected))
    assert made.audit == expected.audit
    # first the western grid, then the eastern, each once
    assert [names[0][:6] for names in forgotten] == ["S2A_0_", "S2A_1_"]
    with rasterio.open(made.path) as file:
        assert np.isfinite(file.read(1, masked=True).filled(np.nan)).mean() > 0.5
