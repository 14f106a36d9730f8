"""Transformers as trunks, given the numbers their weights were trained with."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine
from rasterio.windows import Window

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.tiles import TileReader
from butterfly_sdm.errors import MissingPackageError, ModelError
from butterfly_sdm.imagery.embeddings.scene import open_embedding_scene
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.models.batches import image_of
from butterfly_sdm.models.foundation.embedder import embed_scene
from butterfly_sdm.models.foundation.inputs import pixel_line, torchgeo_weights, trained_inputs
from butterfly_sdm.models.foundation.options import EmbedOptions, InputOptions
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.models.stem import SENTINEL2_L1C
from butterfly_sdm.models.trunk import Trunk
from tests.data_prep.surveys import make_config
from tests.data_prep.test_build import build, real_tiles
from tests.mapping.world import map_of, read, write_scene

VIT = "vit_tiny_patch16_224"
QUICK = {
    "window_px": 32,
    "margin_px": 16,
    "embedding": 8,
    "head_width": 8,
    "epochs": 1,
    "batch_size": 16,
    "accelerator": "cpu",
    "augment": False,
}


def test_a_transformer_gives_the_tokens_of_its_patches_in_their_places():
    torch.manual_seed(0)
    trunk = Trunk(VIT, ("red", "nir")).eval()
    assert (trunk.stride, trunk.dense, trunk.channels) == (16, False, 192)
    image = torch.randn(2, 2, 224, 224)
    with torch.inference_mode():
        tokens = trunk.body.forward_features(image)
        found = trunk(image)
        assert found.shape == (2, 192, 14, 14)
        torch.testing.assert_close(found[1, :, 3, 5], tokens[1, 1 + 3 * 14 + 5])
        assert trunk(torch.randn(1, 2, 64, 96)).shape == (1, 192, 4, 6)


@pytest.mark.slow
def test_weights_of_a_transformer_fit_by_name_with_or_without_its_last_norm(tmp_path):
    import timm

    torch.manual_seed(1)
    other = timm.create_model(VIT, pretrained=False, in_chans=13, num_classes=0)
    state = {name: value for name, value in other.state_dict().items() if name != "norm.weight"}
    torch.save(state, tmp_path / "vit.pth")
    trunk = Trunk(VIT, SENTINEL2_L1C).eval()
    trunk.load_pretrained(str(tmp_path / "vit.pth"))
    image = torch.randn(1, 13, 224, 224)
    with torch.inference_mode():
        wanted = other.eval().forward_features(image)[0, 1:].T.reshape(192, 14, 14)
        torch.testing.assert_close(trunk(image)[0], wanted)
    del state["blocks.3.attn.qkv.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ModelError, match=r"lack 1 parts of vit_tiny_patch16_224"):
        trunk.load_pretrained(str(tmp_path / "less.pth"))


@pytest.mark.slow
def test_a_swin_of_torchgeo_is_the_same_network():
    models = pytest.importorskip("torchgeo.models", reason="the extra torchgeo is not there")
    torch.manual_seed(2)
    other = models.swin_v2_t().eval()
    trunk = Trunk("swin_v2_t", ("red", "green", "blue")).eval()
    trunk.body.load_state_dict(other.state_dict(), strict=False)
    assert (trunk.stride, trunk.dense) == (32, False)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = other.permute(other.norm(other.features(image)))
        torch.testing.assert_close(trunk(image), wanted)


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("vit_small_patch16_224", "SENTINEL2_ALL_DINO"),
        ("vit_small_patch16_224", "SENTINEL2_ALL_CLOSP"),
        ("resnet50", "SENTINEL2_ALL_DECUR"),
        ("resnet50", "SENTINEL2_ALL_MOCO"),
        ("resnet18", "ResNet18_Weights.SENTINEL2_RGB_MOCO"),
        ("swin_v2_t", "SENTINEL2_SI_MS_SATLAS"),
    ],
)
def test_bands_are_standardised_as_the_transform_of_the_weights_does(backbone, name):
    pytest.importorskip("torchgeo.models", reason="the extra torchgeo is not there")
    entry = torchgeo_weights(name, backbone)
    known = trained_inputs(None, name, backbone)
    names = list(known.mean)
    mean, std = torch.zeros(len(names)), torch.ones(len(names))
    known.apply(names, mean, std)
    counts = torch.rand(1, len(names), 256, 256) * 4000
    wanted = entry.transforms(counts.clone())
    side = wanted.shape[-1]
    unit = torch.full((len(names),), 10_000.0)
    if "SATLAS" in name:
        unit[[names.index(band) for band in ("red", "green", "blue")]] = 255 / 0.3558
    value = counts / unit[:, None, None]
    found = (value - mean[:, None, None]) / std[:, None, None]
    start = (256 - side) // 2
    if "CLOSP" not in name:  # which is made smaller instead of cut
        found = found[..., start : start + side, start : start + side]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(found.mean(), wanted.mean(), rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_frozen_features_are_those_that_the_weights_give_of_their_own_transform(make, tmp_path):
    """The right features, which standardising by the training tiles does not give."""
    pytest.importorskip("torchgeo.models", reason="the extra torchgeo is not there")
    import timm

    data = make(sites=20, tile_px=64, bands=SENTINEL2_L1C)
    torch.manual_seed(3)
    other = timm.create_model("vit_small_patch16_224", in_chans=13, num_classes=0, depth=12).eval()
    torch.save(other.state_dict(), tmp_path / "vit.pth")
    entry = torchgeo_weights("SENTINEL2_ALL_DINO", "vit_small_patch16_224")
    tiles = torch.from_numpy(data.tiles[:4].astype(np.float32))
    with torch.inference_mode():
        image = entry.transforms[-1](tiles.clone())  # the part that is no cutting
        small = Trunk("vit_small_patch16_224", SENTINEL2_L1C).eval()
        small.body.load_state_dict(other.state_dict())
        wanted = small(image)[..., 1:3, 1:3].mean(dim=(-2, -1))
    found = {}
    for like in ("SENTINEL2_ALL_DINO", "data"):
        network = NetworkPredictor(
            backbone="vit_small_patch16_224",
            weights=str(tmp_path / "vit.pth"),
            freeze="trunk",
            inputs={"like": like},
            **QUICK,
        ).fit(data, data.split.train)
        net = network.network
        reader = TileReader(data, net.bands, net.tile_px)
        with torch.inference_mode():
            seen = image_of(net, reader.read(torch.arange(4)), reader)
            found[like] = net.pool(net.features(seen))

    def correlation(one):
        return np.corrcoef(one.ravel(), wanted.ravel())[0, 1]

    torch.testing.assert_close(
        found["SENTINEL2_ALL_DINO"], wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())
    )
    assert correlation(found["data"]) < 0.95
    network.save(tmp_path / "model")
    assert NetworkPredictor.load(tmp_path / "model").model.inputs.like == "data"


def test_stated_means_come_before_the_tiles_and_other_bands_are_theirs():
    known = trained_inputs(
        InputOptions(
            mean={"B04": 500.0, "nir": 3000.0}, std={"red": 100.0, "B8": 900.0}, counts=10_000.0
        ),
        "w.pth",
        "resnet18",
    )
    mean, std = torch.full((3,), 7.0), torch.full((3,), 9.0)
    known.apply(("nir", "blue", "red"), mean, std)
    torch.testing.assert_close(mean, torch.tensor([0.3, 7.0, 0.05]))
    torch.testing.assert_close(std, torch.tensor([0.09, 9.0, 0.01]))


def test_what_cannot_be_known_is_refused_with_the_way_out(monkeypatch):
    pytest.importorskip("torchgeo.models", reason="the extra torchgeo is not there")
    for backbone, name, match in [
        ("vit_small_patch16_224", "LANDSAT_OLI_SR_MOCO", "unit.*inputs.counts"),
        ("vit_small_patch16_224", "NOTHING", "no weights 'NOTHING' .*SENTINEL2_ALL_DINO"),
    ]:
        with pytest.raises(ModelError, match=match):
            trained_inputs(None, name, backbone)
    with pytest.raises(ModelError, match="mean and std of the same bands"):
        trained_inputs(InputOptions(mean={"red": 1.0}), None, "resnet18")
    with pytest.raises(ModelError, match="more to a band than subtract and divide"):
        pixel_line(torch.sqrt, 2, "w")
    with pytest.raises(ModelError, match="mean and std"):
        pixel_line(lambda image: image.flip(1), 2, "w")
    assert trained_inputs(None, "imagenet", "resnet18") is None
    assert trained_inputs(None, "weights/FILE.pth", "resnet18") is None
    monkeypatch.setitem(sys.modules, "terratorch.registry", None)
    with pytest.raises(MissingPackageError, match=r"TerraTorch: pip install .*\[terratorch\]"):
        Trunk("terratorch:prithvi_eo_v2_300", ("red",))
    monkeypatch.setitem(sys.modules, "rslearn.models.galileo", None)
    with pytest.raises(MissingPackageError, match=r"rslearn: pip install .*\[galileo\]"):
        Trunk("galileo_nano", ("red", "green", "blue"))
    with pytest.raises(ModelError, match=r"dofa_base.*takes more than an image"):
        Trunk("dofa_base", ("red",))


def test_without_a_network_named_weights_ask_for_a_file(monkeypatch):
    pytest.importorskip("torchgeo.models", reason="the extra torchgeo is not there")

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(ModelError, match=r"could not be fetched .*no route to host.*local file"):
        Trunk("vit_small_patch16_224", SENTINEL2_L1C).load_pretrained("SENTINEL2_ALL_DINO")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A small transformer for the 13 bands of Sentinel-2, with random weights."""
    import timm

    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.manual_seed(4)
    net = timm.create_model(VIT, pretrained=False, in_chans=13, num_classes=0)
    torch.save(net.state_dict(), path)
    return path


