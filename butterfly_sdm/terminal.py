"""Talk to a person at a terminal: progress bars, closing summaries, errors."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


class _Lines:
    """Progress where no bar can be drawn (a log file): one line when a task starts, one when it ends."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}

    def __call__(self, task: str, done: int, total: int) -> None:
        if task not in self.started:
            self.started[task] = time.monotonic()
            err.print(f"{task} ...", markup=False, highlight=False)
        if total and done >= total:
            seconds = time.monotonic() - self.started.pop(task)
            err.print(f"{task}: {total:,} in {seconds:.1f} s", markup=False, highlight=False)


class _Bars:
    """A bar per task; a task that starts again gets its bar anew."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, Any] = {}

    def __call__(self, task: str, done: int, total: int) -> None:
        if task not in self.tasks:
            self.tasks[task] = self.bars.add_task(task, total=total or None)
        self.bars.update(self.tasks[task], completed=done, total=total or None)


@contextmanager
def progress_bars() -> Iterator[Any]:
    """Yield a :class:`~butterfly_sdm.progress.Progress` that draws on the standard error stream."""
    if not err.is_terminal:
        yield _Lines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=err) as bars:
        yield _Bars(bars)


def summary(title: str, rows: Mapping[str, object], *, next_commands: Sequence[str] = (), as_json: bool = False) -> None:
    """Say what was made, where it lies and what to run next; as one JSON object if a script asks."""
    if as_json:
        sys.stdout.write(json.dumps({key: _plain(value) for key, value in rows.items()}, ensure_ascii=False) + "\n")
        return
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(Text(key), Text(str(value)))
    out.print(table)
    if next_commands:
        out.print("Next:")
        for command in next_commands:
            out.print(f"  {command}", markup=False, highlight=False)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    drawn = Table(title=title, title_justify="left")
    for place, name in enumerate(header):
        drawn.add_column(name, justify="left" if place == 0 else "right")
    for row in rows:
        drawn.add_row(*(str(value) for value in row))
    out.print(drawn)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
