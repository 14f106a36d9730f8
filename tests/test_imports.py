"""No module of the packages imports, by whatever way, one that imports it."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules(root: Path, *packages: str) -> dict[str, Path]:
    """Return the files of packages by the name of their module."""
    found = {}
    for path in (path for package in packages for path in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, known: dict[str, Path]) -> set[str]:
    """
    Return the known modules that a module imports: at its top, within functions, for types alone.

    Imports for types count as well: modules that cannot be read one after the other are one module.
    """
    asked = set()
    for node in ast.walk(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            asked |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name} imports by a relative name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            asked |= inner & known.keys() if inner <= known.keys() else {node.module, *inner}
    return {other for other in asked if other in known and other != name}


def circle(known: dict[str, Path]) -> list[str] | None:
    """Return modules each of which imports the one before it, and the first the last."""
    try:
        TopologicalSorter({name: imports(name, known) for name in known}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def test_no_modules_import_one_another():
    assert circle(modules(ROOT, "butterfly_sdm", "data_prep")) is None


@pytest.mark.parametrize(
    "second",
    [
        "from made.a import x",
        "import made.a",
        "def f():\n    from made import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.a import X",
    ],
)
def test_a_circle_is_found_wherever_the_import_stands(second, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "__init__.py").touch()
    (tmp_path / "made" / "a.py").write_text("from made import b", encoding="utf-8")
    (tmp_path / "made" / "b.py").write_text(second, encoding="utf-8")
    assert set(circle(modules(tmp_path, "made")) or ()) == {"made.a", "made.b"}
