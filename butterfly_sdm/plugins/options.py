"""What every plugin can be told."""

from typing import Literal

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
