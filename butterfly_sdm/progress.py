"""Tell whoever listens how far long work has come, and each warning of it once."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """
    A listener to long work; the command line draws a bar, tests and scripts may ignore it.

    Called with the name of the task, the units done and the units in all (0 when unknown). Calls
    for one task have growing ``done``; the task is over when ``done == total``.
    """

    def __call__(self, task: str, done: int, total: int) -> None: ...  # noqa: D102


def silent(task: str, done: int, total: int) -> None:
    """Ignore all progress: the default of every function that reports it."""


@contextmanager
def told_once(logger: str) -> Iterator[None]:
    """Let a logger tell each warning once: what is planned before it is done is looked at twice."""
    told: set[str] = set()

    def new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        again = record.levelno >= logging.WARNING and text in told
        told.add(text)
        return not again

    quiet = logging.getLogger(logger)
    quiet.addFilter(new)
    try:
        yield
    finally:
        quiet.removeFilter(new)
