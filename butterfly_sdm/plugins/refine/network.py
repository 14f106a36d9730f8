"""The suspicious classifier, kept as it is, behind a network that rewrites its input."""

import importlib.util
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from butterfly_sdm.errors import ModelError
from butterfly_sdm.plugins.networks import load_weights
from butterfly_sdm.plugins.refine.programs import load_program


class UNet(nn.Module):
    """
    Four levels down and four up, from an image to an image of the same shape in [0, 1].

    Parameters
    ----------
    channels
        Of the image.
    first
        Channels of the first level; doubles per level.
    bilinear
        Rise by bilinear interpolation, as in the authors' code, where the lowest level has as many
        channels as the one above; else by transposed convolutions.
    """

    def __init__(self, channels: int, first: int, *, bilinear: bool = False) -> None:
        super().__init__()
        sizes = [first * 2**level for level in range(5)]
        levels = sizes[-2::-1]  # on the way up
        risen = [*levels[1:], first] if bilinear else levels  # channels that a level ends with
        if bilinear:
            sizes[-1] = sizes[-2]
        upsample = partial(nn.Upsample, scale_factor=2, mode="bilinear", align_corners=True)
        self.enter = _twice(channels, first)
        self.down = nn.ModuleList(_twice(a, b) for a, b in pairwise(sizes))
        self.rise = nn.ModuleList(
            upsample() if bilinear else nn.ConvTranspose2d(2 * a, a, 2, stride=2) for a in levels
        )
        self.up = nn.ModuleList(_twice(2 * a, out, a) for a, out in zip(levels, risen, strict=True))
        self.leave = nn.Conv2d(first, channels, 1)
        nn.init.constant_(self.leave.bias, 0.5)  # type: ignore[arg-type]  # the middle of [0, 1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the rewritten images (n, channels, h, w); h and w are multiples of 16."""
        levels = [self.enter(images)]
        for down in self.down:
            levels.append(down(nn.functional.max_pool2d(levels[-1], 2)))
        x = levels.pop()
        for rise, up in zip(self.rise, self.up, strict=True):
            x = up(torch.cat([levels.pop(), rise(x)], dim=1))
        return clamp_unit(self.leave(x))


class _ClampUnit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # a step against it leads further out
        outwards = ((x < 0) & (gradient > 0)) | ((x > 1) & (gradient < 0))
        return gradient.masked_fill(outwards, 0)


def clamp_unit(x: Tensor) -> Tensor:
    """
    Clamp to [0, 1]; outside, a gradient that leads back passes.

    The derivative of a clamp is 0 outside its range: an image that has left [0, 1] everywhere could
    never return, and the network behind it would never learn. With few or confident images that
    happens within the first steps.

    Examples
    --------
    >>> x = torch.tensor([-1.0, -1.0, 0.5], requires_grad=True)
    >>> clamp_unit(x).backward(torch.tensor([1.0, -1.0, 1.0]))
    >>> x.grad.tolist()
    [0.0, -1.0, 1.0]
    """
    return cast(Tensor, _ClampUnit.apply(x))


def _twice(inputs: int, outputs: int, between: int | None = None) -> nn.Sequential:
    def layer(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    middle = between or outputs
    return nn.Sequential(*layer(inputs, middle), *layer(middle, outputs))


class FixedClassifier(nn.Module):
    """
    A classifier that never trains: evaluation mode whatever is asked, images in [0, 1] normalised
    as it needs.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self, inner: nn.Module, mean: tuple[float, ...], spread: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("spread", torch.tensor(spread).reshape(1, -1, 1, 1))

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        self.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, classes) logits."""
        return cast(Tensor, self.inner((images - self.mean) / self.spread))


class DefendedClassifier(nn.Module):
    """
    A drop-in replacement of the classifier: images in [0, 1] to class probabilities.

    Parameters
    ----------
    unet
        T, rewrites the image.
    classifier
        f, stays as it is.
    permutation
        pi: the class j of f stands for our class pi(j).
    """

    places: Tensor

    def __init__(self, unet: nn.Module, classifier: nn.Module, permutation: list[int]) -> None:
        super().__init__()
        self.unet = unet
        self.classifier = classifier
        self.register_buffer("places", torch.tensor(np.argsort(permutation)))  # q_c = p_{pi^-1(c)}

    def remapped(self, rewritten: Tensor) -> Tensor:
        """Return q (n, classes) of images that T has rewritten: q_{pi(j)} = softmax(f(T(x)))_j."""
        logits: Tensor = self.classifier(rewritten)
        return logits.float().softmax(dim=1)[:, self.places]

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, classes) probabilities."""
        return self.remapped(self.unet(images))


def derangement(classes: int, seed: int) -> list[int]:
    """
    Draw a permutation without fixed points.

    Raises
    ------
    ModelError
        There are fewer than two classes.

    Examples
    --------
    >>> derangement(2, seed=0)
    [1, 0]
    """
    if classes < 2:
        raise ModelError(f"A permutation without fixed points needs 2 classes, not {classes}.")
    rng = np.random.default_rng(seed)
    while True:
        drawn = rng.permutation(classes)
        if (drawn != np.arange(classes)).all():
            return [int(place) for place in drawn]


def load_classifier(source: str, weights: Path | None, *, trust: bool = False) -> nn.Module:
    """
    Load the suspicious classifier without running pickled code.

    Parameters
    ----------
    source
        A TorchScript file (``.pt``, ``.ts``), an exported program (``.pt2``), or
        ``module:function`` that makes the network.
    weights
        State dict for the last: safetensors, or a file that ``torch.load(weights_only=True)``
        accepts.
    trust
        A file that is a program may run.

    Raises
    ------
    ModelError
        It cannot be loaded, or is a program that is not trusted.
    """
    path = Path(source)
    if path.is_file():
        return load_program(path, trust=trust)
    module, separator, function = source.rpartition(":")
    if not separator:
        raise ModelError(
            f"There is no model file {source}. Give a TorchScript file, an exported program, or "
            "module:function."
        )
    try:
        made: Any = getattr(_module(module), function)()
    except Exception as error:
        raise ModelError(
            f"{source} cannot make the classifier: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"{source} returned a {type(made).__name__}, not a torch.nn.Module.")
    if weights is None:
        raise ModelError(f"{source} makes an untrained network; name its state dict as weights.")
    load_weights(made, weights)
    return made.eval()


def _module(name: str) -> Any:
    """Import a module by its name, or a file beside the YAML."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    if spec is None or spec.loader is None:
        raise ModelError(f"{name} is no Python module.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_classifier(classifier: nn.Module, channels: int, size_px: int, classes: int) -> None:
    """
    Refuse a classifier that does not fit the images or the classes.

    Raises
    ------
    ModelError
        Its input or output has another size.
    """
    try:
        with torch.no_grad():
            logits = classifier(torch.zeros(2, channels, size_px, size_px))
    except Exception as error:
        raise ModelError(
            f"The classifier does not take images of {channels} x {size_px} x {size_px} "
            f"({type(error).__name__}: {str(error)[:200]}). Correct channels and size_px."
        ) from error
    if tuple(logits.shape) != (2, classes):
        raise ModelError(
            f"The classifier's output for 2 images has shape {tuple(logits.shape)}; {classes} "
            f"class names need (2, {classes})."
        )
