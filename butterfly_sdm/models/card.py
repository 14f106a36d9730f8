"""The card ``model.json`` of a network or an ensemble of networks."""

from pathlib import Path
from typing import Any

from butterfly_sdm.core.cards import check_version
from butterfly_sdm.core.files import read_json
from butterfly_sdm.errors import ModelError

FORMAT = "butterfly_sdm model"
FORMAT_VERSION = 1


def read_model_card(folder: Path, kind: str) -> dict[str, Any]:
    """
    Read ``model.json`` of a model of this kind.

    Raises
    ------
    MissingFileError, ArtefactError
        The file is absent, no JSON or of another format version.
    ModelError
        It describes another kind of model.
    """
    value = read_json(folder / "model.json")
    if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("kind") != kind:
        article = "an" if kind[0] in "aeiou" else "a"
        raise ModelError(
            f"{folder / 'model.json'} does not describe {article} {kind} of butterfly_sdm."
        )
    check_version(
        value.get("format_version"),
        FORMAT_VERSION,
        f"The model in {folder}",
        "butterfly-sdm train CONFIG",
    )
    return value
