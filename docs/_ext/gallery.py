"""
The gallery of the first page: maps and figures of the simulated region, drawn by the package while
the site is built.

The region, its data set and its network are those of the notebooks, which find them again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lessons import numbers
from sphinx.util import logging

# picture: what it shows, and the page that tells more
PICTURES = {
    "maps": ("Four species as the network predicts them, above the truth", "maps.md"),
    "trust": ("Where not to trust the map: hatched", "methods/applicability.md"),
    "tiles": ("The ground around sites, and what was seen there", "imagery.md"),
    "effort": ("Where people looked, how often, and who learns from whom", "methods/split.md"),
    "rates": ("Detection rates of one species; larger dots rest on more visits", "records.md"),
    "ladder": ("The network beside simpler predictors, on sites it has not seen", "evaluation.md"),
    "reliability": ("Do claims of 0.3 come true on three visits in ten?", "methods/calibration.md"),
    "history": ("How the fit went", "models.md"),
    "embedding": (
        "Sites in the embedding of the network, by the rate of a species",
        "regulariser.md",
    ),
    "seasons": ("When species fly, and when people walked", "season.md"),
    "correlations": ("Which species come and go together beyond the model", "given.md"),
    "plan": ("Where the next ten walks gain most for the map", "planning.md"),
}


def draw(size_px: int, n_sites: int, epochs: int) -> Iterator[tuple[str, Any]]:
    """Make region, data set, run and map in this folder, and yield pictures by name."""
    import butterfly_sdm as bs
    from butterfly_sdm import figures
    from butterfly_sdm.evaluation.calibration import reliability
    from butterfly_sdm.mapping.map_file import read_tags
    from butterfly_sdm.season.seasons import Seasons
    from butterfly_sdm.simulate import Looking

    region = bs.simulate_region("region", size_px=size_px, n_sites=n_sites)
    dataset = bs.build(region.config)
    run = bs.train(region.config, overrides=[f"train.fit.epochs={epochs}"])
    made = bs.predict_map(run, out="gallery/map.tif", overrides=["map.layers=[applicability]"])

    truth = {"predicted": made.path, "true": region.truth_map}
    chosen = list(dataset.rates.std().sort_values(ascending=False).index)
    yield "maps", figures.show_maps(truth, chosen[:4])
    yield "trust", figures.show_trust(made.path, chosen[0], read_tags(made.path)["limits"])
    yield "tiles", figures.show_tiles(dataset)
    yield "effort", figures.show_effort(dataset)
    yield "rates", figures.show_rates(dataset, chosen[0])
    scores = bs.evaluate(
        run, "gallery/scores", overrides=["evaluate.baselines=[mean_rate, nearest_sites, trees]"]
    )
    yield "ladder", figures.show_ladder(scores.beside.sort_values("mse"))
    sites = [site for site in run.split.validation if site in set(dataset.sites_with_tiles)]
    curve = reliability(dataset, sites, run.predictor.predict(dataset, sites), bins=8).curve
    yield "reliability", figures.show_reliability(curve)
    yield "history", figures.show_history(run.folder)
    known = list(dataset.sites_with_tiles)
    rates = dataset.rates.loc[known, chosen[0]].to_numpy()
    embedding = run.predictor.embed(dataset, known).to_numpy()
    yield "embedding", figures.show_embedding(embedding, rates, f"detection rate of {chosen[0]}")

    trees = bs.train(
        region.config, "gallery/trees", dataset=dataset, overrides=["train.model.kind=trees"]
    )
    yield "correlations", figures.show_correlations(bs.fit_community(trees).correlations())
    plan = bs.plan(trees, out="gallery/plan", sites=10, visits=8)
    yield "plan", figures.show_plan(plan.layer, plan.sites, plan.surveyed)

    uneven = bs.simulate_region(
        "gallery/uneven",
        size_px=2048,
        n_sites=120,
        mean_visits=12,
        looking=Looking(seasons=True, window_days=70, windows="latitude"),
    )
    dated = bs.build(uneven.config, "gallery/dated", overrides=["build.scenes=null"])
    curves = Seasons.of(dated, dated.split.train).curve_table()
    commonest = list(dated.rates.mean().sort_values(ascending=False).index[:4])
    yield "seasons", figures.show_seasons(dated, curves, commonest)


def make(app: Any) -> None:
    """Draw what is missing or was drawn by other code, into ``_made/gallery``."""
    if not app.config.draw_gallery:
        return
    source = Path(app.srcdir)
    made = source / "_made" / "gallery"
    made.mkdir(parents=True, exist_ok=True)
    code = [inspect.getsource(draw).encode()]
    code += [path.read_bytes() for path in sorted(source.parent.glob("butterfly_sdm/figures/*.py"))]
    state = hashlib.sha256(b"".join(code)).hexdigest()
    stamp = made / "drawn.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == state:
        return
    logging.getLogger(__name__).info("drawing the gallery")
    folder, before = source / "notebooks", Path.cwd()
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    try:
        for name, picture in draw(**numbers(source)):
            picture.save(made / f"{name}.png", dpi=110)
    finally:
        os.chdir(before)
    stamp.write_text(json.dumps(state))


def show(app: Any, docname: str, source: list[str]) -> None:
    """Put the pictures that were drawn where the first page says ``<!-- gallery -->``."""
    if docname != "index":
        return
    made = Path(app.srcdir) / "_made" / "gallery"
    shown = [name for name in PICTURES if (made / f"{name}.png").is_file()]
    blocks = []
    for name in shown:
        text, page = PICTURES[name]
        blocks.append(
            f":::{{container}} picture picture-{name}\n![{text}](_made/gallery/{name}.png)\n\n"
            f"[{text}]({page})\n:::"
        )
    told = "*Drawn by the package when this site was built, on a region whose truth is known.*"
    gallery = "::::{container} gallery\n" + "\n".join(blocks) + f"\n::::\n\n{told}"
    source[0] = source[0].replace("<!-- gallery -->", gallery if blocks else "")


def setup(app: Any) -> dict[str, bool]:
    """Draw before anything is read; the notebooks are beside the pages by then."""
    app.add_config_value("draw_gallery", False, "env", [bool])
    app.connect("builder-inited", make, priority=200)
    app.connect("source-read", show)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
