"""A network as a predictor: fit, predict, save and load."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast, get_args

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError
from scipy.special import expit

from butterfly_sdm.core.settings import Section
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import UNKNOWN_CRS, FitContext, Sees, check_seen
from butterfly_sdm.data.quantities import Quantity
from butterfly_sdm.data.saved_models import card_in_doubt, read_arrays, read_model, write_model
from butterfly_sdm.data.tiles import TileReader
from butterfly_sdm.errors import ArtefactError, DataError, ModelError
from butterfly_sdm.losses.options import DetectionName, PresenceName, RegulariserOptions
from butterfly_sdm.losses.pairs import smoothed_rates
from butterfly_sdm.models.augment import Augmentation, Blur, distance_to_neighbour
from butterfly_sdm.models.detection import Detection
from butterfly_sdm.models.foundation.inputs import trained_inputs
from butterfly_sdm.models.inputs import (
    SiteInputs,
    count_mixed,
    mean_and_spread,
    mixing_axes,
    site_tensors,
)
from butterfly_sdm.models.options import FitOptions, NetworkOptions, ShapeOptions
from butterfly_sdm.models.presence_net import Architecture, PresenceNet, start_at_rates

if TYPE_CHECKING:
    from butterfly_sdm.losses.detection import DetectionLoss
    from butterfly_sdm.losses.presence import PresenceLoss
    from butterfly_sdm.models.fit import Fitting

log = logging.getLogger("butterfly_sdm.models.network_predictor")
S = TypeVar("S", bound=Section)


class NetworkPredictor:
    """
    Predict species from imagery, covariates and position with one network.

    Parameters
    ----------
    model
        What the network is built from, what it starts from and what it sees. Sites that lack one of
        several modalities are predicted from the others.
    fitting
        How it is fitted.
    species_weights
        Weight of each species in the presence loss; None: all 1.
    seed
        Of the start, the order and all augmentation: same seed, same result.
    season
        How dates are used by the losses ``season`` and ``occupancy``; a mapping of
        :class:`~butterfly_sdm.season.options.SeasonOptions`.
    settings
        Single fields of ``model`` and ``fitting`` by name; ``regulariser`` may be a mapping, or
        None to switch it off.

    Attributes
    ----------
    species
        Names, in the order of the columns of :meth:`predict`.
    sees
        What it looks at.
    network
        The fitted :class:`~butterfly_sdm.models.presence_net.PresenceNet`.
    history
        One row per epoch.

    Raises
    ------
    ModelError
        A setting has an impossible value, or the network sees nothing.

    Examples
    --------
    >>> network = NetworkPredictor(image=False, covariates=True, position=True, epochs=100)
    >>> watch = FitContext(validation=split.validation)  # doctest: +SKIP
    >>> network.fit(dataset, split.train, context=watch)  # doctest: +SKIP
    """

    kind: ClassVar[str] = "network"

    def __init__(
        self,
        model: NetworkOptions | None = None,
        fitting: FitOptions | None = None,
        *,
        species_weights: Sequence[float] | None = None,
        seed: int = 0,
        season: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        known = NetworkOptions.model_fields | FitOptions.model_fields
        if unknown := [name for name in settings if name not in known]:
            raise TypeError(f"a network has no setting {unknown[0]!r}")
        if "regulariser" in settings and settings["regulariser"] is None:
            settings["regulariser"] = RegulariserOptions(weight=0.0)
        self.model = _changed(model or NetworkOptions(), settings)
        self.fitting = _changed(fitting or FitOptions(), settings)
        self.species_weights, self.seed = species_weights, seed
        self.season = dict(season or {})
        if self.fitting.loss in get_args(DetectionName) and self.fitting.score == "mse":
            raise ModelError(
                "train.fit.score: mse compares with k of n, whenever people looked; a loss of "
                "dated visits is judged by itself. Use score: loss."
            )
        sees = self.model
        if not (sees.image or sees.covariates or sees.position):
            raise ModelError(
                "A network needs something to see: switch on image, covariates or position."
            )
        self.species: tuple[str, ...] = ()
        self.sees = Sees(needs_tile=sees.image and not (sees.covariates or sees.position))
        self.network: PresenceNet | None = None
        self.detection: Detection | None = None
        self.history = pd.DataFrame()
        self.card: dict[str, Any] = {}

    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters by name, as plain values."""
        own = self.species_weights
        return {
            **self.model.model_dump(include=set(NetworkOptions.model_fields)),
            **self.fitting.model_dump(),
            "species_weights": None if own is None else [float(weight) for weight in own],
            "seed": self.seed,
        } | ({"season": self.season} if self.season else {})

    def fit(
        self, dataset: Dataset, sites: Sequence[str], *, context: FitContext | None = None
    ) -> Self:
        """
        Learn from the detections of ``sites``.

        Parameters
        ----------
        dataset, sites
            Sites without a visit, or without anything the network sees, are passed over (the log
            says how many).
        context
            ``validation``: sites whose score after each epoch chooses the weights that are kept;
            without any, the last epoch is kept. ``folder``: where checkpoints and ``history.csv``
            go; a fit that was interrupted there continues, with the result it would have had.

        Raises
        ------
        DataError, ModelError
            The data set lacks what the network needs, or the settings do not fit.
        """
        from butterfly_sdm.models.fit import run_fit

        context = context or FitContext()
        names = self._usable(dataset, sites, "training")
        watched = list(context.validation)
        if watched:
            watched = self._usable(dataset, watched, "validation")
        if set(names) & set(watched):
            raise DataError(
                f"Site {sorted(set(names) & set(watched))[0]} is both a training and a validation "
                "site."
            )
        self.species = dataset.species
        self.sees = self._look(dataset, names)
        self.detection = None
        if self.fitting.loss in get_args(DetectionName):
            name = cast(DetectionName, self.fitting.loss)
            self.detection = Detection.fit(name, dataset, names, self.season, seed=self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = PresenceNet(self._architecture(), seed=self.seed)
            reader = TileReader(dataset, net.bands, net.tile_px) if self.sees.bands else None
            train = self._labelled(dataset, names, reader)
            held = self._labelled(dataset, watched, reader) if watched else None
            self._start(net, train, reader)
            fitting = self._fitting(net, reader, train, held)
            journal = run_fit(fitting, folder=context.folder, progress=context.progress)
        self.network = net
        if self.model.neighbours > 0:
            self._remember(dataset, names, train)
        self.history = journal.table()
        self.card = {
            "dataset": {"name": dataset.card.name, "fingerprint": dataset.fingerprint},
            "training": {
                "sites": len(names),
                "validation_sites": len(watched),
                "epochs": len(self.history),
                "best_epoch": journal.best_epoch,
                "best_score": journal.best,
            },
        }
        return self

    def _look(self, dataset: Dataset, names: Sequence[str]) -> Sees:
        image = self.model.image
        if self.model.covariates and dataset.covariates is None:
            raise DataError(
                f"The data set {dataset.card.name!r} has no covariates. Name them in "
                "build.covariates."
            )
        if image and dataset.card.tiles is None:
            dataset.tile_rows(names[:1])  # says what is missing
        sees = Sees.of(
            dataset,
            image=image,
            covariates=self.model.covariates,
            position=self.model.position,
            only=self.model.only,
        )
        return replace(
            sees,
            window_px=self.model.window_px * image,
            margin_px=self.model.margin_px * image,
            needs_tile=self.sees.needs_tile,
        )

    def _architecture(self) -> Architecture:
        return Architecture(
            species=len(self.species),
            bands=self.sees.bands,
            covariates=len(self.sees.covariates),
            mixed=count_mixed(self.sees.covariates, self.model.components),
            position=self.model.position,
            **self.model.model_dump(include=set(ShapeOptions.model_fields)),
        )

    def _start(self, net: PresenceNet, train: SiteInputs, reader: TileReader | None) -> None:
        """Give an untrained network what it starts from: statistics, mean rates, weights."""
        model = self.model
        _set_statistics(net, train, reader)
        if net.architecture.mixed and train.covariates is not None:
            values = (train.covariates - net.covariate_mean) / net.covariate_std
            axes = mixing_axes(
                values.nan_to_num(0.0).numpy(),
                self.sees.covariates,
                model.components,
                spread=net.covariate_std.numpy(),
            )
            net.covariate_axes.copy_(torch.from_numpy(axes))
        trained = trained_inputs(model.inputs, model.weights, model.backbone)
        if trained is not None and net.trunk is not None:
            trained.apply(net.bands, net.mean, net.std)
        rates = train.detections.sum(dim=0) / train.visits.sum()
        if self.detection is not None:
            rates = torch.from_numpy(expit(self.detection.start)).float()
        start_at_rates(net, rates)
        if net.trunk is None:
            net.freeze("nothing")
            return
        moves = model.freeze == "nothing" or model.unfreeze_after is not None
        small = min(self.fitting.batch_size, len(train)) == 1 and net.tile_px <= net.trunk.stride
        if moves and small:
            raise ModelError(
                f"One tile of {net.tile_px} px gives {model.backbone} a single cell per batch; "
                f"batch statistics need two. Raise batch_size (it is {self.fitting.batch_size}) or "
                "window_px, or give more than one training site."
            )
        if model.weights is not None:
            net.trunk.load_pretrained(model.weights, rule=model.stem, seed=self.seed)
        net.freeze(model.freeze)
        net.trunk.lay_out()

    def _fitting(
        self,
        net: PresenceNet,
        reader: TileReader | None,
        train: SiteInputs,
        held: SiteInputs | None,
    ) -> Fitting:
        """Return the network with its batches and losses, ready to be fitted."""
        from butterfly_sdm.models.batches import SiteBatches
        from butterfly_sdm.models.fit import Fitting

        model, options = self.model, self.fitting
        loss = self._loss(train)
        learned = SiteBatches(
            train,
            reader,
            pooled=self._pooled(net, train, reader, views=8 if options.augment else 1),
            augmentation=Augmentation() if options.augment and reader is not None else None,
            blur=self._blur(net, train) if options.augment else None,
            hide=model.modality_dropout,
        )
        watched = None
        if held is not None:
            watched = SiteBatches(held, reader, pooled=self._pooled(net, held, reader, views=1))
        net.cpu()
        return Fitting(
            net,
            loss,
            options,
            learned,
            watched,
            unfreeze_after=model.unfreeze_after,
            seed=self.seed,
        )

    def _loss(self, train: SiteInputs) -> PresenceLoss | DetectionLoss:
        from butterfly_sdm.losses.detection import DetectionLoss
        from butterfly_sdm.losses.presence import PresenceLoss

        own, mean_visits = self.species_weights, float(train.visits.mean())
        weights = None if own is None else torch.tensor(own, dtype=torch.float32)
        if self.detection is None:
            return PresenceLoss(
                cast(PresenceName, self.fitting.loss),
                species=len(self.species),
                mean_visits=mean_visits,
                species_weights=weights,
            )
        seasons = self.detection.seasons
        return DetectionLoss(
            self.detection.name,
            nodes=torch.from_numpy(seasons.grid),
            tau=torch.from_numpy(seasons.tau),
            mean_visits=mean_visits,
            species_weights=weights,
        )

    def _labelled(
        self, dataset: Dataset, sites: Sequence[str], reader: TileReader | None
    ) -> SiteInputs:
        """Return the inputs of sites with what their dated visits say, if the loss asks for it."""
        inputs = self._inputs(dataset, sites, reader)
        if self.detection is None:
            return inputs
        return replace(inputs, evidence=self.detection.evidence(dataset, sites))

    def _pooled(
        self, net: PresenceNet, part: SiteInputs, reader: TileReader | None, *, views: int
    ) -> torch.Tensor | None:
        """Return the features of a wholly frozen trunk, computed once and not every epoch."""
        from butterfly_sdm.models.batches import trunk_features

        frozen = self.model.freeze == "trunk" and self.model.unfreeze_after is None
        if reader is None or part.tile_rows is None or not frozen:
            return None
        return trunk_features(net, part, reader, views=views, device=self.device)

    def predict(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """
        Return presence probabilities (sites, species).

        Raises
        ------
        DataError, ModelError
            The data set lacks what the network needs, or the network was not fitted.
        """
        logits, _ = self._run(dataset, sites)
        index = pd.Index(list(sites), name="site_id")
        claims = self.claims(logits, dataset, sites)
        return pd.DataFrame(claims, index=index, columns=pd.Index(self.species, name="species"))

    def claims(
        self, logits: np.ndarray, dataset: Dataset | None, sites: Sequence[str]
    ) -> np.ndarray:
        """
        Return what the network claims (sites, species) by its logits: their probability, or the
        quantity asked for if its loss is one of dated visits.

        Parameters
        ----------
        logits
            (sites, species).
        dataset
            Holds the sites; only a loss of dated visits looks at it.
        sites
            Ids, in the order of the logits.
        """
        if self.detection is None or dataset is None:
            return np.asarray(expit(logits))
        return np.asarray(np.clip(self.detection.claims(dataset, sites, logits), 0.0, 1.0))

    @property
    def quantities(self) -> tuple[str, ...]:
        """What it can be asked for, if its loss is one of dated visits."""
        return () if self.detection is None else self.detection.quantities

    @property
    def quantity(self) -> Quantity:
        """What :meth:`predict` gives."""
        return Quantity() if self.detection is None else self.detection.quantity

    def asked_for(self, quantity: Quantity) -> NetworkPredictor:
        """
        Return the same fitted network, whose ``predict`` gives this quantity.

        Raises
        ------
        ModelError
            Its loss is not one of dated visits, or it was not fitted.
        """
        detection = self._dated()
        other = copy.copy(self)
        other.detection = detection.asked_for(quantity)
        return other

    def _dated(self) -> Detection:
        if self.detection is None:
            raise ModelError(
                "This network was not fitted to dated visits. Train with train.fit.loss: season."
            )
        return self.detection

    def surveyed(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, pd.DataFrame]:
        """
        Return what network and own visits together say of sites: ``mean``, ``lower`` and ``upper``
        (sites, species), of the quantity asked for.

        Raises
        ------
        ModelError
            Its loss is not one of dated visits, or it was not fitted.
        """
        detection = self._dated()
        logits, _ = self._run(dataset, sites)
        index = pd.Index(list(sites), name="site_id")
        found = detection.surveyed(dataset, sites, logits)
        return {
            name: pd.DataFrame(values, index=index, columns=list(self.species))
            for name, values in zip(("mean", "lower", "upper"), found, strict=True)
        }

    def embed(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """Return the unit embeddings (sites, embedding) that the head reads."""
        _, z = self._run(dataset, sites)
        return pd.DataFrame(z, index=pd.Index(list(sites), name="site_id"))

    def _remember(self, dataset: Dataset, names: Sequence[str], train: SiteInputs) -> None:
        """Let the network keep where its training sites lie, and what is found there."""
        _, z = self._run(dataset, names)
        rates = smoothed_rates(train.detections, train.visits)
        self._fitted().cpu().remember(torch.from_numpy(z), rates)

    def save(self, folder: Path) -> None:
        """
        Write ``model.json`` and ``model.safetensors`` into ``folder``.

        Raises
        ------
        ModelError
            The network was not fitted.
        """
        net = self._fitted()
        content = {
            "architecture": net.architecture.model_dump(mode="json"),
            "normalisation": {
                "reflectance_mean": net.mean.tolist(),
                "reflectance_std": net.std.tolist(),
                "covariate_mean": net.covariate_mean.tolist(),
                "covariate_std": net.covariate_std.tolist(),
                "position_mean": net.position_mean.tolist(),
                "position_std": net.position_std.tolist(),
            },
            "settings": self.settings(),
            **self.card,
        }
        if self.detection is not None:
            content["detection"] = self.detection.to_card()
        arrays = {name: value.detach().cpu().numpy() for name, value in net.state_dict().items()}
        if self.detection is not None:
            arrays |= self.detection.to_arrays()
        write_model(folder, self.kind, self, content, arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """
        Read what :meth:`save` wrote.

        Raises
        ------
        MissingFileError, ArtefactError, ModelError
            A file is absent or damaged, or the files do not belong together.
        """
        folder = Path(folder)
        card = read_model(folder, cls.kind)
        with card_in_doubt(folder):
            architecture = Architecture.from_dict(card["architecture"])
            predictor = cls(**card["settings"])
            predictor.species = tuple(card["species"])
            predictor.sees = (
                Sees.from_dict(card["sees"])
                if "sees" in card
                else _sees_of_0_1_0(card, architecture, predictor.sees.needs_tile)
            )
        for what, known, built in (
            ("species", predictor.species, architecture.species),
            ("covariates", predictor.sees.covariates, architecture.covariates),
        ):
            if len(known) != built:
                raise ModelError(
                    f"{folder / 'model.json'} names {len(known)} {what}, its network has {built}."
                )
        arrays = read_arrays(folder)
        if "detection" in card:
            with card_in_doubt(folder):
                predictor.detection = Detection.from_saved(card["detection"], arrays)
        own = {name: array for name, array in arrays.items() if not name.startswith("season_")}
        predictor.network = _load_network(folder, architecture, own)
        predictor.card = {name: card.get(name) for name in ("dataset", "training")}
        return predictor

    def _fitted(self) -> PresenceNet:
        if self.network is None:
            raise ModelError("The network was not fitted. Call fit, or load a run.")
        return self.network

    def _blur(self, net: PresenceNet, train: SiteInputs) -> Blur:
        covariates = position = None
        if train.covariates is not None and self.fitting.covariate_noise > 0:
            covariates = self.fitting.covariate_noise * net.covariate_std
        if train.position is not None and self.fitting.position_blur > 0:
            position = distance_to_neighbour(train.position, self.fitting.position_blur)
        return Blur(covariates, position)

    def _usable(self, dataset: Dataset, sites: Sequence[str], part: str) -> list[str]:
        visits = dataset.visits.to_numpy()[dataset.rows(sites)]
        kept = [site for site, n in zip(sites, visits, strict=True) if n > 0]
        if self.sees.needs_tile and dataset.tiles is not None:
            with_tiles = set(dataset.sites_with_tiles)
            kept = [site for site in kept if site in with_tiles]
        if lacking := len(sites) - len(kept):
            text = "%d of %d %s sites have no visit or no tile and are passed over."
            log.warning(text, lacking, len(sites), part)
        if not kept:
            raise DataError(
                f"None of the {len(sites)} {part} sites has a visit and what the network sees."
            )
        return kept

    def _inputs(
        self, dataset: Dataset, sites: Sequence[str], reader: TileReader | None
    ) -> SiteInputs:
        return site_tensors(
            dataset,
            sites,
            image=self.model.image,
            covariates=self.sees.covariates,
            position=self.model.position,
            reader=reader,
        )

    @property
    def device(self) -> torch.device:
        """Where it predicts."""
        if self.fitting.accelerator == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda")

    def _run(self, dataset: Dataset, sites: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        from butterfly_sdm.models.batches import SiteBatches, predict_batch

        net = self._fitted()
        check_seen(self.sees, dataset, self.kind)
        reader = None
        if net.bands and dataset.tiles is not None:
            reader = TileReader(dataset, net.bands, net.tile_px)
        part = SiteBatches(self._inputs(dataset, sites, reader), reader)
        device = self.device
        net.to(device).eval()
        logits, embeddings = [], []
        with torch.inference_mode():
            for start in range(0, len(part), self.fitting.batch_size):
                batch = part[range(start, min(start + self.fitting.batch_size, len(part))), 0]
                out = predict_batch(
                    net, {name: value.to(device) for name, value in batch.items()}, reader
                )
                logits.append(out[0].double().cpu().numpy())
                embeddings.append(out[1].double().cpu().numpy())
        return (
            np.concatenate(logits) if logits else np.empty((0, len(self.species))),
            np.concatenate(embeddings) if embeddings else np.empty((0, net.architecture.embedding)),
        )


def _sees_of_0_1_0(card: Mapping[str, Any], architecture: Architecture, needs_tile: bool) -> Sees:
    """Return what a network of release 0.1.0 sees, from all over its ``model.json``."""
    looks = bool(architecture.bands)
    crs = (card.get("dataset") or {}).get("position_crs") or UNKNOWN_CRS
    return Sees.from_dict(
        {
            "bands": architecture.bands,
            "window_px": architecture.window_px * looks,
            "margin_px": architecture.margin_px * looks,
            "resolution_m": card.get("resolution_m"),
            "covariates": tuple(card["covariates"]),
            "position_crs": crs if architecture.position else None,
            "needs_tile": needs_tile,
        }
    )


def _set_statistics(net: PresenceNet, train: SiteInputs, reader: TileReader | None) -> None:
    """Keep mean and spread of the training sites, and of no others, inside the network."""
    if reader is not None and train.tile_rows is not None:
        rows = train.tile_rows[train.tile_rows >= 0]
        if not len(rows):
            raise DataError(
                "None of the training sites has a tile: no scene covers them well enough."
            )
        mean, std = mean_and_spread(reader, rows)
        net.mean.copy_(mean)
        net.std.copy_(std)
    if train.covariates is not None:
        table = train.covariates.double().numpy()
        known = np.isfinite(table)
        count = known.sum(axis=0)
        filled = np.where(known, table, 0.0)
        mean_of = filled.sum(axis=0) / np.maximum(count, 1)
        spread = np.sqrt(
            (np.where(known, table - mean_of, 0.0) ** 2).sum(axis=0) / np.maximum(count, 1)
        )
        # A covariate that never varies says nothing: leave it at 0 wherever it is the same.
        spread = np.where(spread > 1e-9 * np.maximum(1.0, np.abs(mean_of)), spread, 1.0)
        net.covariate_mean.copy_(torch.from_numpy(mean_of))
        net.covariate_std.copy_(torch.from_numpy(spread))
    if train.position is not None:
        net.position_mean.copy_(train.position.mean(dim=0))
        # One unit for both axes, so that distance has no direction.
        net.position_std.fill_(max(1.0, float(train.position.std(dim=0, correction=0).mean())))


def _load_network(
    folder: Path, architecture: Architecture, arrays: Mapping[str, np.ndarray]
) -> PresenceNet:
    """Return the network with the weights of the folder, ready to predict."""
    path = folder / "model.safetensors"
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        with torch.device("meta"):  # takes no memory: model.json may lie about the sizes
            own = PresenceNet(architecture).state_dict()
    except NotImplementedError:  # older versions of timm look at numbers while they build
        own = PresenceNet(architecture).state_dict()
    wrong = sorted(set(own) ^ set(state)) or sorted(
        name for name in own if own[name].shape != state[name].shape
    )
    if wrong:
        raise ModelError(
            f"{path} does not belong to {folder / 'model.json'}: they differ in {wrong[0]}. "
            "Train again."
        )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ArtefactError(
                f"{path} holds numbers that are not finite, in {name}. Train again."
            )
    net = PresenceNet(architecture)
    net.load_state_dict(state)
    if net.trunk is not None:
        # laid out as while it was fitted, so that it predicts the same to the last bit
        net.trunk.lay_out()
    return net.eval()


def _changed(value: S, settings: Mapping[str, Any]) -> S:
    """Return the options with those of ``settings`` that are theirs."""
    own = {name: new for name, new in settings.items() if name in type(value).model_fields}
    if not own:
        return value
    try:
        return type(value).model_validate(dict(value) | own)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"]))
        raise ModelError(f"{name} = {problem['input']!r}: {problem['msg']}.") from None
