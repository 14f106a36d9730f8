"""Tell whoever listens how far long work has come."""

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
