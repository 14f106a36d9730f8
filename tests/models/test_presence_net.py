"""The network sees true surroundings, pools the window only, and freezes what it is told to."""

import pytest
import torch

from butterfly_sdm.errors import ModelError
from butterfly_sdm.models.presence_net import Architecture, PresenceNet, start_at_rates

BANDS = ("red", "green", "blue", "nir")


def network(**change) -> PresenceNet:
    torch.manual_seed(0)
    settings = {
        "species": 5,
        "bands": BANDS,
        "backbone": "resnet18",
        "embedding": 8,
        "window_px": 64,
        "margin_px": 32,
    }
    return PresenceNet(Architecture(**settings | change)).eval()


def test_a_window_of_a_large_block_is_nearly_the_tile_seen_alone() -> None:
    net = network()
    for (
        module
    ) in net.modules():  # batch statistics of an untrained network would hide everything else
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        net.features(torch.randn(4, 4, 256, 256))
    net.eval()
    block = torch.randn(1, 4, 384, 384)
    with torch.inference_mode():
        features = net.features(block)
        assert features.shape == (1, 512, 12, 12)
        # the window of 2 x 2 cells from pixel 128 on
        dense = net.project(features[..., 4:6, 4:6].mean(dim=(-2, -1)))
        with_margin = net.project(net.pool(net.features(block[..., 96:224, 96:224])))
        plain = network(margin_px=0, padding="zeros")
        plain.load_state_dict(net.state_dict())
        without = plain.project(plain.pool(plain.features(block[..., 128:192, 128:192])))
    assert torch.linalg.norm(dense - with_margin) < 0.5 * torch.linalg.norm(dense - without)


def test_a_run_from_before_padding_could_be_chosen_pads_with_zeros() -> None:
    saved = network(padding="zeros").architecture.model_dump(mode="json")
    del saved["padding"]
    net = PresenceNet(Architecture.from_dict(saved))
    assert net.stem.padding_mode == "zeros"
    assert network().stem.padding_mode == "replicate"


def test_pooling_leaves_the_margin_out() -> None:
    net = network()
    features = torch.zeros(1, 3, 4, 4)
    features[..., 1:3, 1:3] = 1.0
    assert net.tile_px == 128
    assert net.pool(features).tolist() == [[1.0, 1.0, 1.0]]


def test_the_parts_make_the_whole() -> None:
    net = network()
    image = torch.randn(2, 4, 128, 128)
    logits, z = net(image)
    again = net.project(net.pool(net.features(image)))
    torch.testing.assert_close(z, again)
    torch.testing.assert_close(net.head(again), logits)
    torch.testing.assert_close(torch.linalg.norm(z, dim=1), torch.ones(2))


def test_pixels_without_a_measurement_count_as_the_mean() -> None:
    net = network()
    net.mean.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    net.std.fill_(0.5)
    values = torch.full((1, 4, 2, 2), 0.6)
    valid = torch.tensor([[[True, False], [True, True]]])
    image = net.standardise(values, valid)
    torch.testing.assert_close(image[0, :, 0, 0], torch.tensor([1.0, 0.8, 0.6, 0.4]))
    assert image[0, :, 0, 1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("what", ["nothing", "trunk", "all_but_stem"])
def test_what_is_frozen_does_not_move_batch_statistics_included(what) -> None:
    net = network(window_px=32, margin_px=0, backbone="test_resnet")
    net.freeze(what)
    net.train()
    stem = net.stem.weight
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    net(torch.randn(4, 4, 32, 32))[0].square().sum().backward()
    optimiser.step()
    moved = {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    trunk = {name for name in moved if name.startswith("trunk.")}
    stem_name = next(name for name, p in net.named_parameters() if p is stem)
    assert (
        trunk == (set() if what == "trunk" else {stem_name})
        if what != "nothing"
        else len(trunk) > 20
    )
    assert any(name.startswith("classifier") for name in moved)
    if what == "nothing":
        assert any("running_mean" in name for name in trunk)


def test_an_untrained_network_starts_at_the_mean_rates() -> None:
    net = network(bands=(), covariates=3)
    rates = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.0])
    start_at_rates(net, rates)
    p = net(None, torch.randn(50, 3))[0].sigmoid().mean(dim=0)
    torch.testing.assert_close(p, rates.clamp(min=1e-3), atol=0.1, rtol=0)


