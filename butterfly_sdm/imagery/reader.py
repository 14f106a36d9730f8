"""What the pieces of a scene ask of it while they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, Self

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from butterfly_sdm.imagery.composites.kept import KeptBlocks, Pixels
from butterfly_sdm.imagery.pixels import PixelType
from butterfly_sdm.imagery.products import Grid, Layer, Piece

Wanted = tuple[str, Window]  # a file, and a window of its own pixels


class Supply(Protocol):
    """What holds local copies of remote files that are not there as a whole."""

    def bring(self, wanted: Sequence[Wanted]) -> None:
        """
        Return once all pixels of the windows are in the local copies.

        Raises
        ------
        SourceError
            They could not be fetched.
        """

    def generation(self, path: str) -> int:
        """Return how often a copy has grown: a file opened before holds what was there then."""

    def address(self, path: str) -> str | None:
        """Return where the original of a copy lies; None: the file is no copy."""

    def stamp(self, path: str) -> tuple[int, str] | None:
        """Return size and version of the original; None: the file is no copy."""

    def forget(self, paths: Iterable[str]) -> None:
        """Give the space of copies back; they are filled again when they are read again."""

    def ahead(self, work: Callable[[], object]) -> None:
        """Bring something in the background; an error is told to whoever needs it."""

    def close(self) -> None:
        """Drop what was to be brought and is not asked for any more."""


class Reader(Protocol):
    """A scene, as far as its pieces know it; see :class:`butterfly_sdm.imagery.scene.Scene`."""

    @property
    def bands(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def crs(self) -> CRS: ...  # noqa: D102
    @property
    def transform(self) -> Affine: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def nodata(self) -> float: ...  # noqa: D102
    @property
    def dtype(self) -> PixelType: ...  # noqa: D102
    @property
    def scale(self) -> float: ...  # noqa: D102
    @property
    def offset(self) -> float: ...  # noqa: D102
    @property
    def resampling(self) -> str: ...  # noqa: D102
    @property
    def cloudy(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def supply(self) -> Supply | None: ...  # noqa: D102
    @property
    def kept(self) -> KeptBlocks: ...  # noqa: D102
    @property
    def grid(self) -> Grid: ...  # noqa: D102

    def alone(self, piece: Piece) -> Self: ...  # noqa: D102
    def offset_of(self, layer: Layer) -> tuple[int, int] | None: ...  # noqa: D102
    def window(self, left: float, bottom: float, right: float, top: float) -> Window: ...  # noqa: D102
    def read(self, window: Window) -> Pixels: ...  # noqa: D102
    def read_piece(  # noqa: D102
        self,
        piece: Piece,
        window: Window,
        bands: Sequence[str],
        values: np.ndarray,
        valid: np.ndarray,
    ) -> None: ...
    def clear(self, piece: Piece, grid: Grid, window: Window) -> np.ndarray | None: ...  # noqa: D102
    def counts(  # noqa: D102
        self, raw: np.ndarray, piece: Piece, layer: Layer, present: np.ndarray
    ) -> np.ndarray: ...
    def handle(self, layer: Layer) -> Any: ...  # noqa: D102
