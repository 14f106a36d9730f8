"""A network as a predictor: fit, predict, save and load."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from scipy.special import expit

from butterfly_sdm.core.files import atomic_path, write_json
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import UNKNOWN_CRS, FitContext, Sees, check_seen
from butterfly_sdm.data.tiles import TileReader
from butterfly_sdm.errors import ArtefactError, DataError, MissingFileError, ModelError
from butterfly_sdm.losses.presence import PresenceName
from butterfly_sdm.models.augment import Augmentation, Blur, distance_to_neighbour
from butterfly_sdm.models.card import FORMAT, FORMAT_VERSION, read_model_card
from butterfly_sdm.models.fusion import FusionRule
from butterfly_sdm.models.inputs import SiteInputs, mean_and_spread, site_tensors
from butterfly_sdm.models.presence_net import Architecture, Freeze, PresenceNet, start_at_rates
from butterfly_sdm.models.stem import StemRule
from butterfly_sdm.models.trunk import Padding

log = logging.getLogger("butterfly_sdm.models.network_predictor")


@dataclass(frozen=True)
class Regulariser:
    """
    The soft contrastive term beside the presence loss.

    Attributes
    ----------
    weight
        Its factor (alpha); 0 switches it off.
    temperature, nearest, bottom
        See :class:`butterfly_sdm.losses.contrastive.SoftRegulariser`.
    """

    weight: float = 0.1
    temperature: float = 0.5
    nearest: int = 5
    bottom: int = 32


@dataclass(eq=False)
class NetworkPredictor:
    """
    Predict species from imagery, covariates and position with one network.

    Parameters
    ----------
    backbone, weights, stem
        Name of the trunk; its pretrained weights (None: from scratch, a name, or a local file);
        what bands get that the weights lack (``inflate``, ``published`` or ``random``).
    freeze, unfreeze_after
        Which part of the trunk stays as it is, and after how many epochs all of it learns (None:
        never). The features of a wholly frozen trunk are computed once, not every epoch.
    embedding, head_layers, head_width, dropout
        Length of the projection; layers of the head, their width and dropout.
    window_px, margin_px
        Side of the ground a prediction speaks of; surroundings the trunk sees and pooling leaves
        out. Multiples of 32.
    padding
        What the trunk sees beyond the edge of a tile: the nearest cell again (``replicate``) or
        ``zeros``.
    image, covariates, position
        What the network sees. Sites that lack one of several are predicted from the others.
    fusion, modality_dropout
        How modalities are joined (``concatenate`` or ``gate``), and the share of sites from which
        each is hidden while training.
    waves, wave_scale
        Number and spread of the Fourier features of the position.
    loss, species_weights
        Presence loss, and the weight of each species in it (None: all 1).
    regulariser
        The soft contrastive term, or its settings as a mapping; None switches it off.
    epochs, batch_size, learning_rate, weight_decay, schedule, accumulate
        AdamW; the schedule is ``cosine`` or ``constant``; gradients of ``accumulate`` batches make
        one step.
    patience, score, keep
        Stop after so many epochs without a better validation score (None: never), which score that
        is (``loss``, the presence loss, or ``mse``), and whether the weights of the ``best`` or the
        ``last`` epoch are kept. ``last`` lets the validation sites decide nothing, so that their
        score is that of unseen sites.
    augment
        Whether training tiles are turned, flipped, shifted and differently lit, and numbers of
        training sites blurred.
    covariate_noise
        Standard deviation of the noise on covariates while training, in standard deviations of
        each.
    position_blur
        Positions are blurred while training by the distance to the so many-th nearest training
        site; 0: not.
    precision, accelerator, devices, deterministic
        As Lightning's Trainer takes them.
    tensorboard
        Also write logs for TensorBoard into the run.
    seed
        Of the start, the order and all augmentation: same seed, same result.

    Attributes
    ----------
    species
        Names, in the order of the columns of :meth:`predict`.
    network
        The fitted :class:`~butterfly_sdm.models.presence_net.PresenceNet`.
    history
        One row per epoch.

    Examples
    --------
    >>> network = NetworkPredictor(image=False, covariates=True, position=True, epochs=100)
    >>> watch = FitContext(validation=split.validation)  # doctest: +SKIP
    >>> network.fit(dataset, split.train, context=watch)  # doctest: +SKIP
    """

    backbone: str = "resnet18"
    weights: str | None = None
    stem: StemRule = "inflate"
    freeze: Freeze = "nothing"
    unfreeze_after: int | None = None
    embedding: int = 256
    head_layers: int = 2
    head_width: int = 256
    dropout: float = 0.0
    window_px: int = 128
    margin_px: int = 64
    padding: Padding = "replicate"
    image: bool = True
    covariates: bool = False
    position: bool = False
    fusion: FusionRule = "concatenate"
    modality_dropout: float = 0.0
    waves: int = 32
    wave_scale: float = 0.5
    loss: PresenceName = "binomial"
    species_weights: Sequence[float] | None = None
    regulariser: Regulariser | Mapping[str, Any] | None = field(default_factory=Regulariser)
    epochs: int = 50
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    accumulate: int = 1
    patience: int | None = 10
    score: Literal["loss", "mse"] = "loss"
    keep: Literal["best", "last"] = "best"
    augment: bool = True
    covariate_noise: float = 0.1
    position_blur: int = 10
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | Literal["auto"] = "auto"
    deterministic: bool = False
    tensorboard: bool = False
    seed: int = 0

    kind = "network"

    def __post_init__(self) -> None:
        if isinstance(self.regulariser, Mapping):
            try:
                self.regulariser = Regulariser(**self.regulariser)
            except TypeError as error:
                raise ModelError(
                    f"The regulariser has weight, temperature, nearest and bottom: {error}."
                ) from error
        if not (self.image or self.covariates or self.position):
            raise ModelError(
                "A network needs something to see: switch on image, covariates or position."
            )
        for name in ("epochs", "batch_size", "accumulate", "embedding", "head_layers"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} must be at least 1; it is {getattr(self, name)}.")
        for name in ("covariate_noise", "position_blur"):
            if not getattr(self, name) >= 0:
                raise ModelError(f"{name} must be at least 0; it is {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ModelError(f"learning_rate must be above 0; it is {self.learning_rate}.")
        self.species: tuple[str, ...] = ()
        self.sees = Sees(needs_tile=self.image and not (self.covariates or self.position))
        self.network: PresenceNet | None = None
        self.history = pd.DataFrame()
        self.card: dict[str, Any] = {}

    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters by name, as plain values."""
        value = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        value["regulariser"] = None if self.regulariser is None else dict(vars(self.regulariser))
        value["species_weights"] = (
            None if self.species_weights is None else [float(w) for w in self.species_weights]
        )
        return value

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
        from butterfly_sdm.losses.contrastive import SoftRegulariser
        from butterfly_sdm.losses.presence import PresenceLoss
        from butterfly_sdm.models.batches import SiteBatches, trunk_features
        from butterfly_sdm.models.fit import FitSettings, Fitting, run_fit

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
        if self.covariates and dataset.covariates is None:
            raise DataError(
                f"The data set {dataset.card.name!r} has no covariates. Name them in "
                "build.covariates."
            )
        self.sees = replace(
            Sees.of(dataset, image=self.image, covariates=self.covariates, position=self.position),
            window_px=self.window_px if self.image else 0,
            margin_px=self.margin_px if self.image else 0,
            needs_tile=self.sees.needs_tile,
        )
        bands = self.sees.bands
        if self.image and not bands:
            dataset.tile_rows(names[:1])  # says what is missing
        with _seeded(self.seed):
            net = self._build(bands)
            reader = TileReader(dataset, bands, net.tile_px) if bands else None
            train = self._inputs(dataset, names, reader)
            held = self._inputs(dataset, watched, reader) if watched else None
            _set_statistics(net, train, reader)
            rates = train.detections.sum(dim=0) / train.visits.sum()
            start_at_rates(net, rates)
            moves = self.freeze == "nothing" or self.unfreeze_after is not None
            if (
                net.trunk is not None
                and moves
                and min(self.batch_size, len(names)) == 1
                and net.tile_px <= net.trunk.stride
            ):
                raise ModelError(
                    f"One tile of {net.tile_px} px gives {self.backbone} a single cell per batch; "
                    "batch statistics need two. "
                    f"Raise batch_size (it is {self.batch_size}) or window_px, or give more than "
                    "one training site."
                )
            if self.weights is not None and net.trunk is not None:
                net.trunk.load_pretrained(self.weights, rule=self.stem, seed=self.seed)
            net.freeze(self.freeze if net.trunk is not None else "nothing")
            if net.trunk is not None:
                net.trunk.to(memory_format=torch.channels_last)
            pooled: list[torch.Tensor | None] = [None, None]
            if reader is not None and self.freeze == "trunk" and self.unfreeze_after is None:
                device = self._device()
                for place, (part, views) in enumerate(
                    ((train, 8 if self.augment else 1), (held, 1))
                ):
                    if part is not None and part.tile_rows is not None:
                        pooled[place] = trunk_features(
                            net, part, reader, views=views, device=device
                        )
                net.cpu()
            weights = (
                None
                if self.species_weights is None
                else torch.tensor(self.species_weights, dtype=torch.float32)
            )
            regulariser = (
                self.regulariser
                if isinstance(self.regulariser, Regulariser) and self.regulariser.weight > 0
                else None
            )
            fitting = Fitting(
                net,
                PresenceLoss(
                    self.loss,
                    species=len(self.species),
                    mean_visits=float(train.visits.mean()),
                    species_weights=weights,
                ),
                FitSettings(
                    **{entry.name: getattr(self, entry.name) for entry in fields(FitSettings)}
                ),
                SiteBatches(
                    train,
                    reader,
                    pooled=pooled[0],
                    augmentation=Augmentation() if self.augment and reader is not None else None,
                    blur=self._blur(net, train) if self.augment else None,
                    hide=self.modality_dropout,
                ),
                SiteBatches(held, reader, pooled=pooled[1]) if held is not None else None,
                regulariser=None
                if regulariser is None
                else SoftRegulariser(
                    temperature=regulariser.temperature,
                    nearest=regulariser.nearest,
                    bottom=regulariser.bottom,
                ),
                weight=0.0 if regulariser is None else regulariser.weight,
            )
            journal = run_fit(fitting, folder=context.folder, progress=context.progress)
        self.network = net
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
        return pd.DataFrame(
            expit(logits), index=index, columns=pd.Index(self.species, name="species")
        )

    def embed(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """Return the unit embeddings (sites, embedding) that the regulariser acts on."""
        _, z = self._run(dataset, sites)
        return pd.DataFrame(z, index=pd.Index(list(sites), name="site_id"))

    def save(self, folder: Path) -> None:
        """
        Write ``model.json`` and ``model.safetensors`` into ``folder``.

        Raises
        ------
        ModelError
            The network was not fitted.
        """
        from safetensors.torch import save_file

        net = self._fitted()
        folder = Path(folder)
        state = {
            name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()
        }
        with atomic_path(folder / "model.safetensors") as path:
            save_file(state, path, metadata={"format": FORMAT})
        write_json(
            folder / "model.json",
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "kind": self.kind,
                "species": list(self.species),
                "sees": self.sees.to_dict(),
                "architecture": net.architecture.to_dict(),
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
            },
        )

    @classmethod
    def load(cls, folder: Path) -> NetworkPredictor:
        """
        Read what :meth:`save` wrote.

        Raises
        ------
        MissingFileError, ArtefactError, ModelError
            A file is absent or damaged, or the files do not belong together.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        value = read_model_card(folder, cls.kind)
        try:
            species = tuple(value["species"])
            architecture = Architecture.from_dict(value["architecture"])
            predictor = cls(**value["settings"])
            predictor.sees = (
                Sees.from_dict(value["sees"])
                if "sees" in value
                else _sees_of_0_1_0(value, architecture, predictor.sees.needs_tile)
            )
            covariates = len(predictor.sees.covariates)
            if (architecture.species, architecture.covariates) != (len(species), covariates):
                raise ModelError(
                    f"{folder / 'model.json'} names {len(species)} species, its network has "
                    f"{architecture.species}."
                )
        except (KeyError, TypeError) as error:
            raise ArtefactError(
                f"{folder / 'model.json'} is damaged: {error}. Train again."
            ) from error
        path = folder / "model.safetensors"
        if not path.is_file():
            raise MissingFileError(
                f"{folder} lacks model.safetensors, the weights of the network. Train again."
            )
        try:
            state = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtefactError(f"{path} is damaged: {error}. Train again.") from error
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
        bad = [
            name
            for name, tensor in state.items()
            if tensor.is_floating_point() and not bool(tensor.isfinite().all())
        ]
        if bad:
            raise ArtefactError(
                f"{path} holds numbers that are not finite, in {bad[0]}. Train again."
            )
        net = PresenceNet(architecture)
        net.load_state_dict(state)
        if (
            net.trunk is not None
        ):  # laid out as while it was fitted, so that it predicts the same to the last bit
            net.trunk.to(memory_format=torch.channels_last)
        predictor.network = net.eval()
        predictor.species = species
        predictor.card = {name: value.get(name) for name in ("dataset", "training")}
        return predictor

    def _fitted(self) -> PresenceNet:
        if self.network is None:
            raise ModelError("The network was not fitted. Call fit, or load a run.")
        return self.network

    def _build(self, bands: tuple[str, ...]) -> PresenceNet:
        architecture = Architecture(
            species=len(self.species),
            bands=bands,
            covariates=len(self.sees.covariates),
            position=self.position,
            **{
                name: getattr(self, name)
                for name in (
                    "backbone",
                    "embedding",
                    "head_layers",
                    "head_width",
                    "dropout",
                    "window_px",
                    "margin_px",
                    "padding",
                    "fusion",
                    "waves",
                    "wave_scale",
                )
            },
        )
        return PresenceNet(architecture, seed=self.seed)

    def _blur(self, net: PresenceNet, train: SiteInputs) -> Blur:
        covariates = position = None
        if train.covariates is not None and self.covariate_noise > 0:
            covariates = self.covariate_noise * net.covariate_std
        if train.position is not None and self.position_blur > 0:
            position = distance_to_neighbour(train.position, self.position_blur)
        return Blur(covariates, position)

    def _usable(self, dataset: Dataset, sites: Sequence[str], part: str) -> list[str]:
        visits = dataset.visits.to_numpy()[dataset.rows(sites)]
        kept = [site for site, n in zip(sites, visits, strict=True) if n > 0]
        if self.image and not self.covariates and not self.position and dataset.tiles is not None:
            with_tiles = set(dataset.sites_with_tiles)
            kept = [site for site in kept if site in with_tiles]
        if len(kept) < len(sites):
            log.warning(
                "%d of %d %s sites have no visit or no tile and are passed over.",
                len(sites) - len(kept),
                len(sites),
                part,
            )
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
            image=self.image,
            covariates=self.sees.covariates,
            position=self.position,
            reader=reader,
        )

    def _device(self) -> torch.device:
        if self.accelerator == "cpu" or not torch.cuda.is_available():
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
        device = self._device()
        net.to(device).eval()
        logits, embeddings = [], []
        with torch.inference_mode():
            for start in range(0, len(part), max(self.batch_size, 1)):
                batch = part[range(start, min(start + self.batch_size, len(part))), 0]
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


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` inside, and leave the caller's random numbers as they were."""
    state = torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(state)
