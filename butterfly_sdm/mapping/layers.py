"""
Layers beside the species: numbers derived from all probabilities of a position.

Applicability is a :class:`Derived` layer that the pipeline makes: it joins a map with the training
sites, which mapping does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Members, Predictor
from butterfly_sdm.errors import DataError, ModelError
from butterfly_sdm.mapping.community import RichnessInterval
from butterfly_sdm.mapping.options import MapOptions
from butterfly_sdm.mapping.surfaces.ground import Ground
from butterfly_sdm.mapping.surfaces.networks import embed, embedders
from butterfly_sdm.mapping.surfaces.rows import Strip

Needs = Literal["probability", "spread", "embedding", "covariates", "sites", "ground"]
Ends = Callable[[np.ndarray, tuple[str, ...]], tuple[np.ndarray, np.ndarray]]


class Layer(Protocol):
    """One or more bands of a map that are no species."""

    @property
    def needs(self) -> Needs:
        """What it is made of."""
        ...

    @property
    def unit(self) -> str:
        """What the numbers are."""
        ...

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the bands."""
        ...

    def largest(self, species: Sequence[str]) -> float:
        """Return a number that no value exceeds: sets the scale where whole numbers are stored."""
        ...

    def values(self, strip: Strip) -> np.ndarray:
        """Return (bands, rows, cols), NaN where nothing is known."""
        ...


@dataclass(frozen=True)
class Richness:
    """
    Expected number of species: the sum of the probabilities.

    What one visit is expected to find of the species mapped, where probabilities speak of detection
    on a visit.
    """

    unit: str = "species"
    needs: ClassVar[Needs] = "probability"

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the name of the band."""
        return ("expected richness",)

    def largest(self, species: Sequence[str]) -> float:
        """Return the number of species."""
        return float(len(species))

    def values(self, strip: Strip) -> np.ndarray:
        """Return the sum over the species."""
        return np.asarray(strip.probability.sum(axis=0, keepdims=True))


@dataclass(frozen=True)
class RichnessVariance:
    """
    Variance of the number of species, as if they occurred independently of each other: the sum of p
    (1 - p).

    Species that come and go together make the true variance larger: a lower bound.
    """

    unit: str = "species squared"
    needs: ClassVar[Needs] = "probability"

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the name of the band."""
        return ("variance of richness",)

    def largest(self, species: Sequence[str]) -> float:
        """Return a quarter of the number of species."""
        return max(1.0, len(species) / 4)

    def values(self, strip: Strip) -> np.ndarray:
        """Return the sum over the species."""
        each = strip.probability * (1 - strip.probability)
        return np.asarray(each.sum(axis=0, keepdims=True))


