"""
Embeddings of a simulated landscape, in the published layout of AlphaEarth: what a foundation model
would make of it, with all that is known of the place hidden in a mix of unnamed numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter

from butterfly_sdm.core.files import read_json
from butterfly_sdm.imagery.embeddings.decoding import SIGNED_SQUARE
from butterfly_sdm.imagery.products import open_raster
from butterfly_sdm.simulate.landscape import HABITATS, Landscape, sample
from butterfly_sdm.simulate.region import Region

HIDDEN, SMOOTH_PX, STRIP_PX = 48, 3.0, 256


def write_embeddings(
    region: Region,
    folder: str | Path,
    *,
    bands: int = 64,
    noise: float = 0.1,
    year: int = 2023,
    seed: int = 0,
) -> Path:
    """
    Write embeddings of a simulated region.

    Parameters
    ----------
    region
        As :func:`~butterfly_sdm.simulate.region.simulate_region` wrote it.
    folder
        The file lies in ``annual/YEAR/30N`` below it.
    bands
        How many numbers per pixel.
    noise
        Standard deviation of what is added to each number, beside one of about 1.
    year
        Of the folder's name.
    seed
        Of the mix and the noise.

    Returns
    -------
    Path
        The folder ``annual``.

    Notes
    -----
    The numbers of a pixel are ``tanh(tanh(h A) B) + noise``, divided by their length: h holds the
    smoothed share of every habitat and the temperature there, A and B are random. They are stored
    as AlphaEarth's: the signed square root in one byte, rows from south to north, nodata -128.
    """
    recipe = read_json(region.folder / "region.json")
    land = Landscape.draw(int(recipe["seed"]), int(recipe["size_px"]))
    rng = np.random.default_rng([seed, 11])
    inputs = len(HABITATS) + 1
    first = rng.normal(0, 1.5, (inputs, HIDDEN)).astype(np.float32)
    second = rng.normal(0, 1.5 / np.sqrt(HIDDEN), (HIDDEN, bands)).astype(np.float32)
    at = Path(folder) / "annual"
    path = at / str(year) / "30N" / "simulated-0000000000-0000000000.tiff"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_raster(region.habitats) as source:
        size, transform = source.height, source.transform
        profile = {
            "driver": "GTiff",
            "count": bands,
            "height": size,
            "width": source.width,
            "dtype": "int8",
            "crs": source.crs,
            "transform": transform * Affine.translation(0, size) * Affine.scale(1, -1),
            "nodata": -128,
            "tiled": True,
            "blockxsize": 256,
            "blockysize": 256,
            "compress": "deflate",
            "zlevel": 1,
            "interleave": "pixel",
        }
        with rasterio.open(path, "w", **profile) as out:
            for top in range(0, size, STRIP_PX):
                height = min(STRIP_PX, size - top)
                hidden = _seen(source, land, top, height) @ first
                values = np.tanh(np.tanh(hidden) @ second)
                values += noise * rng.standard_normal(values.shape, dtype=np.float32)
                values /= np.linalg.norm(values, axis=-1, keepdims=True)
                stored = np.rint(np.sqrt(np.abs(values)) * SIGNED_SQUARE) * np.sign(values)
                strip = np.clip(stored, -127, 127).astype(np.int8).transpose(2, 0, 1)
                window = Window(0, size - top - height, source.width, height)
                out.write(strip[:, ::-1], window=window)
            out.descriptions = tuple(f"A{number:02d}" for number in range(bands))
    return at


def _seen(habitats: rasterio.DatasetReader, land: Landscape, top: int, height: int) -> np.ndarray:
    """Return (height, width, inputs): smoothed shares of the habitats, and warmth."""
    margin = int(4 * SMOOTH_PX)
    begin = max(0, top - margin)
    end = min(habitats.height, top + height + margin)
    classes = habitats.read(1, window=Window(0, begin, habitats.width, end - begin))
    rows = slice(top - begin, top - begin + height)
    shares = [
        gaussian_filter((classes == number).astype(np.float32), SMOOTH_PX)[rows]
        for number in range(len(HABITATS))
    ]
    y, x = np.mgrid[top : top + height, 0 : habitats.width].astype(np.float32)
    return np.stack([*shares, sample(land.warmth, y, x)], axis=-1)
