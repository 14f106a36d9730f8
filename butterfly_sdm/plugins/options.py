"""What every plugin can be told."""

from functools import partial
from operator import eq
from typing import Any, Literal

from pydantic import Field

from butterfly_sdm.core.settings import InputPath, Section


class PluginConfig(Section):
    """Base of the settings of a plugin, which adds its own keys; strict, as all settings."""

    name: str = Field(
        "experiment", pattern=r"^[\w.-]+$", description="letters, digits, dot, dash, underscore"
    )
    seed: int = Field(0, ge=0)
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    inputs: InputPath | None = Field(None, description="for predict: a file, a table or a folder")


def new_setting(default: Any, description: str, **bounds: Any) -> Any:
    """
    Declare a setting that came after the first runs: it stands in their key only where it differs
    from ``default``, so that a finished run is known again.
    """
    return Field(default, description=description, exclude_if=partial(eq, default), **bounds)
