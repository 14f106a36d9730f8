"""Where places of a run lie, what was seen there, and what its model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from butterfly_sdm.community.given import Given, read_given
from butterfly_sdm.config import Config
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import ButterflySDMError, ConfigError, DataError, counted
from butterfly_sdm.progress import Progress
from butterfly_sdm.run import Run, dataset_of
from butterfly_sdm.season.seasons import Seasons

if TYPE_CHECKING:
    import geopandas as gpd

#: A place of a model without an image speaks of a square of this side.
GROUND_M = 1000.0


def centres(shapes: gpd.GeoSeries) -> gpd.GeoSeries:
    """Return the middles of places: in degrees right to centimetres for a square of 1 km."""
    import geopandas as gpd
    import shapely

    return gpd.GeoSeries(
        shapely.centroid(np.asarray(shapes, dtype=object)), index=shapes.index, crs=shapes.crs
    )


class Ground:
    """Where places of a run lie, and what its model says of them."""

    def __init__(
        self,
        run: Run,
        settings: Config,
        dataset: Dataset | str | Path | None,
        progress: Progress,
    ) -> None:
        self.run, self.settings, self.progress = run, settings, progress
        self.notes: list[str] = []
        self.data: Dataset | None = None
        if dataset is not None:
            self.data = dataset_of(run, dataset)
        else:
            with suppress(ButterflySDMError):
                self.data = dataset_of(run)
        self.sites: dict[str, gpd.GeoSeries] = {}
        self._bands: dict[str, int] = {}

    @property
    def side_m(self) -> float:
        """Side of the ground that a prediction speaks of."""
        sees = self.run.predictor.sees
        return sees.window_px * (sees.resolution_m or 0) or GROUND_M

    @property
    def crs(self) -> str | None:
        """CRS of positions in metres."""
        if self.data is not None:
            return self.data.card.position_crs
        named = self.run.predictor.sees.position_crs
        return named or (self.settings.build.position_crs if self.settings.build else None)

    def asked(self, places: str | Path | Sequence[str] | gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        """
        Return the places asked about with their geometry (index ``place``).

        Raises
        ------
        DataError
            A place is named twice, or nobody says where it lies.
        """
        import geopandas as gpd

        if isinstance(places, str | Path):
            from data_prep.asked import read_places

            table = read_places(places)
        elif isinstance(places, gpd.GeoDataFrame):
            table = places.to_crs(4326).set_axis(places.index.astype(str))
        else:
            ids = pd.Index([str(place) for place in places], name="place")
            table = gpd.GeoDataFrame(index=ids, geometry=[None] * len(ids), crs=4326)
        names = [
            str(name) if str(name) else str(number)
            for number, name in enumerate(table.index, start=1)
        ]
        table = table.set_axis(pd.Index(names, name="place"))
        if not table.index.is_unique:
            twice = table.index[table.index.duplicated()][0]
            raise DataError(f"The place {twice!r} is named twice. A place has one row.")
        located = self.where(list(table.index), table.geometry)
        table = table.set_geometry(located.to_numpy(), crs=4326)
        self.sites["asked"] = table.geometry
        return table

    def where(self, places: Sequence[str], told: gpd.GeoSeries | None = None) -> gpd.GeoSeries:
        """
        Return the geometry of places: as told, as known from before, or of the data set.

        Raises
        ------
        DataError
            Nobody says where a place lies.
        """
        import geopandas as gpd

        found = []
        for number, name in enumerate(places):
            shape = None if told is None else told.iloc[number]
            for known in self.sites.values():
                if shape is None and name in known.index:
                    shape = known[name]
            if shape is None and self.data is not None and name in self.data.sites.index:
                shape = self.data.sites.geometry[name]
            if shape is None:
                raise DataError(
                    f"Nobody says where the place {name!r} lies: it is no site of the data set of "
                    "the run. Add lon and lat, grid_reference or footprint_wkt."
                )
            found.append(shape)
        return gpd.GeoSeries(found, index=pd.Index(places, name="place"), crs=4326)

    def given(self, given: str | Path | pd.DataFrame | Given, asked: gpd.GeoDataFrame) -> Given:
        """
        Return what was seen, by place; records within half of the ground of a place that is asked
        about count as of that place.
        """
        if isinstance(given, Given):
            return given
        from data_prep.asked import read_places, table_geometry

        if isinstance(given, pd.DataFrame):
            table = given.rename(columns={"site_id": "place"})
            if "place" not in table.columns:
                table = table.assign(place="")
            texts = table.drop(columns="geometry", errors="ignore")
            shapes = table_geometry(texts.astype("string").fillna("").astype(object), "given")
            if "geometry" in table.columns:
                shapes = table["geometry"].to_numpy(dtype=object)
        else:
            read = read_places(given)
            shapes = read.geometry.to_numpy(dtype=object)
            table = pd.DataFrame(read.drop(columns="geometry")).assign(place=read.index.to_numpy())
        table = self._placed(table.reset_index(drop=True), shapes, asked)
        community = self.run.community
        told = read_given(
            table,
            self.run.predictor.species,
            name_of=self._name_of,
            usual_visits=1.0 if community is None else community.visits,
        )
        if told.unknown:
            first = next(iter(told.unknown))
            self.notes.append(
                f"{counted(sum(told.unknown.values()), 'record names', 'records name')} "
                f"{len(told.unknown)} species the model does not know, such as {first}, and "
                "did not count."
            )
        return told

    def _placed(
        self, table: pd.DataFrame, shapes: np.ndarray, asked: gpd.GeoDataFrame
    ) -> pd.DataFrame:
        """Return records with the name of their place: asked about, of the data set, or new."""
        import geopandas as gpd
        import shapely

        names = table["place"].astype(str)
        known = names.isin(asked.index)
        if self.data is not None:
            known |= names.isin(self.data.sites.index)
        at = centres(gpd.GeoSeries(shapes, index=table.index, crs=4326))
        lost = ~known & shapely.is_missing(np.asarray(at, dtype=object))
        if lost.all() and len(lost):
            raise DataError(
                "No record says where it was: name places that are asked about under place, or add "
                "lon and lat, grid_reference or footprint_wkt."
            )
        if lost.any():
            self.notes.append(
                f"{int(lost.sum())} records are left out: they name no place that is asked about, "
                "and have no position."
            )
        rows = table.index[~known & ~lost]
        if len(rows):
            here = self._metres(at[rows])
            own = names[rows].where(names[rows] != "", [f"{p.x:.5f} {p.y:.5f}" for p in at[rows]])
            if len(asked):
                near = cKDTree(self._metres(centres(asked.geometry)))
                away, which = near.query(here)
                inside = away <= self.side_m / 2
                own = own.where(~inside, asked.index.to_numpy()[which])
            new = ~own.isin(asked.index)
            first = ~own[new].duplicated()
            spots = at[rows][new][first]
            self.sites["records"] = spots.set_axis(pd.Index(own[new][first], name="place"))
            names.loc[rows] = own
        return table.assign(place=names)[~lost.to_numpy()]

    def _name_of(self, text: str) -> str:
        """Return the name of a species as the model has it, in any case or known spelling."""
        return self._names.get(text.casefold(), text)

    @cached_property
    def _names(self) -> dict[str, str]:
        species = self.run.predictor.species
        names = {name.casefold(): name for name in species}
        if self.data is not None:
            for name, spellings in self.data.card.names.items():
                if name in species:
                    names |= {one.casefold(): name for one in spellings}
        return names

    def _metres(self, points: gpd.GeoSeries) -> np.ndarray:
        at = points.to_crs(self.crs or points.estimate_utm_crs())
        return np.column_stack([at.x, at.y])

    def unlearned(self, at: gpd.GeoSeries) -> gpd.GeoSeries:
        """
        Return those of new records that lie at no training site: the model has used those up, and
        their residuals would mislead.
        """
        community = self.run.community
        assert community is not None
        new = ~at.index.isin(community.out_of_fold.index)
        if self.data is not None and new.any():
            train = [site for site in self.run.split.train if site in self.data.sites.index]
            known = self.data.sites.loc[train, ["easting", "northing"]].to_numpy(float)
            away, _ = cKDTree(known).query(self._metres(at[new]))
            new[np.flatnonzero(new)[away <= self.side_m / 2]] = False
        if not new.all():
            self.notes.append(
                f"Records of {counted(int((~new).sum()), 'place', 'places')} say nothing of others "
                "around: the model was trained there."
            )
        return at[new]

    def predicted(
        self, places: gpd.GeoDataFrame | gpd.GeoSeries
    ) -> tuple[pd.DataFrame, np.ndarray]:
        """
        Return the predictions (place, species) and positions (places, 2) in metres of places.

        Raises
        ------
        ConfigError, DataError
            A place is no site of the data set, and the run does not know how sites are described;
            or no place has the image that the model needs.
        """
        predictor, tables, spots = self.run.predictor, [], []
        known = [] if self.data is None else [n for n in places.index if n in self.data.sites.index]
        new = [name for name in places.index if name not in set(known)]
        parts: list[tuple[Dataset, list[str]]] = []
        if known:
            assert self.data is not None
            parts.append((self.data, known))
        if new:
            parts.append((self._described(places.geometry.loc[new]), new))
        for data, names in parts:
            if predictor.sees.needs_tile:
                shown = set(data.sites_with_tiles)
                lost = [name for name in names if name not in shown]
                names = [name for name in names if name in shown]
                if lost:
                    self.notes.append(
                        f"{len(lost)} places are left out, such as {lost[0]}: no scene shows them, "
                        "and the model needs an image."
                    )
            if names:
                self._tell_lost_covariates(data, names)
                tables.append(predictor.predict(data, names))
                self._place_in_bands(data, names)
                spots.append(data.sites.loc[names, ["easting", "northing"]])
        if not tables:
            raise DataError(
                "No scene shows any of the places, and the model needs an image. Name scenes that "
                "cover them: build.scenes."
            )
        table, at = pd.concat(tables), pd.concat(spots)
        order = [name for name in places.index if name in table.index]
        table = table.loc[order].rename_axis("place")
        return table, at.loc[order].to_numpy(float)

    def _tell_lost_covariates(self, data: Dataset, names: list[str]) -> None:
        """Note places without a value of covariates that the model looks at."""
        seen = list(self.run.predictor.sees.covariates)
        if data.covariates is None or not seen:
            return
        lost = data.covariates.reindex(index=names, columns=seen).isna().sum(axis=1)
        if (lost > 0).any():
            worst = lost.idxmax()
            self.notes.append(
                f"{int((lost > 0).sum())} places lack covariates, such as {worst} "
                f"{lost[worst]:.0f} of {len(seen)}: there the model takes what is usual at its "
                "training sites, where a map tells nothing. Give rasters or a table of them."
            )

    @property
    def _seasons(self) -> Seasons | None:
        community = self.run.community
        return None if community is None else community.seasons

    def _place_in_bands(self, data: Dataset, names: list[str]) -> None:
        """Keep in which band of climate or latitude of the seasons places lie."""
        if self._seasons is None:
            return
        with suppress(ButterflySDMError):  # without that covariate: the middle one
            bands = self._seasons.bands(data, names)
            self._bands |= dict(zip(names, bands.tolist(), strict=True))

    def bands_of(self, places: pd.Index) -> np.ndarray | None:
        """Return the bands (places,) of places that were predicted; None without seasons."""
        if self._seasons is None:
            return None
        middle = int(self._seasons.calendar.band_of(None, 1)[0])
        return np.array([self._bands.get(name, middle) for name in places], dtype=np.int64)

    def _described(self, places: gpd.GeoSeries) -> Dataset:
        from data_prep.asked import describe_places

        if self.settings.build is None:
            raise ConfigError(
                f"The place {places.index[0]!r} is no site of the data set of the run, and its "
                "config has no section build that says how sites are described. Add build.scenes "
                "or build.covariates, or name sites."
            )
        predictor = self.run.predictor
        return describe_places(
            self.settings.build,
            places,
            species=predictor.species,
            sees=predictor.sees,
            position_crs=self.crs,
            progress=self.progress,
        )
