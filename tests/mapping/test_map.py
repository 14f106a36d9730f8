import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate

from butterfly_sdm.errors import ArtefactError, DataError, ModelError, RasterError
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.mapping.map_file import read_tags
from butterfly_sdm.mapping.surfaces.dense import normalised, reach_px
from tests.mapping.world import Position, Windows, map_of, read, write_scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return open_scene(write_scene(tmp_path_factory.mktemp("scene") / "scene.tif"))


@pytest.fixture(scope="module")
def network():
    return Windows()


@pytest.fixture(scope="module")
def dense(scene, network, tmp_path_factory):
    out = tmp_path_factory.mktemp("map") / "map.tif"
    return map_of(network, scene, out, audit=20, block_px=2048, mode="dense")


def test_a_map_is_a_cloud_optimised_geotiff_with_one_named_band_per_species(dense, network):
    valid, errors, _ = cog_validate(dense.path)
    assert valid, errors
    with rasterio.open(dense.path) as source:
        assert source.descriptions == network.species == dense.species
        assert source.crs == "EPSG:27700"
        assert source.nodata == -9999
        assert source.profile["compress"] == "deflate"


def test_map_pixels_lie_on_whole_multiples_of_their_size(dense):
    with rasterio.open(dense.path) as source:
        assert source.res == (320.0, 320.0)
        assert source.transform.c % 320 == 0
        assert source.transform.f % 320 == 0
        assert source.bounds.left <= 400_000
        assert source.bounds.top >= 300_160
        assert source.bounds.right >= 406_400


def test_the_dense_map_is_the_network_seen_with_its_true_surroundings(dense, scene, network):
    with rasterio.open(dense.path) as source:
        values, grid = source.read(), source.transform
    side, halo = 64, reach_px(network.network)
    for row, col in [(0, 0), (5, 7), (17, 3), (17, 19)]:
        x, y = grid.c + 320 * (col + 0.5), grid.f - 320 * (row + 0.5)
        left, top = round((x - 400_000) / 10 - side / 2), round((300_160 - y) / 10 - side / 2)
        window = Window(left - halo, top - halo, side + 2 * halo, side + 2 * halo)
        counts, valid = scene.select(network.network.bands).read(window)
        image = normalised(counts, valid, network.network, scene)
        with torch.inference_mode():
            features = network.network.features(image)[
                ..., halo // 32 : -halo // 32, halo // 32 : -halo // 32
            ]
            expected = torch.sigmoid(
                network.network.head(network.network.project(features.mean(dim=(2, 3))))
            )[0].numpy()
        np.testing.assert_allclose(values[:, row, col], expected, atol=2e-6)


def test_blocks_of_any_size_give_the_same_map(dense, scene, network, tmp_path):
    small = map_of(network, scene, tmp_path / "small.tif", audit=0, block_px=128)
    np.testing.assert_allclose(read(small), read(dense), atol=2e-6)


def test_the_normalisation_is_that_of_the_network(scene, network):
    counts, valid = scene.read(Window(-10, -10, 64, 64))
    net = network.network
    reflectance = torch.from_numpy((counts.astype(np.float32) - scene.offset) * scene.scale)
    expected = net.standardise(reflectance[None], torch.from_numpy(valid)[None])
    np.testing.assert_allclose(normalised(counts, valid, net, scene), expected.numpy(), atol=2e-6)


def test_the_exact_map_is_predict_at_every_position(scene, network, tmp_path):
    result = map_of(network, scene, tmp_path / "exact.tif", mode="exact", stride_px=64)
    assert result.mode == "exact"
    assert result.audit == {}
    dense = map_of(
        network,
        scene,
        tmp_path / "dense.tif",
        mode="dense",
        stride_px=64,
        audit=1000,
    )
    apart = np.abs(read(result) - read(dense))
    known = np.isfinite(apart)
    assert known.sum() == 3 * dense.counts["predicted"]
    assert apart[known].max() == pytest.approx(dense.audit["max_abs"], abs=2e-6)
    assert apart[known].mean() == pytest.approx(dense.audit["mean_abs"], abs=2e-6)
    assert dense.audit["positions"] == dense.counts["predicted"]


def test_the_audit_is_in_the_metadata(dense):
    tags = read_tags(dense.path)
    assert tags["audit"] == dict(dense.audit)
    assert dense.audit["positions"] == 20
    assert 0 < dense.audit["mean_abs"] <= dense.audit["p99_abs"] <= dense.audit["max_abs"]
    assert tags["counts"]["predicted"] == dense.counts["predicted"]


