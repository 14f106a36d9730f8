"""Verify what the verbs wrote, byte by byte, or say what it is instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from butterfly_sdm.core.cards import damage
from butterfly_sdm.core.files import read_json
from butterfly_sdm.errors import ArtefactError, ButterflySDMError, MissingFileError
from butterfly_sdm.run import COMMUNITY, Run

ARTEFACTS = ("dataset.json", "run.json", "model.json")
# card of results: a file that shows them where there is no card, and the verb that writes both
RESULTS = {
    "scores.json": ("per_species.csv", "evaluate"),
    "ladder.json": ("ladder.csv", "evaluate --ladder"),
    "comparison.json": ("comparison.csv", "compare"),
    "search.json": ("trials.csv", "search"),
    "plan.json": ("plan.gpkg", "plan"),
    "replay.json": ("draws.csv", "plan --replay"),
    "community.json": ("known.parquet", "community"),
}
REPORT = "*_files.json"


def check(artefact: str | Path) -> list[str]:
    """
    Verify an artefact byte by byte against what was written.

    Parameters
    ----------
    artefact
        Folder of a data set, a run or the run of a plugin, or a map; also a folder or file of
        results: scores, a ladder, a comparison, a search, a community, a plan, a report.

    Returns
    -------
    list of str
        One sentence per problem; empty if all is well.

    Raises
    ------
    MissingFileError, ArtefactError
        There is no artefact there, or results that no card lists.
    """
    path = Path(artefact)
    if not path.exists():
        raise MissingFileError(
            f"{path} does not exist. Name a data set folder, a run folder or a map."
        )
    if path.is_file():
        return _check_file(path)
    if (path / "dataset.json").is_file():
        from data_prep.checking import check_dataset

        return check_dataset(path)
    if (path / "run.json").is_file():
        return _check_run(path)
    if (path / "model.json").is_file():
        from butterfly_sdm.plugins.plugin import check_run

        return check_run(path)
    cards = list(_cards(path))
    if not cards:
        raise ArtefactError(_in_words(path))
    return [problem for card in cards for problem in damage(card)]


def _check_run(path: Path) -> list[str]:
    """Verify a run, what was learned and reported in its folder, and that it can be read."""
    community = path / COMMUNITY / "community.json"
    cards = [path / "run.json", *([community] if community.is_file() else ()), *_cards(path)]
    if problems := [problem for card in cards for problem in damage(card)]:
        return problems
    try:
        run = Run.open(path)
        _ = run.predictor, run.community
    except ButterflySDMError as error:
        return [str(error)]
    return []


def _check_file(path: Path) -> list[str]:
    """Verify a map, or the card that lists another file."""
    for card in (*_cards(path.parent), *(path.parent / name for name in ARTEFACTS)):
        with suppress(ButterflySDMError):  # no card, or none that can be read
            if path == card or path.name in read_json(card).get("files", ()):
                return damage(card)
    from butterfly_sdm.mapping.map_file import check_map

    return check_map(path)


def _cards(folder: Path) -> Iterator[Path]:
    """Yield the cards of results in a folder."""
    yield from (folder / name for name in RESULTS if (folder / name).is_file())
    yield from sorted(folder.glob(REPORT))


def _is_map(path: Path) -> bool:
    """Tell whether a file is a map of this package."""
    from butterfly_sdm.mapping.map_file import read_tags

    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        return bool(read_tags(path))
    except ButterflySDMError:
        return False


def _in_words(path: Path) -> str:
    """Say what a folder is in which there is no card."""
    for card, (sign, verb) in RESULTS.items():
        if (path / sign).is_file():
            return (
                f"{path} holds what butterfly-sdm {verb} writes, but no {card} that lists it: it "
                "is of an earlier release, or not finished. Write it again to have it verified."
            )
    inside = [
        one
        for one in sorted(path.iterdir())
        if any((one / name).is_file() for name in (*ARTEFACTS, *RESULTS)) or _is_map(one)
    ]
    if inside:
        names = ", ".join(str(one) for one in inside[:5])
        return f"{path} is no artefact itself, but holds some. Name them: {names}"
    return (
        f"{path} holds neither dataset.json nor run.json nor model.json nor a card of results: it "
        "is no artefact of this package, or not finished."
    )
