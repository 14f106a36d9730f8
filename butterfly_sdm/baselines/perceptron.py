"""Small networks on covariates and position, all species at once, averaged over first values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from butterfly_sdm.baselines.inputs.groups import GroupedInputs
from butterfly_sdm.baselines.inputs.numbers import covariate_table
from butterfly_sdm.baselines.inputs.transforms import mean_around, position_km
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import ModelError

EMBEDDING_WEIGHT = 1.5  # of the embedding's components among standardised covariates
BATCH = 64
WAVE_RATE = (
    1.0  # standard deviation of the waves' rates, radians per standard deviation of position
)


@dataclass
class Perceptron(GroupedInputs):
    """
    Two hidden layers with heavy dropout and the binomial likelihood; several networks from
    different seeds vote.

    Parameters
    ----------
    groups, embedding, components, density_km, only
        As in :class:`~butterfly_sdm.baselines.gaussian_process.GaussianProcess`.
    networks
        How many are averaged; they are trained side by side.
    width
        Units of each hidden layer.
    epochs
        Passes over the training sites.
    learning_rate, weight_decay
        Of AdamW, the rate rising and falling once.
    dropout, input_dropout
        Share of the hidden units and of the inputs left out at each step.
    surroundings_km
        Means of the covariates of all sites around, weighted by a bell curve with this standard
        deviation, are inputs too; 0: none. The sites around need covariates, not visits.
    waves
        How many cosines of position, of random direction and length, are inputs too.
    dispersion
        How much two visits to a site tell the same: ``n`` visits count as ``n / (1 + dispersion
        n)``.
    regulariser
        Weight of the soft supervised contrastive term (van der Plas et al. 2025) on the second
        hidden layer; 0: none.
    seed
        Of first values, batches and dropout.
    """

    networks: int = 8
    width: int = 256
    epochs: int = 60
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    dropout: float = 0.6
    input_dropout: float = 0.1
    surroundings_km: float = 8.0
    waves: int = 64
    dispersion: float = 0.1
    regulariser: float = 0.0
    seed: int = 0
    kind: ClassVar[str] = "perceptron"
    needed: ClassVar[str] = "features position place_scale w0 w1 w2 b2"
    least: ClassVar[Mapping[str, float]] = dict.fromkeys(
        ("components", "networks", "width", "epochs"), 1
    ) | dict.fromkeys(
        ("dropout", "input_dropout", "surroundings_km", "waves", "dispersion", "regulariser"), 0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dropout", "input_dropout"):
            if not getattr(self, name) <= 0.99:
                raise ModelError(f"{name} = {getattr(self, name)}; it has to be at most 0.99.")

    def _table(
        self, state: dict[str, np.ndarray], features: list[np.ndarray], position: np.ndarray
    ) -> np.ndarray:
        """Return (sites, inputs) of the networks."""
        place = (_diagonal(position) - state["place_scale"][0]) / state["place_scale"][1]
        parts = list(features)
        if "axes" in state:
            parts[-1] = parts[-1] * EMBEDDING_WEIGHT
        if "around" in state:
            parts.append(
                mean_around(
                    state["around"],
                    state["around_position"],
                    position,
                    sd=self.surroundings_km / 100,
                )
            )
        if "waves" in state:
            parts.append(np.cos(position @ state["waves"][:2] + state["waves"][2]))
        return np.concatenate([place, *parts], axis=1).astype(np.float32)

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        state, features = self._fit_inputs(dataset, sites)
        position = state["position"]
        place = _diagonal(position)
        state["place_scale"] = np.stack([place.mean(axis=0), np.maximum(place.std(axis=0), 1e-9)])
        plain = features[: len(features) - ("axes" in state)]
        if self.surroundings_km and plain:
            names = self.sees.covariates[: state["group_sizes"].sum()]
            table = covariate_table(dataset, dataset.site_ids, names)
            known = list(table.index[table.notna().any(axis=1)])
            state["around"] = np.concatenate(
                self._features(state, dataset, known)[: len(plain)], axis=1
            )
            state["around_position"] = position_km(dataset, known)
        if self.waves:
            random = np.random.default_rng(self.seed)
            rate = WAVE_RATE / max(float(position.std(axis=0).mean()), 1e-9)
            directions = random.normal(scale=rate, size=(2, self.waves))
            state["waves"] = np.concatenate(
                [directions, random.uniform(0, 2 * np.pi, (1, self.waves))]
            )
        k, n = dataset.counts(sites)
        return state | self._train(self._table(state, features, position), k, n)

    def _train(self, table: np.ndarray, k: np.ndarray, n: np.ndarray) -> dict[str, np.ndarray]:
        import torch
        from torch.nn.functional import dropout, normalize, silu

        from butterfly_sdm.losses.contrastive import ContrastiveLoss
        from butterfly_sdm.losses.pairs import cosine, nearest
        from butterfly_sdm.losses.presence import binomial

        x, detections = torch.as_tensor(table), torch.as_tensor(k, dtype=torch.float32)
        visits = torch.as_tensor(n, dtype=torch.float32)[:, None]
        rates = (detections / visits).mean(dim=0).clamp(1e-4, 1 - 1e-4)
        weight = 1 / (1 + self.dispersion * visits)
        scale = (visits * weight).mean()
        contrast = ContrastiveLoss(0.5, denominator="bottom", bottom=32, without_positives="zero")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            sizes = [x.shape[1], self.width, self.width, k.shape[1]]
            weights = [
                (torch.rand(self.networks, a, b) * 2 - 1) / a**0.5 * (0.1 if last else 1.0)
                for a, b, last in zip(sizes[:-1], sizes[1:], (False, False, True), strict=True)
            ]
            biases = [torch.zeros(self.networks, 1, b) for b in sizes[1:]]
            biases[-1] += torch.logit(rates)
            values = [value.requires_grad_() for value in (*weights, *biases)]
            optimiser = torch.optim.AdamW(
                values, lr=self.learning_rate, weight_decay=self.weight_decay
            )
            batches = max(len(x) // BATCH, 1)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimiser, self.learning_rate, total_steps=self.epochs * batches
            )
            for _ in range(self.epochs):
                # Each network has its own batches.
                order = torch.stack([torch.randperm(len(x)) for _ in range(self.networks)])
                for batch in range(batches):
                    rows = order[:, batch * BATCH : (batch + 1) * BATCH]  # (networks, batch)
                    hidden = dropout(x[rows], self.input_dropout)
                    for layer in range(2):
                        hidden = silu(torch.baddbmm(biases[layer], hidden, weights[layer]))
                        hidden = dropout(hidden, self.dropout) if layer == 0 else hidden
                    logits = torch.baddbmm(biases[2], dropout(hidden, self.dropout), weights[2])
                    loss = (binomial(logits, detections[rows], visits[rows]) * weight[rows]).mean(
                        dim=(1, 2)
                    ).sum() / scale
                    if self.regulariser:
                        for z, row in zip(normalize(hidden, dim=2), rows, strict=True):
                            alike = cosine(detections[row] / visits[row])
                            loss = loss + self.regulariser * contrast(
                                z, nearest(alike, 5), similarity=alike
                            )
                    optimiser.zero_grad()
                    torch.autograd.backward(loss)
                    optimiser.step()
                    schedule.step()
        names = [*(f"w{i}" for i in range(3)), *(f"b{i}" for i in range(3))]
        return {name: value.detach().numpy() for name, value in zip(names, values, strict=True)}

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        from scipy.special import expit

        state = self.state
        hidden = self._table(
            state, self._features(state, dataset, sites), position_km(dataset, sites)
        )[None]
        for layer in range(2):
            hidden = hidden @ state[f"w{layer}"] + state[f"b{layer}"]
            hidden = hidden * expit(hidden)
        single = expit(hidden @ state["w2"] + state["b2"])  # (networks, sites, species)
        return np.asarray(single.mean(axis=0))


def _diagonal(position: np.ndarray) -> np.ndarray:
    """Return (sites, 4) easting, northing, their sum and difference."""
    east, north = position.T
    return np.column_stack([east, north, east + north, east - north])
