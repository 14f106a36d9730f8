"""
Building blocks of the plugins' networks: trunks, layered heads, and weights read without a pickle.
"""

import itertools
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from butterfly_sdm.errors import ModelError
from butterfly_sdm.models.stem import find_stem
from butterfly_sdm.models.trunk import read_tensors
from butterfly_sdm.plugins.images import Images

# Families of timm that are built for one size of image.
SIZED = ("maxvit", "maxxvit", "coatnet", "coat", "eva", "vit", "swin", "deit", "beit")

_untrained: ContextVar[bool] = ContextVar("untrained", default=False)


@contextmanager
def untrained() -> Iterator[None]:
    """
    Build networks without the weights they start from: those of a run are about to replace them,
    and the files they came from need not be there any more.
    """
    token = _untrained.set(True)
    try:
        yield
    finally:
        _untrained.reset(token)


class SmallResNet(nn.Module):
    """
    A residual trunk for small images (16 to 64 px), quick on a CPU.

    Parameters
    ----------
    channels
        Of the image.
    width
        Channels of the first of three levels; doubles per level.
    """

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        first = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU())
        self.levels = nn.Sequential(
            _Residual(width, width, 1),
            _Residual(width, 2 * width, 2),
            _Residual(2 * width, 4 * width, 2),
        )
        self.num_features = 4 * width

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, num_features)."""
        features: Tensor = self.levels(self.stem(images))
        return features.mean(dim=(2, 3))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.skip(x))


def make_trunk(
    name: str,
    channels: int,
    size_px: int | None = None,
    *,
    weights: str | None = None,
    patch_px: int | None = None,
) -> nn.Module:
    """
    Make a trunk that turns images into feature vectors.

    Parameters
    ----------
    name
        ``small`` or ``small:WIDTH`` for :class:`SmallResNet`, else a model of timm.
    channels
        Of the image.
    size_px
        Side of the image, for trunks that are built for one size.
    weights
        None: random. ``pretrained``: those timm names, fetched by timm. Otherwise a local file.
    patch_px
        Side of the patches of a vision transformer, smaller than its own for small images.

    Returns
    -------
    Module
        With ``num_features``, the length of its output.

    Raises
    ------
    ModelError
        timm has no such model, or the weights cannot be had.
    """
    if _untrained.get():
        weights = None
    kind, _, width = name.partition(":")
    if kind == "small":
        if weights == "pretrained":
            raise ModelError(
                "The trunk 'small' has no published weights. Choose a model of timm, or weights: "
                "null."
            )
        if not (width or "16").isdigit() or int(width or 16) < 1:
            raise ModelError(f"The trunk {name!r} is written small:WIDTH, such as small:16.")
        trunk: nn.Module = SmallResNet(channels, int(width or 16))
    else:
        trunk = _timm_trunk(name, channels, size_px, weights == "pretrained", patch_px)
    if weights not in (None, "pretrained"):
        load_weights(trunk, Path(str(weights)))
    return trunk


def _timm_trunk(
    name: str, channels: int, size_px: int | None, pretrained: bool, patch_px: int | None
) -> nn.Module:
    import timm

    plain = name.partition(".")[0]
    if not timm.is_model(plain):
        near = ", ".join(get_close_matches(plain, timm.list_models(), n=5))
        raise ModelError(f"timm has no model {name!r}. Similar names: {near or 'none'}.")
    sized = any(family in name for family in SIZED)
    options = {"img_size": size_px if sized else None, "patch_size": patch_px}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    given |= {"in_chans": channels, "num_classes": 0, "pretrained": pretrained}
    try:
        trunk: nn.Module = timm.create_model(name, **given)
    except Exception as error:
        if pretrained:
            raise ModelError(
                f"The published weights of {name} cannot be fetched ({type(error).__name__}). "
                "Give a local file as weights, or null to start from random ones."
            ) from error
        raise ModelError(
            f"timm cannot build {name} for images of {size_px} px with {channels} channels: {error}"
        ) from error
    return trunk


def load_weights(module: nn.Module, path: Path) -> None:
    """
    Load weights from a safetensors file or a plain state dict.

    Names under a prefix (``backbone.``, ``module.``) or with numbers in place of layers, as those
    of RadImageNet, are understood. Weights of colour images fit grey ones and those of one size of
    image another, as timm adapts them. Classifier weights that do not fit are left out.

    Raises
    ------
    ModelError
        The file is absent, is no state dict, or fits nowhere.
    """
    if _untrained.get():
        return
    if not path.is_file():
        raise ModelError(f"There are no weights at {path}. Give a local file, pretrained, or null.")
    own = module.state_dict()
    state = _adapted(_renamed(read_tensors(path), module), module)
    missing = [name for name in own if getattr(state.get(name), "shape", 0) != own[name].shape]
    if missing:
        raise ModelError(
            f"{path} does not fit this network: it lacks {missing[0]} ({len(missing)} of "
            f"{len(own)} missing)."
        )
    module.load_state_dict({name: state[name] for name in own})


def _renamed(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of ``module``, as far as they can be told."""
    own = set(module.state_dict())
    parts = [name.split(".") for name in state]
    prefixes = {"".join(f"{p}." for p in path[:depth]) for path in parts for depth in range(3)}
    children = [name for name, _ in module.named_children()]

    def layered(name: str) -> str:
        first, dot, rest = name.partition(".")
        known = first.isdecimal() and int(first) < len(children)
        return f"{children[int(first)]}{dot}{rest}" if known else name

    tried = [
        {change(name.removeprefix(prefix)): value for name, value in state.items()}
        for prefix in sorted(prefixes)
        for change in (str, layered)
    ]
    return max(tried, key=lambda renamed: len(own & renamed.keys()))