@dataclass(frozen=True)
class Spread:
    """Standard deviation between the members of an ensemble, mean over the species."""

    unit: str = "presence probability"
    needs: ClassVar[Needs] = "spread"

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the name of the band."""
        return ("ensemble spread",)

    def largest(self, species: Sequence[str]) -> float:
        """Return 1."""
        return 1.0

    def values(self, strip: Strip) -> np.ndarray:
        """Return the spread."""
        assert strip.spread is not None
        return np.asarray(strip.spread.mean(axis=0, keepdims=True))


@dataclass(frozen=True)
class Presence:
    """
    Presence (1) or absence (0) of each species by its threshold.

    Attributes
    ----------
    thresholds
        Probability from which a species counts as present: one for all, or one per species.
    """

    thresholds: float | Mapping[str, float] = 0.5
    unit: str = "presence"
    needs: ClassVar[Needs] = "probability"

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """
        Return the names of the bands.

        Raises
        ------
        DataError
            A species has no threshold.
        """
        self._cuts(species)
        return tuple(f"{name} present" for name in species)

    def largest(self, species: Sequence[str]) -> float:
        """Return 1."""
        return 1.0

    def values(self, strip: Strip) -> np.ndarray:
        """Return 1 or 0 per species."""
        present = strip.probability >= self._cuts(strip.species)[:, None, None]
        return np.where(np.isfinite(strip.probability), present.astype(np.float32), np.nan)

    def _cuts(self, species: Sequence[str]) -> np.ndarray:
        given = self.thresholds
        if not isinstance(given, Mapping):
            return np.full(len(species), given)
        missing = [name for name in species if name not in given]
        if missing:
            raise DataError(
                f"There is no threshold for {missing[0]}. Give one per species, or one for all."
            )
        return np.array([given[name] for name in species])


BOUNDS = {"lower": "lower bound", "upper": "upper bound", "width": "width of the interval"}


@dataclass(frozen=True)
class Bounds:
    """
    One end, or the width, of an interval around the probability of each species.

    Attributes
    ----------
    which
        ``lower``, ``upper`` or ``width``.
    ends
        From (n, species) probabilities and the names of the species to the lower and the upper
        ends, each (n, species).
    species
        That get a band; None: all of the map.
    """

    which: Literal["lower", "upper", "width"]
    ends: Ends
    species: tuple[str, ...] | None = None
    needs: ClassVar[Needs] = "probability"

    @property
    def unit(self) -> str:
        """What the numbers are."""
        return BOUNDS[self.which]

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the bands."""
        return tuple(f"{name} {self.which}" for name in self._chosen(species))

    def largest(self, species: Sequence[str]) -> float:
        """Return 1."""
        return 1.0

    def values(self, strip: Strip) -> np.ndarray:
        """Return the ends, or their difference."""
        chosen = self._chosen(strip.species)
        p = strip.probability[[strip.species.index(name) for name in chosen]]
        low, high = self.ends(p.reshape(len(p), -1).T, chosen)
        found = {"lower": low, "upper": high}.get(self.which)
        return np.asarray(high - low if found is None else found, np.float32).T.reshape(p.shape)

    def _chosen(self, species: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in species if self.species is None or name in self.species)


