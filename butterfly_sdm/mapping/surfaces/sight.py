"""What a predictor sees of the imagery around a position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sight:
    """
    The bands a predictor needs, the ground it speaks of and the surroundings it sees besides.

    Attributes
    ----------
    bands
        Names, in the order of the predictor.
    window_px, margin_px
        A tile has ``window_px + 2 * margin_px`` pixels a side.
    """

    bands: tuple[str, ...]
    window_px: int
    margin_px: int


def sight_of(predictor: Any, bands: Sequence[str], tile_px: int) -> Sight | None:
    """
    Return what ``predictor`` sees, or None if it does not look at imagery.

    Parameters
    ----------
    bands
        Of the scene: what a predictor sees that takes whatever bands a data set has.
    tile_px
        Side of its tiles.

    Notes ----- A network says itself what it sees. An ensemble sees what its members see: all their
    bands, the largest of their windows. Other predictors that look at tiles say so by ``bands =
    True``.
    """
    network = getattr(predictor, "network", None)
    if network is not None:
        return (
            Sight(tuple(network.bands), network.window_px, network.margin_px)
            if network.bands
            else None
        )
    members = [
        sight
        for member in members_of(predictor)
        if (sight := sight_of(member, bands, tile_px)) is not None
    ]
    if members:
        names = tuple(dict.fromkeys(band for sight in members for band in sight.bands))
        window = max(sight.window_px for sight in members)
        tile = max(sight.window_px + 2 * sight.margin_px for sight in members)
        return Sight(names, window, (tile - window) // 2)
    if getattr(predictor, "bands", False) is True:
        return Sight(tuple(bands), tile_px, 0)
    return None


def covariates_of(predictor: Any) -> tuple[str, ...]:
    """
    Return the names of the covariates that a predictor or its members were fitted with, where they
    say so.
    """
    parts = [predictor, *members_of(predictor)]
    return tuple(
        dict.fromkeys(name for part in parts for name in getattr(part, "covariate_names", ()))
    )


def members_of(predictor: Any) -> list[Any]:
    """Return the predictors an ensemble consists of; none if it is no ensemble."""
    members = getattr(predictor, "members", None)
    if members is None:
        return []
    return list(members.values()) if isinstance(members, dict) else list(members)
