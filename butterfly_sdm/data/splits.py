"""The split: which sites are in training, validation and test, as a value and as a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from butterfly_sdm.core.cards import check_version
from butterfly_sdm.core.files import read_json, write_json
from butterfly_sdm.errors import ArtefactError, DataError

FORMAT_VERSION = 1
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """
    Lists of site ids, one per part; no site is in two parts.

    Attributes
    ----------
    train, validation, test
        Site ids. ``validation`` and ``test`` may be empty.
    method
        How the parts were made, in words.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    method: str = "given"

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part in PARTS:
            for site in getattr(self, part):
                if site in seen:
                    raise DataError(
                        f"Site {site} is in {seen[site]} and in {part}. A site belongs to one part "
                        "of a split."
                    )
                seen[site] = part

    def part(self, name: str) -> tuple[str, ...]:
        """
        Return the site ids of one part.

        Raises
        ------
        DataError
            The split has no part of that name, or it is empty.
        """
        if name not in PARTS:
            raise DataError(f"A split has the parts {', '.join(PARTS)}; {name!r} is none of them.")
        sites: tuple[str, ...] = getattr(self, name)
        if not sites:
            raise DataError(
                f"The {name} part of the split is empty. Choose another part, or another split of "
                "the data set."
            )
        return sites

    @property
    def in_words(self) -> str:
        """How many sites are in each part, and how the parts were made."""
        sizes = (f"{len(getattr(self, part)):,} {part}" for part in PARTS)
        return f"{', '.join(sizes)} ({self.method})"

    def part_of(self) -> dict[str, str]:
        """Return the name of the part for every site."""
        return {site: part for part in PARTS for site in getattr(self, part)}

    def to_json(self, path: Path) -> None:
        """Write the split as ``split.json``."""
        write_json(
            path,
            {
                "format": "butterfly_sdm split",
                "format_version": FORMAT_VERSION,
                "method": self.method,
            }
            | {part: list(getattr(self, part)) for part in PARTS},
        )

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """
        Read ``split.json``.

        Raises
        ------
        MissingFileError, ArtefactError
            The file is absent or not a split.
        """
        value: Any = read_json(path)
        if not isinstance(value, Mapping) or not all(
            isinstance(value.get(part, []), list)
            and all(isinstance(site, str) for site in value.get(part, []))
            for part in PARTS
        ):
            raise ArtefactError(
                f"{path} is not a split: it needs lists of site ids under {', '.join(PARTS)}."
            )
        if "format_version" in value:  # a split made by hand needs none
            check_version(
                value["format_version"],
                FORMAT_VERSION,
                f"The split {path}",
                "butterfly-sdm build CONFIG",
            )
        unknown = set(value) - {*PARTS, "format", "format_version", "method"}
        if unknown:
            raise ArtefactError(
                f"{path} has the unknown part {sorted(unknown)[0]!r}; the parts are "
                f"{', '.join(PARTS)}."
            )
        return cls(
            **{part: tuple(value.get(part, [])) for part in PARTS},
            method=str(value.get("method", "given")),
        )
