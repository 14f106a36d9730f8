"""What a build finds out on its way and tells in the card: sources, warnings and notes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from butterfly_sdm.data.dataset import Source
from butterfly_sdm.data.splits import Split

log = logging.getLogger("data_prep.build")


@dataclass
class BuildNotes:
    """
    Lists that grow while a data set folder is filled.

    Attributes
    ----------
    imagery
        Files that pixels were taken from, each with the licence its product states, if any.
    """

    sources: list[Source] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    imagery: dict[str, str | None] = field(default_factory=dict)

    def warn(self, message: str) -> None:
        """Say a warning now, and keep it for the card."""
        log.warning(message)
        self.warnings.append(message)


FEW_TO_LEARN, FEW_TO_JUDGE, FEW_OF_A_SPECIES = 50, 20, 5


def thin_data(rows: Mapping[str, int], detections: pd.DataFrame, split: Split) -> list[str]:
    """
    Say where there is too little to learn from, and which setting left it out.

    Parameters
    ----------
    rows
        Records by what became of them: ``kept``, ``dropped: REASON``.
    detections
        (site, species) visits on which the species was recorded.
    """
    found = []
    few = {
        "min_records": rows.get("dropped: too few records at the site", 0),
        "min_visits": rows.get("dropped: too few visits to the site", 0),
    }
    setting, left_out = max(few.items(), key=lambda item: item[1])
    if left_out > rows.get("kept", 0):
        found.append(
            f"{left_out:,} usable records were left out because their sites have too few, more "
            "than were kept "
            f"({rows.get('kept', 0):,}). Lower records.{setting} to keep more sites."
        )
    if len(split.train) < FEW_TO_LEARN or len(split.validation) < FEW_TO_JUDGE:
        apart = len(detections) - len(split.part_of())
        found.append(
            f"There are only {len(split.train)} sites to learn from and {len(split.validation)} to "
            "judge by: scores will say "
            "little, and the mean rate will be hard to beat. Widen records.years, or lower "
            "records.min_records and min_visits."
            + (
                f" {apart} sites are in no part of the split: a smaller split.buffer_m leaves out "
                "fewer."
                if apart > 0
                else ""
            )
        )
    sites = (detections > 0).sum()
    rare = sites[sites < FEW_OF_A_SPECIES].sort_values()
    if len(rare):
        named = ", ".join(map(str, rare.index[:6])) + (", ..." if len(rare) > 6 else "")
        found.append(
            f"{len(rare)} of {len(sites)} species were recorded at fewer than {FEW_OF_A_SPECIES} "
            "sites, too few to learn where "
            f"they live: {named}. Leave them out by listing the others in records.species, or do "
            "not trust their maps."
        )
    return found
