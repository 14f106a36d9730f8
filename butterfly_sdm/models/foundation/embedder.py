"""Run a foundation model over a scene: a raster of one feature vector per patch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window
from torch import Tensor

from butterfly_sdm.core.files import atomic_path
from butterfly_sdm.data.tiles import meant
from butterfly_sdm.errors import ModelError, RasterError
from butterfly_sdm.imagery.embeddings.decoding import band_names
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.models.foundation.inputs import trained_inputs
from butterfly_sdm.models.foundation.options import EmbedOptions
from butterfly_sdm.models.trunk import Trunk
from butterfly_sdm.progress import Progress, silent

BLOCK_PX = 128  # of the raster that is written
CACHE_BYTES = 256_000_000


@dataclass(frozen=True, eq=False)
class Embedder:
    """
    A frozen trunk with the statistics its weights were trained with.

    Attributes
    ----------
    trunk
        In evaluation mode.
    mean, std
        (bands,) of the bands of the trunk, in their own values.
    """

    trunk: Trunk
    mean: Tensor
    std: Tensor

    def features(self, values: np.ndarray, valid: np.ndarray, scene: Scene) -> np.ndarray:
        """
        Return the features (n, channels, patches down, patches across) of images.

        Parameters
        ----------
        values
            (n, bands, height, width) as the scene keeps them, in the bands of the trunk.
        valid
            (n, height, width) where they are measured; elsewhere the mean is shown.
        """
        device = next(self.trunk.parameters()).device
        image = torch.from_numpy(values).to(device).to(torch.float32, copy=True)
        image = meant(image, scene)
        mean, std = (value.to(device)[:, None, None] for value in (self.mean, self.std))
        image = image.sub_(mean).div_(std)
        image.masked_fill_(~torch.from_numpy(valid)[:, None].to(device), 0.0)
        with torch.inference_mode():
            found: np.ndarray = self.trunk(image).float().cpu().numpy()
        return found


def open_embedder(options: EmbedOptions, scene: Scene) -> Embedder:
    """
    Return the model that is to embed a scene, with its weights.

    Raises
    ------
    MissingFileError, MissingPackageError, ModelError, RasterError
        There is no such model, file or package; the scene lacks its bands; or nobody says how its
        bands are standardised.
    """
    known = trained_inputs(options.inputs, options.weights, options.backbone)
    if known is None:
        raise ModelError(
            f"Nobody says how the bands are standardised for the weights {options.weights!r}. "
            "State inputs.like (--like), the name of torchgeo's weights that were trained alike, "
            "or inputs.mean and inputs.std."
        )
    bands = options.bands or tuple(band for band in known.mean if band in scene.bands)
    if not bands:
        raise RasterError(
            f"The scene has the bands {', '.join(scene.bands[:8])}; the weights were trained with "
            f"{', '.join(known.mean)}: none in common. Name the bands of the scene (bands)."
        )
    unknown = [band for band in bands if band not in known.mean]
    if unknown:
        raise ModelError(
            f"Nobody says how the band {unknown[0]} is standardised. State inputs.mean and "
            "inputs.std of all bands, or leave it out of bands."
        )
    bands = scene.select(bands).bands
    trunk = Trunk(options.backbone, bands)
    trunk.load_pretrained(options.weights)
    trunk = trunk.eval().requires_grad_(False)
    for name, value in (("image_px", options.image_px), ("margin_px", options.margin_px)):
        if value % trunk.stride or 2 * options.margin_px >= options.image_px:
            raise ModelError(
                f"{name} is {value}; {options.backbone} needs a multiple of its patch, "
                f"{trunk.stride} px, and margins that leave something of an image of "
                f"{options.image_px} px."
            )
    mean, std = torch.zeros(len(bands)), torch.ones(len(bands))
    known.apply(bands, mean, std)
    if torch.cuda.is_available():
        trunk = trunk.cuda()
    return Embedder(trunk, mean, std)


def embed_scene(
    scene: Scene,
    out: str | Path,
    options: EmbedOptions,
    *,
    progress: Progress = silent,
) -> Path:
    """
    Write what a foundation model makes of a scene: a GeoTIFF of float32, a pixel per patch and a
    band per dimension (``e00``, ``e01`` ...), which is read again as embeddings.

    Images lie side by side, ``image_px - 2 * margin_px`` apart; a transformer sees all of an image
    in each of its patches and nothing beyond.

    Parameters
    ----------
    scene
        With the bands of the weights.
    out
        The GeoTIFF; NaN where too little is measured.

    Raises
    ------
    MissingFileError, MissingPackageError, ModelError, RasterError
        As :func:`open_embedder`, or the scene is smaller than a patch.
    """
    embedder = open_embedder(options, scene)
    scene, patch = scene.select(embedder.trunk.bands), embedder.trunk.stride
    height, width = scene.height // patch, scene.width // patch
    if not height or not width:
        raise RasterError(
            f"The scene has {scene.width} x {scene.height} pixels, less than a patch of {patch}. "
            "Give a larger one."
        )
    names = band_names(embedder.trunk.channels)
    profile = {
        "driver": "GTiff",
        "dtype": "float32",
        "count": len(names),
        "height": height,
        "width": width,
        "crs": scene.crs,
        "transform": scene.transform * Affine.scale(patch),
        "nodata": float("nan"),
        "tiled": True,
        "blockxsize": BLOCK_PX,
        "blockysize": BLOCK_PX,
        "compress": "deflate",
        "predictor": 3,
        "BIGTIFF": "IF_SAFER",
    }
    with (
        rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES),
        atomic_path(Path(out)) as temporary,
        rasterio.open(temporary, "w", **profile) as target,
    ):
        target.descriptions = names
        weights = Path(options.weights).name
        target.update_tags(backbone=options.backbone, weights=weights, patch_px=patch)
        for rows, features in _rows(embedder, scene, options, progress):
            target.write(features, window=Window(0, rows.start, width, rows.stop - rows.start))
    return Path(out)


def _rows(
    embedder: Embedder, scene: Scene, options: EmbedOptions, progress: Progress
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows of patches and their features (channels, rows, width), NaN where none are."""
    patch, side, margin = embedder.trunk.stride, options.image_px, options.margin_px
    step = side - 2 * margin
    height, width = scene.height // patch, scene.width // patch
    lefts = range(0, width * patch, step)
    for top in range(0, height * patch, step):
        rows = slice(top // patch, min((top + step) // patch, height))
        shape = (embedder.trunk.channels, step // patch, len(lefts) * step // patch)
        row = np.empty(shape, dtype=np.float32)
        for first in range(0, len(lefts), options.batch_size):
            some = lefts[first : first + options.batch_size]
            read = [scene.read(Window(left - margin, top - margin, side, side)) for left in some]
            values, valid = (np.stack(part) for part in zip(*read, strict=True))
            features = embedder.features(values, valid, scene)
            n, cells = len(some), side // patch
            share = valid.reshape(n, cells, patch, cells, patch).mean(axis=(2, 4))
            enough = (share > 0) & (share >= options.min_valid_fraction)
            features = np.where(enough[:, None], features, np.float32(np.nan))
            own = slice(margin // patch, cells - margin // patch)
            for number, left in enumerate(some):
                at = slice(left // patch, left // patch + step // patch)
                row[:, :, at] = features[number, :, own, own]
        yield rows, row[:, : rows.stop - rows.start, :width]
        progress("embedding", rows.stop, height)
