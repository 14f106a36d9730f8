"""What a run tells its map: how good each species is, bounds, and where it does not apply."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from butterfly_sdm.baselines.inputs.numbers import seen_tiles
from butterfly_sdm.config import Config
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import ButterflySDMError, DataError, ModelError
from butterfly_sdm.evaluation.applicability import Applicability
from butterfly_sdm.evaluation.dated import as_looked_at
from butterfly_sdm.evaluation.evaluate import scorable_sites
from butterfly_sdm.evaluation.trust import Trust, held_out, interval_words, judge
from butterfly_sdm.evaluation.uncertainty import fit_conformal
from butterfly_sdm.imagery.grids import at_resolution, grid_on_ground
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.layers import BOUNDS, Bounds, Derived, Layer, seen_numbers
from butterfly_sdm.mapping.options import CovariateRaster, MapOptions
from butterfly_sdm.mapping.surfaces.ground import Ground
from butterfly_sdm.run import Run, dataset_of

log = logging.getLogger("butterfly_sdm.mapping")
UNIT = "mean distances between training sites"


@dataclass(eq=False)
class MapOfRun:
    """
    A run that is to be mapped, beside its data set.

    Attributes
    ----------
    run
        The run.
    settings
        Its config: which part it is judged on, and what the map is to hold.
    options
        Of the map; ``covariates`` with the rasters of all covariates that have one.
    dataset
        The data set, if it has moved.
    """

    run: Run
    settings: Config
    options: MapOptions
    dataset: Dataset | str | Path | None = None
    _unlike: dict[tuple[str, ...], list[Layer]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.dataset is not None:
            _ = self._dataset  # one that was named has to be there

    @cached_property
    def _dataset(self) -> Dataset:
        return dataset_of(self.run, self.dataset)

    @cached_property
    def _predictions(self) -> pd.DataFrame:
        """
        Of the sites the run is judged on, from its folder if it was evaluated there; of a model of
        dated visits on their dates, whatever quantity it was evaluated on.
        """
        data, split, known = self._dataset, self.run.split, None
        predictor = as_looked_at(self.run.predictor, data)
        if predictor is self.run.predictor:
            with suppress(OSError, ValueError):
                known = pd.read_parquet(self.run.folder / "predictions.parquet")
        return held_out(predictor, data, split, self.settings.evaluate, known=known)

    @cached_property
    def _trust(self) -> Trust:
        part, seed = self.settings.evaluate.part, self.settings.seed
        return judge(self._dataset, self.run.split, self._predictions, part=part, seed=seed)

    def planned(self) -> tuple[MapOptions, list[Layer], dict[str, Any]]:
        """
        Return the options with the species that are left, the layers of bounds, and metadata.

        Raises
        ------
        DataError
            Skill or bounds are asked for and the held-out sites cannot tell them, or not of this
            quantity, or no species is left.
        """
        options, about = self.options, {"run": self.run.card.get("key")}
        self._check_quantity()
        wanted = [name for name in options.layers if name in BOUNDS]
        try:
            about["skill"] = self._trust.to_dict()
        except ButterflySDMError as error:
            if options.leave_out:
                raise DataError(
                    f"map.leave_out needs the skill of each species: {error}"
                ) from error
            log.warning("The map says nothing of how good it is: %s", error)
        if options.leave_out:
            options, about["left_out"] = self._without(options.leave_out)
        layers: list[Layer] = []
        if wanted:
            made, about["interval"] = self._bounds()
            layers += [Bounds(name, made.ends, made.species) for name in map(_bound, wanted)]
        return options, layers, about

    def gridded(self, options: MapOptions, scene: Scene) -> MapOptions:
        """
        Return options with the grid of the map where they name none and the pixels of the scene
        are not what they are called (degrees, Web Mercator): the CRS of the tiles.
        """
        grid = None
        if options.grid is None and self.run.predictor.sees.bands:
            grid = grid_on_ground(scene, self._tile_crs)
        if grid is None:
            return options
        if self.options.grid is None:
            log.warning(
                "Pixels in %s are not squares of the metres they are called, so the map is made in "
                "%s. map.grid names another CRS.",
                scene.crs.to_string(),
                grid,
            )
        self.options = self.options.model_copy(update={"grid": grid})
        return options.model_copy(update={"grid": grid})

    def as_built(self, scene: Scene) -> Scene:
        """
        Return the scene that the tiles of the run were cut from at their resolution, where its own
        pixels are coarser.
        """
        sees = self.run.predictor.sees
        if not sees.bands or sees.resolution_m is None or scene.crs.is_geographic:
            return scene
        coarser = scene.resolution_m > 1.01 * sees.resolution_m
        return at_resolution(scene, sees.resolution_m) if coarser else scene

    @cached_property
    def _tile_crs(self) -> str | None:
        """Of the tiles of the data set, if it lies where it was and they share one."""
        with suppress(ButterflySDMError):
            sites = self._dataset.sites
            if "tile_crs" in sites.columns:
                found = sites.loc[sites["tile_row"] >= 0, "tile_crs"].dropna().unique()
                return str(found[0]) if len(found) == 1 else None
        return None

    def _check_quantity(self) -> None:
        """Refuse layers learned from rates over all visits in a map of something else."""
        options = self.options
        known = ("richness_interval",) if self._other_days else (*BOUNDS, "richness_interval")
        of_rates = [name for name in options.layers if name in known]
        shown = self._other
        if shown is None and options.bound != "mean":
            shown = f"the {options.bound} ends of intervals"
        if not of_rates or shown is None:
            return
        raise DataError(
            f"The layers {', '.join(of_rates)} tell the rate that visits of a site see, and this "
            f"map shows {shown}. Leave them out of map.layers; map.bound: lower or upper maps the "
            "ends of the model's own interval."
        )

    @property
    def _other_days(self) -> bool:
        """Whether a run that knows seasons is mapped on the days of visits."""
        dated = self.run.card.get("season") == "on"
        return dated and self.options.quantity == "raw_rate"

    @property
    def _other(self) -> str | None:
        """What the map shows instead of the usual rate of visits; None: that rate."""
        if self.options.quantity == "presence":
            return "presence"
        if self.options.week is not None:
            return f"week {self.options.week}"
        return "the rate on the days of some visits" if self._other_days else None

    def check_records(self) -> None:
        """
        Refuse new records in a map of something else than the rate they are compared with.

        Raises
        ------
        DataError
            The map shows presence, a week, or the days of some visits.
        """
        if self._other is not None:
            raise DataError(
                "What was seen moves the rate over the season, and this map shows "
                f"{self._other}. Leave out --given, or map.quantity and map.week."
            )

    def _without(self, how: Literal["worse", "unsure"]) -> tuple[MapOptions, int]:
        """Return the options without the species that are not better than their mean rate."""
        options = self.options
        poor = set(self._trust.not_better(how))
        asked = options.species or self.run.predictor.species
        kept = tuple(name for name in asked if name not in poor)
        if not kept:
            raise DataError(
                f"map.leave_out: {how} leaves no species: none of {len(asked)} is better than its "
                "mean rate. Map them all and say so, or use another model."
            )
        return options.model_copy(update={"species": kept}), len(asked) - len(kept)

    def _bounds(self) -> tuple[_Ends, dict[str, Any]]:
        options, data, p = self.options.interval, self._dataset, self._predictions
        unknown = [name for name in options.species or () if name not in p.columns]
        if unknown:
            raise DataError(f"map.interval.species: the run does not know {unknown[0]!r}.")
        conformal = fit_conformal(data, p, level=options.level)
        visits = options.visits or max(1, int(np.median(data.visits.loc[p.index])))
        words = interval_words(conformal, self.settings.evaluate.part, len(p), visits)

        def ends(values: np.ndarray, species: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
            return conformal.ends(values, species, np.full(len(values), visits, dtype=float))

        return _Ends(ends, options.species), words

    def applicability(self, scene: Scene) -> list[Layer]:
        """
        Return the layers that say how unlike the training sites a place is: in what the model sees
        of it, and in the means of the bands and the covariates there, which tell sea, cloud and
        snow from land whatever the model makes of them. None if not asked for.

        Raises
        ------
        ModelError
            The data set has neither tiles nor covariates in which to be unlike.
        """
        if "applicability" not in self.options.layers and not self.options.only_applicable:
            return []
        bands = self._bands(scene)
        if bands not in self._unlike:  # learned once where a scene is planned and then mapped
            found = (self._seen(), self._ground(bands))
            self._unlike[bands] = [layer for layer in found if layer is not None]
        layers = self._unlike[bands]
        if not layers:
            raise ModelError(
                "The area of applicability needs a network, or tiles or covariates at the training "
                "sites whose bands or rasters the map has; there are none. Leave the layer out."
            )
        return layers

    def _seen(self) -> Layer | None:
        data = self._dataset
        sites = scorable_sites(data, self.run.split.train, [self.run.predictor])
        try:
            of, numbers = seen_numbers(self.run.predictor, data, sites)
        except ModelError:
            return None
        return self._layer("dissimilarity", numbers, of)

    def _ground(self, bands: tuple[str, ...]) -> Layer | None:
        data, sees = self._dataset, self.run.predictor.sees
        rasters = {
            str(name): raster
            if isinstance(raster, CovariateRaster)
            else CovariateRaster(path=raster)
            for name in ([] if data.covariates is None else data.covariates.columns)
            if (raster := self.options.covariates.get(str(name))) is not None
        }
        if not bands and not rasters:
            return None
        sites = scorable_sites(data, self.run.split.train, [self.run.predictor])
        side_m, table = 0.0, pd.DataFrame(index=pd.Index(sites))
        if bands:
            card = data.card.tiles
            assert card is not None
            window_px = sees.window_px or card.size_px
            side_m = window_px * card.resolution_m
            have = set(data.sites_with_tiles)
            sites = [site for site in sites if site in have]
            table = band_means(data, sites, Sees(bands=bands, window_px=window_px))
        if rasters:
            assert data.covariates is not None
            table = table.join(data.covariates.loc[sites, list(rasters)].astype(float))
        ground = Ground(bands, side_m, rasters, data.card.position_crs)
        return self._layer("dissimilarity of the ground", table, "ground", ground)

    def _bands(self, scene: Scene) -> tuple[str, ...]:
        """Return the bands that the training sites and the map share."""
        data, sees = self._dataset, self.run.predictor.sees
        card = data.card.tiles
        in_degrees = scene.crs.is_geographic and self.options.grid is None
        if card is None or data.tiles is None or in_degrees:
            return ()
        known = sees.bands or scene.bands
        return tuple(band for band in card.bands if band in known and band in scene.bands)

    def _layer(
        self,
        name: str,
        numbers: pd.DataFrame,
        of: Literal["embedding", "covariates", "ground"],
        ground: Ground | None = None,
    ) -> Layer:
        blocks = self._dataset.sites.get("block")
        known = Applicability.fit(numbers, fold_of=blocks)
        return Derived(
            name,
            known.dissimilarity_of,
            of=of,
            unit=UNIT,
            limit=known.threshold,
            masks=self.options.only_applicable,
            ground=ground,
        )


@dataclass(frozen=True)
class _Ends:
    ends: Any
    species: tuple[str, ...] | None


def _bound(name: str) -> Literal["lower", "upper", "width"]:
    assert name in BOUNDS
    return name  # type: ignore[return-value]


def band_means(dataset: Dataset, sites: Sequence[str], sees: Sees) -> pd.DataFrame:
    """
    Return (sites, bands) the mean reflectance over the measured pixels of each window; NaN without
    one.
    """
    card = dataset.card.tiles
    assert card is not None
    means = np.full((len(sites), len(sees.bands)), np.nan)
    for place, tile in enumerate(seen_tiles(dataset, sites, sees)):
        valid = card.measured(tile)
        if valid.any():
            seen = tile[:, valid]
            if card.signed_square is not None:
                means[place] = card.values(seen).mean(axis=1)
            else:
                means[place] = (seen.mean(axis=1, dtype=float) - card.offset) * card.scale
    return pd.DataFrame(means, index=pd.Index(list(sites)), columns=list(sees.bands))
