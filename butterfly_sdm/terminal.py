"""Talk to a person at a terminal: progress bars, closing summaries, errors."""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


class _Lines:
    """
    Progress where no bar can be drawn (a log file): a line when a task starts, when it ends, and
    now and then between.
    """

    every_s = 20.0

    def __init__(self) -> None:
        self.started: dict[str, float] = {}
        self.said: dict[str, float] = {}

    def __call__(self, task: str, done: int, total: int) -> None:
        now = time.monotonic()
        if total and done >= total:
            if task in self.started:  # told once, however often the end is reported
                self._say(f"{task}: done in {now - self.started.pop(task):.1f} s")
        elif task not in self.started:
            self.started[task] = self.said[task] = now
            self._say(f"{task} ...")
        elif total and now - self.said[task] >= self.every_s:
            self.said[task] = now
            self._say(f"{task}: {_share(done, total)}")

    def _say(self, text: str) -> None:
        err.print(text, markup=False, highlight=False)


def _share(done: int, total: int) -> str:
    """
    Return how far work is: counted where a person can count, such as epochs, else in per cent, such
    as of bytes.
    """
    return f"{done} of {total}" if total <= 1000 else f"{done / total:.0%}"


class _Share(ProgressColumn):
    """How far a task is."""

    def render(self, task: Task) -> Text:
        """Return it as text."""
        return Text(
            _share(int(task.completed), int(task.total)) if task.total else "",
            style="progress.percentage",
        )


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
        _Share(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=err) as bars:
        yield _Bars(bars)


def summary(
    title: str,
    rows: Mapping[str, object],
    *,
    next_commands: Sequence[str] = (),
    as_json: bool = False,
) -> None:
    """
    Say what was made, where it lies and what to run next; as one JSON object if a script asks.
    """
    if as_json:
        sys.stdout.write(
            json.dumps({key: _plain(value) for key, value in rows.items()}, ensure_ascii=False)
            + "\n"
        )
        return
    table = Table(
        title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(Text(key), Text(str(value)))
    out.print(table)
    if next_commands:
        out.print("Next:")
        for command in next_commands:
            # one line, however long: it is copied
            out.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    drawn = Table(title=title, title_justify="left")
    for place, name in enumerate(header):
        numbers = bool(rows) and all(isinstance(row[place], int | float) for row in rows)
        drawn.add_column(name, justify="right" if numbers else "left")
    for row in rows:
        drawn.add_row(*(str(value) for value in row))
    out.print(drawn)


def sections(parts: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]) -> None:
    """Print parts of a text, each a title, a header (or none) and rows of cells."""
    for title, header, rows in parts:
        out.print(Text(title, style="bold"))
        drawn = Table(show_header=bool(header), box=None, padding=(0, 2, 0, 0), header_style="dim")
        width = max((len(row) for row in rows), default=0)
        for place in range(width):
            name = header[place] if place < len(header) else ""
            last = place == width - 1
            drawn.add_column(name, no_wrap=not last, overflow="ellipsis" if not last else "fold")
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        if rows:
            out.print(Padding(drawn, (0, 0, 0, 2)), soft_wrap=False)
        out.print()


_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille sign: row, column


def dot_map(
    lon: Sequence[float], lat: Sequence[float], *, width: int = 60, height: int = 24
) -> list[str]:
    """
    Draw places as braille dots, north up, one degree as long eastwards as northwards.

    Parameters
    ----------
    lon, lat
        Degrees.
    width, height
        Most signs of a line, and most lines; a sign holds 2 x 4 dots.

    Examples
    --------
    >>> dot_map([0.0, 1.0], [1.0, 0.0], width=2)
    ['⠁⢀']
    """
    places = [(x, y) for x, y in zip(lon, lat, strict=True) if math.isfinite(x + y)]
    if not places:
        return []
    west, east = min(x for x, _ in places), max(x for x, _ in places)
    south, north = min(y for _, y in places), max(y for _, y in places)
    shrink = max(math.cos(math.radians((south + north) / 2)), 0.05)
    wide, high = (east - west) * shrink, north - south
    dots_a_degree = min((2 * width - 1) / max(wide, 1e-6), (4 * height - 1) / max(high, 1e-6))
    columns, lines = (
        min(int(wide * dots_a_degree + 0.5) // 2 + 1, width),
        min(int(high * dots_a_degree + 0.5) // 4 + 1, height),
    )
    signs = [[0] * columns for _ in range(lines)]
    for x, y in places:
        across = min(round((x - west) * shrink * dots_a_degree), 2 * columns - 1)
        down = min(round((north - y) * dots_a_degree), 4 * lines - 1)
        signs[down // 4][across // 2] |= _DOTS[down % 4][across % 2]
    return ["".join(chr(0x2800 + sign) for sign in line) for line in signs]


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
