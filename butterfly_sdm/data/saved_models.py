"""Predictors in folders: what each kind is called, how it is written and read, never a pickle."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from butterfly_sdm.core.cards import check_version
from butterfly_sdm.core.files import atomic_path, read_json, write_json
from butterfly_sdm.core.registry import Registry
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.errors import (
    ArtefactError,
    ButterflySDMError,
    MissingFileError,
    ModelError,
    did_you_mean,
)

FORMAT = "butterfly_sdm model"
FORMAT_VERSION = 1

#: Every kind of predictor; another package adds its own by an entry point of this group.
PREDICTORS = Registry(
    "butterfly_sdm.predictors",
    "predictor",
    {
        "network": "butterfly_sdm.models.network_predictor:NetworkPredictor",
        "ensemble": "butterfly_sdm.models.ensemble:Ensemble",
        "mean_rate": "butterfly_sdm.baselines.mean_rate:MeanRate",
        "regional_rate": "butterfly_sdm.baselines.mean_rate:RegionalRate",
        "nearest_sites": "butterfly_sdm.baselines.nearest_sites:NearestSites",
        "linear": "butterfly_sdm.baselines.linear:Linear",
        "trees": "butterfly_sdm.baselines.trees:Trees",
        "boosting": "butterfly_sdm.baselines.boosting:Boosting",
        "maxent": "butterfly_sdm.baselines.maxent:MaxEnt",
        "random_features": "butterfly_sdm.baselines.random_features:RandomFeatures",
        "probe": "butterfly_sdm.baselines.probe:Probe",
        "gaussian_process": "butterfly_sdm.baselines.gaussian_process:GaussianProcess",
        "perceptron": "butterfly_sdm.baselines.perceptron:Perceptron",
        "stacking": "butterfly_sdm.baselines.stacking:Stacking",
        "occupancy": "butterfly_sdm.baselines.occupancy:OccupancyModel",
        "seasonal": "butterfly_sdm.baselines.seasonal:Seasonal",
    },
    needs=("fit", "predict", "save", "load"),
)


def load_predictor(folder: str | Path) -> Predictor:
    """
    Read the fitted predictor of a folder by the kind in its ``model.json``.

    Parameters
    ----------
    folder
        A run, or what the ``save`` of any predictor wrote.

    Returns
    -------
    Predictor
        As it was saved.

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
    return cast(Predictor, PREDICTORS.load(value["kind"]).load(Path(folder)))


def with_seed(cls: type, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """
    Return the options of a predictor, with ``seed`` if its class draws at random and the options do
    not say another.
    """
    return ({"seed": seed} if hasattr(cls, "seed") else {}) | dict(options)


def why_not_taken(cls: Any, kind: str, options: Mapping[str, Any], error: TypeError) -> str:
    """
    Say why a predictor cannot be made with options: which it does not know or lacks, and which
    there are.

    Examples
    --------
    >>> from butterfly_sdm.baselines.trees import Trees
    >>> why_not_taken(Trees, "trees", {"tree": 5}, TypeError())  # doctest: +ELLIPSIS
    "trees has no option 'tree'. Did you mean 'trees'? It takes covariates, ..."
    """
    takes = inspect.signature(cls).parameters
    unknown = [name for name in options if name not in takes]
    lacking = [
        name for name, one in takes.items() if one.default is one.empty and name not in options
    ]
    of_any_name = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    if of_any_name & {one.kind for one in takes.values()} or not (unknown or lacking):
        return f"{kind} does not take the options {dict(options)} ({error})."
    if unknown:
        text = f"{kind} has no option {unknown[0]!r}.{did_you_mean(unknown[0], takes)}"
    else:
        text = f"{kind} needs the option {lacking[0]!r}."
    return f"{text} It takes {', '.join(takes)}."


def write_model(
    folder: Path,
    kind: str,
    predictor: Predictor,
    content: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """
    Write ``model.json`` and, if there are arrays, ``model.safetensors``.

    Parameters
    ----------
    folder
        Where they lie; made if it is not there.
    kind
        The name under which :data:`PREDICTORS` lists the class.
    predictor
        The fitted predictor: its species and what it sees go into the card.
    content
        What the card holds besides, as plain values.
    arrays
        By name, of any shape; None: it has none.

    Raises
    ------
    ModelError
        The predictor was not fitted.
    """
    from safetensors.numpy import save_file

    if not predictor.species:
        raise ModelError(f"The {kind} model was not fitted; there is nothing to save.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if arrays is not None:
        plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        with atomic_path(folder / "model.safetensors") as temporary:
            save_file(plain, temporary, metadata={"format": FORMAT})
    card = {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": kind}
    card |= {"species": list(predictor.species), "sees": predictor.sees.to_dict()}
    write_json(folder / "model.json", card | dict(content))


def read_model(folder: Path, kind: str) -> dict[str, Any]:
    """
    Read ``model.json`` of a model of this kind.

    Parameters
    ----------
    folder
        Where :func:`write_model` wrote it.
    kind
        The name under which :data:`PREDICTORS` lists the class.

    Returns
    -------
    dict of str
        The card, with ``species``, ``sees`` and what was given as content.

    Raises
    ------
    MissingFileError, ArtefactError
        The file is absent, damaged, of another format version or of another kind of model.
    """
    card = read_json(Path(folder) / "model.json")
    found = card.get("kind") if isinstance(card, dict) and card.get("format") == FORMAT else None
    if found != kind:
        raise ArtefactError(
            f"{folder} holds a model of kind {found!r}, not {kind!r}. Load it with the class of "
            "its kind."
        )
    check_version(
        card.get("format_version"),
        FORMAT_VERSION,
        f"The model in {folder}",
        "butterfly-sdm train CONFIG",
    )
    species = card.get("species")
    if not isinstance(species, list) or not all(isinstance(name, str) for name in species):
        raise ArtefactError(
            f"The model.json in {folder} is damaged: it needs species. Train again."
        )
    return dict(card)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """
    Read ``model.safetensors``.

    Raises
    ------
    MissingFileError, ArtefactError
        The file is absent or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise MissingFileError(f"{folder} lacks {path.name}, its numbers. Train the model again.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ArtefactError(f"{path} is damaged: {error}. Train again.") from error


@contextmanager
def card_in_doubt(folder: Path) -> Iterator[None]:
    """
    Say of a card that holds something else than was expected that it is damaged.

    Raises
    ------
    ArtefactError
        It does.
    """
    try:
        yield
    except ButterflySDMError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(
            f"The model.json in {folder} is damaged: {error}. Train again."
        ) from error
