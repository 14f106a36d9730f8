"""Tiles and scenes of embeddings that a STAC search finds: only what is read is fetched."""

import json

import numpy as np
import pytest
from rasterio.shutil import copy
from rasterio.windows import Window

from butterfly_sdm.errors import ConfigError, SourceError
from butterfly_sdm.imagery.embeddings.scene import open_embedding_scene
from butterfly_sdm.imagery.options import CompositeOptions, SceneOptions, StacOptions
from data_prep.imagery.scenes import scene_of
from tests.data_prep.range_server import serving
from tests.imagery.embeddings.layouts import ZONE_30, ZONE_31, stored_bytes, write_alphaearth
from tests.imagery.embeddings.test_stac import READING, write_item

BOX = (-10.0, 40.0, 10.0, 60.0)
BLOCKS = {"blockxsize": 64, "blockysize": 64}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """Two zones of 2023, the western one from south to north, and another year."""
    folder, links = tmp_path_factory.mktemp("catalogue"), []
    for number, (crs, left, year) in enumerate(
        [(ZONE_30, 704_000, 2023), (ZONE_31, 292_200, 2023), (ZONE_31, 292_200, 2022)]
    ):
        stored = stored_bytes(4, 512, 512, seed=number)
        stored[:, 30:40, 30:400] = -128
        place = {"crs": crs, "left": left, "year": year, "bottom_up": number == 0}
        made = write_alphaearth(folder / "made", stored, name="a", **place)
        file = folder / "cogs" / made.relative_to(folder / "made")
        file.parent.mkdir(parents=True)
        apart = "BAND" if number == 1 else "PIXEL"
        copy(made, file, driver="GTiff", tiled=True, interleave=apart, **BLOCKS)  # directory first
        asset = {"href": str(file.relative_to(folder)), "roles": ["data"]}
        item = write_item(folder, f"item{number}", year, {"data": asset}, **{"eo:cloud_cover": 0})
        told = json.loads(item.read_text())
        item.write_text(json.dumps(told | {"collection": "aef", "bbox": [-1, 51, 1, 52]}))
        links.append({"rel": "item", "href": item.name})
    root = {"stac_version": "1.0.0", "type": "Catalog", "id": "c", "links": links}
    (folder / "catalog.json").write_text(json.dumps(root))
    return folder


def search(url: str, **stated) -> StacOptions:
    known = {"collection": "aef", "start": "2020-01-01", "end": "2025-12-31", "bbox": BOX}
    return StacOptions(url=f"{url}/catalog.json", **known | stated)


def of_year(year: int):
    return READING.model_copy(update={"year": year})


def test_a_scene_of_a_search_is_that_of_the_files_and_fetches_what_it_reads(catalogue, tmp_path):
    plain = open_embedding_scene(catalogue / "cogs/annual/2023", READING)
    sizes = [file.stat().st_size for file in (catalogue / "cogs/annual/2023").rglob("*.tiff")]
    with serving(catalogue) as server:
        options = SceneOptions(stac=search(server.url), embeddings=of_year(2023))
        scene, composite = scene_of(options, scratch=tmp_path)
        assert composite is None and scene.supply is not None
        assert (scene.grid, scene.bands, scene.signed_square) == (plain.grid, plain.bands, 127.5)
        assert server.sent(".tiff") < 0.1 * sum(sizes)  # directories
        for window in (Window(40, 20, 70, 90), Window(380, 400, 100, 60)):
            found, valid = scene.read(window)
            expected, measured = plain.read(window)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(valid, measured)
            assert measured.any()
        assert server.sent(".tiff") < 0.5 * sum(sizes)
        whole = Window(0, 0, plain.width, plain.height)
        np.testing.assert_array_equal(scene.read(whole)[0], plain.read(whole)[0])
        assert all("/2022/" not in path for path, *_ in server.asked)


def test_what_a_search_does_not_have_or_a_composite_is_refused(catalogue, tmp_path):
    with serving(catalogue) as server:
        options = SceneOptions(stac=search(server.url), embeddings=of_year(2019))
        with pytest.raises(SourceError, match=r"no product of 2019 .* Check embeddings.year"):
            scene_of(options, scratch=tmp_path)
    options = SceneOptions(
        paths=(catalogue,), embeddings=of_year(2023), composite=CompositeOptions()
    )
    with pytest.raises(ConfigError, match="of a year already"):
        scene_of(options, scratch=tmp_path)
