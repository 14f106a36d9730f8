"""
No dependency has a licence that would bind users by surprise, and the page lists what is depended
on.
"""

import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
licences = runpy.run_path(str(ROOT / ".ci/licences.py"))
FINE = {"Apache", "BSD", "MIT", "MPL", "PSF", "ISC", "HPND", "public domain", "LGPL", "NVIDIA"}


def test_no_dependency_is_under_a_licence_that_nobody_has_looked_at():
    packages = licences["brought_along"](extras=licences["EXTRAS"])
    assert {"numpy", "torch", "rasterio"} <= set(packages)
    odd = {name: licences["licence_of"](held) for name, held in packages.items()}
    odd = {
        name: licence for name, licence in odd.items() if licences["family_of"](licence) not in FINE
    }
    assert not odd


@pytest.mark.parametrize(
    ("licence", "family"),
    [
        ("GNU General Public License v3 (GPLv3)", "GPL"),
        ("MIT AND GPL-3.0-or-later", "GPL"),
        ("AGPL-3.0", "GPL"),
        ("GNU Lesser General Public License v3 (LGPLv3)", "LGPL"),
        ("LGPL-2.1-only", "LGPL"),
        ("BSD-3-Clause AND 0BSD AND MIT", "BSD"),
        ("Do as you like", "other"),
    ],
)
def test_licences_are_told_apart(licence, family):
    assert licences["family_of"](licence) == family


def test_the_page_lists_every_direct_dependency():
    page = (ROOT / "docs/licences.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = project["dependencies"] + [
        need for extra in licences["EXTRAS"] for need in project["optional-dependencies"][extra]
    ]
    for need in named:
        name = licences["name_of"](Requirement(need).name)
        assert f"| {name} |" in page, f"{name} is not on docs/licences.md: run make licences"


def test_the_page_names_copyleft_that_wheels_carry_unsaid():
    files = ["av.libs/libx264-d6533a8d.so.165", "av/.dylibs/libx265.216.dylib", "x/x264.py"]
    assert licences["copyleft_within"](files) == ["x264", "x265"]
    assert licences["copyleft_within"](["av.libs/libavcodec-5e.so.62", "readline.py"]) == []
    page = (ROOT / "docs/licences.md").read_text(encoding="utf-8")
    for name, held in licences["brought_along"](extras=licences["EXTRAS"]).items():
        for library in licences["copyleft_within"]([str(file) for file in held.files or ()]):
            assert f"| {name} | {library} |" in page, f"{name} carries {library}: make licences"