@pytest.mark.parametrize("stride_px", [pytest.param(16, marks=pytest.mark.slow), 48, 96])
def test_strides_between_the_cells_of_the_trunk_are_reached_by_shifting_it(
    stride_px, dense, scene, network, tmp_path
):
    result = map_of(
        network,
        scene,
        tmp_path / "map.tif",
        stride_px=stride_px,
        audit=0,
        mode="dense",
        block_px=2048,
    )
    values, reference = read(result), read(dense)
    if stride_px == 96:  # every third centre of the coarse map lies on a centre of the fine one
        with rasterio.open(result.path) as a, rasterio.open(dense.path) as b:
            for row, col in [(1, 1), (3, 4)]:
                x, y = a.xy(row, col)
                np.testing.assert_allclose(
                    values[:, row, col], reference[:, *b.index(x, y)], atol=2e-6
                )
    exact = map_of(
        network,
        scene,
        tmp_path / "exact.tif",
        stride_px=stride_px,
        audit=0,
        mode="dense",
        block_px=256,
    )
    np.testing.assert_allclose(read(exact), values, atol=2e-6)


def test_nodata_stays_without_a_value_where_it_fills_too_much_of_the_window(network, tmp_path):
    scene = open_scene(write_scene(tmp_path / "scene.tif", hole=(slice(0, 300), slice(0, 300))))
    result = map_of(network, scene, tmp_path / "map.tif", audit=10)
    values = read(result)[0]
    assert np.isnan(values[:8, :8]).all()
    assert np.isfinite(values[12:17, 12:18]).all()
    strict = map_of(network, scene, tmp_path / "strict.tif", audit=0, min_valid_fraction=1.0)
    assert strict.counts["predicted"] < result.counts["predicted"]
    assert (
        result.counts["predicted"] + result.counts["without_imagery"] == result.counts["positions"]
    )


def test_bands_are_taken_by_name(network, dense, scene, tmp_path):
    with rasterio.open(scene.paths[0]) as source:
        profile, values = source.profile, source.read()
    with rasterio.open(tmp_path / "swapped.tif", "w", **profile) as target:
        target.write(values[::-1])
        for number, band in enumerate(reversed(scene.bands), start=1):
            target.set_band_description(number, band)
    swapped = map_of(network, open_scene(tmp_path / "swapped.tif"), tmp_path / "map.tif", audit=0)
    np.testing.assert_allclose(read(swapped), read(dense), atol=2e-6)


def test_a_missing_band_is_named(network, tmp_path):
    scene = open_scene(write_scene(tmp_path / "scene.tif", bands=("red", "green", "blue")))
    with pytest.raises(RasterError, match="lacks nir"):
        map_of(network, scene, tmp_path / "map.tif")
    assert not list(tmp_path.glob("map*"))


def test_species_are_chosen_by_name_and_unknown_ones_named(network, scene, dense, tmp_path):
    result = map_of(
        network, scene, tmp_path / "map.tif", species=("Species c",), audit=0, engine="torch"
    )
    np.testing.assert_allclose(read(result)[0], read(dense)[2], atol=2e-6)
    with pytest.raises(DataError, match="Pieris"):
        map_of(network, scene, tmp_path / "map.tif", species=("Pieris",))


@pytest.mark.parametrize(
    ("dtype", "step", "nodata"), [("uint16", 1e-4, 65535), ("uint8", 0.004, 255)]
)
def test_whole_numbers_keep_the_probabilities_to_half_a_step(
    dtype, step, nodata, network, scene, dense, tmp_path
):
    result = map_of(network, scene, tmp_path / "map.tif", dtype=dtype, audit=0)
    assert cog_validate(result.path)[0]
    with rasterio.open(result.path) as source:
        assert source.nodata == nodata
        assert source.scales == (step,) * 3
        stored = source.read(masked=True)
    np.testing.assert_allclose((stored * step).filled(np.nan), read(dense), atol=step / 2 + 1e-6)


def test_any_predictor_is_mapped_position_by_position(scene, tmp_path):
    result = map_of(Position(), scene, tmp_path / "map.tif", stride_px=100)
    with rasterio.open(result.path) as source:
        values = source.read()
        x, y = source.xy(3, 2)
    assert values[0, 3, 2] == pytest.approx((x - 400_000) / 10_000, abs=1e-5)
    assert values[1, 3, 2] == pytest.approx((y - 290_000) / 20_000, abs=1e-5)
    assert result.mode == "exact"


def test_dense_is_refused_where_it_is_impossible(scene, network, tmp_path):
    with pytest.raises(ModelError, match="not a network"):
        map_of(Position(), scene, tmp_path / "map.tif", mode="dense")
    with pytest.raises(ModelError, match="times over"):
        map_of(network, scene, tmp_path / "map.tif", mode="dense", stride_px=10)


def test_numbers_of_16_bits_are_for_gpus(scene, network, tmp_path):
    with pytest.raises(ModelError, match="slower on a CPU"):
        map_of(network, scene, tmp_path / "map.tif", engine="torch-fp16")


class Stop(Exception):
    pass


