"""
The simulated landscape: parcels of habitat, hedges, a river, climate, and the reflectance a
satellite sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

BANDS = ("red", "green", "blue", "nir")
HABITATS = ("woodland", "grassland", "arable", "heath", "urban", "water", "hedge")
LATTICE_PX = 32
SCENE_CRS = "EPSG:32630"
LEFT, TOP, PIXEL_M = 545_000, 5_690_000, 10  # Wiltshire and Dorset

_COARSE_PX = 16
_PARCEL_PX = 24
_TEXTURE_PX = 512

# surface reflectance x 10,000 per habitat: red, green, blue, nir; then spread between parcels and
# speckle within them
_REFLECTANCE = np.array(
    [
        [260, 430, 210, 3100],
        [440, 720, 340, 4050],
        [760, 840, 520, 2900],
        [640, 690, 420, 2050],
        [1300, 1270, 1130, 2150],
        [210, 330, 300, 140],
        [330, 500, 250, 3450],
    ],
    dtype=np.float32,
)
_PARCEL_SPREAD = np.array([0.08, 0.12, 0.30, 0.12, 0.15, 0.10, 0.05], dtype=np.float32)
_SPECKLE = np.array([0.16, 0.05, 0.05, 0.12, 0.10, 0.05, 0.10], dtype=np.float32)
# from pixel to pixel, in all bands at once
_GRAIN = np.array([0.05, 0.03, 0.03, 0.05, 0.26, 0.03, 0.05], dtype=np.float32)


@dataclass(frozen=True)
class Landscape:
    """
    Smooth fields every 16 px and one row per parcel: small enough to keep, and all that the pixels
    follow from.
    """

    seed: int
    size_px: int
    habitat: np.ndarray  # (rows, columns) habitat of each parcel
    shade: np.ndarray  # (rows, columns, bands) brightness of each parcel, a factor
    hedged: np.ndarray  # (rows, columns) width of its hedge in px; 0 for none
    seeds: np.ndarray  # (rows, columns, 2) y and x of the middle of each parcel, px
    river: np.ndarray  # coarse field; a river runs where it is near 0
    warmth: np.ndarray  # coarse field, degrees above the usual
    elevation: np.ndarray  # coarse field, metres
    town: np.ndarray  # coarse field, where people live
    texture: np.ndarray  # (px, px) unit speckle that repeats seamlessly

    @classmethod
    def draw(cls, seed: int, size_px: int) -> Landscape:
        """Draw a landscape of ``size_px`` pixels a side; it follows from ``seed``."""
        rng = np.random.default_rng([seed, 1])
        field = _field_maker(rng, size_px)
        regional = [field(3500) * 0.9 + field(1100) * 0.75 for _ in range(5)]
        town, elevation, river = field(1800), field(4000), field(2500)
        count = size_px // _PARCEL_PX + 5  # two parcels beyond each edge
        jitter = rng.uniform(0.12, 0.88, (count, count, 2))
        seeds = (np.moveaxis(np.mgrid[:count, :count], 0, -1) - 2 + jitter) * _PARCEL_PX
        # (rows, cols, 5)
        preference = np.stack([sample(f, seeds[..., 0], seeds[..., 1]) for f in regional], axis=-1)
        preference[..., 4] = 1.6 * sample(town, seeds[..., 0], seeds[..., 1]) - 1.1
        preference[..., 3] -= 0.55
        preference[..., 1] += 0.25
        preference[..., 0] -= 0.1
        preference[..., 2] += 0.25
        habitat = (
            (preference * 1.6 + rng.gumbel(0, 0.7, preference.shape)).argmax(-1).astype(np.uint8)
        )
        spread = _PARCEL_SPREAD[habitat][..., None]
        bright = (
            rng.standard_normal((*habitat.shape, 1)) * 0.8
            + rng.standard_normal((*habitat.shape, 4)) * 0.35
        )
        shade = np.exp(spread * bright).astype(np.float32)
        hedge_field = sample(field(1500), seeds[..., 0], seeds[..., 1]) + rng.normal(
            0, 0.4, habitat.shape
        )
        farmed = (habitat == 1) | (habitat == 2)
        hedged = np.where(farmed, np.clip(hedge_field * 1.1 + 0.6, 0, 2.2), 0).astype(np.float32)
        # the first row is the northern edge
        north = np.linspace(0.9, -0.9, elevation.shape[0])[:, None]
        metres = 120 + 55 * elevation
        warmth = -0.9 * north + 0.35 * field(5000) - 0.0065 * (metres - 120)
        noise = rng.standard_normal((_TEXTURE_PX, _TEXTURE_PX))
        texture = (
            _unit(gaussian_filter(noise, 0.8, mode="wrap")) * 0.8
            + _unit(gaussian_filter(noise, 3, mode="wrap")) * 0.6
        )
        places, texture = seeds.astype(np.float32), texture.astype(np.float32)
        fields = (river, warmth, metres, town, texture)
        return cls(seed, size_px, habitat, shade, hedged, places, *fields)

    def strip(self, top: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Return habitat (height, width) and reflectance (bands, height, width) of some rows."""
        y = np.arange(top, top + height, dtype=np.float32)[:, None]
        x = np.arange(self.size_px, dtype=np.float32)[None, :]
        # edges of fields curve
        bend = (
            5 * np.sin(y / 37) + 4 * np.cos(y / 83),
            5 * np.sin(x / 41) + 4 * np.cos(x / 71),
        )
        y, x = y + bend[1], x + bend[0]
        row, column = (y // _PARCEL_PX).astype(np.int32) + 2, (x // _PARCEL_PX).astype(np.int32) + 2
        count = self.habitat.shape[0]
        np.clip(row, 1, count - 2, out=row)
        np.clip(column, 1, count - 2, out=column)
        flat, seeds_y, seeds_x = (
            row * count + column,
            self.seeds[..., 0].ravel(),
            self.seeds[..., 1].ravel(),
        )
        nearest = np.full(flat.shape, np.inf, dtype=np.float32)
        second = nearest.copy()
        parcel = flat.copy()
        for step in (-count - 1, -count, -count + 1, -1, 0, 1, count - 1, count, count + 1):
            other = flat + step
            distance = np.hypot(seeds_y[other] - y, seeds_x[other] - x)
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            nearest = np.where(closer, distance, nearest)
            parcel = np.where(closer, other, parcel)
        habitat = self.habitat.ravel()[parcel]
        is_hedge = second - nearest < self.hedged.ravel()[parcel]
        rows, columns = np.broadcast_arrays(y, x)
        is_river = np.abs(sample(self.river, rows, columns)) < 0.018
        habitat = np.where(is_river, 5, np.where(is_hedge, 6, habitat)).astype(np.uint8)
        shade = np.where(
            (habitat < 5)[None], self.shade.reshape(-1, 4)[parcel].transpose(2, 0, 1), 1
        )
        repeat = np.ix_(
            np.arange(top, top + height) % _TEXTURE_PX, np.arange(self.size_px) % _TEXTURE_PX
        )
        speckle = 1 + _SPECKLE[habitat] * self.texture[repeat]
        rng = np.random.default_rng([self.seed, 5, top])
        grain = 1 + _GRAIN[habitat] * rng.standard_normal(habitat.shape, dtype=np.float32)
        noise = 1 + 0.03 * rng.standard_normal((4, height, self.size_px), dtype=np.float32)
        reflectance = _REFLECTANCE[habitat].transpose(2, 0, 1) * shade * speckle * grain * noise
        return habitat, np.clip(np.rint(reflectance), 1, 12_000).astype(np.uint16)


def _unit(field: np.ndarray) -> np.ndarray:
    return np.asarray((field - field.mean()) / field.std())


def _field_maker(rng: np.random.Generator, size_px: int) -> Callable[[float], np.ndarray]:
    side = size_px // _COARSE_PX + 8
    # so that opposite edges of the landscape are not neighbours
    margin = 3 * 5000 // (_COARSE_PX * PIXEL_M) // 2

    def field(scale_m: float) -> np.ndarray:
        """
        Return a random field with unit variance that changes over ``scale_m``; its first node lies
        4 nodes outside.
        """
        sigma = scale_m / 2 / (_COARSE_PX * PIXEL_M)
        noise = rng.standard_normal((side + 2 * margin, side + 2 * margin))
        return _unit(gaussian_filter(noise, sigma, mode="wrap"))[
            margin : margin + side, margin : margin + side
        ]

    return field


def sample(field: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolate a coarse field at pixel coordinates."""
    at = (
        np.stack([np.asarray(y, dtype=np.float64), np.asarray(x, dtype=np.float64)]) / _COARSE_PX
        + 4
    )
    return np.asarray(map_coordinates(field, at, order=1, mode="nearest", output=np.float32))
