"""What a build works with: the unfinished folder, who computes, and whom it tells."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from butterfly_sdm.core.executor import open_executor
from butterfly_sdm.imagery.embeddings.columns import Described
from butterfly_sdm.progress import Progress, silent
from data_prep.notes import BuildNotes
from data_prep.options import BuildOptions


@dataclass(frozen=True)
class Workbench:
    """
    Handed from step to step of a build.

    Attributes
    ----------
    folder
        The unfinished data set.
    executor
        Runs units of work; None: this thread.
    notes
        Grow on the way and end in the card.
    described
        Gives the files of embeddings that options name.
    """

    folder: Path
    executor: Executor | None = None
    progress: Progress = silent
    notes: BuildNotes = field(default_factory=BuildNotes)
    described: Described = field(default_factory=Described)

    @property
    def scratch(self) -> Path:
        """Folder for what is needed on the way, so that an interrupted build goes on from it."""
        return self.folder / ".scratch"


@contextmanager
def open_workbench(
    config: BuildOptions,
    folder: Path,
    progress: Progress,
    executor: Executor | None,
    *,
    described: Described | None = None,
) -> Iterator[Workbench]:
    """Yield a workbench with the executor given, or else the one that the config asks for."""
    (folder / ".scratch").mkdir(exist_ok=True)
    with ExitStack() as stack:
        if executor is None:
            pool = open_executor(config.workers, config.dask, threads=True)
            executor, _ = stack.enter_context(pool)
        yield Workbench(folder, executor, progress, described=described or Described())
