"""What can be said about the split."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from butterfly_sdm.core.settings import Fraction, InputPath, Section, unset

WeekOption = Annotated[
    int | None,
    Field(ge=1, le=52, description="of rate_in_week, counted from 1 January", exclude_if=unset),
]


class SplitOptions(Section):
    """How sites are divided into training, validation and test."""

    method: Literal["clusters", "blocks", "regions", "file", "random"] = Field(
        "clusters", description="what stays together in one part; see the page on the split"
    )
    distance_m: float = Field(
        4000.0, gt=0, description="clusters: sites nearer than this stay together; blocks: side"
    )
    fractions: tuple[Fraction, Fraction, Fraction] = Field(
        (0.7, 0.15, 0.15), description="shares of training, validation and test"
    )
    path: InputPath | None = Field(
        None, description="method file: split.json, or a table of site_id and split"
    )
    buffer_m: float = Field(
        0.0, ge=0, description="training sites nearer than this to one of another part are left out"
    )
    folds: int | None = Field(
        None, ge=2, description="cut into this many folds instead of by fractions; see fold"
    )
    fold: int = Field(1, ge=1, description="which fold is validated")
    regions: InputPath | None = Field(
        None, description="method regions: polygons with a column name"
    )
    validation_regions: tuple[str, ...] = Field(
        (), description="method regions: names of the regions for validation"
    )
    test_regions: tuple[str, ...] = Field(
        (), description="method regions: names of the regions for the test"
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(
                f"fractions sum to {sum(self.fractions):g}; the shares of the three parts must sum "
                "to 1"
            )
        if self.method == "file" and self.path is None:
            raise ValueError("method is file, but path does not say which file")
        if self.method == "regions" and not (self.regions and self.validation_regions):
            raise ValueError(
                "method is regions: state regions (polygons) and validation_regions (names)"
            )
        if self.folds is not None and self.fold > self.folds:
            raise ValueError(f"fold = {self.fold}: there are {self.folds} folds, counted from 1")
        return self