def test_an_interrupted_map_continues_and_ends_as_the_same_file(network, scene, tmp_path):
    whole = map_of(network, scene, tmp_path / "whole.tif", block_px=256, audit=5)
    seen = []

    def interrupt(task, done, total):
        seen.append((task, done))
        if (task, done) in [("map", 3), ("audit", 5)] and len(seen) < 20:
            raise Stop

    with pytest.raises(Stop):
        map_of(
            network,
            scene,
            tmp_path / "map.tif",
            block_px=256,
            audit=5,
            progress=interrupt,
        )
    assert not (tmp_path / "map.tif").exists()
    assert (tmp_path / "map.tif.partial").is_dir()
    first = max(done for task, done in seen if task == "map")
    seen.clear()
    with pytest.raises(Stop):
        map_of(
            network,
            scene,
            tmp_path / "map.tif",
            block_px=256,
            audit=5,
            progress=interrupt,
        )
    assert seen[0] == ("map", first)  # nothing is done twice
    seen.extend([("", 0)] * 20)
    again = map_of(
        network,
        scene,
        tmp_path / "map.tif",
        block_px=256,
        audit=5,
        progress=interrupt,
    )
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert not list(tmp_path.glob("*.partial"))
    assert not list(tmp_path.glob(".*"))


def test_leftovers_of_another_map_are_not_continued(network, scene, tmp_path):
    def interrupt(task, done, total):
        if (task, done) == ("map", 2):
            raise Stop

    with pytest.raises(Stop):
        map_of(
            Windows(seed=1),
            scene,
            tmp_path / "map.tif",
            block_px=256,
            progress=interrupt,
        )
    result = map_of(network, scene, tmp_path / "map.tif", block_px=256, audit=0)
    other = map_of(network, scene, tmp_path / "other.tif", block_px=256, audit=0)
    assert result.path.read_bytes() == other.path.read_bytes()


def test_two_processes_cannot_write_one_map(network, scene, tmp_path):
    from butterfly_sdm.core.work import exclusive

    with exclusive(tmp_path / "map.tif"), pytest.raises(ArtefactError, match="Another process"):
        map_of(network, scene, tmp_path / "map.tif")


def test_maps_of_neighbouring_scenes_fit_together_without_a_seam(network, tmp_path):
    whole = open_scene(write_scene(tmp_path / "whole.tif", width=960))
    with rasterio.open(tmp_path / "whole.tif") as source:
        for name, left, width in [("west.tif", 0, 500), ("east.tif", 300, 660)]:
            profile = source.profile | {
                "width": width,
                "transform": source.window_transform(Window(left, 0, width, 576)),
            }
            with rasterio.open(tmp_path / name, "w", **profile) as target:
                target.write(source.read(window=Window(left, 0, width, 576)))
                target.descriptions = source.descriptions
    mosaic = open_scene([tmp_path / "west.tif", tmp_path / "east.tif"])
    one = map_of(network, whole, tmp_path / "one.map.tif", audit=0)
    two = map_of(network, mosaic, tmp_path / "two.map.tif", audit=0)
    np.testing.assert_allclose(read(one), read(two), atol=2e-6)


def test_a_network_that_relies_on_the_edges_of_its_tiles_is_mapped_window_by_window(
    network, scene, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("butterfly_sdm.mapping.map.FAR", (1e-9, 1.0))
    monkeypatch.setattr("butterfly_sdm.mapping.map.NEAR", (1e-9, 1.0))
    result = map_of(network, scene, tmp_path / "map.tif", stride_px=64, audit=50, beside=())
    assert result.mode == "exact"
    assert result.audit["mean_abs"] > 1e-9
    assert "relies on the edges of its tiles" in caplog.text
    assert f"by {result.audit['mean_abs']:.4f} on average" in caplog.text
    exact = map_of(network, scene, tmp_path / "exact.tif", stride_px=64, mode="exact", beside=())
    np.testing.assert_array_equal(read(result), read(exact))
    kept = map_of(
        network,
        scene,
        tmp_path / "kept.tif",
        stride_px=64,
        mode="dense",
        audit=50,
        beside=(),
    )
    assert kept.mode == "dense"


def test_a_map_tells_the_probability_of_the_tile_around_its_pixel(network, scene, tmp_path):
    result = map_of(network, scene, tmp_path / "map.tif", mode="exact", beside=())
    row, col = 6, 9
    with rasterio.open(result.path) as source:
        (x, y), values = source.xy(row, col), source.read()[:, row, col]
    # a tile of 128 px centred there
    left, top = (
        round((x - 400_000) / 10) - 64,
        round((300_160 - y) / 10) - 64,
    )
    counts, _ = scene.read(Window(left, top, 128, 128))
    reflectance = torch.from_numpy(counts.astype(np.float32) * 1e-4)[None]
    with torch.inference_mode():
        logits, _ = network.network(network.network.standardise(reflectance))
    np.testing.assert_allclose(values, torch.sigmoid(logits)[0].numpy(), atol=2e-6)
