"""What can be said about seasons and detection."""

import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from butterfly_sdm.core.settings import Section
from butterfly_sdm.errors import ModelError

LinkName = Literal["logit", "cloglog"]
Use = Literal["auto", "on", "off"]
EffortName = Literal["duration", "complete", "list_length"]


class SeasonOptions(Section):
    """How the dates of visits are used."""

    use: Use = Field(
        "on", description="auto: where dates alone make raw rates differ, as build warns; on; off"
    )
    first_week: int | None = Field(
        None,
        ge=1,
        le=52,
        description="first week of the schedule that rates are standardised to, weeks of seven "
        "days counted from 1 January; null: the first with a thousandth of the visits",
    )
    last_week: int | None = Field(None, ge=1, le=52, description="last week of the schedule")
    link: Literal["auto", "logit", "cloglog"] = Field(
        "auto", description="of detection; auto: the one under which the visits are likelier"
    )
    shift_by: str | None = Field(
        "latitude",
        description="the season shifts along this: latitude or a covariate such as temperature; "
        "null: it does not",
    )
    years: bool = Field(True, description="whether each year's season may deviate")
    effort: tuple[EffortName, ...] = Field(
        ("duration", "complete"),
        strict=False,  # a list of YAML, which _use_alone has handed on as Python's
        description="what of a visit, where it is told, makes detection easier; list_length: "
        "without the species itself, and rarely of use",
    )
    curve_sites: int = Field(
        4000,
        ge=50,
        description="sites that curves are fitted to, drawn at random if there are more",
    )
    nodes: int = Field(33, ge=15, le=101, description="nodes of the grid of site effects")

    @model_validator(mode="before")
    @classmethod
    def _use_alone(cls, value: Any) -> Any:
        if isinstance(value, bool):  # YAML reads on and off as true and false
            value = "on" if value else "off"
        return {"use": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if (self.first_week is None) != (self.last_week is None):
            raise ValueError("a schedule needs both first_week and last_week, or neither")
        if (self.first_week or 0) > (self.last_week or 0):
            raise ValueError("last_week lies before first_week")
        return self


def season_options(value: Mapping[str, Any]) -> SeasonOptions:
    """
    Return the options that a mapping of plain values says.

    Raises
    ------
    ModelError
        A name or a value is wrong.
    """
    try:
        return SeasonOptions.model_validate_json(json.dumps(dict(value)))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, ("season", *problem["loc"])))
        raise ModelError(f"{name} = {problem['input']!r}: {problem['msg']}.") from None
