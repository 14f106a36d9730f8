"""
Plausibility of reflectances: band order, offset, scale, saturation and constant bands, said in
plain words.

Over vegetated land the near infrared is far above the visible bands. Which visible band is which is
told by how they vary, not by how bright they are, because haze adds to blue and green until they
are above red: where leaves are denser the near infrared rises, chlorophyll darkens red most and
green least, so green follows the near infrared best; and from leaves to soil red changes more than
blue. What is found is a warning, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from butterfly_sdm.imagery.pixels import measured
from butterfly_sdm.imagery.products import SENTINEL2

SAMPLE_PIXELS = 400_000
# Snow and clouds are rarely above it; this share of the pixels is a wrong scale.
TOO_BRIGHT, MANY = 1.3, 0.15
# Share of vegetated pixels with dense leaves from which the brightest visible band is green.
LEAFY = 0.1
# Leaves are never as dark in the near infrared, whatever the season.
DARK_LEAVES = 0.06
GROUPS = 50
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
    group
        (pixels,) number of the tile, or group of tiles, that a pixel is from.
    """

    bands: tuple[str, ...]
    counts: np.ndarray
    scale: float
    offset: float
    group: np.ndarray

    @property
    def reflectance(self) -> dict[str, np.ndarray]:
        """Reflectance of each band."""
        return {
            band: (values.astype(np.float32) - np.float32(self.offset)) * np.float32(self.scale)
            for band, values in zip(self.bands, self.counts, strict=True)
        }


