"""Work runs in order, in threads and processes, and stops early without losing what was begun."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from butterfly_sdm.core.executor import in_order, open_executor, run_all
from butterfly_sdm.errors import ConfigError


def slow_first(number):
    time.sleep(0.2 if number == 0 else 0)
    return number * number


def test_results_come_in_the_order_of_the_items_whichever_worker_is_first():
    assert list(run_all(slow_first, range(12))) == [number**2 for number in range(12)]
    with ThreadPoolExecutor(3) as pool:
        assert list(in_order(slow_first, range(12), pool)) == [number**2 for number in range(12)]


def test_processes_give_what_a_loop_gives():
    assert list(run_all(abs, [-3, 2, -1], workers=2)) == [3, 2, 1]


def test_a_plain_loop_computes_one_result_at_a_time():
    begun = []
    results = run_all(begun.append, range(5))
    next(results)
    assert begun == [0]


def test_no_more_than_a_few_items_are_in_flight():
    begun = []
    with ThreadPoolExecutor(2) as pool:
        results = in_order(begun.append, range(100), pool, in_flight=4)
        next(results)
        time.sleep(0.1)
        assert len(begun) <= 5


def test_an_error_is_raised_after_the_pieces_already_begun_have_ended():
    ended = threading.Event()

    def work(number):
        time.sleep(0.1 + 0.1 * number)
        if number == 0:
            raise OSError("the disk is full")
        ended.set()

    with ThreadPoolExecutor(2) as pool, pytest.raises(OSError, match="full"):
        try:
            list(in_order(work, range(2), pool))
        finally:
            assert ended.is_set()


def test_work_not_yet_begun_is_dropped_when_the_block_ends_early():
    begun = []

    def work(number):
        begun.append(number)
        time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt), open_executor(1, threads=True) as (pool, _):
        for number in range(50):
            pool.submit(work, number)
        raise KeyboardInterrupt
    assert len(begun) < 5


def test_a_scheduler_that_does_not_answer_is_named():
    pytest.importorskip("distributed")
    with (
        pytest.raises(ConfigError, match=r"no Dask scheduler answers there"),
        open_executor(dask="nowhere://cluster:9"),
    ):
        pass
