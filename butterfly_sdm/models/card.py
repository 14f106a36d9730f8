"""The card ``model.json`` of a network or an ensemble of networks."""

from pathlib import Path
from typing import Any

from butterfly_sdm.data.artefact import read_json
from butterfly_sdm.errors import ModelError

FORMAT = "butterfly_sdm model"
FORMAT_VERSION = 1


def read_model_card(folder: Path, kind: str) -> dict[str, Any]:
    """
    Read ``model.json`` of a model of this kind.

    Raises
    ------
    MissingFileError, ArtefactError
        The file is absent or no JSON.
    ModelError
        It describes another kind of model, or has another format version.
    """
    value = read_json(folder / "model.json")
    if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("kind") != kind:
        article = "an" if kind[0] in "aeiou" else "a"
        raise ModelError(f"{folder / 'model.json'} does not describe {article} {kind} of butterfly_sdm.")
    if value.get("format_version") != FORMAT_VERSION:
        raise ModelError(f"{folder} has model format {value.get('format_version')!r}; this release reads {FORMAT_VERSION}.")
    return value
