"""Prithvi and TerraMind of TerraTorch as trunks, with weights that the tests make."""

import copy
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

pytest.importorskip("terratorch", reason="the extra terratorch is not there")
pytestmark = pytest.mark.slow

PRITHVI, TERRAMIND = "terratorch:prithvi_eo_v2_tiny_tl", "terratorch:terramind_v1_tiny"
HLS = ("blue", "green", "red", "nir08", "swir16", "swir22")
HLS_NAMES = ["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"]


@pytest.fixture(scope="module", params=[PRITHVI, TERRAMIND])
def known(request, tmp_path_factory) -> tuple[str, Path, torch.nn.Module]:
    """A backbone, a file of random weights as they are published, and the network they are of."""
    from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY as registry

    torch.manual_seed(0)
    name, file = request.param, tmp_path_factory.mktemp("weights") / "weights.pt"
    if name == PRITHVI:
        net = registry.build(name.removeprefix("terratorch:"), bands=HLS_NAMES).eval()
        state = {f"encoder.{key}": value for key, value in net.state_dict().items()}
        state["decoder.mask_token"] = torch.zeros(1, 1, 512)
    else:
        net = registry.build(name.removeprefix("terratorch:"), modalities=["S2L2A"]).eval()
        state = net.state_dict()
    torch.save(state, file)
    return name, file, net


def own_features(name: str, net: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """What the network says of an image (n, its bands, 64, 96) as a map."""
    with torch.inference_mode():
        tokens = net(image)[-1]
    tokens = tokens[:, 1:] if name == PRITHVI else tokens
    return tokens.transpose(1, 2).reshape(len(image), -1, 4, 6)


def test_features_are_those_of_the_network_in_their_places(known):
    name, file, net = known
    bands = tuple(trained_inputs(None, str(file), name).mean)
    trunk = Trunk(name, bands).eval()
    assert (trunk.stride, trunk.dense, trunk.channels) == (16, False, 192)
    image = torch.randn(2, len(bands), 64, 96)
    with torch.inference_mode():
        assert not torch.allclose(trunk(image), own_features(name, net, image))
        trunk.load_pretrained(str(file))
        torch.testing.assert_close(trunk(image), own_features(name, net, image))
        again = copy.deepcopy(trunk)
        for weight in again.parameters():
            weight.zero_()
        torch.testing.assert_close(trunk(image), own_features(name, net, image))
        assert not torch.allclose(again(image), trunk(image))


def test_of_fewer_bands_the_others_count_as_their_mean(known):
    """A linear stem of an image whose other bands are 0 is that of the bands in use."""
    name, file, net = known
    bands = tuple(trained_inputs(None, str(file), name).mean)
    few = ("red", "nir08", "blue")
    trunk = Trunk(name, few).eval()
    trunk.load_pretrained(str(file))
    image = torch.randn(1, 3, 64, 96)
    whole = torch.zeros(1, len(bands), 64, 96)
    whole[:, [bands.index(band) for band in few]] = image
    with torch.inference_mode():
        torch.testing.assert_close(trunk(image), own_features(name, net, whole))


def test_bands_are_standardised_as_the_library_says(known):
    name, file, _ = known
    stated = trained_inputs(None, str(file), name)
    if name == PRITHVI:
        assert tuple(stated.mean) == HLS
        assert stated.mean["blue"] == pytest.approx(0.1087)
        assert stated.std["swir22"] == pytest.approx(0.1049)
    else:
        assert len(stated.mean) == 12
        assert stated.mean["red"] == pytest.approx(0.1853910)
        assert stated.std["nir"] == pytest.approx(0.1871918)


def test_a_scene_is_embedded_and_a_frozen_trunk_is_trained(known, make, tmp_path):
    name, file, _ = known
    bands = HLS if name == PRITHVI else ("blue", "green", "red", "nir")
    counts = np.random.default_rng(0).integers(1, 4000, (len(bands), 96, 128)).astype(np.uint16)
    scene = open_scene(write_raster(tmp_path / "s.tif", counts, names=bands))
    options = EmbedOptions(backbone=name, weights=str(file), image_px=64)
    made = open_embedding_scene(embed_scene(scene, tmp_path / "e.tif", options))
    found, valid = made.read(Window(0, 0, 8, 4))
    assert valid.all() and found.shape == (192, 4, 8)
    stated = trained_inputs(None, str(file), name)
    mean, std = (
        np.array([part[band] for band in bands])[:, None, None]
        for part in (stated.mean, stated.std)
    )
    trunk = Trunk(name, bands).eval()
    trunk.load_pretrained(str(file))
    seen = torch.from_numpy(((counts[:, :64, :64] / 10_000 - mean) / std).astype(np.float32))
    with torch.inference_mode():
        np.testing.assert_allclose(found[:, :4, :4], trunk(seen[None])[0], rtol=1e-3, atol=1e-4)
    data = make(sites=20, tile_px=64, bands=bands)
    network = NetworkPredictor(
        backbone=name,
        weights=str(file),
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
    torch.testing.assert_close(
        again.network.mean, torch.tensor([stated.mean[band] for band in bands])
    )


def test_what_does_not_fit_is_refused_in_a_sentence(known, tmp_path):
    name, file, _ = known
    with pytest.raises(ModelError, match=r"was trained with .*not with 'vv'.*would be random"):
        Trunk(name, ("red", "vv"))
    with pytest.raises(ModelError, match=r"no backbone terratorch:prithvi_eo_v3.*are run"):
        Trunk("terratorch:prithvi_eo_v3", ("red",))
    trunk = Trunk(name, ("red", "blue"))
    with pytest.raises(ModelError, match="from a local file"):
        trunk.load_pretrained("SENTINEL2_ALL_DINO")
    state = torch.load(file, weights_only=True)
    lost = next(key for key in state if "blocks.3" in key or "encoder.3." in key)
    torch.save({key: value for key, value in state.items() if key != lost}, tmp_path / "less.pt")
    with pytest.raises(ModelError, match=r"lack 1 parts of"):
        trunk.load_pretrained(str(tmp_path / "less.pt"))
    state[lost] = torch.cat([state[lost], state[lost]])
    torch.save(state, tmp_path / "wide.pt")
    with pytest.raises(ModelError, match=r"do not fit"):
        trunk.load_pretrained(str(tmp_path / "wide.pt"))
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"lack \d+ parts of"):
        trunk.load_pretrained(str(tmp_path / "other.pt"))
