"""Fixtures every room uses."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

#: Tests of one server of forks and one finished region: apart, two workers would make both.
FORKED = ("tests/trust/", "tests/test_notebooks.py")
#: Files of few tests that take long: begun first, none of them is waited for at the end.
LONG = (
    "tests/test_flow.py",
    "tests/test_packaging.py",
    "tests/test_places.py",
    "tests/test_run.py",
)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of the real data; without it the test is skipped."""
    value = os.environ.get("BUTTERFLY_SDM_SHARED")
    if not value:
        pytest.skip("BUTTERFLY_SDM_SHARED is not set: the real data are not here")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"BUTTERFLY_SDM_SHARED names {folder}, which is not a folder")
    return folder


class Figures:
    """What a test tried, and how often: printed as a table when all tests have run."""

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts

    def tried(self, what: str, kind: str = "", count: int = 1) -> None:
        """Count tries of something, by its kind."""
        key = f"{what}|{kind}"
        self._counts[key] = self._counts.get(key, 0) + int(count)


@pytest.fixture
def figures(record_property) -> Figures:
    """Return where a test notes what it tried."""
    counts: dict[str, int] = {}
    record_property("figures", counts)
    return Figures(counts)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Begin with what takes long, so that workers end together; `make slow` deals it out to its two.
    """
    items.sort(key=lambda item: not item.nodeid.startswith((*FORKED, *LONG)))

    def limit(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker else 0.0

    if config.option.markexpr == "slow":
        items.sort(key=limit, reverse=True)
        chosen = [item for item in items if item.get_closest_marker("slow")]
        items[:] = chosen[::2] + chosen[1::2]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file on one worker, and those that share forks as if they were one."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # in the order above, not by the number of tests

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "forked" if nodeid.startswith(FORKED) else super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was tried, as it stands in docs/measured/promises.md."""
    tried: dict[str, Counter[str]] = {}
    failed: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            for counts in (value for name, value in report.user_properties if name == "figures"):
                for key, count in counts.items():
                    what, _, kind = key.partition("|")
                    tried.setdefault(what, Counter())[kind] += count
                failed.update(
                    {key.partition("|")[0] for key in counts} if outcome == "failed" else ()
                )
    if not tried:
        return
    terminalreporter.section("what was tried")
    terminalreporter.write_line("| what | tried | failures |\n|---|---|---|")
    for what, kinds in sorted(tried.items()):
        of = ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items()) if kind)
        terminalreporter.write_line(
            f"| {what}{f': {of}' if of else ''} | {sum(kinds.values()):,} | {failed[what]} |"
        )