def _adapted(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Fit position embeddings to the size of the image, and the stem to its channels."""
    resize = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if resize is not None and type(module).__module__.startswith("timm."):
        state = resize(state, module)
    if not any(isinstance(inner, nn.Conv2d) for inner in module.modules()):
        return state
    stem, convolution = find_stem(module)
    weight = state.get(f"{stem}.weight")
    if weight is not None and weight.ndim == 4 and weight.shape[1] != convolution.in_channels:
        from timm.models import adapt_input_conv

        count = convolution.in_channels
        grey = weight.shape[1] == 1
        fitted = weight.repeat(1, count, 1, 1) / count if grey else adapt_input_conv(count, weight)
        return state | {f"{stem}.weight": fitted}
    return state


def checksum(tensors: Mapping[str, Tensor], value: int = 0) -> str:
    """Return a checksum of the names and numbers of tensors on the CPU, begun at ``value``."""
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        flat = tensors[name].contiguous().reshape(-1).view(torch.uint8)
        value = zlib.crc32(flat.numpy().data, value)
    return f"{value:08x}"


def layers(sizes: Sequence[int], *, dropout: float = 0.0, last: bool = False) -> nn.Sequential:
    """
    Return linear layers with ReLU (and dropout) between them.

    Parameters
    ----------
    sizes
        Length of the input, of every layer in turn and of the output.
    last
        Also put ReLU and dropout after the last layer.
    """
    modules: list[nn.Module] = []
    for position, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        modules.append(nn.Linear(inputs, outputs))
        if last or position < len(sizes) - 2:
            modules += [nn.ReLU(), nn.Dropout(dropout)] if dropout else [nn.ReLU()]
    return nn.Sequential(*modules)


class TrunkAndHead(nn.Module):
    """
    A trunk with a linear classifier.

    Parameters
    ----------
    trunk
        See :func:`make_trunk`. If timm says with what mean and spread its weights were trained,
        images are scaled so.
    classes
        Length of the output.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, trunk: nn.Module, classes: int, *, published: bool = False) -> None:
        super().__init__()
        card = getattr(trunk, "pretrained_cfg", None) if published else None
        mean: Any = 0.5 if card is None else card["mean"]
        spread: Any = 0.25 if card is None else card["std"]
        _, stem = find_stem(trunk)
        if card is not None and stem.in_channels != len(mean):
            # timm adds the filters of the colours: grey is each of them
            mean, spread = float(np.mean(mean)), float(np.mean(spread))
        self.register_buffer("mean", torch.as_tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("spread", torch.as_tensor(spread).reshape(1, -1, 1, 1))
        self.trunk = trunk
        self.head = nn.Linear(int(trunk.num_features), classes)  # type: ignore[arg-type]

    def features(self, images: Tensor) -> Tensor:
        """Return (n, features) of images (n, channels, h, w) in [0, 1]."""
        return cast(Tensor, self.trunk((images - self.mean) / self.spread))

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, classes) logits."""
        return cast(Tensor, self.head(self.features(images)))

    def features_of(self, images: Images, rows: np.ndarray) -> Tensor:
        """Return (m, features) of the images of (m,) rows, on the CPU, without gradients."""
        return over_images(self.features, images, rows, device_of(self))


def over_images(
    function: Callable[[Tensor], Tensor], images: Images, rows: np.ndarray, device: torch.device
) -> Tensor:
    """
    Apply ``function`` to the images of ``rows``, batch by batch, without gradients; the result lies
    on the CPU.
    """
    parts = [rows[start : start + 256] for start in range(0, len(rows), 256)]
    with torch.no_grad():
        return torch.cat([function(images.batch(part).to(device)).float().cpu() for part in parts])


def class_probabilities(model: nn.Module, images: Images, rows: np.ndarray) -> np.ndarray:
    """Return the softmax (rows, classes) of the logits of ``rows``."""
    return over_images(model, images, rows, device_of(model)).softmax(dim=1).numpy()


def device_of(module: nn.Module) -> torch.device:
    """Return where the weights of a network lie."""
    return next(module.parameters()).device


def unit(features: Tensor) -> Tensor:
    """Scale rows to length 1."""
    return nn.functional.normalize(features.float(), dim=1)
