"""
Run independent units of work here, in several processes or on a cluster: all through one standard
Executor.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from multiprocessing import current_process, get_context
from typing import Any, Protocol

from butterfly_sdm.errors import MissingPackageError, ModelError, how_to_install


class Unit(Protocol):
    """
    One piece of work: reading apart from computing, so that the next read runs beside the
    computing.
    """

    @property
    def key(self) -> str: ...  # noqa: D102

    def read(self) -> Any: ...  # noqa: D102

    def compute(self, data: Any) -> Any: ...  # noqa: D102


def run_unit(unit: Unit) -> Any:
    """Read and compute one unit: what an executor's worker does."""
    return unit.compute(unit.read())


def run_units(
    units: Sequence[Unit],
    keep: Callable[[Unit, Any], None],
    *,
    executor: Executor | None = None,
    in_flight: int = 4,
    readers: int = 1,
) -> None:
    """
    Run all units and hand each result to ``keep`` in this thread.

    Parameters
    ----------
    executor
        Where to compute; None: in this thread, while others read ahead.
    in_flight
        Most units handed to the executor and not yet kept: bounds the memory of waiting results.
    readers
        Threads that read ahead, each one unit.
    """
    if executor is None:
        _run_here(units, keep, readers)
        return
    waiting: dict[Future[Any], Unit] = {}
    rest = iter(units)
    try:
        while True:
            while len(waiting) < in_flight and (unit := next(rest, None)) is not None:
                waiting[executor.submit(run_unit, unit)] = unit
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                keep(waiting.pop(future), future.result())
    finally:
        for future in waiting:
            future.cancel()


def _run_here(units: Sequence[Unit], keep: Callable[[Unit, Any], None], readers: int) -> None:
    with ThreadPoolExecutor(readers, thread_name_prefix="read-ahead") as pool:
        ahead: deque[Future[Any]] = deque(pool.submit(unit.read) for unit in units[:readers])
        for number, unit in enumerate(units):
            data = ahead.popleft().result()
            if number + readers < len(units):
                ahead.append(pool.submit(units[number + readers].read))
            result = unit.compute(data)
            del data
            keep(unit, result)


def _share_machine(threads: int) -> None:
    """Give a worker its share of the cores, and the GPUs in turn."""
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(current_process()._identity[0] % torch.cuda.device_count())


@contextmanager
def open_executor(
    workers: int = 1, dask: str | None = None
) -> Iterator[tuple[Executor | None, int]]:
    """
    Yield an executor and how many units it runs at a time; (None, 1) for this process alone.

    Parameters
    ----------
    workers
        Processes on this machine, which share its cores.
    dask
        Address of a Dask scheduler, such as ``tcp://host:8786``; its workers need this package and
        the folder of the map.

    Raises
    ------
    MissingPackageError
        Dask is asked for and not installed.
    ModelError
        The scheduler does not answer.
    """
    if dask is not None:
        try:
            from distributed import Client
        except ImportError as error:
            raise MissingPackageError(
                f"A Dask cluster needs: {how_to_install('distributed')}"
            ) from error
        try:
            client = Client(dask, timeout="10s")
        except (OSError, ValueError) as error:
            raise ModelError(
                f"No Dask scheduler answers at {dask}: {error}. Start one, or leave dask out."
            ) from error
        with client:
            yield client.get_executor(pure=False), max(1, sum(client.nthreads().values()))
    elif workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        # spawn: forking a process in which torch has started threads can hang
        with ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=_share_machine, initargs=(threads,)
        ) as pool:
            try:
                yield pool, workers
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    else:
        yield None, 1
