"""Galileo of rslearn as a trunk, with weights that the tests make."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rasterio.windows import Window

from butterfly_sdm.errors import ModelError
from butterfly_sdm.imagery.embeddings.scene import open_embedding_scene
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.models.foundation.embedder import embed_scene
from butterfly_sdm.models.foundation.inputs import trained_inputs
from butterfly_sdm.models.foundation.options import EmbedOptions
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.models.trunk import Trunk
from tests.imagery.rasters import write_raster

library = pytest.importorskip("rslearn.models.galileo", reason="the extra galileo is not there")
pytestmark = pytest.mark.slow

BANDS = ("red", "green", "blue", "nir")  # not in the order in which Galileo has them
THEIRS = ["B4", "B3", "B2", "B8"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    from rslearn.models.galileo.single_file_galileo import Encoder

    torch.manual_seed(0)
    net = Encoder(8, 128, 4, 4, 8, 24).eval()
    with torch.no_grad():
        net.s_t_channel_embed.normal_()
    path = tmp_path_factory.mktemp("weights") / "encoder.pt"
    torch.save(
        {
            f"blocks.backbone{k[6:]}" if k.startswith("blocks") else k: v
            for k, v in net.state_dict().items()
        },
        path,
    )
    return path, net


def own_features(net: torch.nn.Module, counts: torch.Tensor) -> torch.Tensor:
    """What rslearn's own way of counts (n, 10 bands of Sentinel-2, h, w) to features gives."""
    given = counts.permute(0, 2, 3, 1)[:, :, :, None]
    seen = library.GalileoModel.construct_galileo_input(s2=given, normalize=True)
    with torch.inference_mode():
        found = net(**seen._asdict(), patch_size=8)[0]
    return found[:, :, :, 0, 1:6].mean(dim=3).permute(0, 3, 1, 2)


def trunk_of(path: Path, bands: tuple[str, ...]) -> Trunk:
    trunk = Trunk("galileo_nano", bands).eval()
    trunk.load_pretrained(str(path))
    return trunk


def test_features_of_all_bands_are_those_of_rslearn(weights):
    path, net = weights
    known = trained_inputs(None, str(path), "galileo_nano")
    assert known.mean["blue"] == pytest.approx(0.13953408)
    assert known.std["swir22"] == pytest.approx(0.09802430)
    bands = tuple(known.mean)
    assert len(bands) == 10
    trunk = trunk_of(path, bands)
    assert (trunk.stride, trunk.dense, trunk.channels) == (8, False, 128)
    counts = torch.rand(2, 10, 32, 32) * 4000
    mean, std = (
        torch.tensor([part[band] for band in bands])[:, None, None]
        for part in (known.mean, known.std)
    )
    with torch.inference_mode():
        found = trunk((counts / 10_000 - mean) / std)
    torch.testing.assert_close(found, own_features(net, counts), rtol=1e-4, atol=1e-5)


def test_groups_that_are_not_there_are_hidden_and_bands_are_told_by_name(weights):
    path, _ = weights
    image = torch.randn(1, 4, 32, 32)
    with torch.inference_mode():
        found = trunk_of(path, BANDS)(image)
        turned = trunk_of(path, BANDS[::-1])(image.flip(1))
        other = trunk_of(path, ("green", "red", "blue", "nir"))(image)
    torch.testing.assert_close(found, turned)
    assert not torch.allclose(found, other)
    with pytest.raises(ModelError, match=r"groups of bands as a whole .*cannot see 'red'"):
        Trunk("galileo_nano", ("red", "nir"))
    with pytest.raises(ModelError, match="square images only"):
        trunk_of(path, BANDS)(torch.zeros(1, 4, 32, 64))


def test_a_scene_is_embedded_and_a_frozen_trunk_is_trained(weights, make, tmp_path):
    path, _ = weights
    counts = np.random.default_rng(0).integers(1, 4000, (4, 96, 128)).astype(np.uint16)
    scene = open_scene(write_raster(tmp_path / "s.tif", counts, names=BANDS))
    options = EmbedOptions(backbone="galileo_nano", weights=str(path), image_px=64)
    made = open_embedding_scene(embed_scene(scene, tmp_path / "e.tif", options))
    found, valid = made.read(Window(0, 0, 16, 12))
    assert valid.all() and found.shape == (128, 12, 16) and made.resolution_m == 80
    known = trained_inputs(None, str(path), "galileo_nano")
    mean, std = (
        np.array([part[band] for band in made_bands(scene)])[:, None, None]
        for part in (known.mean, known.std)
    )
    order = [scene.bands.index(band) for band in made_bands(scene)]
    seen = ((counts[order, :64, :64] / 10_000 - mean) / std).astype(np.float32)
    with torch.inference_mode():
        wanted = trunk_of(path, made_bands(scene))(torch.from_numpy(seen)[None])[0]
    np.testing.assert_allclose(found[:, :8, :8], wanted, rtol=1e-3, atol=1e-4)
    data = make(sites=20, tile_px=64, bands=BANDS)
    network = NetworkPredictor(
        backbone="galileo_nano",
        weights=str(path),
        freeze="trunk",
        window_px=32,
        margin_px=16,
        embedding=8,
        head_width=8,
        epochs=1,
        batch_size=16,
        accelerator="cpu",
        augment=False,
    ).fit(data, data.split.train)
    network.save(tmp_path / "model")
    again = NetworkPredictor.load(tmp_path / "model")
    sites = data.split.validation
    assert np.array_equal(again.predict(data, sites), network.predict(data, sites))


def made_bands(scene) -> tuple[str, ...]:
    """The bands of a scene in the order of the weights."""
    order = ("blue", "green", "red", "nir")
    return tuple(band for band in order if band in scene.bands)


def test_what_does_not_fit_is_refused_in_a_sentence(weights, make, tmp_path):
    path, net = weights
    trunk = Trunk("galileo_tiny", BANDS)
    with pytest.raises(ModelError, match=r"in another size. Give encoder.pt of that size"):
        trunk.load_pretrained(str(path))
    with pytest.raises(ModelError, match="from a local file"):
        trunk.load_pretrained("imagenet")
    state = net.state_dict()
    del state["norm.weight"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ModelError, match=r"lack 1 parts of galileo_nano, such as norm.weight"):
        Trunk("galileo_nano", BANDS).load_pretrained(str(tmp_path / "less.pt"))
    data = make(sites=20, tile_px=64, bands=BANDS)
    network = NetworkPredictor(
        backbone="galileo_nano",
        weights=str(path),
        freeze="all_but_stem",
        window_px=32,
        margin_px=16,
        accelerator="cpu",
    )
    with pytest.raises(ModelError, match=r"no first convolution.*freeze: trunk"):
        network.fit(data, data.split.train)
