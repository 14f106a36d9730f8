"""
How many threads compute: sums of parts that threads took are rounded otherwise with other numbers
of them, so what is to be repeated bit by bit needs the same number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import threadpoolctl

_fixed: ContextVar[int | None] = ContextVar("fixed_threads", default=None)


@contextmanager
def fixed_threads(number: int | None) -> Iterator[None]:
    """
    Compute with so many threads in the block, whatever ``OMP_NUM_THREADS`` and the cores of the
    machine are, then with as many as before.

    Parameters
    ----------
    number
        Of PyTorch, OpenMP and the linear algebra of NumPy and SciPy; None: as it is.
    """
    if number is None:
        yield
        return
    import torch

    before, token = torch.get_num_threads(), _fixed.set(number)
    try:
        with threadpoolctl.threadpool_limits(limits=number):
            torch.set_num_threads(number)
            yield
    finally:
        torch.set_num_threads(before)
        _fixed.reset(token)


def threads_of_worker(share: int) -> int:
    """Return the threads of a worker process: those that are fixed, else its share of the cores."""
    return _fixed.get() or share


def computed_with() -> dict[str, Any]:
    """Return what a result depends on to the last bit: threads and libraries of linear algebra."""
    import torch

    pools = threadpoolctl.threadpool_info()
    algebra = sorted(
        {f"{p['internal_api']} {p['version']}" for p in pools if p["user_api"] == "blas"}
    )
    return {
        "threads": torch.get_num_threads(),
        "fixed": _fixed.get() is not None,
        "linear_algebra": algebra,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
