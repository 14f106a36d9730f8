"""The page ``cheatsheet`` once more, as one sheet of paper: ``cheatsheet.pdf``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from sphinx.util import logging

CSS = """
@page { size: A4 landscape; margin: 9mm 10mm; }
body { font: 8.1pt/1.32 "DejaVu Sans", sans-serif; color: #1f2a30; columns: 2; column-gap: 8mm;
       column-fill: auto; margin: 0; }
h1 { font-size: 15pt; margin: 0 0 2mm; color: #0072b2; }
h2 { font-size: 10pt; margin: 3mm 0 1mm; color: #0072b2; border-bottom: .5pt solid #0072b2;
     break-after: avoid; }
h2:nth-of-type(2) { break-before: column; margin-top: 0; }
p { margin: .8mm 0; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .8mm 2mm .8mm 0;
         border-bottom: .2pt solid #c4cbce; }
th { display: none; }
code { font: 6.9pt "DejaVu Sans Mono", monospace; color: #0b3954; }
pre { background: #f2f5f6; padding: 1.4mm 2mm; margin: 1mm 0; white-space: pre-wrap; }
ol { margin: .8mm 0; padding-left: 5mm; }
li { margin: .4mm 0; }
"""


def sheet(page: Path) -> Any:
    """Return the page laid out on paper, not yet written."""
    from weasyprint import HTML

    text = re.sub(r"\]\([^)]*\)", "]()", page.read_text(encoding="utf-8"))  # links lead nowhere
    body = MarkdownIt("commonmark").enable("table").render(text).replace('<a href="">', "<a>")
    body = body.replace("<h1>Cheat sheet</h1>", "<h1>butterfly_sdm</h1>")
    title = "<title>butterfly_sdm: cheat sheet</title>"
    return HTML(
        string=f"<html lang=en><head>{title}<style>{CSS}</style></head><body>{body}</body></html>"
    ).render()


def write(app: Any) -> None:
    """Write the sheet where the site takes it from; without WeasyPrint there is none."""
    made = Path(app.srcdir) / "_made"
    made.mkdir(exist_ok=True)
    try:
        laid_out = sheet(Path(app.srcdir) / "cheatsheet.md")
    except (ImportError, OSError) as error:  # OSError: a library of the system is missing
        logging.getLogger(__name__).info("no cheatsheet.pdf: %s", error)
        (made / "cheatsheet.pdf").unlink(missing_ok=True)
        return
    if len(laid_out.pages) != 1:
        text = "cheatsheet.md takes %d pages of paper, not one"
        logging.getLogger(__name__).warning(text, len(laid_out.pages))
    laid_out.write_pdf(made / "cheatsheet.pdf")


def link(app: Any, docname: str, source: list[str]) -> None:
    """Lead from the page to its sheet."""
    if docname == "cheatsheet" and (Path(app.srcdir) / "_made" / "cheatsheet.pdf").is_file():
        title, _, rest = source[0].partition("\n")
        source[0] = (
            f'{title}\n\n<p><a href="cheatsheet.pdf">On one sheet of paper (PDF)</a></p>\n{rest}'
        )


def setup(app: Any) -> dict[str, bool]:
    """Write the sheet first, so that the page can lead to it."""
    app.connect("builder-inited", write)
    app.connect("source-read", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
