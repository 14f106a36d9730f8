"""Settings of the documentation site."""

import os
import re
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
(HERE / "_made").mkdir(exist_ok=True)  # what the site makes for itself

project = "butterfly_sdm"
author = "The butterfly_sdm developers"
copyright = "the butterfly_sdm developers"
release = version = installed("butterfly-sdm")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "cheatsheet",
    "gallery",
    "lessons",
    "mathml",
    "settings_table",
]
html_math_renderer = "mathml"
exclude_patterns = ["_build", "_ext", "_made", "notebooks/*/**", "**.ipynb_checkpoints"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Notebooks run and the gallery is drawn when the site is built; what has not changed is taken from
# the cache. BUTTERFLY_SDM_DOCS_RUN=0 builds the pages alone, in seconds.
runs = os.environ.get("BUTTERFLY_SDM_DOCS_RUN", "1") != "0"
extensions += ["sphinx.ext.viewcode"] if runs else []
nb_execution_mode = "cache" if runs else "off"
nb_execution_timeout = 1800
nb_execution_raise_on_error = True
nb_merge_streams = True
draw_gallery = runs

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"butterfly_sdm {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_made"]
html_theme_options = {"source_repository": "", "navigation_with_keys": True}
# A notebook may begin with a heading of any level, and type a command after an exclamation mark.
suppress_warnings = ["myst.header", "misc.highlighting_failure"]


def list_rooms(app, docname, source):
    """List the pages that lie beside the code of one room, which come and go with it."""
    if docname != "index":
        return
    listed = set(re.findall(r"^[\w/]+$", source[0], re.MULTILINE))
    groups = {
        "In depth": sorted({path.stem for path in HERE.glob("*.md")} - {"index"} - listed),
        "Other domains": sorted(
            (f"plugins/{path.stem}" for path in (HERE / "plugins").glob("*.md")),
            key=lambda name: (name != "plugins/index", name),
        ),
    }
    blocks = [
        "\n".join(["```{toctree}", f":caption: {title}", ":maxdepth: 1", "", *pages, "```"])
        for title, pages in groups.items()
        if pages
    ]
    source[0] = source[0].replace("<!-- rooms -->", "\n\n".join(blocks))


def setup(app):
    """Register what fills the table of contents."""
    app.connect("source-read", list_rooms)
