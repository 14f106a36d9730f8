"""The page of a map inside a notebook."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from butterfly_sdm.mapping.viewer.page import export_page, viewer_page

NOTEBOOK_BYTES = 3_000_000  # every cell that shows a map is kept in the notebook


class MapView:
    """
    A map in a notebook: the page of ``butterfly-sdm view``, without a server.

    Parameters
    ----------
    path
        A map.
    height
        Of the cell, in pixels.
    options
        Of :func:`~butterfly_sdm.mapping.viewer.page.viewer_page`; ``most_bytes`` is 3 MB.

    Examples
    --------
    >>> MapView("map.tif")  # in a notebook  # doctest: +SKIP
    >>> MapView("map.tif").save("map.html")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, *, height: int = 560, **options: Any) -> None:
        self.path, self.height = Path(path), height
        self.options = {"most_bytes": NOTEBOOK_BYTES} | options

    def _repr_html_(self) -> str:
        page = html.escape(viewer_page(self.path, **self.options), quote=True)
        return (
            f'<iframe title="{html.escape(self.path.name, quote=True)}" srcdoc="{page}" '
            f'style="width:100%;height:{self.height}px;border:0"></iframe>'
        )

    def save(self, path: str | Path) -> Path:
        """
        Write the page as one HTML file that any browser opens.

        Returns
        -------
        Path
            Where it lies.
        """
        return export_page(self.path, path, **self.options)
