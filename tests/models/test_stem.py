"""The stem takes pretrained filters by the name of the band, never by its place."""

from pathlib import Path

import pytest
import torch

from butterfly_sdm.errors import MissingFileError, ModelError
from butterfly_sdm.models.stem import SENTINEL2_L1C, fit_stem
from butterfly_sdm.models.trunk import Trunk

# The filter of band number i is i everywhere, so that its origin can be read off.
NUMBERED = torch.arange(13.0)[None, :, None, None].expand(2, 13, 3, 3)
USED = ("red", "green", "blue", "nir")


def test_the_four_bands_are_taken_out_of_thirteen_by_name() -> None:
    stem = fit_stem(NUMBERED, SENTINEL2_L1C, USED)
    torch.testing.assert_close(stem[0, :, 0, 0], torch.tensor([3.0, 2.0, 1.0, 7.0]) * 13 / 4)
    turned = fit_stem(NUMBERED, SENTINEL2_L1C, ("nir", "blue", "green", "red"))
    torch.testing.assert_close(turned, stem[:, [3, 2, 1, 0]])


def test_an_inflated_stem_answers_an_image_with_equal_bands_as_before() -> None:
    weight = torch.randn(5, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    image = torch.rand(1, 1, 16, 16)
    before = torch.conv2d(image.expand(1, 3, 16, 16), weight)
    after = torch.conv2d(
        image.expand(1, 4, 16, 16), fit_stem(weight, ("red", "green", "blue"), USED)
    )
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_the_published_stem_copies_red_to_nir_wherever_they_stand() -> None:
    weight = torch.randn(5, 3, 7, 7)
    stem = fit_stem(
        weight, ("red", "green", "blue"), ("nir", "blue", "red", "green"), rule="published"
    )
    assert torch.equal(stem, weight[:, [0, 2, 0, 1]])


def test_a_random_band_has_the_spread_of_the_others_and_follows_the_seed(caplog) -> None:
    weight = torch.randn(64, 3, 7, 7) * 0.1
    with caplog.at_level("INFO"):
        stem = fit_stem(weight, ("red", "green", "blue"), USED, rule="random", seed=3)
    assert "No pretrained filters for nir" in caplog.text
    assert stem[:, 3].std().item() == pytest.approx(0.1 * 3 / 4, rel=0.1)
    assert torch.equal(
        stem, fit_stem(weight, ("red", "green", "blue"), USED, rule="random", seed=3)
    )


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ModelError, match="filters for 13 bands, but 3 names"):
        fit_stem(NUMBERED, ("red", "green", "blue"), USED)
    with pytest.raises(ModelError, match="no band in common"):
        fit_stem(NUMBERED[:, :2], ("vv", "vh"), USED)
    with pytest.raises(ModelError, match="no filters for swir16"):
        fit_stem(NUMBERED[:, :3], ("red", "green", "blue"), ("red", "swir16"), rule="published")


def test_local_weights_of_thirteen_bands_serve_four(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = Trunk("resnet18", SENTINEL2_L1C)
    torch.save(
        {
            "state_dict": {
                f"backbone.{name}": value for name, value in source.body.state_dict().items()
            }
        },
        tmp_path / "moco.pth",
    )
    trunk = Trunk("resnet18", USED)
    trunk.load_pretrained(str(tmp_path / "moco.pth"))
    torch.testing.assert_close(
        trunk.body.conv1.weight, source.body.conv1.weight[:, [3, 2, 1, 7]] * 13 / 4
    )
    assert torch.equal(trunk.body.layer4[1].conv2.weight, source.body.layer4[1].conv2.weight)


def test_safetensors_of_a_timm_backbone_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = Trunk("test_resnet", ("red", "green", "blue"))
    save_file(
        {name: value.contiguous() for name, value in source.body.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    trunk = Trunk("test_resnet", ("blue", "green", "red"))
    trunk.load_pretrained(str(tmp_path / "w.safetensors"))
    image = torch.rand(1, 3, 64, 64)
    # Three bands and no names: they are those of the tiles, in their order.
    torch.testing.assert_close(trunk.eval()(image), source.eval()(image))


def test_weights_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    trunk = Trunk("resnet18", USED)
    with pytest.raises(MissingFileError, match="There is no file of weights"):
        trunk.load_pretrained(str(tmp_path / "none.pth"))
    (tmp_path / "bad.pth").write_bytes(b"junk")
    with pytest.raises(ModelError, match="does not hold plain weights"):
        trunk.load_pretrained(str(tmp_path / "bad.pth"))
    (tmp_path / "bad.safetensors").write_bytes(b"junk")
    with pytest.raises(ModelError, match="does not hold plain weights"):
        trunk.load_pretrained(str(tmp_path / "bad.safetensors"))
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ModelError, match="holds no tensors"):
        trunk.load_pretrained(str(tmp_path / "empty.pth"))
    torch.save(Trunk("test_resnet", USED).body.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ModelError, match="belong to another backbone"):
        trunk.load_pretrained(str(tmp_path / "other.pth"))
    state = Trunk("resnet18", USED).body.state_dict()
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(
        ModelError, match=r"lack 1 parts of resnet18, such as layer3.0.conv1.weight"
    ):
        trunk.load_pretrained(str(tmp_path / "short.pth"))
    state = Trunk("resnet18", tuple("abcdefg")).body.state_dict()
    torch.save(state, tmp_path / "seven.pth")
    with pytest.raises(ModelError, match="stem of these weights has 7 bands"):
        trunk.load_pretrained(str(tmp_path / "seven.pth"))
    with pytest.raises(
        ModelError, match=r"no weights 'SENTINEL2_DREAMS' for resnet18.*SENTINEL2_ALL_MOCO"
    ):
        trunk.load_pretrained("SENTINEL2_DREAMS")


def test_names_of_published_sentinel2_weights_carry_their_bands() -> None:
    models = pytest.importorskip("torchgeo.models")
    from butterfly_sdm.imagery.products import canonical_band

    bands = models.ResNet18_Weights.SENTINEL2_ALL_MOCO.meta.get("bands")
    if bands:
        assert tuple(canonical_band(band) for band in bands) == SENTINEL2_L1C
