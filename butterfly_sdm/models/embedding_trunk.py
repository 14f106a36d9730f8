"""A small trunk over many bands that already say much of their pixel: embeddings of the Earth."""

from __future__ import annotations

from torch import Tensor, nn

NAME = "embedding"
WIDTH = 32  # channels of the first stage, unless told otherwise
MEAN_PX = 4  # side of the pixels whose mean goes on from there


class EmbeddingBody(nn.Module):
    """
    Mix the bands of each pixel, then look at wider and wider ground; a cell is 16 pixels wide.

    The first layer sees single pixels (1 x 1); their mean over 4 x 4 pixels is looked at with
    filters of 3 x 3, twice, with the mean of 2 x 2 after each. An embedding holds the surroundings
    of its pixel already, so that little more need be seen: a cell reaches 12 pixels beyond its own
    ground. Nearly all of the work is the first layer, and it grows with the bands and the width.

    Parameters
    ----------
    bands
        Of the image.
    width
        Channels after the first layer; each later stage has twice those before it.

    Attributes
    ----------
    channels
        Length of a feature vector.
    """

    def __init__(self, bands: int, width: int = WIDTH) -> None:
        super().__init__()
        self.pixels = _Stage(bands, width, kernel=1, pool=MEAN_PX)
        self.near = _Stage(width, 2 * width, kernel=3, pool=2)
        self.wide = _Stage(2 * width, 4 * width, kernel=3, pool=2)
        self.channels = 4 * width

    def stages(self) -> list[nn.Module]:
        """Return the stages, one after the other."""
        return [self.pixels, self.near, self.wide]

    def forward(self, image: Tensor) -> Tensor:
        """Return the features (n, channels, height / 16, width / 16)."""
        for stage in self.stages():
            image = stage(image)
        return image


class _Stage(nn.Sequential):
    def __init__(self, before: int, after: int, *, kernel: int, pool: int) -> None:
        convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
        super().__init__(
            convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True), nn.AvgPool2d(pool)
        )
