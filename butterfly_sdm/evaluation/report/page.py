"""
A report on runs as one HTML page that needs no network, with the same content as Markdown and CSV.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.colors import to_hex

from butterfly_sdm import figures
from butterfly_sdm.core.cards import listed
from butterfly_sdm.core.files import write_table, write_text
from butterfly_sdm.errors import DataError
from butterfly_sdm.evaluation.ladder import markdown_table
from butterfly_sdm.evaluation.report.findings import Findings
from butterfly_sdm.evaluation.report.lives_here import lives_here
from butterfly_sdm.evaluation.report.odmap import TO_FILL, odmap
from butterfly_sdm.evaluation.report.summary import headline, sentences, warnings_of
from butterfly_sdm.evaluation.scores import DEFINITIONS
from butterfly_sdm.figures.picture import SEQUENTIAL

MOST_SITES = 3000  # with more, the page would hold megabytes of dots
PERCENT = ["rate", "predicted", "coverage"]
# column, what the page calls it, format, class: "less" columns are left out on a phone
SPECIES_COLUMNS = (
    ("factor", "times better", ".2f", ""),
    ("rate", "seen %", ".1f", ""),
    ("predicted", "said %", ".1f", ""),
    ("recorded_at", "sites", ",.0f", "less"),
    ("mse", "MSE", ".5f", "less"),
    ("auc", "AUC", ".2f", ""),
    ("tss", "TSS", ".2f", "less"),
    ("boyce", "Boyce", ".2f", "less"),
    ("coverage", "in interval %", ".1f", "less"),
)
# what each picture shows, for those who cannot see it
PICTURES = {
    "ladder": "Mean squared error of every predictor with its interval",
    "species": "Species: predicted against observed mean rate",
    "sites": "Sites: where the model beats the mean rate",
    "richness": "Richness: predicted against observed",
    "blank": "Held-out sites, coloured by the species that is chosen",
    "calibration": "Reliability curve",
    "drivers": "Permutation importance of inputs",
    "community": "Residual correlations of species",
}


@dataclass(frozen=True)
class OnMap:
    """
    The map of a run, for its report.

    Attributes
    ----------
    name
        Of its file.
    picture
        One species, and where not to trust it.
    sentences
        What the map says of itself.
    outside
        Share of the predicted positions that are unlike the training sites; None: not told.
    """

    name: str
    picture: figures.Picture
    sentences: Sequence[str] = ()
    outside: float | None = None


def _definitions(findings: Findings) -> dict[str, str]:
    """Return what the scores are that are defined here."""
    known = np.isfinite(findings.scores.overall)
    return {name: meaning for name, meaning in DEFINITIONS.items() if known[name]}


def _as_png(picture: figures.Picture) -> str:
    return base64.b64encode(picture._repr_png_()).decode()


def write_report(
    findings: Findings | Sequence[Findings],
    path: Path,
    *,
    withheld: Sequence[str] = (),
    on_map: OnMap | None = None,
) -> Path:
    """
    Write ``path`` (HTML), and beside it ``NAME.md``, ``NAME_species.csv`` and ``NAME_odmap.csv``;
    ``NAME_files.json`` is the sealed card of them all.

    Parameters
    ----------
    findings
        Of one run, or of several on the same sites: the first is described, the others stand beside
        it.
    path
        Ends with ``.html``.
    withheld
        Species whose places must not be shown: they have no map and no row of sites.
    on_map
        The map of the first run; None: there is none.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    DataError
        There are no findings, or they are of different data sets.
    """
    runs = [findings] if isinstance(findings, Findings) else list(findings)
    if not runs:
        raise DataError("There is nothing to report. Give the findings of at least one run.")
    first, path = runs[0], Path(path)
    if any(run.dataset.species != first.dataset.species or run.part != first.part for run in runs):
        raise DataError(
            "The runs speak of different species or parts of the split; report them one by one."
        )
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": _number, "words": _words}
    page = environment.get_template("page.html").render(
        _content(runs),
        lives=lives_here(first, withheld),
        pictures=_pictures(first),
        map_data=_data_of_maps(first, withheld),
        withheld=len(withheld),
        on_map=on_map,
        map_picture=None if on_map is None else _as_png(on_map.picture),
    )
    texts = {path: page, path.with_suffix(".md"): to_markdown(runs)}
    tables = {"species": species_table(first), "odmap": odmap(first).set_index("section")}
    with listed(card_of_report(path), "report") as files:
        for target, text in texts.items():
            write_text(target, text)
            files.append(target)
        for name, table in tables.items():
            files.append(path.with_name(f"{path.stem}_{name}.csv"))
            write_table(files[-1], table, float_format="%.6g")
    return path


def card_of_report(page: Path) -> Path:
    """Return where the card of a report lies: ``NAME.json`` may be that of a map."""
    return page.with_name(f"{page.stem}_files.json")


def species_table(findings: Findings) -> pd.DataFrame:
    """
    Return the table per species of a report: scores, factor with its interval excluding 1 or not,
    coverage.
    """
    table = findings.scores.per_species.copy()
    comparison = next(iter(findings.comparisons.values())).per_species
    sure = np.where(comparison["high"] < 0, "better", np.where(comparison["low"] > 0, "worse", ""))
    table["surely"] = pd.Series(sure, index=comparison.index).reindex(table.index)
    if findings.coverage is not None:
        table["coverage"] = findings.coverage["coverage"].reindex(table.index)
    return table


def to_markdown(runs: Sequence[Findings]) -> str:
    """Return the report in Markdown: sentences and tables, no pictures."""
    first = runs[0]
    species = species_table(first)[
        ["rate", "predicted", "mse", "factor", "surely", "auc", "tss", "boyce"]
    ]
    parts = [
        f"# {first.name}",
        *sentences(first),
        *(f"**Beware:** {warning}" for warning in warnings_of(first)),
        "## Beside other predictors",
        markdown_table(_beside(runs)),
        "## Species",
        markdown_table(species.sort_values("factor", ascending=False)),
        "## ODMAP protocol",
        markdown_table(odmap(first).set_index("section")),
        "## What the scores are",
        "\n".join(f"- **{name}**: {meaning}" for name, meaning in _definitions(first).items()),
    ]
    return "\n\n".join(parts) + "\n"


def _content(runs: Sequence[Findings]) -> dict[str, Any]:
    """Return what the page says, apart from pictures."""
    first, scores, beside = runs[0], runs[0].scores, _beside(runs)
    species = species_table(first).sort_values("factor", ascending=False)
    percent = species.columns.intersection(PERCENT)
    top = [(f"top{scores.top_k}", f"top {scores.top_k}", ".3f")] if scores.top_k else []
    applicable, thirds = None, None
    if first.dissimilarity is not None and first.threshold is not None:
        inside = first.dissimilarity <= first.threshold
        error = scores.per_site["mse"].reindex(inside.index)
        means = {"inside": error[inside].mean(), "outside": error[~inside].mean()}
        applicable = {"share": inside.mean(), **means}
        thirds = _thirds(first.dissimilarity, error)
    worst = scores.per_site.sort_values("mse", ascending=False).head(5)
    worst_columns = {"visits": ".0f", "species_recorded": ".0f", "mse": ".4f", "factor": ".2f"}
    return {
        **{key: getattr(first, key) for key in ("name", "part", "reliability", "threshold")},
        "card": first.dataset.card,
        "fingerprint": first.dataset.fingerprint,
        "headline": headline(first),
        "sentences": sentences(first),
        "warnings": warnings_of(first),
        "names": {run.name for run in runs},
        "beside": beside,
        "scores": [
            column
            for column in (
                ("mse", "MSE", ".5f"),
                ("skill", "skill", ".3f"),
                ("mae", "MAE", ".5f"),
                ("deviance", "deviance", ".3f"),
                *top,
                ("auc", "AUC", ".3f"),
                ("tss", "TSS", ".3f"),
                ("boyce", "Boyce", ".3f"),
            )
            if column[0] in beside
        ],
        "not_used": first.not_used,
        "comparisons": first.comparisons,
        "species_table": species.assign(**{key: species[key] * 100 for key in percent}),
        "columns": [column for column in SPECIES_COLUMNS if column[0] in species],
        "distance_km": first.distance_m / 1000,
        "coverage": None if first.coverage is None else first.coverage.loc["all"],
        "applicable": applicable,
        "thirds": thirds,
        "worst": [
            [site, *(_number(row[key], digits) for key, digits in worst_columns.items())]
            for site, row in worst.iterrows()
        ],
        "protocol": odmap(first),
        "to_fill": TO_FILL,
        "definitions": _definitions(first),
    }


def _pictures(findings: Findings) -> dict[str, str | None]:
    """Return the pictures of the page as SVG, by name."""
    species, curve = findings.scores.per_species, findings.reliability.curve
    sites, training = _shown_sites(findings), list(findings.split.train)
    behind = _thinned(pd.DataFrame(findings.dataset.sites.loc[training, ["easting", "northing"]]))
    better = "{}: {factor:.2f} times better, {species_recorded:.0f} species, {visits:.0f} visits"
    held = "said {predicted:.1%}, seen {observed:.1%} of {visits:,.0f} visits"
    pictures = {
        "species": figures.show_agreement(
            species["rate"],
            species["predicted"],
            xlabel="seen: mean detection rate",
            ylabel="said: mean prediction",
            titles=_tell(species, "{}: seen {rate:.1%}, said {predicted:.1%}"),
        ),
        "sites": figures.show_site_factor(sites, titles=_tell(sites, better), behind=behind),
        "richness": figures.show_agreement(
            sites["richness"],
            sites["richness_predicted"],
            xlabel="seen: species per visit",
            ylabel="said: expected species per visit",
            titles=_tell(sites, "{}: seen {richness:.1f}, said {richness_predicted:.1f}"),
        ),
        "blank": figures.show_sites(sites, titles=[""] * len(sites), behind=behind, color="white"),
        "calibration": figures.show_reliability(curve, titles=_tell(curve, held)),
    }
    if (ladder := findings.ladder) is not None and len(ladder):
        pictures["ladder"] = figures.show_ladder(ladder, floor=findings.scores["noise_floor"])
    if (drivers := findings.importance) is not None and len(drivers):
        shuffled = drivers.head(15)
        deviation = (shuffled["sd"] / shuffled["importance"] * shuffled["share"]).abs()
        pictures["drivers"] = figures.show_drivers(shuffled.assign(deviation=deviation))
    if findings.community is not None and len(findings.community.species) > 1:
        pictures["community"] = figures.show_correlations(findings.community.correlations())
    return {
        name: pictures[name].embed(label) if name in pictures else None
        for name, label in PICTURES.items()
    }


def _tell(table: pd.DataFrame, words: str) -> list[str]:
    """Return ``words`` with the name and the numbers of every row put in."""
    return [words.format(name, **row) for name, row in table.iterrows()]


def _beside(runs: Sequence[Findings]) -> pd.DataFrame:
    columns = ["mse", "skill", "mae", "deviance", "top5", "top10", "auc", "tss", "boyce"]
    tables = [
        run.scores.beside if i == 0 else run.scores.beside.iloc[:1]
        for i, run in enumerate(runs)
        if run.scores.beside is not None
    ]
    table = pd.concat(tables)[columns].dropna(axis=1, how="all")
    return table[~table.index.duplicated()].sort_values("mse")


def _thirds(dissimilarity: pd.Series, error: pd.Series) -> list[tuple[str, str, str]]:
    """Return how many sites and which error each third has, by likeness to the training sites."""
    names = ["most like training", "in between", "most unlike"]
    thirds = pd.qcut(dissimilarity.rank(method="first"), 3, labels=names)
    groups = error.reindex(thirds.index).groupby(thirds, observed=True)
    return [(str(name), f"{len(part)}", f"{part.mean():.5f}") for name, part in groups]


def _thinned(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[:: max(1, -(-len(table) // MOST_SITES))]


def _shown_sites(findings: Findings) -> pd.DataFrame:
    return _thinned(findings.scores.per_site)


def _data_of_maps(findings: Findings, withheld: Sequence[str]) -> str:
    sites = _shown_sites(findings).index
    species = [name for name in findings.dataset.species if name not in set(withheld)]
    rates = findings.dataset.rates.loc[sites, species]
    # Shown first: the best of those recorded at a good part of the sites.
    table = findings.scores.per_species.loc[species]
    common = table["recorded_at"] >= min(
        0.1 * len(sites), table["recorded_at"].max() if species else 0
    )
    factor = table["factor"].fillna(0).where(common, -1)
    value = {
        "sites": list(map(str, sites)),
        "species": species,
        "ramp": [to_hex(colour) for colour in SEQUENTIAL(np.linspace(0, 1, 8))],
        "first": int(factor.to_numpy().argmax()) if species else 0,
        "rates": rates.to_numpy().T.round(3).tolist(),
        "predictions": findings.predictions.loc[sites, species].to_numpy().T.round(3).tolist(),
    }
    # A name must not be able to end the script element it stands in.
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def _number(value: float, digits: str) -> str:
    return format(value, digits) if np.isfinite(value) else "–"


def _words(name: object) -> str:
    """Return the name of a predictor or input as words."""
    return str(name).replace("_", " ")
