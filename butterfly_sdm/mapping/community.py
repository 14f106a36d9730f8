"""What a community adds to a map: the number of species with an interval, and new records."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import geopandas as gpd
import numpy as np
import pandas as pd

from butterfly_sdm.community import scaled_linear
from butterfly_sdm.community.community import Community
from butterfly_sdm.community.given import Given
from butterfly_sdm.community.neighbours import Records
from butterfly_sdm.community.unvisited import Unvisited
from butterfly_sdm.core.cards import fingerprint
from butterfly_sdm.mapping.options import MapOptions
from butterfly_sdm.mapping.surfaces.filled import FilledSurface
from butterfly_sdm.mapping.surfaces.positions import Positions
from butterfly_sdm.mapping.surfaces.rows import Strip

log = logging.getLogger("butterfly_sdm.mapping.community")


@dataclass(frozen=True, eq=False)
class RichnessInterval:
    """
    Species that a usual survey finds, with the 90 % interval that holds at sites never seen.

    Species come and go together, so that the interval is wider than one that takes them as
    independent; it is calibrated out of fold.

    Attributes
    ----------
    community
        Of the predictor.
    visits
        Of the survey; None: as many as a training site usually had.
    """

    community: Community
    visits: float | None = None
    unit: str = "species"
    needs: ClassVar[Literal["probability"]] = "probability"
    _tables: dict[tuple[str, ...], Unvisited] = field(default_factory=dict, repr=False)

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the bands."""
        visits = self.community.visits if self.visits is None else self.visits
        name = f"species in {visits:g} visits"
        return name, f"{name}, at least", f"{name}, at most"

    def largest(self, species: Sequence[str]) -> float:
        """Return the number of species."""
        return float(len(species))

    def values(self, strip: Strip) -> np.ndarray:
        """Return the number expected and the ends of its interval."""
        if strip.species not in self._tables:
            table = self.community.prior_richness(strip.species, self.visits)
            self._tables[strip.species] = table
        known = strip.known
        out = np.full((3, *known.shape), np.nan, dtype=np.float32)
        if known.any():
            q = strip.probability[:, known].T.astype(float)
            out[:, known] = self._tables[strip.species].interval(q)
        return out


@dataclass(frozen=True, eq=False)
class NewRecords:
    """
    What was seen at places the model has not learned from: it pulls the map around them.

    Attributes
    ----------
    community
        Of the predictor.
    given
        What was seen.
    places
        Index ``place``: points, where that was.
    """

    community: Community
    given: Given
    places: gpd.GeoSeries

    @property
    def key(self) -> str:
        """What changes with the records, and with what is known of how species come together."""
        given = self.given
        tables = [given.detections, given.visits, given.effort, given.lists]
        hashes = [pd.util.hash_pandas_object(table).to_numpy().tolist() for table in tables]
        names = [list(map(str, given.detections.columns)), list(map(str, self.places.index))]
        spread = np.asarray(self.community.linear).tolist()
        places = self.places.to_wkt().tolist()
        told = {"seen": hashes, "names": names, "places": places, "spread": spread}
        if self.community.seasons is not None:
            told["dated"] = pd.util.hash_pandas_object(given.dated).to_numpy().tolist()
        return fingerprint(told)

    def on(self, filled: FilledSurface, options: MapOptions) -> Pull:
        """
        Return what the records do to a map: compared with what it says where they lie.

        Records beyond the map are not used, nor those of species whose places the options do not
        let be told exactly.
        """
        positions = filled.positions
        lattice = positions.lattice
        at = self.places.to_crs(positions.scene.crs)
        col, row = ~lattice.transform * (at.x.to_numpy(), at.y.to_numpy())
        row, col = np.floor(row).astype(int), np.floor(col).astype(int)
        inside = (row >= 0) & (col >= 0) & (row < lattice.height) & (col < lattice.width)
        q = np.full((len(at), len(positions.predictor.species)), np.nan)
        for line in np.unique(row[inside]):
            here = inside & (row == line)
            strip = filled.strip(slice(int(line), int(line) + 1))
            q[here] = strip.probability[:, 0, col[here]].T
        used = np.isfinite(q).all(axis=1)
        if not used.all():
            log.warning(
                "%d of the %d places with new records lie outside the map, or where it says "
                "nothing: they do not move it.",
                int((~used).sum()),
                len(used),
            )
        table = pd.DataFrame(
            q[used], index=self.places.index[used], columns=list(positions.predictor.species)
        )
        given = self.given.without([*options.withhold, *options.coarsen_m])
        metres = _metric_crs(positions, self.places)
        spots = self.places[used].to_crs(metres)
        records = self.community.records(table, given, np.column_stack([spots.x, spots.y]))
        return Pull(records, self.community.species, positions, metres, int(used.sum()))


@dataclass(frozen=True, eq=False)
class Pull:
    """
    The new records of a map.

    Attributes
    ----------
    records
        None: neighbours were found to tell nothing.
    species
        Of the community, in its order.
    metres
        CRS in which distances are measured.
    used
        Records within the map.
    """

    records: Records | None
    species: tuple[str, ...]
    positions: Positions
    metres: str
    used: int

    def apply(self, strip: Strip) -> Strip:
        """Return the strip as the records around move it; all else stays as it is."""
        if self.records is None:
            return strip
        rows = np.arange(strip.rows.start, strip.rows.stop)
        x, y = self.positions.lattice.coordinates(
            *np.meshgrid(rows, np.arange(self.positions.lattice.width), indexing="ij")
        )
        east, north = self.positions.moved(x.ravel(), y.ravel(), self.metres)
        spots = np.column_stack([east, north])
        near = self.records.near(spots) & strip.known.ravel()
        if not near.any():
            return strip
        order = [self.species.index(name) for name in strip.species]
        flat = strip.probability.reshape(len(strip.species), -1).copy()
        q = flat[:, near].T.astype(float)
        residual = self.records.residual(spots[near])[:, order]
        flat[:, near] = np.clip(q + scaled_linear.scale(q) * residual, 0, 1).T
        return replace(strip, probability=flat.reshape(strip.probability.shape))


def _metric_crs(positions: Positions, places: gpd.GeoSeries) -> str:
    """Return a CRS in metres: of the scene, of positions as the predictor knows them, or UTM."""
    from pyproj import CRS

    for crs in (positions.scene.crs.to_string(), positions.position_crs):
        known = CRS.from_user_input(crs)
        if known.is_projected and known.axis_info[0].unit_conversion_factor == 1:
            return str(crs)
    return str(places.estimate_utm_crs().to_string())
