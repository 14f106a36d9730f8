"""
Presence beside an independent implementation: biolith 0.1 (numpyro's NUTS) on the same visits.

    python benchmarks/season_biolith.py make FOLDER     with the Python of this package
    python benchmarks/season_biolith.py fit FOLDER [N]  with a Python that has biolith and pytest

The same likelihood: no effect of the site on detection, whose curve is a parabola over weeks with a
slope for effort, and the same priors of presence. Prints the correlation and the distance of the
two claims of presence at 300 sites, and the share of true probabilities inside 90 % intervals.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

SPECIES, SITES, WEEKS = 4, 300, 26


def make(folder: Path) -> None:
    from scipy import sparse
    from scipy.special import expit

    from butterfly_sdm.season import occupancy

    # No effect of the site, as biolith has none: a single node. Priors as biolith's.
    occupancy.NODES = np.zeros(1)
    occupancy.LEVEL_SD = occupancy.SLOPE_SD = 1.0
    rng = np.random.default_rng(5)
    x = rng.normal(size=(SITES, 3))
    numbers = np.column_stack([np.ones(SITES), x])
    visits = 2 + rng.poisson(6, SITES)
    site = np.repeat(np.arange(SITES), visits)
    start = np.clip(np.rint(8 + 4 * x[:, 2] + rng.normal(0, 4, SITES)), 0, 16).astype(int)
    week = start[site] + rng.integers(0, 10, len(site))
    effort = rng.integers(-1, 2, len(site))
    place = np.concatenate([np.arange(n) for n in visits])
    scaled = (np.arange(WEEKS) - 12.5) / 7.5
    cells = np.array([[1, t, t**2, e] for t in scaled for e in (-1, 0, 1)])
    cell = week * 3 + effort + 1
    kept = {"x": x, "site": site, "place": place, "covariates": cells[cell][:, 1:]}
    for species in range(SPECIES):
        gamma = np.r_[rng.normal(0, 0.8), rng.normal(0, 0.9, 3)]
        psi = expit(numbers @ gamma)
        peak, width = rng.uniform(5, 21), rng.uniform(2.2, 5)
        height = rng.uniform(-1, 1.2)
        curve = (height - 0.5 * ((week - peak) / width) ** 2).clip(-7)
        present = (rng.random(SITES) < psi)[site]
        seen = (rng.random(len(site)) < expit(curve + 0.9 * effort)) & present
        shape = (SITES, len(cells))
        k, n = (
            sparse.csr_array(sparse.coo_array((part * 1.0, (site, cell)), shape=shape))
            for part in (seen, np.ones(len(site)))
        )
        problem = occupancy.Problem(k, n, cells, numbers)
        begin = time.process_time()
        penalty, theta = np.diag([1 / 9.0] * 4), np.zeros(10)
        theta[-2] = occupancy.LOG_TAU
        theta = occupancy._mode(problem, theta, penalty)
        covariance = occupancy._covariance(problem, theta, penalty)
        draws = occupancy._draws(problem, theta, covariance, penalty, rng)
        own = expit(draws[:, 4:8] @ numbers.T)
        kept |= {f"psi{species}": psi, f"seen{species}": seen, f"ours{species}": own}
        kept[f"cpu{species}"] = np.array(time.process_time() - begin)
    np.savez(folder / "visits.npz", **kept)


def fit(folder: Path, species_count: int = SPECIES) -> None:
    import jax.numpy as jnp
    import numpyro.distributions as dist
    from biolith.models import occu
    from biolith.utils import fit as sample

    kept = np.load(folder / "visits.npz")
    most = int(kept["place"].max()) + 1
    for species in range(species_count):
        seen = np.full((1, SITES, 1, most), np.nan)
        covariates = np.full((SITES, 1, most, 3), np.nan)
        seen[0, kept["site"], 0, kept["place"]] = kept[f"seen{species}"]
        covariates[kept["site"], 0, kept["place"]] = kept["covariates"]
        begin = time.process_time()
        found = sample(
            occu,
            site_covs=jnp.array(kept["x"]),
            obs_covs=jnp.array(covariates),
            obs=jnp.array(seen),
            num_chains=1,
            num_samples=400,
            num_warmup=300,
            prior_alpha=dist.Normal(0, 3),
            kernel="nuts",
            site_random_effects=False,
        )
        took = time.process_time() - begin
        theirs = np.asarray(found.samples["psi"])
        theirs = theirs.reshape(len(theirs), -1)[:, :SITES]
        ours, psi = kept[f"ours{species}"], kept[f"psi{species}"]
        a, b = ours.mean(axis=0), theirs.mean(axis=0)
        inside = [
            np.mean((low <= psi) & (psi <= high))
            for low, high in (np.quantile(one, [0.05, 0.95], axis=0) for one in (ours, theirs))
        ]
        print(
            f"species {species}, {int(kept[f'seen{species}'].sum())} sightings: correlation "
            f"{np.corrcoef(a, b)[0, 1]:.4f}, mean squared distance {((a - b) ** 2).mean():.6f}; "
            f"MSE {((a - psi) ** 2).mean():.4f} and {((b - psi) ** 2).mean():.4f}; inside 90 % "
            f"{inside[0]:.2f} and {inside[1]:.2f}; CPU s {float(kept[f'cpu{species}']):.2f} and "
            f"{took:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    {"make": make, "fit": fit}[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))
