"""
Plausibility of reflectances: band order, offset, scale, saturation and constant bands, said in plain words.

Over vegetated land the near infrared is far above the visible bands and green is above red and blue; where vegetation is
sparse red is above blue. Clouds, water and top-of-atmosphere products differ, so what is found is a warning, never an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAMPLE_PIXELS = 400_000
VISIBLE = ("red", "green", "blue")


@dataclass(frozen=True)
class SpectralSample:
    """
    Pixels measured in every band, drawn from tiles or a scene.

    Attributes
    ----------
    bands
        Names.
    counts
        (bands, pixels) stored whole numbers.
    scale, offset
        ``reflectance = (value - offset) * scale``.
    """

    bands: tuple[str, ...]
    counts: np.ndarray
    scale: float
    offset: float

    @property
    def reflectance(self) -> dict[str, np.ndarray]:
        """Reflectance of each band."""
        return {
            band: (values.astype(np.float32) - np.float32(self.offset)) * np.float32(self.scale)
            for band, values in zip(self.bands, self.counts, strict=True)
        }


def sample_pixels(
    tiles: np.ndarray, *, bands: Sequence[str], nodata: int = 0, scale: float = 1e-4, offset: float = 0.0
) -> SpectralSample:
    """
    Draw pixels evenly from tiles of shape (tiles, bands, height, width): at most about 400,000, always the same ones.
    """
    step = max(1, int(np.ceil(np.sqrt(tiles.shape[0] * tiles.shape[2] * tiles.shape[3] / SAMPLE_PIXELS))))
    every = max(1, tiles.shape[0] // 4000)
    parts = []
    for number, tile in enumerate(tiles[::every]):
        start = number % step  # not the same columns of every tile
        part = np.asarray(tile[:, start::step, start::step]).reshape(len(bands), -1)
        parts.append(part[:, (part != nodata).all(axis=0)])
    counts = np.concatenate(parts, axis=1) if parts else np.zeros((len(bands), 0), np.uint16)
    return SpectralSample(tuple(bands), counts, scale, offset)


def implausible(sample: SpectralSample) -> list[str]:
    """
    Say what looks wrong with reflectances, with the numbers and the likely cause.

    Returns
    -------
    list of str
        One sentence or two per finding; empty if all is plausible or too little can be seen.
    """
    if sample.counts.shape[1] < 100:
        return []
    found = [*_constant(sample), *_saturated(sample), *_range(sample)]
    if set(sample.bands) >= {"red", "nir"}:
        found += _order(sample)
    return found


def _constant(sample: SpectralSample) -> list[str]:
    found = []
    for number, band in enumerate(sample.bands):
        values = sample.counts[number]
        if values.min() == values.max():
            found.append(f"Band {band} holds only the value {values.min()}. Is the file of this band damaged or empty?")
        found.extend(
            f"Bands {other} and {band} hold the same values. Was one file given twice?"
            for other, theirs in zip(sample.bands[:number], sample.counts[:number], strict=True)
            if np.array_equal(values, theirs) and values.min() < values.max()
        )
    return found


def _saturated(sample: SpectralSample) -> list[str]:
    found = []
    for band, values in zip(sample.bands, sample.counts, strict=True):
        top = int(values.max())
        share = float((values == top).mean())
        if share > 0.02 and values.min() < top:
            found.append(
                f"{share:.0%} of the pixels of band {band} have the highest value, {top}: saturated or clipped. "
                "Were the values cut off when the file was made?"
            )
    return found


def _range(sample: SpectralSample) -> list[str]:
    reflectance = sample.reflectance
    medians = {band: float(np.median(values)) for band, values in reflectance.items()}
    highest = max(medians, key=lambda band: medians[band])
    found = []
    if medians[highest] > 1.2:
        found.append(
            f"The median reflectance of band {highest} is {medians[highest]:.3g}, and reflectance is rarely above 1. "
            f"Is the scale {sample.scale:g} right? (0.0001 for Sentinel-2)"
        )
    elif medians[highest] < 0.01:
        found.append(
            f"The highest median reflectance of a band is {medians[highest]:.2g} (band {highest}); land has 0.02 to 0.5. "
            f"Is the scale {sample.scale:g} right, and is the offset {sample.offset:g} not too large?"
        )
    dark = {band: float(np.percentile(reflectance[band], 1)) for band in VISIBLE if band in reflectance}
    if len(dark) >= 2 and all(0.1 <= value < 0.2 for value in dark.values()) and medians[highest] < 1:
        found.append(
            f"The darkest 1 % of pixels still have a reflectance of {min(dark.values()):.2f} in all visible bands. "
            "Sentinel-2 products of processing baseline 04.00 and later need an offset of 1000."
        )
    for band, value in dark.items():
        share = float((reflectance[band] <= 0).mean())
        if share > 0.05 and value <= 0:
            found.append(
                f"{share:.0%} of the pixels of band {band} have no positive reflectance. Was the offset subtracted twice?"
            )
    return found


def _order(sample: SpectralSample) -> list[str]:
    reflectance = sample.reflectance
    names = [band for band in ("nir", *VISIBLE) if band in reflectance]
    stack = np.stack([reflectance[band] for band in names])
    ordered = np.sort(stack, axis=0)
    # Vegetation: one band towers over the visible ones. Water, clouds and bare ground do not look like that.
    towering = (ordered[-1] > 1.8 * np.maximum(ordered[-2], 1e-4)) & (ordered[-1] > 0.1)
    if towering.mean() < 0.02:
        return []
    winner = stack.argmax(axis=0)[towering]
    share = {band: float((winner == number).mean()) for number, band in enumerate(names)}
    best = max(share, key=lambda band: share[band])
    if best != "nir":
        return [
            f"Over vegetation the near infrared is far above all other bands, but here it is band {best} in {share[best]:.0%} "
            f"of such pixels and nir in {share['nir']:.0%}: nir and {best} look swapped. Check the order of the bands."
        ]
    if len(names) < 4:
        return []
    dense = towering & (stack[0] > 4 * ordered[-2])
    median = {band: float(np.median(reflectance[band][dense])) for band in VISIBLE} if dense.sum() >= 100 else {}
    figures = ", ".join(f"{band} {value:.3f}" for band, value in median.items())
    if median and median["red"] > 1.15 * median["green"] and median["green"] > 0.8 * median["blue"]:
        return [
            f"Over dense vegetation green is above red, but here the medians are {figures}: "
            "red and green look swapped. Check the order of the bands."
        ]
    if median and median["green"] < 0.97 * median["red"] and median["green"] < 0.8 * median["blue"]:
        return [
            f"Over dense vegetation green is above red and blue, but here the medians are {figures}: "
            "green and blue look swapped. Check the order of the bands."
        ]
    # Sparse vegetation and soil: dry and bright enough to have a colour, but no cloud, whose bands are all alike.
    index = (stack[0] - reflectance["red"]) / np.maximum(stack[0] + reflectance["red"], 1e-4)
    brightest = np.maximum(reflectance["red"], reflectance["blue"])
    sparse = (index > 0.15) & (index < 0.6) & (brightest < 0.25) & (brightest > 0.05)
    if sparse.sum() < 100:
        return []
    redder = float((reflectance["red"][sparse] > reflectance["blue"][sparse]).mean())
    if redder >= 0.25:
        return []
    if median and median["blue"] > median["green"]:
        return [
            f"Blue is the brightest visible band over dense vegetation ({figures}), and red is above blue in {redder:.0%} of "
            "sparsely vegetated pixels only: top-of-atmosphere (Level-1C) or hazy values, or blue and another band are swapped."
        ]
    return [
        f"Over sparse vegetation and soil red is above blue, but here in only {redder:.0%} of {int(sparse.sum()):,} such "
        "pixels: red and blue look swapped. Check the order of the bands."
    ]
