"""
Run independent pieces of work here, in threads, in several processes or on a cluster: all through
one standard Executor.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from itertools import islice
from multiprocessing import current_process, get_context
from typing import Any, Protocol, TypeVar

from butterfly_sdm.core.threads import threads_of_worker
from butterfly_sdm.errors import ConfigError, MissingPackageError, WorkerError, how_to_install

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_all(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int = 1,
    dask: str | None = None,
) -> Iterator[Result]:
    """
    Yield ``function(item)`` for every item, in the order of the items, as the results come.

    Parameters
    ----------
    function, items
        With several workers both are sent to them: a function of a module, or a partial of one.
    workers
        Processes on this machine; 1: a plain loop in this one.
    dask
        Address of a Dask scheduler.

    Raises
    ------
    MissingPackageError, ConfigError
        As :func:`open_executor`.

    Examples
    --------
    >>> list(run_all(abs, [-1, 2]))
    [1, 2]
    """
    with open_executor(workers, dask) as (executor, slots):
        yield from in_order(function, items, executor, in_flight=2 * slots)


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    executor: Executor | None = None,
    *,
    in_flight: int = 8,
) -> Iterator[Result]:
    """
    Yield ``function(item)`` for every item, in the order of the items, as the results come.

    An error, or an end of the loop, is passed on after the pieces already begun have ended.

    Parameters
    ----------
    executor
        Where to compute; None: in this thread, one after the other.
    in_flight
        Most items handed to the executor and not yet yielded: bounds the memory of waiting results
        and the time until an interruption is heard.
    """
    if executor is None:
        yield from map(function, items)
        return
    rest = iter(items)
    futures: deque[Future[Result]] = deque()
    try:
        while True:
            futures.extend(
                executor.submit(function, item) for item in islice(rest, in_flight - len(futures))
            )
            if not futures:
                return
            wait([futures[0]])
            # Refilled before the result is used, which may take long, and no reference kept to it.
            futures.extend(executor.submit(function, item) for item in islice(rest, 1))
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


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
    if executor is not None:
        results = in_order(run_unit, units, executor, in_flight=in_flight)
        for unit, result in zip(units, results, strict=True):
            keep(unit, result)
        return
    with ThreadPoolExecutor(readers, thread_name_prefix="read-ahead") as pool:
        ahead = in_order(lambda unit: unit.read(), units, pool, in_flight=readers)
        for unit in units:
            data = next(ahead)
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
    workers: int = 1, dask: str | None = None, *, threads: bool = False
) -> Iterator[tuple[Executor | None, int]]:
    """
    Yield an executor and how many pieces it runs at a time; (None, 1) for this process alone.

    When the block ends early, work not yet begun is dropped.

    Parameters
    ----------
    workers
        Processes on this machine, which share its cores.
    dask
        Address of a Dask scheduler, such as ``tcp://host:8786``; its workers need this package and
        the folder of the work.
    threads
        Workers are threads of this process: for work that mostly reads files.

    Raises
    ------
    MissingPackageError
        Dask is asked for and not installed.
    ConfigError
        The scheduler does not answer.
    WorkerError
        A process was killed.
    """
    if dask is not None:
        with _dask_client(dask) as client:
            yield client.get_executor(pure=False), max(1, sum(client.nthreads().values()))
        return
    pool: Executor
    if threads:
        pool = ThreadPoolExecutor(workers)
    elif workers > 1:
        share = max(1, (os.cpu_count() or 1) // workers)
        # spawn: forking a process in which torch has started threads can hang
        pool = ProcessPoolExecutor(
            workers,
            get_context("spawn"),
            initializer=_share_machine,
            initargs=(threads_of_worker(share),),
        )
    else:
        yield None, 1
        return
    try:
        yield pool, workers
    except BrokenExecutor as error:
        raise WorkerError(
            "A worker process was killed, most likely by the system because memory ran out. What "
            "is done is kept: run the same command again, with fewer workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _dask_client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingPackageError(
            f"A Dask cluster needs the package distributed. Install it with: "
            f"{how_to_install('distributed')}"
        ) from error
    connect: Any = Client
    try:
        return connect(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"dask = {address!r}: no Dask scheduler answers there ({error}). Start one, or leave "
            "dask out."
        ) from error
