"""What can be said about evaluation."""

from typing import Any, Literal

from pydantic import Field, model_validator

from butterfly_sdm.core.settings import Options, Section, empty, unset
from butterfly_sdm.data.options import WeekOption
from butterfly_sdm.models.options import FitOptions, NetworkOptions


class LadderStep(Section):
    """One predictor of a ladder."""

    kind: str = Field(description="name of a baseline, such as nearest_sites; network; or blend")
    name: str | None = Field(None, description="what tables call it; null: its kind")
    options: Options = Field(default_factory=dict, description="of that baseline")
    network: NetworkOptions | None = Field(
        None, description="of a network, as train.model", exclude_if=unset
    )
    fit: FitOptions | None = Field(None, description="of a network, as train.fit", exclude_if=unset)
    of: tuple[str, ...] = Field(
        (),
        description="of a blend: names of the steps before it whose predictions are averaged",
        exclude_if=empty,
    )

    @model_validator(mode="before")
    @classmethod
    def _a_kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else _as_python(value)

    @model_validator(mode="after")
    def _a_blend_is_of_steps(self) -> "LadderStep":
        if (self.kind == "blend") != bool(self.of):
            raise ValueError("a blend, and nothing else, names the steps it is made of: of")
        if self.kind != "network" and (self.network or self.fit):
            raise ValueError(f"network and fit are of the kind network; this is {self.kind}")
        return self


def _as_python(value: Any) -> Any:
    """Return lists of a YAML as tuples: after a validator of our own they are no YAML any more."""
    if isinstance(value, dict):
        return {key: _as_python(one) for key, one in value.items()}
    return tuple(map(_as_python, value)) if isinstance(value, list) else value


class EvaluateOptions(Section):
    """evaluate: run -> scores beside the baselines."""

    part: Literal["train", "validation", "test"] = Field(
        "validation", description="look at the test part once, at the end"
    )
    baselines: tuple[str, ...] = Field(
        ("mean_rate",),
        description="simple predictors fitted beside the model, as they are; with options: ladder",
    )
    quantity: Literal["standardised_rate", "rate_in_week", "raw_rate"] | None = Field(
        None,
        description="what is scored; null: k of n as they are, against rates on the very dates "
        "where the model tells them",
        exclude_if=unset,
    )
    week: WeekOption = None
    ladder: tuple[LadderStep, ...] = Field(
        (), description="predictors that evaluate --ladder compares"
    )
    folds: int = Field(5, ge=0, description="of the ladder's spatial cross-validation; 0: none")
    fold_distance_m: float = Field(
        4000.0,
        gt=0,
        description="sites nearer than this stay in one fold; where they are dense: side of "
        "squares",
    )
    block_m: float = Field(
        20_000.0, gt=0, description="side of the squares that the bootstrap draws"
    )
    bootstrap: int = Field(2000, ge=100, description="repetitions of the bootstrap")
    workers: int = Field(
        1, ge=1, description="processes that share the fits of a ladder or a comparison"
    )
    dask: str | None = Field(
        None, description="address of a Dask scheduler that shares them out instead"
    )