DINO = "ViTSmall16_Weights.SENTINEL2_ALL_DINO"  # of another size, standardised alike


def test_a_scene_is_embedded_patch_by_patch_and_read_again(tmp_path, weights):
    pytest.importorskip("torchgeo.models", reason="the extra torchgeo is not there")
    scene = open_scene(
        write_scene(tmp_path / "s.tif", width=200, height=150, hole=(slice(0, 64), slice(0, 64)))
    )
    options = EmbedOptions(
        backbone=VIT,
        weights=str(weights),
        inputs=InputOptions(like=DINO),
        image_px=64,
        batch_size=3,
    )
    made = embed_scene(scene, tmp_path / "e.tif", options)
    embedded = open_embedding_scene(made)
    assert (embedded.width, embedded.height, embedded.dtype) == (12, 9, "float32")
    assert embedded.resolution_m == 160 and len(embedded.bands) == 192
    assert embedded.transform == scene.transform * Affine.scale(16)
    found, valid = embedded.read(Window(0, 0, 12, 9))
    assert not valid[:4, :4].any() and valid[4:].all() and valid[:, 4:].all()
    trunk = Trunk(VIT, scene.bands).eval()
    trunk.load_pretrained(str(weights))
    counts, _ = scene.read(Window(64, 64, 64, 64))
    with torch.inference_mode():  # the transform divides counts by 10,000
        wanted = trunk(torch.from_numpy(counts.astype(np.float32))[None] / 10_000)[0]
    np.testing.assert_allclose(found[:, 4:8, 4:8], wanted, rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match=r"Nobody says how .* State inputs.like"):
        embed_scene(scene, tmp_path / "x.tif", options.model_copy(update={"inputs": None}))
    assert not (tmp_path / "x.tif").exists()


