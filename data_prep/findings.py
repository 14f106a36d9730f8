"""What a build finds out on its way and tells in the card: sources, warnings and notes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from butterfly_sdm.data.dataset import Source

log = logging.getLogger("data_prep.build")


@dataclass
class Findings:
    """Lists that grow while a data set folder is filled."""

    sources: list[Source] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Say a warning now, and keep it for the card."""
        log.warning(message)
        self.warnings.append(message)
