"""The community of a predictor: how its species come and go together, and what follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from butterfly_sdm.community import logit_normal, neighbours, richness, scaled_linear
from butterfly_sdm.community.calibration import (
    LEAST_SITES,
    Calibration,
    calibrate,
    calibrate_dated,
)
from butterfly_sdm.community.dated import effective_counts, season_counts
from butterfly_sdm.community.evidence import Evidence
from butterfly_sdm.community.given import Given
from butterfly_sdm.community.neighbours import Moved, Records
from butterfly_sdm.community.unvisited import Unvisited
from butterfly_sdm.core.cards import check_version, sealed
from butterfly_sdm.core.files import atomic_path, read_json, sha256, write_json, write_table
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import ArtefactError, DataError, MissingFileError, ModelError
from butterfly_sdm.season.seasons import Seasons

FORMAT = "butterfly_sdm community"
FORMAT_VERSION = 1
PLACES_AT_ONCE = 512
ARRAYS = "community.safetensors"


@dataclass(frozen=True, eq=False)
class Belief:
    """
    What is believed of places given what was seen there and near.

    Attributes
    ----------
    prediction
        (place, species) of the model, which knows nothing of it.
    probability, low, high
        (place, species) to be seen on a visit, and its 90 % interval.
    found
        (place, species) chance that ``visits`` more visits see it at all.
    richness
        Index ``place``; columns ``expected``, ``low``, ``high``: species that ``visits`` more
        visits see, with the closed 90 % interval.
    visits
        () or (places,) to come, of ``found`` and ``richness``.
    """

    prediction: pd.DataFrame
    probability: pd.DataFrame
    low: pd.DataFrame
    high: pd.DataFrame
    found: pd.DataFrame
    richness: pd.DataFrame
    visits: np.ndarray


@dataclass(frozen=True, eq=False)
class Community:
    """
    The residual community of a predictor.

    Attributes
    ----------
    species
        In the order of the predictor.
    linear
        (species, species) covariance of scaled residuals; see
        :mod:`butterfly_sdm.community.scaled_linear`.
    logit
        (species, species) covariance of logits; see :mod:`butterfly_sdm.community.logit_normal`.
    small
        Ratios that correct small predictions in the latter.
    calibration
        Of the number of species.
    share, reach_m
        How alike the residuals of neighbours are: this much at no distance, 0 from there on.
    visits
        One number, the median of the training sites: what is taken for a usual survey.
    sites
        How many sites it was learned from.
    known
        (site, species) rates of the training sites as they are believed given all visits there.
    out_of_fold
        (site, species) their predictions by models that have not seen them.
    seasons
        Through which the day of a visit enters, where the predictions are rates over a season; None
        where every day is taken alike.
    """

    species: tuple[str, ...]
    linear: np.ndarray
    logit: np.ndarray
    small: np.ndarray
    calibration: Calibration
    share: float
    reach_m: float
    visits: float
    sites: int
    known: pd.DataFrame = field(repr=False)
    out_of_fold: pd.DataFrame = field(repr=False)
    seasons: Seasons | None = field(default=None, repr=False)

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        out_of_fold: pd.DataFrame,
        fold_of: pd.Series,
        *,
        most_sites: int = 3000,
        seed: int = 0,
        seasons: Seasons | None = None,
    ) -> Self:
        """
        Learn from predictions of sites by models that have not seen them.

        Parameters
        ----------
        out_of_fold
            (site, species) predictions, as
            :func:`~butterfly_sdm.evaluation.compare.cross_validate` gives them. Predictions of
            sites the model was fitted to would teach that species hardly deviate.
        fold_of
            Number of the fold that held each site out.
        most_sites
            Sites the covariances are learned from, drawn at random if there are more.
        seed
            Draws them, and the visits that calibrate richness.
        seasons
            Of a run whose predictions are rates over a season: what is learned from is then what
            dated visits say of those, and not how often a species was seen on whichever days.

        Raises
        ------
        DataError
            Fewer than 30 of the sites have visits.
        """
        sites = [site for site in out_of_fold.index if dataset.visits[site] > 0]
        if len(sites) < LEAST_SITES:
            raise DataError(
                f"{len(sites)} training sites have visits; a community is learned from at least "
                f"{LEAST_SITES}. Train on more sites."
            )
        rng = np.random.default_rng(seed)
        everywhere = sites
        if len(sites) > most_sites:
            chosen = np.sort(rng.permutation(len(sites))[:most_sites])
            sites = [sites[i] for i in chosen]
        k, n = dataset.counts(sites)
        q = out_of_fold.loc[sites].to_numpy(float).clip(0, 1)
        usual = float(np.median(n))
        if seasons is not None:
            k, n = season_counts(seasons, dataset, sites, q)
        linear = scaled_linear.fit_covariance(q, k, n)
        small = logit_normal.calibrate_small(q, k, n)
        corrected = logit_normal.calibrated(q, small)
        logit = logit_normal.shrunk(logit_normal.fit_covariance(corrected, k, n))
        if seasons is None:
            calibration = calibrate(corrected, k, n, logit, rng)
        else:
            calibration = calibrate_dated(corrected, dataset, sites, seasons, logit, rng)
        positions = dataset.sites.loc[sites, ["easting", "northing"]].to_numpy(float)
        share, reach_m = neighbours.choose_nearness(
            positions, q, k, n, fold_of.loc[sites].to_numpy(), linear, seed=seed
        )
        unfinished = cls(
            dataset.species,
            linear,
            logit,
            small,
            calibration,
            share,
            reach_m,
            usual,
            len(sites),
            out_of_fold,
            out_of_fold.loc[everywhere].astype(np.float32),
            seasons,
        )
        return unfinished._with_known(dataset, everywhere)

    def _with_known(self, dataset: Dataset, sites: Sequence[str]) -> Self:
        """Return it with what is believed of the training sites."""
        q = self.out_of_fold.loc[list(sites)].to_numpy(float).clip(0, 1)
        if self.seasons is None:
            k, n = dataset.counts(sites)
            evidence = Evidence(k, np.repeat(n[:, None], q.shape[1], axis=1))
        else:
            evidence = Evidence(*season_counts(self.seasons, dataset, sites, q, self._spread(q)))
        rate, _ = self._rates(q, evidence)
        known = pd.DataFrame(
            rate.astype(np.float32), index=pd.Index(sites, name="site_id"), columns=self.species
        )
        return replace(self, known=known)

    def correlations(self) -> pd.DataFrame:
        """
        Return (species, species) correlations of the logits around the predictions: what comes and
        goes together beyond what the model explains.
        """
        sd = np.sqrt(np.diag(self.logit))
        names = list(self.species)
        return pd.DataFrame(self.logit / np.outer(sd, sd), index=names, columns=names)

    def condition(
        self,
        predictions: pd.DataFrame,
        given: Given | None = None,
        *,
        positions: np.ndarray | None = None,
        records: Records | None = None,
        record_of: np.ndarray | None = None,
        visits: float | np.ndarray | None = None,
        counted: Sequence[str] | None = None,
        bands: np.ndarray | None = None,
    ) -> Belief:
        """
        Return what is believed of places.

        Where nothing is known at a place and no record reaches it, its probability is the
        prediction, to the last bit.

        Parameters
        ----------
        predictions
            (place, species) of the model.
        given
            What was seen at these places; of others nothing is taken.
        positions
            (places, 2) metres, with ``records``.
        records
            New records around, see :meth:`records`.
        record_of
            (places,) number of the record that a place is itself, -1 for none: it is told by the
            others alone.
        visits
            One number or (places,) to come; None: as many as a training site usually had.
        counted
            Species whose number is told as richness; None: all.
        bands
            (places,) band of climate or latitude, for dated visits to a community that knows
            seasons; None: the middle one.

        Raises
        ------
        ModelError
            The predictions are of other species.
        """
        self._check(predictions.columns)
        predictions = predictions[list(self.species)]
        to_come = np.asarray(self.visits if visits is None else visits, dtype=float)
        given = Given.nothing(self.species) if given is None else given
        q = predictions.to_numpy(float)
        evidence = self.evidence(given, predictions, bands)
        moved = _moved(q, positions, records, record_of)
        of = [at for at, name in enumerate(self.species) if counted is None or name in counted]
        rate, sd, count, spread_ = self._believe(q, evidence, moved, to_come, of)
        plain = given.evidence(predictions)  # of richness: calibrated by visits, as people count
        known = plain.n.mean(axis=1) + sum(part.told for part in plain.thinned)
        centre, least, most = self.calibration.interval(count, spread_, known)
        low, high = richness.rate_interval(rate, sd)
        chance = richness.found_at_all(
            logit_normal.offset(rate, sd, steps=4), sd, to_come[..., None]
        )[0]

        def table(values: np.ndarray) -> pd.DataFrame:
            return pd.DataFrame(values, index=predictions.index, columns=predictions.columns)

        number = pd.DataFrame(
            {"expected": centre, "low": least, "high": np.minimum(most, len(of))},
            index=predictions.index,
        )
        return Belief(
            predictions, table(rate), table(low), table(high), table(chance), number, to_come
        )

    def evidence(
        self, given: Given, predictions: pd.DataFrame, bands: np.ndarray | None = None
    ) -> Evidence:
        """
        Return what is known of places as k of n of the predicted rate; dated lists through the
        season, where it is known.

        Parameters
        ----------
        given
            What is known.
        predictions
            (place, species) of the model alone.
        bands
            (places,) band of climate or latitude of the seasons; None: the middle one.
        """
        if self.seasons is None or not len(given.dated):
            return given.evidence(predictions)
        q = predictions.to_numpy(float)
        plain = given.undated().evidence(predictions)
        lists = given.dated_lists(predictions)
        if bands is None:
            bands = self.seasons.calendar.band_of(None, len(q))
        k, n = effective_counts(self.seasons, lists, q, bands, self._spread(q))
        asked = given.evidence(predictions).n > 0  # not of species that were taken out
        whole = np.zeros(len(q), dtype=bool)
        whole[lists.row[lists.complete]] = True
        hidden = whole[:, None] & ~asked
        k[hidden], n[hidden] = 0.0, 0.0
        return replace(plain, k=plain.k + k, n=plain.n + n)

    def _spread(self, q: np.ndarray) -> np.ndarray:
        """Return (places, species) how widely logits vary around predictions."""
        spread = logit_normal.spread(logit_normal.calibrated(q, self.small))
        return np.asarray(spread * np.sqrt(np.diag(self.logit)))

    def records(
        self,
        predictions: pd.DataFrame,
        given: Given,
        positions: np.ndarray,
        *,
        bands: np.ndarray | None = None,
    ) -> Records | None:
        """
        Solve for new records, of places the model was not trained on.

        Residuals of training sites do harm, out of fold or not: the model has used them up.

        Parameters
        ----------
        predictions
            (record, species) of the model.
        given
            What was seen there.
        positions
            (records, 2) metres.
        bands
            (records,) as of :meth:`evidence`.

        Returns
        -------
        Records or None
            None where neighbours were found to tell nothing.
        """
        self._check(predictions.columns)
        if self.share == 0 or not len(predictions):
            return None
        predictions = predictions[list(self.species)]
        return Records.of(
            positions,
            predictions.to_numpy(float),
            self.evidence(given, predictions, bands),
            self.linear,
            share=self.share,
            reach_m=self.reach_m,
        )

    def alike(self, probability: pd.DataFrame, *, count: int = 5) -> pd.DataFrame:
        """
        Return the training sites whose communities are most like those of places.

        Parameters
        ----------
        probability
            (place, species) of :class:`Belief`, or some of the species.

        Returns
        -------
        DataFrame
            ``place``, ``site_id``, ``similarity``: 1 less the Bray-Curtis distance of the rates.
        """
        from scipy.spatial.distance import cdist

        names = [name for name in self.species if name in probability]
        rates = self.known[names].to_numpy(float)
        parts = []
        for at in range(0, len(probability), 1000):
            part = probability.iloc[at : at + 1000]
            similar = 1 - cdist(part[names].to_numpy(float), rates, "braycurtis")
            best = np.argsort(-similar, axis=1, kind="stable")[:, :count]
            parts.append(
                pd.DataFrame(
                    {
                        "place": np.repeat(part.index.to_numpy(), best.shape[1]),
                        "site_id": self.known.index.to_numpy()[best].ravel(),
                        "similarity": np.take_along_axis(similar, best, axis=1).ravel(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def prior_richness(self, species: Sequence[str], visits: float | None = None) -> Unvisited:
        """
        Return the number of species among ``species`` that visits find where nothing was seen, as a
        function of predictions.

        Parameters
        ----------
        visits
            To come; None: as many as a training site usually had.
        """
        chosen = [self.species.index(name) for name in species]
        S = self.logit[np.ix_(chosen, chosen)]
        at_once = self.visits if visits is None else float(visits)
        return Unvisited.of(S, self.small, self.calibration, at_once)

    def save(self, folder: Path, *, more: Mapping[str, Any] | None = None) -> None:
        """
        Write ``community.json``, sealed, and beside it the numbers and the tables it lists.

        Parameters
        ----------
        more
            What the card holds besides, such as what the community was made from.
        """
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"linear": self.linear, "logit": self.logit, "small": self.small}
        if self.seasons is not None:
            arrays |= self.seasons.to_arrays()
        plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        with atomic_path(folder / ARRAYS) as temporary:
            save_file(plain, temporary, metadata={"format": FORMAT})
        for name in ("known", "out_of_fold"):
            table = getattr(self, name).astype(np.float32).rename_axis("site_id")
            write_table(folder / f"{name}.parquet", table)
        files = (ARRAYS, "known.parquet", "out_of_fold.parquet")
        dated = {} if self.seasons is None else {"season": self.seasons.to_card()}
        card = dict(more or {}) | dated
        card |= {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "species": list(self.species),
            "sites": self.sites,
            "visits": self.visits,
            "neighbours": {"share": self.share, "reach_m": self.reach_m},
            "richness": self.calibration.to_dict(),
            "files": {name: sha256(folder / name) for name in files},
        }
        write_json(folder / "community.json", sealed(card))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """
        Read what :meth:`save` wrote.

        Raises
        ------
        MissingFileError, ArtefactError
            A file is absent, damaged or of another version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        card = read_json(folder / "community.json")
        if not isinstance(card, dict) or card.get("format") != FORMAT:
            raise ArtefactError(f"{folder}/community.json describes no community.")
        again = "butterfly-sdm community RUN"
        check_version(card.get("format_version"), FORMAT_VERSION, f"The community {folder}", again)
        try:
            arrays = load_file(folder / ARRAYS)
            tables = [
                pd.read_parquet(folder / f"{name}.parquet") for name in ("known", "out_of_fold")
            ]
            species = tuple(map(str, card["species"]))
            wide = len(species)
            shapes = arrays["linear"].shape, arrays["logit"].shape, arrays["small"].shape
            if shapes != ((wide, wide), (wide, wide), (len(logit_normal.KNOTS),)):
                raise ValueError(f"its arrays have the shapes {shapes}")
            return cls(
                species,
                arrays["linear"],
                arrays["logit"],
                arrays["small"],
                Calibration.from_dict(card["richness"]),
                float(card["neighbours"]["share"]),
                float(card["neighbours"]["reach_m"]),
                float(card["visits"]),
                int(card["sites"]),
                known=_indexed(tables[0], species),
                out_of_fold=_indexed(tables[1], species),
                seasons=Seasons.from_saved(card["season"], arrays) if "season" in card else None,
            )
        except FileNotFoundError as error:
            raise MissingFileError(f"The community {folder} is incomplete: {error}.") from error
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise ArtefactError(
                f"The community {folder} is damaged: {error}. Fit it again: {again}"
            ) from error

    def _check(self, species: pd.Index) -> None:
        if set(species) != set(self.species):
            odd = sorted(set(species) ^ set(self.species))[0]
            raise ModelError(
                f"The community knows {len(self.species)} species, the predictions have "
                f"{len(species)}, and {odd!r} is in one of them only. Fit the community again: "
                "butterfly-sdm community RUN"
            )

    def _believe(
        self,
        q: np.ndarray,
        evidence: Evidence,
        moved: Moved | None,
        visits: np.ndarray,
        counted: list[int],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """
        Return rate and deviation of the logit, (places, species), and mean and deviation of the
        number of the species ``counted`` that visits find, (places,).
        """
        sd = self._spread(q)
        rate, count, deviation = q.copy(), np.empty(len(q)), np.empty(len(q))
        touched = evidence.known if moved is None else evidence.known | moved.near
        if visits.ndim:  # only one number for all places is tabulated
            touched = np.ones(len(q), dtype=bool)
        if not touched.all():
            names = [self.species[place] for place in counted]
            unvisited = self.prior_richness(names, float(visits))
            count[~touched], deviation[~touched] = unvisited.moments(q[~touched][:, counted])
        moves = np.zeros(len(q), dtype=bool) if moved is None else moved.near
        for part in (*_parts(touched & ~moves), *_parts(touched & moves)):
            there = moved.take(part) if moved is not None and moves[part[0]] else None
            rate[part], joint = self._rates(q[part], evidence.take(part), there, correlated=True)
            assert joint.correlated is not None
            sd[part] = joint.sd
            count[part], deviation[part] = richness.posterior_moments(
                joint.mean[:, counted],
                joint.correlated[:, counted][:, :, counted],
                np.broadcast_to(visits, len(q))[part],
            )
        return rate, sd, count, deviation

    def _rates(
        self,
        q: np.ndarray,
        evidence: Evidence,
        moved: Moved | None = None,
        *,
        correlated: bool = False,
    ) -> tuple[np.ndarray, logit_normal.Posterior]:
        """Return the mean of both models, and what the logit model believes."""
        linear, logit, about = self.linear, self.logit, q
        if moved is not None:
            about = q + scaled_linear.scale(q) * moved.residual
            linear = moved.narrowed(np.diag(moved.records.variances), rotated=True)
            logit = moved.narrowed(logit)
        first = scaled_linear.condition(q, linear, evidence, about=about)
        corrected = logit_normal.calibrated(np.clip(about, 0, 1), self.small)
        second = logit_normal.condition(corrected, logit, evidence, correlated=correlated)
        both = (first + second.rate) / 2
        return np.where(evidence.known[:, None], both, np.clip(about, 0, 1)), second


def _parts(where: np.ndarray) -> Iterator[np.ndarray]:
    rows = np.flatnonzero(where)
    for at in range(0, len(rows), PLACES_AT_ONCE):
        yield rows[at : at + PLACES_AT_ONCE]


def _moved(
    q: np.ndarray,
    positions: np.ndarray | None,
    records: Records | None,
    record_of: np.ndarray | None,
) -> Moved | None:
    if records is None:
        return None
    if positions is None or len(positions) != len(q):
        raise DataError("Records around say something only of places whose positions are given.")
    return Moved.by(records, np.asarray(positions, dtype=float), record_of)


def _indexed(table: pd.DataFrame, species: tuple[str, ...]) -> pd.DataFrame:
    table = table.set_index("site_id") if "site_id" in table.columns else table
    if tuple(table.columns) != species:
        raise ValueError("a table has other species")
    return table.set_axis(table.index.astype(str).rename("site_id"))