@dataclass(frozen=True)
class Derived:
    """
    Any number per position, by a function: dissimilarity to the training sites, width of a
    conformal interval.

    Attributes
    ----------
    name, unit
        Of the band.
    function
        From ``of`` at n positions to (n,) numbers.
    of
        What the function is given: ``probability`` (n, species), ``embedding`` (n, length) of a
        network (of an ensemble those of its members side by side), ``covariates`` (n, covariates)
        that the predictor sees, ``sites``: a data set with the positions and covariates of n
        places, or ``ground``: what lies there, whatever the predictor sees of it.
    ground
        What of the ground the function is given; None: nothing.
    limit
        A larger number is a warning: it is in the metadata, and a page of the map hatches such
        places. None: no number is.
    masks
        Whether positions above the limit lose their probabilities.
    maximum
        No value exceeds it: sets the scale where whole numbers are stored.

    Examples
    --------
    >>> Derived("unlike", area.dissimilarity_of, limit=area.threshold)  # doctest: +SKIP
    """

    name: str
    function: Callable[[np.ndarray], np.ndarray] | Callable[[Dataset], np.ndarray]
    of: Literal["probability", "embedding", "covariates", "sites", "ground"] = "embedding"
    unit: str = ""
    limit: float | None = None
    masks: bool = True
    maximum: float = 10.0
    ground: Ground | None = None

    @property
    def needs(self) -> Needs:
        """What it is made of."""
        return self.of

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the name of the band."""
        return (self.name,)

    def largest(self, species: Sequence[str]) -> float:
        """Return ``maximum``."""
        return self.maximum

    def values(self, strip: Strip) -> np.ndarray:
        """Return what the function says."""
        known = strip.known
        out = np.full((1, *known.shape), np.nan, dtype=np.float32)
        if not known.any():
            return out
        given: object
        if self.of == "probability":
            given = strip.probability[:, known].T
        elif self.of == "embedding":
            assert strip.embedding is not None
            given = strip.embedding[:, known].T
        elif self.of == "ground":
            assert self.ground is not None
            given = self.ground.numbers(strip, known)
        else:
            given = places = strip.sites(known)
            if self.of == "covariates":
                given = _covariates(strip.positions.predictor, places)
        found = np.asarray(self.function(given), dtype=np.float32)  # type: ignore[arg-type]
        # what is not known of the ground is unlike any that is
        out[0, known] = np.nan_to_num(found, nan=self.maximum) if self.of == "ground" else found
        return out


def _covariates(predictor: Predictor, places: Dataset) -> np.ndarray:
    table = places.covariates
    assert table is not None
    return np.asarray(table[list(predictor.sees.covariates)], dtype=float)


def seen_numbers(
    predictor: Predictor, dataset: Dataset, sites: Sequence[str]
) -> tuple[Literal["embedding", "covariates"], pd.DataFrame]:
    """
    Return what a predictor makes of sites in numbers, to be unlike in, and what a :class:`Derived`
    layer is to be given ``of`` a map: the embeddings of networks, else the covariates it sees.

    Returns
    -------
    of, numbers
        ``numbers`` of shape (sites, numbers).

    Raises
    ------
    ModelError
        The predictor sees neither.
    DataError
        The data set lacks the covariates.
    """
    if embedders(predictor):
        return "embedding", embed(predictor, dataset, list(sites))
    names = list(predictor.sees.covariates)
    if not names:
        raise ModelError(
            "The area of applicability needs a network, or a model with covariates; this one has "
            "neither. Leave the layer out."
        )
    table = dataset.covariates
    if table is None or not set(names) <= set(table.columns):
        raise DataError(
            f"The data set {dataset.card.name!r} lacks covariates of the model, such as "
            f"{names[0]}: the area of applicability cannot be told. Leave the layer out."
        )
    return "covariates", table.loc[list(sites), names]


def layers_of(
    options: MapOptions, more: Sequence[Layer], predictor: Predictor
) -> tuple[Layer, ...]:
    """
    Return the layers of a map: those that the options name, ``more``, presence.

    Raises
    ------
    DataError
        The area of applicability is asked for, and no layer tells it.
    ModelError
        A layer needs what the predictor has not.
    """
    told = any(isinstance(layer, Derived) and layer.limit is not None for layer in more)
    if not told and ("applicability" in options.layers or options.only_applicable):
        raise DataError(
            "The area of applicability needs the training sites, which a run knows: use "
            "butterfly_sdm.predict_map(run), or give a layer Derived with a limit."
        )
    interval = any(isinstance(layer, RichnessInterval) for layer in more)
    if "richness_interval" in options.layers and not interval:
        raise DataError(
            "The layer richness_interval needs a community, which a run may have: use "
            "butterfly_sdm.predict_map(run), or give a layer RichnessInterval."
        )
    bounds = [name for name in options.layers if name in BOUNDS]
    made = {layer.which for layer in more if isinstance(layer, Bounds)}
    if lacking := [name for name in bounds if name not in made]:
        raise DataError(
            f"The layer {lacking[0]!r} needs held-out sites, which a run knows: use "
            "butterfly_sdm.predict_map(run), or give a layer Bounds."
        )
    layers = [NAMED[name] for name in options.layers if name in NAMED]
    layers += more
    if options.presence_above is not None:
        layers.append(Presence(options.presence_above))
    for layer in layers:
        name = " and ".join(layer.names(predictor.species))
        if layer.needs == "spread" and not isinstance(predictor, Members):
            raise ModelError(
                f"The layer {name!r} needs an ensemble; this predictor has no members. Leave it "
                "out."
            )
        if layer.needs == "embedding" and not embedders(predictor):
            raise ModelError(
                f"The layer {name!r} needs the embeddings of a network; this predictor is none. "
                "Leave it out."
            )
        if layer.needs == "covariates" and not predictor.sees.covariates:
            raise ModelError(
                f"The layer {name!r} needs covariates; this predictor sees none. Leave it out."
            )
    return tuple(layers)


NAMED: dict[str, Layer] = {
    "richness": Richness(),
    "richness_variance": RichnessVariance(),
    "spread": Spread(),
}
