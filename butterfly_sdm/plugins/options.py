"""What every plugin can be told, and how its own settings are declared."""

from functools import partial
from operator import eq
from typing import Any, Literal

from pydantic import Field

from butterfly_sdm.core.settings import InputPath, Section


def setting(default: Any, description: str, **bounds: Any) -> Any:
    """Declare a setting by its default (``...``: it has to be given), meaning and bounds."""
    return Field(default, description=description, **bounds)


def later(default: Any, description: str, **bounds: Any) -> Any:
    """
    Declare a setting that came after the first runs: it stands in their key only where it differs
    from ``default``, so that a finished run is known again.
    """
    return setting(default, description, exclude_if=partial(eq, default), **bounds)


class PluginConfig(Section):
    """Base of the settings of a plugin, which adds its own keys; strict, as all settings."""

    name: str = setting("experiment", "letters, digits, . - and _", pattern=r"^[\w.-]+$")
    seed: int = Field(0, ge=0)
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    inputs: InputPath | None = setting(None, "for predict: a file, a table or a folder")
