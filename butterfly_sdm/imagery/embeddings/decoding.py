"""
Decode stored numbers of embeddings by a stated rule.

The rules are those of the published layouts: AlphaEarth keeps the signed square root of a number in
[-1, 1] in one signed byte [1]_; TESSERA keeps signed bytes and, beside them, a scale for each pixel
[2]_; GeoTIFF states a scale and an offset.

References
----------
.. [1] AlphaEarth Foundations GCS data, section De-quantization (Google Earth Engine guides).
.. [2] geotessera, ``dequantize_embedding`` (University of Cambridge).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading, Rule
from butterfly_sdm.imagery.pixels import fits, measured_in_all

SIGNED_SQUARE = 127.5
_BYTES = (np.dtype(np.int8), np.dtype(np.uint8))


def band_names(count: int) -> tuple[str, ...]:
    """
    Return the names of unnamed bands, in order.

    >>> band_names(3)
    ('e00', 'e01', 'e02')
    >>> band_names(768)[-1]
    'e767'
    """
    digits = max(2, len(str(count - 1)))
    return tuple(f"e{number:0{digits}d}" for number in range(count))


@dataclass(frozen=True)
class Decoding:
    """
    What stored numbers mean.

    Attributes
    ----------
    rule
        ``none``; ``linear``: ``stored * scale + offset``; ``signed_square``:
        ``(stored / scale)**2`` with the sign of ``stored``; ``pixel_scale``: ``stored`` times the
        scale of its pixel.
    scale, offset
        Of the rule.
    nodata
        A pixel with this stored number in any band has no value; None: none states it.
    dtype
        Of the stored numbers, such as ``int8``.
    """

    rule: Rule
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None
    dtype: str = "float32"

    def measured(self, stored: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
        """
        Return where pixels have a value in every band.

        Parameters
        ----------
        stored
            (bands, height, width) numbers as stored.
        scales
            (height, width) or (bands, height, width), with the rule ``pixel_scale``.

        Returns
        -------
        ndarray of bool, shape (height, width)
        """
        valid = np.ones(stored.shape[1:], dtype=bool)
        missing = self.nodata
        if missing is not None and fits(missing, stored.dtype) and not np.isnan(missing):
            valid = measured_in_all(stored, stored.dtype.type(missing))
        if stored.dtype.kind == "f":
            valid &= np.isfinite(stored).all(axis=0)
        if scales is not None:
            there = np.isfinite(scales)
            valid &= there if scales.ndim == 2 else there.all(axis=0)
        return valid

    def decode(self, stored: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
        """
        Return the values of stored numbers of any shape, whether they are measured or not.

        Parameters
        ----------
        stored
            Numbers as stored, such as (bands, height, width) of ``int8``.
        scales
            With the rule ``pixel_scale``: of each pixel, of a shape that broadcasts with
            ``stored``.

        Returns
        -------
        ndarray of float32
            The values of the published formula, rounded to the nearest float32.

        Raises
        ------
        RasterError
            The rule needs scales and there are none, or the other way round.
        """
        if (scales is None) == (self.rule == "pixel_scale"):
            raise RasterError(
                "The rule pixel_scale needs the scale of every pixel, which is in a file beside "
                "the stored numbers; other rules have none. Check preset or rule of the embeddings."
            )
        if scales is not None:
            return stored.astype(np.float32) * scales.astype(np.float32, copy=False)
        if stored.dtype in _BYTES:
            values: np.ndarray = self.table.take(stored.view(np.uint8))
            return values
        if self.rule == "none" and stored.dtype == np.float32:
            return stored
        return self._formula(stored.astype(np.float64)).astype(np.float32)

    def unscaled(
        self, stored: np.ndarray, scales: np.ndarray | None, out: np.ndarray, spare: np.ndarray
    ) -> np.ndarray:
        """
        Fill and return ``out`` with numbers that need :attr:`factor` to be values, so that sums
        over many pixels are multiplied once; ``spare`` is an array like it to work in.
        """
        np.copyto(out, stored, casting="unsafe")
        if scales is not None:
            out *= scales
        elif self.rule == "signed_square":
            np.multiply(out, np.abs(out, out=spare), out=out)
        return out

    @property
    def factor(self) -> tuple[float, float]:
        """The factor and offset that make values of unscaled numbers."""
        if self.rule == "signed_square":
            return self.scale**-2, 0.0
        return (self.scale, self.offset) if self.rule == "linear" else (1.0, 0.0)

    @cached_property
    def table(self) -> np.ndarray:
        """The value of every byte, by its bits: (256,) of float32."""
        every = np.arange(256, dtype=np.uint8).view(np.dtype(self.dtype))
        return self._formula(every.astype(np.float64)).astype(np.float32)

    def _formula(self, stored: np.ndarray) -> np.ndarray:
        values = stored
        if self.rule == "linear":
            values = stored * self.scale + self.offset
        elif self.rule == "signed_square":
            values = (stored / self.scale) ** 2 * np.sign(stored)
        return values


def decoding_of(
    reading: EmbeddingReading,
    dtype: str,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
    nodata: float | None = None,
    scaled_pixels: bool = False,
) -> Decoding:
    """
    Return the decoding of a file from what is stated and what it says itself.

    Parameters
    ----------
    dtype, scale, offset, nodata
        As the file states them.
    scaled_pixels
        Whether a file with the scales of the pixels lies beside it.

    Raises
    ------
    RasterError
        The rule does not fit the numbers: signed squares in an unsigned or fractional file, or
        scales of pixels that are not there.

    Notes
    -----
    Fractions are values already, whatever the preset: both published layouts are also exported as
    such. A rule that is stated is never left out.
    """
    known = reading.known
    kind = np.dtype(dtype).kind
    rule: Rule | None = known.get("rule")
    if kind == "f" and reading.rule is None:
        rule, known = None, {name: v for name, v in known.items() if name != "nodata"}
        if reading.nodata is not None:
            known["nodata"] = reading.nodata
    if rule is None and scaled_pixels:
        rule = "pixel_scale"
    if rule is None:
        linear = {"scale", "offset"} & set(known) or (scale, offset) != (1.0, 0.0)
        rule = "linear" if linear else "none"
    if rule == "signed_square" and kind != "i":
        raise RasterError(
            f"The embeddings are stored as {dtype}; the signed square of AlphaEarth is made of "
            "signed whole numbers (int8). If they are values already, set rule: none."
        )
    if (rule == "pixel_scale") != scaled_pixels:
        raise RasterError(
            "The rule pixel_scale needs numbers of TESSERA, NAME.npy beside NAME_scales.npy; "
            f"these are {dtype} {'with' if scaled_pixels else 'without'} scales of pixels. Check "
            "preset or rule of the embeddings."
        )
    given = known.get("nodata", nodata)
    if rule == "signed_square":
        return Decoding(rule, known.get("scale", SIGNED_SQUARE), 0.0, given, dtype)
    if rule == "linear":
        return Decoding(rule, known.get("scale", scale), known.get("offset", offset), given, dtype)
    return Decoding(rule, 1.0, 0.0, given, dtype)
