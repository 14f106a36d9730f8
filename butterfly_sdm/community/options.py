"""What can be said about fitting a community."""

from __future__ import annotations

from pydantic import Field

from butterfly_sdm.core.settings import Section


class CommunityOptions(Section):
    """community: what was seen at a place moves what is predicted there."""

    folds: int = Field(
        5, ge=2, description="as many fits of the model, to sites without a fold of them"
    )
    distance_m: float = Field(
        4000.0,
        gt=0,
        description="sites nearer than this stay in one fold; where they are dense: side of "
        "squares",
    )
    most_sites: int = Field(
        3000, ge=50, description="training sites the covariances are learned from, at random"
    )
    workers: int = Field(1, ge=1, description="processes that share the fits")
