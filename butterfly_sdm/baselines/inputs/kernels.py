"""
The kernel of a Gaussian process over sites: a sum over position, groups of covariates, their
products and an embedding.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor, nn

NEAR, MIDDLE, FAR = 0.2, 1.0, 4.0  # first length scales over position, units of 100 km
MEETING = 2.0  # first length scale of position in products with covariates
# Of each logarithm towards its first value: species share habitats, so their likelihoods say less
# than their number.
PULL = 0.2
FLOOR = 1e-4  # a species that hardly varies must not rule the likelihood


class SharedKernel(nn.Module):
    """
    How alike sites are in many ways, and one amplitude for each way.

    Parameters
    ----------
    sizes
        Columns of each group of features.
    embedding
        Whether the last group is an embedding, with one length scale in all and no products.
    spreads
        First length scale of each group.
    """

    def __init__(
        self, sizes: Sequence[int], *, embedding: bool, spreads: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.sizes, self.embedding = list(sizes), embedding
        self.groups = len(self.sizes) - embedding
        self.pairs = list(combinations(range(self.groups), 2))
        first = list(spreads) if spreads is not None else [1.0] * len(self.sizes)

        def logs(values: Sequence[float]) -> nn.Parameter:
            return nn.Parameter(torch.log(torch.tensor(list(values), dtype=torch.float64)))

        self.amplitude = logs(
            [0.05, 0.1, 0.2]
            + [0.2] * self.groups
            + [0.1] * (self.groups + len(self.pairs) + embedding)
        )
        self.place = logs([NEAR, MIDDLE, FAR])
        self.stretch = nn.Parameter(torch.full((2,), 0.1, dtype=torch.float64))
        self.meeting = logs([MEETING] * self.groups)
        self.scale = logs(first)
        self.column = logs([1.0] * sum(self.sizes[: self.groups]))
        self.noise = logs([0.04, 3.0])  # nugget, sampling noise times visits

    def forward(self, p: Tensor, x: Sequence[Tensor], q: Tensor, y: Sequence[Tensor]) -> Tensor:
        """
        Return the covariance (rows, columns) between sites at p with features x and sites at q with
        y.
        """
        place, meeting, amplitude = self.place.exp(), self.meeting.exp(), iter(self.amplitude.exp())
        along, across = self.stretch
        turned = torch.stack([torch.stack([1 + along, across]), torch.stack([across, 1 - along])])
        square = _squares(p, q)
        # likeness may reach farther along a coast or a ridge than across
        leaning = _squares(p @ turned, q @ turned)
        total: Tensor = (
            next(amplitude) * _matern12(leaning / place[0] ** 2)
            + next(amplitude) * _matern32(leaning / place[1] ** 2)
            + next(amplitude) * _matern32(square / place[2] ** 2)
        )
        alike, start = [], 0
        for group in range(self.groups):
            scale = (self.column[start : start + self.sizes[group]] + self.scale[group]).exp()
            start += self.sizes[group]
            alike.append(_matern32(_squares(x[group] / scale, y[group] / scale)))
            total = total + next(amplitude) * alike[group]
        for group in range(self.groups):
            total = total + next(amplitude) * alike[group] * _matern32(square / meeting[group] ** 2)
        for one, other in self.pairs:
            total = total + next(amplitude) * alike[one] * alike[other]
        if self.embedding:
            total = total + next(amplitude) * _matern32(
                _squares(x[-1], y[-1]) / self.scale[-1].exp() ** 2
            )
        return total

    def variance(self, visits: Tensor) -> Tensor:
        """Return the variance of the noise at sites with so many visits."""
        nugget, sampling = self.noise.exp()
        return cast(Tensor, nugget + sampling / visits)

    @torch.no_grad()
    def covariance(
        self, p: np.ndarray, x: Sequence[np.ndarray], q: np.ndarray, y: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Return :meth:`forward` as numbers."""
        tensor = torch.as_tensor
        return np.asarray(self(tensor(p), [*map(tensor, x)], tensor(q), [*map(tensor, y)]))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what :meth:`from_arrays` needs."""
        named = {
            f"kernel_{name}": value.detach().numpy().astype(np.float64)
            for name, value in self.named_parameters()
        }
        return named | {
            "sizes": np.array(self.sizes, dtype=np.int64),
            "has_embedding": np.array([int(self.embedding)]),
        }

    @classmethod
    def from_arrays(cls, state: dict[str, np.ndarray]) -> Self:
        """Make the kernel that :meth:`arrays` described."""
        kernel = cls(state["sizes"].tolist(), embedding=bool(state["has_embedding"][0]))
        with torch.no_grad():
            for name, value in kernel.named_parameters():
                value.copy_(torch.as_tensor(state[f"kernel_{name}"]))
        return kernel


def fit_kernel(
    kernel: SharedKernel,
    position: np.ndarray,
    features: Sequence[np.ndarray],
    values: np.ndarray,
    visits: np.ndarray,
    *,
    steps: int,
) -> None:
    """
    Maximise the mean over species of the marginal likelihood, each species' variance profiled out.

    Parameters
    ----------
    position, features, values, visits
        (sites, 2), one array (sites, columns) per group, (sites, species), (sites,).
    """
    single = torch.float32  # twice as fast, and the noise keeps the matrix well conditioned
    kernel.to(single)
    p, x = (
        torch.as_tensor(position, dtype=single),
        [torch.as_tensor(part, dtype=single) for part in features],
    )
    y = torch.as_tensor(values - values.mean(axis=0), dtype=single)
    y = y / y.std().clamp_min(1e-9)
    n = torch.as_tensor(visits, dtype=single)
    first = {name: value.detach().clone() for name, value in kernel.named_parameters()}
    optimiser = torch.optim.Adam(kernel.parameters(), lr=0.12)
    for _ in range(steps):
        optimiser.zero_grad()
        factor = torch.linalg.cholesky(kernel(p, x, p, x) + torch.diag(kernel.variance(n) + FLOOR))
        white = torch.linalg.solve_triangular(factor, y, upper=False)  # (sites, species)
        loss = (
            0.5 * len(y) * torch.log((white**2).mean(dim=0) + FLOOR).mean()
            + torch.log(torch.diagonal(factor)).sum()
        )
        for name, value in kernel.named_parameters():
            loss = loss + PULL * ((value - first[name]) ** 2).sum()
        torch.autograd.backward(loss)
        optimiser.step()
    kernel.to(torch.float64)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    # (rows, columns)
    return ((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T).clamp_min(0)


def _matern12(square: Tensor) -> Tensor:
    return torch.exp(-torch.sqrt(square + 1e-8))


def _matern32(square: Tensor) -> Tensor:
    distance = torch.sqrt(3 * square + 1e-8)
    return (1 + distance) * torch.exp(-distance)
