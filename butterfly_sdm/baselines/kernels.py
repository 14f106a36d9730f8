"""The kernel of a Gaussian process over sites: a sum over position, groups of covariates and an embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

NEAR, FAR, MEETING = 0.3, 2.0, 1.0  # first length scales over position, units of 100 km
PULL = 0.02  # of each logarithm towards its first value


class SharedKernel(nn.Module):
    """
    Correlations between sites, and one amplitude for each kernel of the sum.

    Parameters
    ----------
    sizes
        Columns of each group of features.
    embedding
        Whether the last group is an embedding, with one length scale in all and no product with position.
    """

    def __init__(self, sizes: Sequence[int], *, embedding: bool) -> None:
        super().__init__()
        self.sizes, self.embedding = list(sizes), embedding
        self.groups = len(self.sizes) - embedding
        kernels = 2 + 2 * self.groups + embedding
        double = torch.float64

        def logs(values: Sequence[float]) -> nn.Parameter:
            return nn.Parameter(torch.log(torch.tensor(list(values), dtype=double)))

        self.amplitude = logs([0.3] * kernels)
        self.place = logs([NEAR, FAR])
        self.meeting = logs([MEETING] * max(self.groups, 1))
        scales = [np.full(size, 2.0 * np.sqrt(size)) for size in self.sizes[: self.groups]]
        self.scale = logs(np.concatenate([*scales, np.ones(int(embedding))]) if scales or embedding else [])
        self.noise = logs([0.5, 2.5])  # nugget, sampling noise times visits

    def split(self, features: np.ndarray) -> list[np.ndarray]:
        """Divide joined columns into the groups."""
        return np.split(features, np.cumsum(self.sizes)[:-1], axis=1) if self.sizes else []

    def forward(self, p: Tensor, x: Sequence[Tensor], q: Tensor, y: Sequence[Tensor]) -> list[Tensor]:
        """Return the correlation (rows, columns) of each kernel between sites at p with features x and sites at q with y."""
        place, meeting = self.place.exp(), self.meeting.exp()
        square = _squares(p, q)
        out = [_matern12(square / place[0] ** 2), _matern32(square / place[1] ** 2)]
        start = 0
        for group in range(self.groups):
            scale = self.scale[start : start + self.sizes[group]].exp()
            start += self.sizes[group]
            alike = _matern32(_squares(x[group] / scale, y[group] / scale))
            out += [alike, alike * _matern32(square / meeting[group] ** 2)]
        if self.embedding:
            out.append(_matern32(_squares(x[-1], y[-1]) / self.scale[-1].exp() ** 2))
        return out

    @torch.no_grad()
    def parts(self, p: np.ndarray, x: Sequence[np.ndarray], q: np.ndarray, y: Sequence[np.ndarray]) -> np.ndarray:
        """Return (kernels, rows, columns) as numbers."""
        tensor = torch.as_tensor
        return np.stack([part.numpy() for part in self(tensor(p), [*map(tensor, x)], tensor(q), [*map(tensor, y)])])

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the amplitudes (kernels,) and the noise (nugget, sampling)."""
        return self.amplitude.detach().exp().numpy(), self.noise.detach().exp().numpy()

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what :meth:`from_arrays` needs."""
        named = {f"kernel_{name}": value.detach().numpy().copy() for name, value in self.named_parameters()}
        return named | {"sizes": np.array(self.sizes, dtype=np.int64), "embedding": np.array([int(self.embedding)])}

    @classmethod
    def from_arrays(cls, state: dict[str, np.ndarray]) -> Self:
        """Make the kernel that :meth:`arrays` described."""
        kernel = cls(state["sizes"].tolist(), embedding=bool(state["embedding"][0]))
        with torch.no_grad():
            for name, value in kernel.named_parameters():
                value.copy_(torch.as_tensor(state[f"kernel_{name}"]))
        return kernel


def fit_shared(
    kernel: SharedKernel,
    position: np.ndarray,
    features: Sequence[np.ndarray],
    rates: np.ndarray,
    n: np.ndarray,
    *,
    steps: int,
    learning_rate: float = 0.1,
) -> None:
    """
    Maximise the sum over species of the marginal likelihood, each species' variance profiled out.

    Parameters
    ----------
    position, features, rates, n
        (sites, 2), one array (sites, columns) per group, (sites, species), (sites,) visits.
    """
    p, x = torch.as_tensor(position), [torch.as_tensor(part) for part in features]
    y = torch.as_tensor(rates - rates.mean(axis=0))
    y = y / y.std().clamp_min(1e-9)
    floor = 1e-4  # a species that hardly varies must not rule the likelihood
    per_visit = torch.as_tensor(1.0 / n)
    first = {name: value.detach().clone() for name, value in kernel.named_parameters()}
    optimiser = torch.optim.Adam(kernel.parameters(), lr=learning_rate)
    sites = len(y)
    for _ in range(steps):
        optimiser.zero_grad()
        covariance = sum(a * part for a, part in zip(kernel.amplitude.exp(), kernel(p, x, p, x), strict=True))
        nugget, sampling = kernel.noise.exp()
        factor = torch.linalg.cholesky(covariance + torch.diag(nugget + sampling * per_visit))
        white = torch.linalg.solve_triangular(factor, y, upper=False)
        loss = 0.5 * sites * torch.log((white**2).mean(dim=0) + floor).mean() + torch.log(torch.diagonal(factor)).sum()
        loss = loss + PULL * sum(((value - first[name]) ** 2).sum() for name, value in kernel.named_parameters())
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _squares(a: Tensor, b: Tensor) -> Tensor:
    return ((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T).clamp_min(0)  # (rows, columns)


def _matern12(square: Tensor) -> Tensor:
    return torch.exp(-torch.sqrt(square + 1e-8))


def _matern32(square: Tensor) -> Tensor:
    distance = torch.sqrt(3 * square + 1e-8)
    return (1 + distance) * torch.exp(-distance)