def sample_pixels(
    tiles: np.ndarray,
    *,
    bands: Sequence[str],
    nodata: float = 0,
    scale: float = 1e-4,
    offset: float = 0.0,
) -> SpectralSample:
    """
    Draw pixels evenly from tiles of shape (tiles, bands, height, width): at most about 400,000,
    always the same ones.
    """
    step = max(
        1, int(np.ceil(np.sqrt(tiles.shape[0] * tiles.shape[2] * tiles.shape[3] / SAMPLE_PIXELS)))
    )
    every = max(1, tiles.shape[0] // 4000)
    together = -(-tiles.shape[0] // (every * GROUPS))  # tiles in one group
    parts, group = [], []
    for number, tile in enumerate(tiles[::every]):
        start = number % step  # not the same columns of every tile
        part = np.asarray(tile[:, start::step, start::step]).reshape(len(bands), -1)
        parts.append(part[:, measured(part, nodata).all(axis=0)])
        group.append(np.full(parts[-1].shape[1], number // together))
    if not parts:
        return SpectralSample(
            tuple(bands), np.zeros((len(bands), 0), tiles.dtype), scale, offset, np.zeros(0, int)
        )
    return SpectralSample(
        tuple(bands), np.concatenate(parts, axis=1), scale, offset, np.concatenate(group)
    )


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
    found = _constant(sample)
    if sample.counts.dtype != np.uint16 and not set(sample.bands) & set(SENTINEL2.values()):
        return found  # no reflectance: what follows says nothing of it
    found += [*_saturated(sample), *_range(sample)]
    if set(sample.bands) >= {"red", "nir"}:
        found += _order(sample)
    return found


def _constant(sample: SpectralSample) -> list[str]:
    found, alike = [], []
    for number, band in enumerate(sample.bands):
        values = sample.counts[number]
        if values.min() == values.max():
            found.append(
                f"Band {band} holds only the value {values.min()}. Is the file of this band "
                "damaged or empty?"
            )
            continue
        for other, theirs in zip(sample.bands[:number], sample.counts[:number], strict=True):
            if np.array_equal(values, theirs):
                alike.append(f"{other} and {band}")
                break
    if alike:
        more = f" and {len(alike) - 3} more pairs" if len(alike) > 3 else ""
        found.append(
            f"Bands {', '.join(alike[:3])}{more} hold the same values. Was one file given twice?"
        )
    return found


def _saturated(sample: SpectralSample) -> list[str]:
    found = []
    for band, values in zip(sample.bands, sample.counts, strict=True):
        top = int(values.max())
        share = float((values == top).mean())
        if share > 0.02 and values.min() < top:
            found.append(
                f"{share:.0%} of the pixels of band {band} have the highest value, {top}: "
                "saturated or clipped. "
                "Were the values cut off when the file was made?"
            )
    return found


def _range(sample: SpectralSample) -> list[str]:
    reflectance = sample.reflectance
    medians = {band: float(np.median(values)) for band, values in reflectance.items()}
    highest = max(medians, key=lambda band: medians[band])
    found = []
    bright = max(float((values > TOO_BRIGHT).mean()) for values in reflectance.values())
    if medians[highest] > 1.2 or bright > MANY:
        found.append(
            f"The median reflectance of band {highest} is {medians[highest]:.3g}, and "
            f"{bright:.0%} of the pixels of a band lie above {TOO_BRIGHT}; reflectance is rarely "
            f"above 1. Is the scale {sample.scale:g} right? (0.0001 for Sentinel-2)"
        )
    elif medians[highest] < 0.01:
        found.append(
            f"The highest median reflectance of a band is {medians[highest]:.2g} (band {highest}); "
            "land has 0.02 to 0.5. "
            f"Is the scale {sample.scale:g} right, and is the offset {sample.offset:g} not too "
            "large?"
        )
    elif (leaves := _leaves(reflectance)) < DARK_LEAVES:
        found.append(
            f"Where one band towers over the others, as the near infrared does over leaves, its "
            f"median reflectance is {leaves:.2g}; leaves have 0.1 to 0.5. Is the scale "
            f"{sample.scale:g} right? (0.0001 for Sentinel-2)"
        )
    dark = {
        band: float(np.percentile(reflectance[band], 1)) for band in VISIBLE if band in reflectance
    }
    if (
        len(dark) >= 2
        and all(0.1 <= value < 0.2 for value in dark.values())
        and medians[highest] < 1
        and _snowy(reflectance) < 0.1
    ):
        found.append(
            f"The darkest 1 % of pixels still have a reflectance of {min(dark.values()):.2f} in "
            "all visible bands. "
            "Sentinel-2 products of processing baseline 04.00 and later need an offset of 1000."
        )
    for band, value in dark.items():
        share = float((reflectance[band] <= 0).mean())
        if share > 0.05 and value <= 0:
            found.append(
                f"{share:.0%} of the pixels of band {band} have no positive reflectance. Was the "
                "offset subtracted twice?"
            )
    return found


def _leaves(reflectance: Mapping[str, np.ndarray]) -> float:
    """
    Return the median reflectance of the band that towers over the others, in the pixels where one
    does whatever the scale; infinite if these are few.
    """
    names = [band for band in ("nir", *VISIBLE) if band in reflectance]
    if len(names) < 3:
        return np.inf
    ordered = np.sort(np.stack([reflectance[band] for band in names]), axis=0)
    towering = (ordered[-1] > 1.8 * ordered[-2]) & (ordered[0] > 0)
    return float(np.median(ordered[-1, towering])) if towering.mean() > 0.2 else np.inf


def _snowy(reflectance: Mapping[str, np.ndarray]) -> float:
    """Return the share of pixels that are bright in all visible bands: snow and clouds."""
    visible = np.stack([reflectance[band] for band in VISIBLE if band in reflectance])
    return float((visible.min(axis=0) > 0.25).mean())


def _order(sample: SpectralSample) -> list[str]:
    reflectance = sample.reflectance
    names = [band for band in ("nir", *VISIBLE) if band in reflectance]
    stack = np.stack([reflectance[band] for band in names])
    ordered = np.sort(stack, axis=0)
    # Vegetation: one band towers over the visible ones. Water, clouds and bare ground do not look
    # like that.
    towering = (ordered[-1] > 1.8 * np.maximum(ordered[-2], 1e-4)) & (ordered[-1] > 0.1)
    if towering.mean() < 0.02:
        return []
    winner = stack.argmax(axis=0)[towering]
    share = {band: float((winner == number).mean()) for number, band in enumerate(names)}
    best = max(share, key=lambda band: share[band])
    if best != "nir":
        return [
            "Over vegetation the near infrared is far above all other bands, but here it is band "
            f"{best} in {share[best]:.0%} "
            f"of such pixels and nir in {share['nir']:.0%}: nir and {best} look swapped. Check the "
            "order of the bands."
        ]
    return _visible_order(sample, stack, ordered) if len(names) == 4 else []


def _visible_order(sample: SpectralSample, stack: np.ndarray, ordered: np.ndarray) -> list[str]:
    """
    Compare the visible bands: ``stack`` holds (nir, red, green, blue) reflectances, ``ordered`` the
    same sorted.
    """
    # whatever the order; clouds left out
    vegetated = (stack[0] > 1.3 * ordered[-2]) & (stack[0] > 0.1) & (ordered[0] < 0.15)
    follows, varies = [], []
    for number in np.unique(sample.group[vegetated]):
        chosen = stack[:, vegetated & (sample.group == number)]
        if chosen.shape[1] < 200 or (chosen.min(axis=1) == chosen.max(axis=1)).any():
            continue
        follows.append(np.corrcoef(chosen)[0, 1:])
        q05, q25, q75, q95 = np.percentile(chosen[1:], [5, 25, 75, 95], axis=1)
        varies.append(np.log(np.maximum((q75 - q25) * (q95 - q05), 1e-12)) / 2)
    if not follows:
        return []
    correlation, spread = np.array(follows), np.array(varies)  # (groups, visible bands)
    follow = np.median(correlation, axis=0)
    dense = vegetated & (stack[0] > 4 * ordered[-2])
    level = np.median(stack[1:, dense if dense.sum() >= 100 else vegetated], axis=1)
    # As haze does not change how a band varies, brightness decides only where that says nothing,
    # and there are leaves: of what is dry, dormant or bare, red is the brightest.
    unclear = np.diff(np.sort(follow)[-2:]) <= 0.05
    if unclear and dense.sum() < max(100, LEAFY * vegetated.sum()):
        green = 1
    else:
        green = int(level.argmax() if unclear else follow.argmax())
    if follow[green] - follow[1] < 0.05 and level[green] < 1.15 * level[1]:
        green = 1
    one, two = (band for band in range(3) if band != green)
    redder = spread[:, one] - spread[:, two] + 2 * (correlation[:, two] - correlation[:, one])
    score = float(np.median(redder))
    if green == 1 and score > -0.1:
        return []
    if green == 1:
        ratio = float(np.exp(np.median(spread[:, 0] - spread[:, 2])))
        agree = f"{int((redder < 0).sum())} of {len(redder)} tiles or groups of tiles"
        return [
            "From leaves to soil red changes more than blue and falls more clearly where the near "
            "infrared rises, but here red "
            f"changes {ratio:.2f} times as much as blue, and {agree} look the wrong way round: red "
            "and blue look swapped. "
            "Check the order of the bands."
        ]
    red = one if score > 0 else two
    figures = ", ".join(
        f"{VISIBLE[band]} {follow[band]:+.2f} and {level[band]:.3f}" for band in range(3)
    )
    found = (
        "Over vegetation green follows the near infrared best, but here the correlations and "
        f"medians are {figures}: "
    )
    other = 2 - green  # neither the band called green nor the one that looks green
    if (red == other) == (VISIBLE[other] == "red"):
        return [f"{found}green and {VISIBLE[green]} look swapped. Check the order of the bands."]
    return [
        f"{found}the bands look swapped in a circle; what is called {VISIBLE[green]} is green, "
        f"{VISIBLE[red]} is red and "
        f"{VISIBLE[one + two - red]} is blue. Check the order of the bands."
    ]
