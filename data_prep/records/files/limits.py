"""
Bounds on what a file of records may be, so that a damaged or hostile one is refused in a sentence
and not in an hour.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from data_prep.records.options import LimitOptions

_current: ContextVar[LimitOptions] = ContextVar(
    "limits",
    default=LimitOptions(),  # noqa: B039 - frozen
)


def current_limits() -> LimitOptions:
    """Return the limits that hold here."""
    return _current.get()


@contextmanager
def within(limits: LimitOptions) -> Iterator[None]:
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
