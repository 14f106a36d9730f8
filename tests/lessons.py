"""Run the cells of a notebook in a fresh process that has imported what lessons use."""

import contextlib
import os
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from tests.trust.faults import processes


def run_cells(sources: list[str], folder: Path, environment: dict[str, str]) -> str:
    """
    Run cells one after the other in ``folder``, what they show included.

    Returns
    -------
    str
        What went wrong; empty if nothing did.
    """
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=_work, args=(sources, str(folder), environment, theirs))
    process.start()
    theirs.close()
    try:
        return str(ours.recv())
    except EOFError:
        process.join()
        return f"the process ended with code {process.exitcode}"
    finally:
        process.join()


def _work(sources: list[str], folder: str, environment: dict[str, str], tell: Connection) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()  # shows objects in all their ways, as a notebook does
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        for number, source in enumerate(sources, start=1):
            result = shell.run_cell(source, store_history=False)
            error = result.error_before_exec or result.error_in_exec
            if error is not None:
                lines = "".join(traceback.format_exception(error))
                tell.send(f"cell {number}:\n{source}\n\n{lines}")
                return
    tell.send("")
