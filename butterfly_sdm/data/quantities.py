"""What a prediction speaks of: a rate over a schedule, in a week or on given dates; presence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self, get_args, runtime_checkable

import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.errors import DataError, ModelError

QuantityName = Literal["standardised_rate", "rate_in_week", "raw_rate", "presence"]
Bound = Literal["mean", "lower", "upper"]

#: What each is, in the words of a map.
MEANINGS: dict[str, str] = {
    "standardised_rate": "detection rate over the schedule",
    "rate_in_week": "detection rate in week {week}",
    "raw_rate": "detection rate on the given dates",
    "presence": "presence, seen or not",
}
LEVEL = 0.9  # of the interval between lower and upper


@dataclass(frozen=True)
class Quantity:
    """
    What a prediction speaks of.

    Attributes
    ----------
    name
        ``standardised_rate``: the detection rate over a schedule of visits, whenever people
        looked; ``rate_in_week``: in one week of the year; ``raw_rate``: on given dates;
        ``presence``: whether the species lives there, seen or not.
    week
        1 to 52, of seven days counted from 1 January; of ``rate_in_week``.
    dates
        Of ``raw_rate``, such as ``2020-07-01``; empty: those of the visits of each site.
    bound
        The claim itself, or the lower or upper end of its 90 % interval.
    """

    name: QuantityName = "standardised_rate"
    week: int | None = None
    dates: tuple[str, ...] = ()
    bound: Bound = "mean"

    def __post_init__(self) -> None:
        if self.name not in get_args(QuantityName):
            raise DataError(
                f"{self.name!r} is no quantity; there are {', '.join(get_args(QuantityName))}."
            )
        if self.bound not in get_args(Bound):
            raise DataError(f"{self.bound!r} is no bound; there are {', '.join(get_args(Bound))}.")
        if (self.name == "rate_in_week") != (self.week is not None):
            raise DataError(
                "A rate in a week needs the week, 1 to 52, and no other quantity takes one; this "
                f"is {self.name} with week {self.week}."
            )

    @property
    def unit(self) -> str:
        """What the numbers are, in words."""
        text = MEANINGS[self.name].format(week=self.week)
        return text if self.bound == "mean" else f"{text}, {self.bound} end of its 90 % interval"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"dates": list(self.dates)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` gave."""
        return cls(**(dict(value) | {"dates": tuple(value.get("dates", ()))}))


@runtime_checkable
class Quantities(Protocol):
    """A predictor that can be asked for several quantities."""

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of those it knows."""

    @property
    def quantity(self) -> Quantity:
        """What ``predict`` gives."""

    def asked_for(self, quantity: Quantity) -> Predictor:
        """Return the same fitted predictor, whose ``predict`` gives this quantity."""


@runtime_checkable
class Surveyed(Protocol):
    """A predictor that joins its prediction with the visits to a site itself."""

    def surveyed(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, pd.DataFrame]:
        """Return ``mean``, ``lower`` and ``upper`` (sites, species) of the quantity asked for."""


def known_quantities(predictor: object) -> tuple[str, ...]:
    """Return the names of the quantities that a predictor can be asked for; mostly none."""
    return tuple(predictor.quantities) if isinstance(predictor, Quantities) else ()


def ask(predictor: Predictor, quantity: Quantity) -> Predictor:
    """
    Return a predictor of this quantity.

    Raises
    ------
    ModelError
        The predictor does not tell it.
    """
    known = known_quantities(predictor)
    if quantity.name not in known or not isinstance(predictor, Quantities):
        tells = f"tells {', '.join(known)}" if known else "tells one rate only, k of n as it was"
        way = (
            "Train with train.model.kind: occupancy, or a network with train.fit.loss: occupancy."
            if quantity.name == "presence"
            else "Train with train.season: on."
        )
        raise ModelError(f"This model does not tell {quantity.name}; it {tells}. {way}")
    return predictor.asked_for(quantity)
