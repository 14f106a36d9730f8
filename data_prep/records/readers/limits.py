"""
Bounds on what a file of records may be, so that a damaged or hostile one is refused in a sentence
and not in an hour.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    What is still taken for a table of records.

    Attributes
    ----------
    ratio
        Largest unpacked size of a file in an archive, as a multiple of its packed size; small files
        may be packed better.
    row_mib
        Longest row.
    columns
        Most columns of a table.
    description_mib
        Largest ``meta.xml`` or ``eml.xml``.
    """

    ratio: int = 200
    row_mib: int = 16
    columns: int = 10_000
    description_mib: int = 16


_current: ContextVar[Limits] = ContextVar("limits", default=Limits())  # noqa: B039 - frozen


def current_limits() -> Limits:
    """Return the limits that hold here."""
    return _current.get()


@contextmanager
def within(limits: Limits) -> Iterator[None]:
    """Read under other limits, in this thread and in what it calls."""
    token = _current.set(limits)
    try:
        yield
    finally:
        _current.reset(token)


def raise_limit(name: str) -> str:
    """Say how a limit is raised, as the end of an error."""
    return (
        f"If you trust the file, raise build.records.limits.{name} (now "
        f"{getattr(_current.get(), name):,})."
    )
