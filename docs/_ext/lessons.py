"""
Notebooks of the source as pages of the site.

They lie beside the package without outputs and share one folder, so that the network the first
trains is found again by the others. A copy is written only where it changed; data sets and runs
beside it stay.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def numbers(source: Path) -> dict[str, int]:
    """Return the parameters of the first notebook: pixels, sites and epochs."""
    path = source.parent / "notebooks" / "01_first_map.ipynb"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            names, values = "".join(cell["source"]).partition("#")[0].split("=")
            return dict(zip(re.findall(r"\w+", names), map(int, values.split(",")), strict=True))
    raise LookupError(f"No cell of {path} is tagged as its parameters.")


def copy(app: Any) -> None:
    """Copy the notebooks beside the pages."""
    source, target = Path(app.srcdir).parent / "notebooks", Path(app.srcdir) / "notebooks"
    if not source.is_dir():
        return
    target.mkdir(exist_ok=True)
    wanted = {path.name: path.read_text(encoding="utf-8") for path in source.glob("*.ipynb")}
    for path in target.glob("*.ipynb"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = target / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Copy before anything is read."""
    app.connect("builder-inited", copy, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
