"""Transformers of timm and torchvision as the bodies of trunks: a feature vector per patch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from butterfly_sdm.errors import ModelError

# Of torchvision; torchgeo has weights for them by the same names.
SWINS = ("swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_b")
# A transformer without its last normalisation was trained on its output before it: it then stays at
# its start, as torchgeo leaves it.
MAY_LACK = ("norm.weight", "norm.bias")
# Modules of timm whose networks give tokens and take images of any size.
TOKENS = ("vision_transformer", "deit", "eva")
# Networks that take more than an image, or come with packages that are not read.
ELSEWHERE = ("galileo", "prithvi", "clay", "terramind", "dofa", "croma", "panopticon")


def token_net(name: str, bands: int) -> tuple[nn.Module, int, int] | None:
    """
    Return a transformer of timm, the pixels per token and the tokens before those of the image;
    None if the model is no such transformer.
    """
    import timm

    entry = timm.models.model_entrypoint(name)
    if entry.__module__.rsplit(".", 1)[-1] not in TOKENS:
        return None
    net: Any = timm.create_model(
        name,
        pretrained=False,
        in_chans=bands,
        num_classes=0,
        global_pool="",
        dynamic_img_size=True,
    )
    return net, int(net.patch_embed.patch_size[0]), int(net.num_prefix_tokens)


def as_map(tokens: Tensor, image: Tensor, patch: int, skip: int) -> Tensor:
    """
    Return tokens (n, skip + patches, channels) as the map (n, channels, height / patch, width /
    patch) of the image they are of.
    """
    height, width = image.shape[-2] // patch, image.shape[-1] // patch
    own = tokens[:, skip:].transpose(1, 2)
    return own.reshape(len(own), -1, height, width)


class SwinBody(nn.Module):
    """The layers of a torchvision Swin under their own names, so that its weights fit by name."""

    def __init__(self, name: str, bands: int) -> None:
        super().__init__()
        from torchvision.models import get_model

        net: Any = get_model(name, weights=None)
        first = net.features[0][0]
        net.features[0][0] = nn.Conv2d(
            bands, first.out_channels, kernel_size=first.kernel_size, stride=first.stride
        )
        self.features, self.norm, self.permute = net.features, net.norm, net.permute

    def forward(self, image: Tensor) -> Tensor:
        """Return the features (n, channels, height / 32, width / 32)."""
        found: Tensor = self.permute(self.norm(self.features(image)))
        return found


def check_here(name: str) -> None:
    """
    Refuse backbones of which it is known that they cannot be run here.

    Raises
    ------
    ModelError
        With what to do instead.
    """
    bare = name.lower()
    instead = (
        "Run it by its own program and give what it writes, a raster of a value per patch and "
        "dimension, as build.scenes with embeddings"
    )
    if bare.startswith(ELSEWHERE):
        raise ModelError(
            f"The backbone {name!r} takes more than an image, or comes with a package that this "
            f"release does not run. {instead}; or choose a transformer of timm or torchgeo, such "
            "as vit_small_patch16_224."
        )