@pytest.mark.parametrize("fusion", ["concatenate", "gate"])
def test_each_modality_changes_the_claim_and_none_is_an_error(fusion) -> None:
    net = network(
        covariates=3,
        position=True,
        fusion=fusion,
        backbone="test_resnet",
        window_px=32,
        margin_px=0,
    )
    for branch in net.branches.values():
        torch.nn.init.normal_(branch.missing)
    image, covariates, position = torch.randn(2, 4, 32, 32), torch.randn(2, 3), torch.randn(2, 2)
    whole, z = net(image, covariates, position)
    assert z.shape == (2, 8)
    for given in ((None, covariates, position), (image, None, position), (image, covariates, None)):
        assert (net(*given)[0] - whole).abs().max() > 1e-4
    missing = net(image, torch.full((2, 3), torch.nan), position)[0]
    torch.testing.assert_close(missing, net(image, None, position)[0])
    half = covariates.clone()
    half[0, 1] = torch.nan  # one number missing: the training mean stands for it
    assert torch.isfinite(net(image, half, position)[0]).all()
    with pytest.raises(ModelError, match="nothing to predict from"):
        net(None, None, None)


def test_backbones_with_a_view_of_the_whole_image_say_that_they_cannot_be_shared() -> None:
    assert network().dense
    assert network(backbone="resnet10t").dense
    assert not network(backbone="test_efficientnet").dense  # squeeze and excitation


def test_a_network_without_imagery_has_no_features() -> None:
    net = network(bands=(), position=True)
    with pytest.raises(ModelError, match="trained without imagery"):
        net.features(torch.zeros(1, 4, 64, 64))
    with pytest.raises(ModelError, match="no image and so no stem"):
        net.stem  # noqa: B018
    with pytest.raises(ModelError, match="gives no feature map"):
        network(backbone="resmlp_12_224")


@pytest.mark.parametrize(("width", "last"), [(8, False), (12, False), (16, True)])
def test_a_trunk_too_narrow_for_channels_last_learns_without_it(width: int, last: bool) -> None:
    # with 8 channels laid out by pixel, oneDNN crashed at this size and batch
    trunk = network(backbone="resnet18", width=width).trunk
    trunk.lay_out()
    assert (trunk.layout == torch.channels_last) == last
    image = torch.randn(16, 4, 224, 224).to(memory_format=torch.channels_last)
    trunk(image).sum().backward()
    assert torch.isfinite(trunk.body.layer2[0].downsample[0].weight.grad).all()


def test_bf16_autocast_and_channels_last_change_little() -> None:
    net = network()
    image = torch.randn(2, 4, 128, 128)
    with torch.inference_mode():
        plain = net(image)[0].sigmoid()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = net(image)[0].sigmoid().float()
        last = net.to(memory_format=torch.channels_last)(
            image.contiguous(memory_format=torch.channels_last)
        )[0].sigmoid()
    torch.testing.assert_close(half, plain, atol=0.02, rtol=0)
    torch.testing.assert_close(last, plain, atol=1e-4, rtol=1e-3)


def test_a_narrow_resnet_is_the_published_one_with_fewer_channels() -> None:
    wide, narrow = network(), network(width=16)
    shapes = [
        {name: tuple(value.shape) for name, value in net.trunk.body.state_dict().items()}
        for net in (wide, narrow)
    ]
    assert list(shapes[0]) == list(shapes[1])  # same layers under the same names
    for name, shape in shapes[0].items():
        inside = shape[1:2] if name == "conv1.weight" else tuple(n // 4 for n in shape[1:2])
        expected = (*(n // 4 for n in shape[:1]), *inside, *shape[2:])
        assert shapes[1][name] == expected
    with torch.inference_mode():
        assert narrow.features(torch.randn(1, 4, 128, 160)).shape == (1, 128, 4, 5)
    assert narrow.dense
    early, late = narrow.trunk.stages()
    image = torch.randn(1, 4, 64, 64).to(memory_format=narrow.trunk.layout)
    with torch.inference_mode():
        value = image
        for module in [*early, late]:
            value = module(value)
        torch.testing.assert_close(value, narrow.features(image))


def test_a_bottleneck_resnet_can_be_narrow_too() -> None:
    net = network(backbone="resnet50", width=8)
    assert net.trunk.channels == 8 * 8 * 4
    usual = sum(p.numel() for p in network(backbone="resnet50").trunk.parameters())
    assert sum(p.numel() for p in net.trunk.parameters()) < usual / 40


def test_the_usual_width_is_not_kept_and_a_narrow_one_is() -> None:
    assert "width" not in network().architecture.model_dump(mode="json")
    saved = network(width=4).architecture.model_dump(mode="json")
    assert PresenceNet(Architecture.from_dict(saved)).trunk.channels == 32


def test_a_width_that_cannot_be_had_is_answered() -> None:
    with pytest.raises(ModelError, match=r"width = 16 needs a ResNet.*'test_resnet'"):
        network(backbone="test_resnet", width=16)
    with pytest.raises(ModelError, match=r"'imagenet' are those of a resnet18 of its usual width"):
        network(width=16).trunk.load_pretrained("imagenet")
