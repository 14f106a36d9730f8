"""Which quantity a map shows."""

from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.quantities import Quantities, Quantity, ask, known_quantities
from butterfly_sdm.errors import DataError
from butterfly_sdm.mapping.options import MapOptions

PROBABILITY = "presence probability"
SPOKEN = ("detection rate ", "presence, seen or not")


def asked(predictor: Predictor, options: MapOptions) -> Predictor:
    """
    Return a predictor of the quantity that a map is to show.

    Raises
    ------
    ModelError
        The predictor does not tell it.
    DataError
        A week or dates are lacking.
    """
    plain = options.bound == "mean" and not options.dates and options.week is None
    if options.quantity is None and plain:
        return predictor
    name = options.quantity or ("rate_in_week" if options.week else "standardised_rate")
    if name == "raw_rate" and not options.dates:
        raise DataError(
            "A map of the raw rate speaks of given dates, and none is given. Name them: map.dates."
        )
    quantity = Quantity(name, week=options.week, dates=options.dates, bound=options.bound)
    return ask(predictor, quantity)


def is_of_species(unit: str | None) -> bool:
    """Return whether a band of a map is that of a species, by its unit: a layer is none."""
    return (unit or "").startswith((PROBABILITY, *SPOKEN))


def unit_of(predictor: Predictor) -> str:
    """Return what the numbers of a map are, in words."""
    if known_quantities(predictor) and isinstance(predictor, Quantities):
        return predictor.quantity.unit
    return PROBABILITY
