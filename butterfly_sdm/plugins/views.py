"""
Random views of images - crop, flip, brightness and contrast, drawn for a whole batch at once - and
the losses of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.plugins.networks import unit
from butterfly_sdm.plugins.stages import Batch, Stage

_LIGHT = (0.299, 0.587, 0.114)  # of red, green and blue


def random_view(
    images: Tensor,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    flip: bool = True,
    jitter: float = 0.4,
    shift: float = 0.0,
    grey: float = 0.0,
) -> Tensor:
    """
    Return one random view per image.

    Parameters
    ----------
    images
        (n, c, h, w) in [0, 1].
    scale
        Least and greatest share of the area that is cropped and stretched over the image.
    flip
        Mirror half of them left to right.
    jitter
        Brightness and contrast change by a factor in [1 - jitter, 1 + jitter].
    shift
        Move by up to this share of the side, beyond the border by its nearest pixel.
    grey
        Share of the images of three colours that lose them, by the weights of ITU-R BT.601.

    Returns
    -------
    Tensor of the shape of ``images``, in [0, 1]
    """
    n = len(images)
    draw = torch.rand(6, n, device=images.device)
    side = (scale[0] + (scale[1] - scale[0]) * draw[0]).sqrt()  # of the crop, as a share
    room = 1 - side + shift
    theta = torch.zeros(n, 2, 3, device=images.device)
    theta[:, 0, 0] = side * (torch.where(draw[1] < 0.5, -1.0, 1.0) if flip else 1.0)
    theta[:, 1, 1] = side
    theta[:, 0, 2] = (2 * draw[2] - 1) * room
    theta[:, 1, 2] = (2 * draw[3] - 1) * room
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    views = nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    brightness, contrast = (1 + jitter * (2 * draw[4:6] - 1))[:, :, None, None, None]
    mean = views.mean(dim=(1, 2, 3), keepdim=True)
    changed: Tensor = (views - mean) * contrast + mean * brightness
    if grey and images.shape[1] == 3:
        light = (changed * changed.new_tensor(_LIGHT)[:, None, None]).sum(dim=1, keepdim=True)
        lost = torch.rand(n, device=images.device) < grey
        changed = torch.where(lost[:, None, None, None], light, changed)
    return changed.clamp(0, 1)


def views_of(config: Any) -> Callable[[Tensor], Tensor]:
    """
    Return what makes views by the settings ``crop`` (least share of the area) and, where there are
    such, ``flip``, ``jitter`` and ``shift``; see :func:`random_view`.
    """
    others = config.model_dump(include={"flip", "jitter", "shift"})
    return partial(random_view, scale=(config.crop, 1.0), **others)


@dataclass(frozen=True)
class ContrastOfViews:
    """
    A contrastive loss of views of the images of a batch.

    Attributes
    ----------
    view
        Images (n, c, h, w) -> a view of each.
    views
        How many of each image.
    embed
        (network, images) -> (n, d) embeddings, of any length.
    attracted
        Batch -> (n, n) pair weights; of several views, of all views of a batch.
    criterion
        The loss of unit embeddings.
    """

    view: Callable[[Tensor], Tensor]
    views: int
    embed: Callable[[Any, Tensor], Tensor]
    attracted: Callable[[Batch], Tensor]
    criterion: ContrastiveLoss

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Return the loss of a batch with ``image``."""
        seen = torch.cat([self.view(batch["image"]) for _ in range(self.views)])
        z = unit(self.embed(model, seen))
        return cast(Tensor, self.criterion(z, self.attracted(self._all_views(batch))))

    def collapsed(self, batch: Batch) -> Tensor:
        """Return what the loss would be if all embeddings were the same."""
        return self.criterion.collapsed(self.attracted(self._all_views(batch)))

    def stage(self, name: str, batches: Any, optimizer: Any, epochs: int, **others: Any) -> Stage:
        """Return the stage of this loss; see :class:`~butterfly_sdm.plugins.stages.Stage`."""
        others["collapsed"] = self.collapsed
        return Stage(name, batches, self.loss, optimizer, epochs, **others)

    def _all_views(self, batch: Batch) -> Batch:
        return {k: torch.cat([v] * self.views) for k, v in batch.items() if k != "image"}


def classify_views(view: Callable[[Tensor], Tensor], model: Any, batch: Batch) -> Tensor:
    """Return the cross-entropy of a view of the images of a batch with ``image`` and ``label``."""
    return nn.functional.cross_entropy(model(view(batch["image"])), batch["label"])
