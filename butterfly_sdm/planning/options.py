"""What can be said about a plan."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from butterfly_sdm.core.settings import InputPath, Section


class ReplayOptions(Section):
    """
    plan.replay: hide sites of one's own data, let each method choose, refit and score.

    ``butterfly-sdm plan RUN --replay`` does it.
    """

    draws: int = Field(24, ge=2, description="how often sites are hidden and chosen anew")
    start: Literal["towns", "centre", "spread", "each"] = Field(
        "each",
        description="where surveys begin: near four towns, about one centre, anywhere, or each of "
        "these in turn",
    )
    start_sites: int | None = Field(
        None, ge=10, description="sites surveyed at the start; null: a quarter, at most 150"
    )
    add: int | None = Field(
        None, ge=1, description="sites to choose; null: two for five of the start"
    )
    block_m: float | None = Field(
        None, gt=0, description="side of the squares that are hidden; null: by the size of the area"
    )
    part: Literal["blocks", "validation"] = Field(
        "blocks",
        description="what is scored: a third of the squares of the training part, or the "
        "validation part, which is to be looked at once",
    )


class PlanOptions(Section):
    """plan: run or data set -> where to survey next."""

    candidates: Literal["unvisited"] | InputPath | None = Field(
        None,
        description="file of squares, polygons or points (vector file, or CSV with lon and lat, "
        "easting and northing, or grid_reference); unvisited: sites of the data set without a "
        "visit; null: a grid",
    )
    grid_m: float | None = Field(
        None, gt=0, description="side of the squares of the grid; null: 1000, or what makes 50,000"
    )
    area: InputPath | None = Field(
        None, description="polygons the candidates lie in; null: around the sites"
    )
    covariates: InputPath | None = Field(
        None, description="table of covariates by site_id, the name of the candidate or place"
    )
    revisit: bool = Field(False, description="surveyed sites may be chosen again")
    sites: int = Field(20, ge=1, description="sites to choose")
    visits: int = Field(10, ge=1, description="visits planned to each; 5 to 10 serve best")
    places: Literal["candidates", "sites", "train", "validation", "test"] | InputPath = Field(
        "candidates",
        description="where the map will be judged: the candidates, the sites of the data set or a "
        "part of them, or a file; a column weight says how much each counts",
    )
    most_places: int = Field(1000, ge=1, description="more are represented by so many at random")
    species: tuple[str, ...] = Field((), description="the map is to be good for these; empty: all")
    aim: Literal["map", "find"] = Field(
        "map", description="map: the best map; find: most finds of the named species"
    )
    method: Literal["gain", "space", "random"] = Field(
        "gain", description="of aim map; replay says which is best for your data"
    )
    cost: str | None = Field(
        None, description="column of the file of candidates; gain per cost decides"
    )
    homes: InputPath | None = Field(
        None,
        description="points people set out from; the cost is the km to the nearest, at least 1",
    )
    budget: float | None = Field(None, gt=0, description="most that all costs may sum to")
    planned: InputPath | None = Field(
        None, description="places planned already: they count as surveyed, unseen"
    )
    protected: tuple[str, ...] = Field(
        (), description="species that are not named, and to whose squares nobody is sent"
    )
    protected_areas: InputPath | None = Field(
        None, description="polygons or points to whose squares nobody is sent"
    )
    protect_m: float = Field(
        10_000.0, gt=0, description="side of the squares around finds of protected species"
    )
    allow_protected: bool = Field(
        False, description="plan as if nothing were protected, for those who may know"
    )
    held: InputPath | None = Field(
        None, description="folder of a replay of these data: the plan quotes how promises held"
    )
    replay: ReplayOptions = ReplayOptions()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.aim == "find" and not self.species:
            raise ValueError("aim find needs species: name those to be found")
        if self.cost is not None and self.homes is not None:
            raise ValueError("cost and homes both say what a site costs; give one of them")
        if self.cost is not None and self.candidates in (None, "unvisited"):
            raise ValueError(
                f"cost is {self.cost!r}, a column of a file of candidates; name candidates"
            )
        return self
