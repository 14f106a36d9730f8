"""Every kind of predictor by its name: what a config asks for and what a run folder holds."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from butterfly_sdm.baselines import BASELINES
from butterfly_sdm.core.files import read_json
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.errors import ArtefactError, ModelError, did_you_mean
from butterfly_sdm.models import MODELS

#: Where the class of each kind lives, as ``module:Class``; loaded when used.
KINDS: dict[str, str] = {**MODELS, **BASELINES}


def predictor_class(kind: str) -> Any:
    """
    Return the class of a kind.

    Raises
    ------
    ModelError
        There is no such kind.
    """
    if kind not in KINDS:
        raise ModelError(
            f"There is no predictor of kind {kind!r}. Known: "
            f"{', '.join(sorted(KINDS))}.{did_you_mean(kind, KINDS)}"
        )
    module, _, name = KINDS[kind].partition(":")
    return getattr(import_module(module), name)


def load_predictor(folder: str | Path) -> Predictor:
    """
    Read the fitted predictor of a folder by the kind in its ``model.json``.

    Raises
    ------
    MissingFileError, ArtefactError
        ``model.json`` is absent or damaged.
    ModelError
        It names an unknown kind, or the arrays do not fit.
    """
    value = read_json(Path(folder) / "model.json")
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise ArtefactError(f"{folder}/model.json does not say which kind of model it holds.")
    return predictor_class(value["kind"]).load(Path(folder))  # type: ignore[no-any-return]


class Handle:
    """
    A predictor that travels to workers as the folder it is saved in, never as a pickle of its
    weights.

    Parameters
    ----------
    predictor
        The fitted predictor.
    folder
        Where it is saved; None if it never leaves this process.
    """

    def __init__(self, predictor: Any, folder: Path | None = None) -> None:
        self.folder = folder
        self._predictor = predictor

    def __getstate__(self) -> dict[str, Any]:
        if self.folder is None:
            raise ModelError(
                "This predictor was not saved, so it cannot be sent to other processes. Use "
                "workers=1."
            )
        return {"folder": self.folder, "_predictor": None}

    @property
    def predictor(self) -> Any:
        """The predictor; read from its folder, once per process, where it is not at hand."""
        if self._predictor is None:
            assert self.folder is not None
            self._predictor = _load_once(self.folder)
        return self._predictor


@lru_cache(maxsize=2)
def _load_once(folder: Path) -> Any:
    return load_predictor(folder)
