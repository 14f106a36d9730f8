"""The one contract of everything that predicts, and all that others may ask of it."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.groups import chosen_covariates
from butterfly_sdm.errors import ArtefactError, ModelError
from butterfly_sdm.progress import Progress, silent

#: The ``position_crs`` of a predictor that uses positions and was saved by a release that did not
#: keep their CRS. Nobody may assume one: a map of it is refused.
UNKNOWN_CRS = ""


@dataclass(frozen=True)
class Sees:
    """
    What a fitted predictor looks at, in which units.

    Mapping, evaluation, applicability and checks ask this and nothing else.

    Attributes
    ----------
    bands
        Of the image, by name, in the predictor's order; empty: it sees no image.
    window_px
        Side of the ground a prediction speaks of.
    margin_px
        Surroundings it sees besides, on each side: a tile has ``window_px + 2 * margin_px``.
    resolution_m
        Side of a pixel; None: it sees no image.
    covariates
        Names, in the predictor's order.
    position_crs
        CRS of easting and northing; None: it does not know where it is; :data:`UNKNOWN_CRS`: it
        does, but not in which CRS.
    needs_tile
        Whether a site without a tile cannot be predicted, whatever else is known of it. The one
        thing that is known before the fit.
    """

    bands: tuple[str, ...] = ()
    window_px: int = 0
    margin_px: int = 0
    resolution_m: float | None = None
    covariates: tuple[str, ...] = ()
    position_crs: str | None = None
    needs_tile: bool = False

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        *,
        image: bool = False,
        covariates: bool = False,
        position: bool = False,
        only: str = "",
    ) -> Self:
        """
        Return what a predictor sees that takes all there is in ``dataset``.

        Parameters
        ----------
        image
            It takes whole tiles, in all their bands.
        covariates, position
            It takes all covariates, if there are any; easting and northing.
        only
            Which covariates, as in :func:`~butterfly_sdm.data.groups.chosen_covariates`; empty:
            all.

        Raises
        ------
        DataError
            A part of ``only`` means no covariate.
        """
        table = dataset.covariates if covariates else None
        names = tuple(map(str, table.columns)) if table is not None else ()
        tiles = dataset.card.tiles if image else None
        return cls(
            bands=tiles.bands if tiles is not None else (),
            window_px=tiles.size_px if tiles is not None else 0,
            resolution_m=tiles.resolution_m if tiles is not None else None,
            covariates=chosen_covariates(names, only),
            position_crs=dataset.card.position_crs if position else None,
            needs_tile=image,
        )

    @property
    def tile_px(self) -> int:
        """Side of the tile that is needed around a place."""
        return self.window_px + 2 * self.margin_px

    @property
    def unknown(self) -> tuple[str, ...]:
        """
        What a model of release 0.1.0 does not say though it looks at it, in words; empty for every
        other. Where it matters, as in a map, it has to be trained again.
        """
        lacking = {
            "the size of its tiles": bool(self.bands) and not self.window_px,
            "their resolution": bool(self.bands) and self.resolution_m is None,
            "the CRS of its positions": self.position_crs == UNKNOWN_CRS,
        }
        return tuple(name for name, lacks in lacking.items() if lacks)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for ``model.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> Self:
        """
        Read what :meth:`to_dict` gave.

        Raises
        ------
        ArtefactError
            It is something else.
        """
        try:
            return TypeAdapter(cls).validate_python(value)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise ArtefactError(
                f"What the model sees is damaged in model.json: "
                f"{'.'.join(map(str, ('sees', *problem['loc'])))}: {problem['msg']}. Train again."
            ) from None


def seen_by_all(parts: Iterable[Sees]) -> Sees:
    """
    Return what several predictors together look at: a tile of it serves every one of them.

    Raises
    ------
    ModelError
        They look at pixels of different sizes, or know positions in different CRSs.
    """
    parts = list(parts)
    looking = [part for part in parts if part.bands]
    window = max((part.window_px for part in looking), default=0)
    margins = [part.tile_px - window for part in looking]
    sizes = {part.resolution_m for part in looking} - {None}
    places = {part.position_crs for part in parts} - {None}
    for what, found in (("pixels of different sizes", sizes), ("different CRSs", places)):
        if len(found - {UNKNOWN_CRS}) > 1:
            raise ModelError(
                f"The members do not belong together: they were trained on {what} "
                f"({', '.join(map(str, sorted(found)))}). Join members trained on the same data."  # type: ignore[type-var]
            )
    return Sees(
        bands=tuple(dict.fromkeys(band for part in looking for band in part.bands)),
        window_px=window,
        margin_px=(max(margins, default=0) + 1) // 2,
        resolution_m=next(iter(sizes), None),
        covariates=tuple(dict.fromkeys(name for part in parts for name in part.covariates)),
        position_crs=UNKNOWN_CRS if UNKNOWN_CRS in places else next(iter(places), None),
        needs_tile=any(part.needs_tile for part in parts),
    )


def check_seen(sees: Sees, dataset: Dataset, who: str) -> None:
    """
    Refuse tiles of other bands or another resolution and positions of another map: the numbers
    would mean something else.

    What is not known of an old model is not checked, and missing tiles are left to the predictor.

    Raises
    ------
    ModelError
        The data set differs from what the predictor was fitted to.
    """
    from pyproj import CRS

    tiles = dataset.card.tiles
    if sees.bands and tiles is not None:
        trained = sees.resolution_m
        if trained is not None and abs(tiles.resolution_m - trained) > 0.01 * trained:
            raise ModelError(
                f"The {who} was trained on pixels of {trained:g} m; these tiles have "
                f"{tiles.resolution_m:g} m. Build tiles at its resolution."
            )
        if tiles.size_px < sees.tile_px:
            raise ModelError(
                f"The tiles are {tiles.size_px} px wide; the {who} looks at {sees.tile_px} px. "
                "Build larger tiles (build.tiles.size_px)."
            )
        absent = [band for band in sees.bands if band not in tiles.bands]
        if absent:
            raise ModelError(
                f"The {who} needs the band {absent[0]}; the tiles have {', '.join(tiles.bands)}."
            )
    known, own = sees.position_crs, dataset.card.position_crs
    if known and known != own and CRS.from_user_input(known) != CRS.from_user_input(own):
        raise ModelError(
            f"The {who} knows positions in {known}; these sites have {own}. Build with its CRS."
        )


@dataclass(frozen=True)
class FitContext:
    """
    What a fit may use beside its sites; every predictor takes it, few need it.

    Attributes
    ----------
    validation
        Sites to watch while fitting: never learned from, but the best epoch is that of theirs.
    folder
        Where to keep checkpoints and a history; None: nowhere.
    progress
        Told how far the fit is.
    executor
        Where independent parts, such as the members of an ensemble, are fitted at the same time
        (see :func:`butterfly_sdm.core.executor.open_executor`); None: here, one after another.
    """

    validation: Sequence[str] = ()
    folder: Path | None = None
    progress: Progress = silent
    executor: Executor | None = None


@runtime_checkable
class Predictor(Protocol):
    """
    Mean rates, nearest sites, trees, networks and ensembles: all are fitted to sites and predict
    species at sites.

    Attributes
    ----------
    species
        The names of the species, in the order of the columns of :meth:`predict`; empty before
        :meth:`fit`.
    sees
        What it looks at; saved with it. Says something only after :meth:`fit`.
    """

    @property
    def species(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def sees(self) -> Sees: ...  # noqa: D102

    def fit(
        self, dataset: Dataset, sites: Sequence[str], *, context: FitContext | None = None
    ) -> Self:
        """
        Learn from the detections of ``sites`` and of no others.

        Parameters
        ----------
        context
            Sites to watch, where to keep what, whom to tell; None: nothing of it.
        """

    def predict(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """
        Return the presence probability, in [0, 1].

        Returns
        -------
        DataFrame of shape (sites, species)
            Rows in the order of ``sites``, index named ``site_id``; columns in the order of
            ``species``.
        """

    def save(self, folder: Path) -> None:
        """
        Write ``model.json`` (with the keys ``kind`` and ``sees``) and the arrays beside it into
        ``folder``.
        """

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote: fitted, as it was saved; never a pickle."""


@runtime_checkable
class Embedding(Protocol):
    """A predictor that also says where a site lies in the space it has learned."""

    def embed(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """Return the embeddings, (sites, length)."""


@runtime_checkable
class Members(Protocol):
    """A predictor that is the mean of others, which may disagree."""

    def predict_members(self, dataset: Dataset, sites: Sequence[str]) -> list[pd.DataFrame]:
        """Return the prediction (sites, species) of every member."""
