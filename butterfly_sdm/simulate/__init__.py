"""
A landscape with known truth: scenes, survey records and covariates on disk, and the presence
probabilities behind them.

Woods, grassland, arable fields, heath, towns and water lie in parcels whose mixture changes over
kilometres; hedges run between fields. Each species answers to the mixture, to the hedges and to
temperature within a window around a place, so that an image says much, a climate table says the
rest, and no model can know more than :attr:`Region.truth_map` says. Names of species are real and
recognisable, their preferences here are invented: nothing in a simulated region is a statement
about Great Britain.
"""

from butterfly_sdm.simulate.landscape import HABITATS
from butterfly_sdm.simulate.looking import Looking
from butterfly_sdm.simulate.region import Region, simulate_region
from butterfly_sdm.simulate.truth import SPECIES

__all__ = ["HABITATS", "SPECIES", "Looking", "Region", "simulate_region"]
