"""The true probability of detecting each species: what no model can know better."""

import numpy as np

from butterfly_sdm.simulate.landscape import HABITATS, Landscape, sample

# m_h of the formula in simulate_region
_USUAL_SHARE = np.array([0.20, 0.30, 0.28, 0.09, 0.08, 0.02, 0.03])

_STRENGTH = 0.7  # b_sh of the formula, over the numbers below

# typical detection rate; answer (relative log odds per unit share) to each habitat of HABITATS; log
# odds per degree of warmth
_SPECIES: dict[str, tuple[float, tuple[float, ...], float]] = {
    "Maniola jurtina": (0.42, (-1, 4, 0, 1, -3, -3, 6), 0.0),
    "Pararge aegeria": (0.35, (6, -1, -1, -1, 1, -2, 10), 0.0),
    "Pieris rapae": (0.45, (-2, 0, 2.5, -3, 4, -2, 0), 0.4),
    "Hipparchia semele": (0.06, (-2, 0, -3, 10, -3, -3, 0), 0.6),
    "Melanargia galathea": (0.18, (-2, 5, -1, 0, -4, -4, 0), 1.2),
    "Pyronia tithonus": (0.28, (1, 0, 0, 1, -2, -2, 32), 0.8),
    "Argynnis paphia": (0.10, (9, -1, -3, 0, -4, -3, 0), 0.6),
    "Celastrina argiolus": (0.14, (2, -1, -2, 0, 8, -1, 5), 0.4),
    "Polyommatus coridon": (0.08, (-4, 8, -3, 1, -4, -4, -8), 1.8),
    "Plebejus argus": (0.05, (-3, -1, -4, 11, -4, -2, 0), 0.0),
    "Pieris napi": (0.38, (3, 1, -1, 0, -1, 4, 14), -0.8),
    "Coenonympha pamphilus": (0.16, (-4, 5, -2, 5, -4, -3, -4), -0.6),
    "Gonepteryx rhamni": (0.24, (4, 0, -1, 1, 1, -1, 12), 0.6),
    "Aglais urticae": (0.32, (-1, 1, 2, 0, 2, -2, 0), -1.0),
    "Thymelicus lineola": (0.12, (-3, 3, 2, -1, -1, -2, 16), 1.2),
    "Callophrys rubi": (0.07, (2, 1, -4, 8, -4, -3, 4), -0.6),
    "Polygonia c-album": (0.20, (5, -1, 0, -1, 1, -1, 8), 0.4),
    "Lasiommata megera": (0.06, (-3, 3, 0, 3, 0, 2, -6), 1.0),
    "Limenitis camilla": (0.06, (11, -2, -3, -1, -4, -2, 0), 1.0),
    "Aphantopus hyperantus": (0.30, (3, 3, -1, -1, -3, 2, 14), -1.0),
    "Anthocharis cardamines": (0.22, (1, 2, -1, -2, 0, 5, 10), 0.0),
    "Favonius quercus": (0.08, (8, -1, -2, 0, 0, -2, 6), 0.4),
    "Polyommatus icarus": (0.26, (-3, 4, 0, 2, 0, -3, 0), 0.6),
    "Vanessa atalanta": (0.34, (0, 0, 1, -1, 3, 0, 4), 0.2),
}
SPECIES = tuple(_SPECIES)


class Probability:
    """The true probability that one visit at a place detects a species."""

    def __init__(
        self, habitat: np.ndarray, land: Landscape, species: tuple[str, ...], window_px: int
    ) -> None:
        self.land, self.half = land, window_px // 2
        self.sums = []  # integral images, one per habitat
        for number in range(len(HABITATS)):
            total = np.zeros((habitat.shape[0] + 1, habitat.shape[1] + 1), dtype=np.int32)
            np.cumsum(
                np.cumsum(habitat == number, axis=0, dtype=np.int32), axis=1, out=total[1:, 1:]
            )
            self.sums.append(total)
        typical, weights, warm = zip(*(_SPECIES[name] for name in species), strict=True)
        rate = np.array(typical)
        self.constant, self.weights, self.warm = (
            np.log(rate / (1 - rate)),
            _STRENGTH * np.array(weights),
            np.array(warm),
        )

    def shares(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """
        Return the share of each habitat (..., habitats) in the window around pixel corners x, y;
        clipped at the edge.
        """
        size = self.land.size_px
        x, y = np.rint(x).astype(int), np.rint(y).astype(int)
        left, right = np.clip(x - self.half, 0, size), np.clip(x + self.half, 0, size)
        top, bottom = np.clip(y - self.half, 0, size), np.clip(y + self.half, 0, size)
        area = (right - left) * (bottom - top)
        counts = [
            s[bottom, right] - s[top, right] - s[bottom, left] + s[top, left] for s in self.sums
        ]
        return np.asarray(np.stack(counts, axis=-1) / area[..., None])

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the probability (..., species) at pixel coordinates x, y."""
        warmth = sample(self.land.warmth, y, x).astype(float)
        logit = (
            self.constant
            + (self.shares(x, y) - _USUAL_SHARE) @ self.weights.T
            + warmth[..., None] * self.warm
        )
        return np.asarray(1 / (1 + np.exp(-logit)))
