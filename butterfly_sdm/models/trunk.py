"""The trunk of a network, by name, from scratch or from pretrained weights."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import Tensor, nn

from butterfly_sdm.errors import (
    MissingFileError,
    ModelError,
    did_you_mean,
)
from butterfly_sdm.models import embedding_trunk
from butterfly_sdm.models.embedding_trunk import EmbeddingBody
from butterfly_sdm.models.foundation.bodies import (
    MAY_LACK,
    SWINS,
    SwinBody,
    as_map,
    check_here,
    token_net,
)
from butterfly_sdm.models.foundation.galileo import PATCH, SIZES, GalileoBody
from butterfly_sdm.models.foundation.inputs import bands_of, torchgeo_weights
from butterfly_sdm.models.foundation.terratorch import PREFIX, TerraTorchBody
from butterfly_sdm.models.options import Padding, StemRule
from butterfly_sdm.models.stem import RGB, find_stem, fit_stem, names_of_bands

log = logging.getLogger("butterfly_sdm.models.trunk")

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
# Layers of torch and timm whose output depends on the whole image.
GLOBAL_LAYERS = "SqueezeExcite SEModule SqueezeExcitation GlobalContext AdaptiveAvgPool2d"
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


class Trunk(nn.Module):
    """
    A backbone without pooling and classifier: image in, feature map out.

    Attributes
    ----------
    bands
        Names of its input bands, in order.
    channels
        Length of a feature vector.
    stride
        Pixels per cell of the feature map.
    dense
        Whether its features far from an edge depend only on the pixels around them, so that large
        blocks may be shared.
    layout
        How images and weights lie in memory.

    Notes
    -----
    ``width`` is the number of channels of the first stage of a ResNet (64 where it is None), or of
    the trunk for embeddings (32). A ResNet-18 of width 16 has 0.7 of 11 million weights, and a step
    of it takes a tenth of the time.

    ``padding`` is what its convolutions see beyond the edge of an image: the nearest cell again
    (``replicate``), or ``zeros``. Zeros are like no ground there is, and a trunk learns to know the
    edges of its tiles by them.
    """

    def __init__(
        self,
        name: str,
        bands: Sequence[str],
        padding: Padding = "replicate",
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.name, self.width = name, width
        self.bands = tuple(bands)
        self.tokens: tuple[int, int] | None = None  # pixels per token, tokens before the image's
        if width is not None and name not in (*RESNETS, embedding_trunk.NAME):
            raise ModelError(
                f"width = {width} needs a ResNet ({', '.join(RESNETS)}) or the trunk for "
                f"embeddings ({embedding_trunk.NAME}); the backbone {name!r} has a width of its "
                "own. Leave width out, or choose one of these."
            )
        if name in RESNETS:
            body = _narrow_resnet(name, len(bands), width) if width else None
            self.body = body or _torchvision_resnet(name, len(bands))
        elif name == embedding_trunk.NAME:
            self.body = EmbeddingBody(len(bands), width or embedding_trunk.WIDTH)
        elif name in SWINS:
            self.body = SwinBody(name, len(bands))
        elif name.startswith(PREFIX):
            body = TerraTorchBody(name, bands)
            self.body, self.tokens = body, (body.patch, body.skip)
        elif name in SIZES:
            self.body = GalileoBody(name, bands)
        else:
            self.body, self.tokens = _timm_body(name, len(bands))
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                module.padding_mode = padding
        self.layout = _layout(self.body)
        self.dense = _is_local(self.body)
        self.channels, self.stride = self._measure()

    def forward(self, image: Tensor) -> Tensor:
        """
        Return the feature map (n, channels, height / stride, width / stride) of images (n, bands,
        height, width).
        """
        features = self.body(image.to(memory_format=self.layout))
        if self.tokens is not None:
            return as_map(features, image, *self.tokens)
        return cast(Tensor, features[-1] if isinstance(features, list | tuple) else features)

    def lay_out(self) -> None:
        """Lay the weights out as images are."""
        self.to(memory_format=self.layout)

    @property
    def by_pixel(self) -> bool:
        """Whether its first stage sees single pixels, whose mean the others see."""
        return isinstance(self.body, EmbeddingBody)

    def stages(self) -> tuple[list[nn.Module], nn.Module]:
        """
        Return the early stages, whose feature maps are the largest, and the other layers; none and
        all where that is not known.

        One after the other they are the trunk.
        """
        if isinstance(self.body, EmbeddingBody):
            return self.body.stages(), nn.Identity()
        if not isinstance(self.body, _ResNetBody):
            return [], self
        body: Any = self.body
        stem = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)
        return [stem, *body.layer1, *body.layer2], nn.Sequential(body.layer3, body.layer4)

    @torch.no_grad()
    def _measure(self) -> tuple[int, int]:
        if isinstance(self.body, GalileoBody):
            return SIZES[self.name][0], PATCH
        training = self.training
        self.eval()
        side = 128 if self.tokens is None else 8 * self.tokens[0]
        try:
            features = self.forward(torch.zeros(1, len(self.bands), side, side))
        except (AssertionError, RuntimeError) as error:  # a fixed size of image
            raise ModelError(
                f"The backbone {self.name!r} gives no feature map for images of any size "
                f"({error}). Choose a convolutional one, a "
                f"transformer such as vit_small_patch16_224, or one of {', '.join(SWINS)}."
            ) from error
        self.train(training)
        if features.ndim != 4:
            raise ModelError(
                f"The backbone {self.name!r} gives no feature map (shape {tuple(features.shape)}). "
                "Choose a convolutional one."
            )
        return features.shape[1], side // features.shape[2]

    def load_pretrained(self, weights: str, *, rule: StemRule = "inflate", seed: int = 0) -> None:
        """
        Replace the random start by pretrained weights, the stem fitted to the bands by name.

        Parameters
        ----------
        weights
            ``imagenet``; the name of torchgeo weights for this backbone such as
            ``SENTINEL2_ALL_MOCO``; or a local file (safetensors, or a PyTorch file of plain
            tensors).

        Raises
        ------
        MissingFileError, MissingPackageError, ModelError
            There is no such file, name or package, the weights cannot be fetched, or they belong to
            another backbone.
        """
        if self.width is not None and not weights.endswith(WEIGHT_SUFFIXES):
            raise ModelError(
                f"The weights {weights!r} are those of a {self.name} of its usual width; width is "
                f"{self.width}. Leave width out, or give a local file of weights of that width."
            )
        if isinstance(self.body, TerraTorchBody | GalileoBody):
            if not weights.endswith(WEIGHT_SUFFIXES):
                raise ModelError(
                    f"Weights of {self.name} are read from a local file as it is published "
                    f"({', '.join(WEIGHT_SUFFIXES)}), not by the name {weights!r}. Fetch it first."
                )
            self.body.load(read_weights(weights, self.name, self.bands)[0], weights)
            return
        state, source = read_weights(weights, self.name, self.bands)
        own = self.body.state_dict()
        stem, _ = find_stem(self.body)
        key = f"{stem}.weight"
        state = _matching(state, own, key)
        if key not in state or 2 * len(state) < len(own):
            raise ModelError(
                f"The weights {weights!r} have no stem {key!r}: they belong to another backbone "
                f"than {self.name!r}."
            )
        source = source or names_of_bands(state[key].shape[1], self.bands)
        state[key] = fit_stem(state[key].float(), source, self.bands, rule=rule, seed=seed)
        for name, value in state.items():
            if value.shape != own[name].shape:
                raise ModelError(
                    f"The weights {weights!r} have {name} of shape {tuple(value.shape)}, "
                    f"{self.name} needs "
                    f"{tuple(own[name].shape)}. Choose the backbone they were trained for."
                )
        lost = [
            name for name in own if name not in state and not name.endswith("num_batches_tracked")
        ]
        if self.tokens is not None:
            lost = [name for name in lost if name not in MAY_LACK]
        if lost:
            raise ModelError(
                f"The weights {weights!r} lack {len(lost)} parts of {self.name}, such as {lost[0]}."
            )
        self.body.load_state_dict(state, strict=False)
        log.info("Read %s for %s; stem from %s.", weights, self.name, ", ".join(source))


def read_weights(
    weights: str, backbone: str, bands: Sequence[str]
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """
    Return the tensors of pretrained weights and, if known, the names of the bands of their stem.

    Raises
    ------
    MissingFileError
        There is no such file.
    """
    if weights.endswith(WEIGHT_SUFFIXES):
        path = Path(weights)
        if not path.is_file():
            raise MissingFileError(
                f"There is no file of weights {path}. Give an existing file, or a name such as "
                "imagenet."
            )
        return read_tensors(path), None
    if weights == "imagenet":
        return _fetch(weights, lambda: _imagenet(backbone)), RGB
    return _torchgeo(weights, backbone)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """
    Read tensors by name from a safetensors file or a plain state dict.

    Raises
    ------
    ModelError
        It holds none, or cannot be read without running code from it.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            value: Any = load_file(path)
        else:
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of safetensors, of torch and of pickle
        # torch would advise to unpickle it all the same
        why = "" if isinstance(error, UnpicklingError) else f": {str(error).splitlines()[0]}"
        raise ModelError(
            f"{path} does not hold plain weights that can be read without running code{why}. Save "
            "the state_dict of the network as safetensors."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    items = value.items() if isinstance(value, Mapping) else ()
    tensors = {str(name): tensor for name, tensor in items if isinstance(tensor, Tensor)}
    if not tensors:
        raise ModelError(f"{path} holds no tensors by name.")
    return tensors


def _matching(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], key: str
) -> dict[str, Tensor]:
    """
    Drop the prefix under which a training program kept the trunk, and what does not belong to the
    trunk.
    """
    prefixes = {name[: -len(key)] for name in state if name.endswith(key)} | {""}
    parts = [
        {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        for prefix in sorted(prefixes)
    ]
    best = max(parts, key=lambda part: len(part.keys() & own.keys()))
    return {name: value for name, value in best.items() if name in own}


def _imagenet(backbone: str) -> dict[str, Tensor]:
    if backbone in RESNETS:
        from torchvision.models import get_model

        return dict(get_model(backbone, weights="DEFAULT").state_dict())
    import timm

    return timm.create_model(backbone.removeprefix("timm:"), pretrained=True).state_dict()


def _torchgeo(weights: str, backbone: str) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    chosen = torchgeo_weights(weights, backbone)
    return _fetch(weights, lambda: dict(chosen.get_state_dict(progress=False))), bands_of(chosen)


def _fetch(weights: str, action: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        return action()
    except Exception as error:  # hubs raise errors of many libraries
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"The weights {weights!r} could not be fetched ({type(error).__name__}: {reason}). "
            "Without a network give a local file: train.model.weights=FILE.safetensors"
        ) from error


def _torchvision_resnet(name: str, bands: int) -> nn.Module:
    from torchvision.models import get_model

    net = get_model(name, weights=None)
    net.conv1 = nn.Conv2d(
        bands, net.conv1.out_channels, kernel_size=7, stride=2, padding=3, bias=False
    )
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    del net.fc, net.avgpool
    return _ResNetBody(net)


def _narrow_resnet(name: str, bands: int, width: int) -> nn.Module:
    """Return the body of a ResNet with stages of ``width`` channels, twice as many, and so on."""
    from torchvision.models import get_model

    with torch.device("meta"):  # only its plan is of use
        net: Any = get_model(name, weights=None)
    net.inplanes = width
    net.conv1 = nn.Conv2d(bands, width, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    for number in range(4):
        stage = getattr(net, f"layer{number + 1}")
        blocks = net._make_layer(
            type(stage[0]), width * 2**number, len(stage), stride=2 if number else 1
        )
        setattr(net, f"layer{number + 1}", blocks)
    del net.fc, net.avgpool
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return _ResNetBody(net)


class _ResNetBody(nn.Module):
    """The layers of a torchvision ResNet under their own names, so that its weights fit by name."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        for name, module in net.named_children():
            self.add_module(name, module)

    def forward(self, image: Tensor) -> Tensor:
        for module in self.children():
            image = module(image)
        return image


def _timm_body(name: str, bands: int) -> tuple[nn.Module, tuple[int, int] | None]:
    import timm

    name = name.removeprefix("timm:")
    if not timm.is_model(name):
        check_here(name)
        hint = did_you_mean(name, [*RESNETS, *SWINS, embedding_trunk.NAME, *timm.list_models()])
        raise ModelError(
            f"There is no backbone {name!r}; known are {', '.join(RESNETS)}, "
            f"{', '.join(SWINS)}, {embedding_trunk.NAME} and every model of timm.{hint}"
        )
    transformer = token_net(name, bands)
    if transformer is not None:
        return transformer[0], transformer[1:]
    net = timm.create_model(name, pretrained=False, in_chans=bands, num_classes=0, global_pool="")
    return net, None


def _layout(body: nn.Module) -> torch.memory_format:
    """
    Return channels last, which is faster, unless a body has weights that have no such layout, or a
    strided 1 x 1 convolution of fewer than 16 channels, at whose gradient oneDNN crashes then.
    """
    if any(isinstance(layer, nn.Conv3d) for layer in body.modules()):
        return torch.contiguous_format
    narrow = any(
        layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.in_channels < 16
        for layer in body.modules()
        if isinstance(layer, nn.Conv2d)
    )
    return torch.contiguous_format if narrow else torch.channels_last


def _is_local(body: nn.Module) -> bool:
    """
    Tell whether a body has only convolutions: attention, or squeeze and excitation, sees the whole
    image at once.
    """
    names = [type(module).__name__ for module in body.modules()]
    return not any("Attention" in name or name in GLOBAL_LAYERS.split() for name in names)
