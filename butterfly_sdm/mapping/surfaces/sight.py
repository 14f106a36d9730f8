"""What a predictor sees of the imagery around a position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from butterfly_sdm.data.predictor import Predictor


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


def sight_of(predictor: Predictor, tile_px: int) -> Sight | None:
    """
    Return what ``predictor`` sees, or None if it does not look at imagery.

    Parameters
    ----------
    tile_px
        Side of its tiles, for a predictor of an older release that does not say it.
    """
    sees = predictor.sees
    return Sight(sees.bands, sees.window_px or tile_px, sees.margin_px) if sees.bands else None


def members_of(predictor: Any) -> list[Any]:
    """Return the predictors an ensemble consists of; none if it is no ensemble."""
    members = getattr(predictor, "members", None)
    if members is None:
        return []
    return list(members.values()) if isinstance(members, dict) else list(members)