@pytest.mark.slow
def test_a_frozen_foundation_model_runs_on_the_real_tiles(shared, tmp_path, weights):
    """Built, trained, predicted and mapped from the 26 tiles; and as a scene of embeddings."""
    pytest.importorskip("torchgeo.models", reason="the extra torchgeo is not there")
    folders, survey = real_tiles(shared)
    bands = ["red", "green", "blue", "nir"]
    ready = {"folder": [str(folder) for folder in folders], "bands": bands}
    build(make_config(ready_tiles=ready, tiles={"size_px": 128}), tmp_path / "data", survey)
    data = Dataset.open(tmp_path / "data")
    sites = data.sites_with_tiles
    assert len(sites) == 26
    network = NetworkPredictor(
        backbone=VIT,
        weights=str(weights),
        freeze="trunk",
        inputs={"like": DINO},
        **QUICK | {"window_px": 96, "epochs": 3},
    ).fit(data, sites[:20])
    net = network.network
    torch.testing.assert_close(net.mean, torch.zeros(4))
    torch.testing.assert_close(net.std, torch.ones(4))
    assert not any(weight.requires_grad for weight in net.trunk.parameters())
    found = network.predict(data, sites)
    assert np.isfinite(found.to_numpy()).all() and found.to_numpy().std(axis=0).max() > 0
    tile = sorted(folders[0].glob("*.tif"))[0]
    scene = open_scene(tile, bands=bands)
    made = map_of(network, scene, tmp_path / "map.tif", stride_px=32)
    assert np.isfinite(read(made)).any()
    options = EmbedOptions(
        backbone=VIT, weights=str(weights), inputs=InputOptions(like=DINO), image_px=128
    )
    embedded = open_embedding_scene(embed_scene(scene, tmp_path / "e.tif", options))
    values, valid = embedded.read(Window(0, 0, embedded.width, embedded.height))
    assert valid.any() and np.isfinite(values[:, valid]).all()
