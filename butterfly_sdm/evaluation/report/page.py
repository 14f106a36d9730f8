# ruff: noqa: E501 - HTML in one piece is easier to read than cut at a column
"""
A report on runs as one HTML page that needs no network, with the same content as Markdown and CSV.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from butterfly_sdm.core.files import atomic_path, write_text
from butterfly_sdm.errors import DataError
from butterfly_sdm.evaluation.ladder import markdown_table
from butterfly_sdm.evaluation.report import svg
from butterfly_sdm.evaluation.report.findings import Findings
from butterfly_sdm.evaluation.report.odmap import TO_FILL, odmap
from butterfly_sdm.evaluation.report.summary import headline, sentences, warnings_of
from butterfly_sdm.evaluation.scores import DEFINITIONS

MOST_SITES = 3000  # with more, the page would hold megabytes of dots


def write_report(
    findings: Findings | Sequence[Findings], path: Path, *, withheld: Sequence[str] = ()
) -> Path:
    """
    Write ``path`` (HTML), and beside it ``NAME.md``, ``NAME_species.csv`` and ``NAME_odmap.csv``.

    Parameters
    ----------
    findings
        Of one run, or of several on the same sites: the first is described, the others stand beside
        it.
    path
        Ends with ``.html``.
    withheld
        Species whose places must not be shown: they have no map and no row of sites.

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
    if any(
        run.dataset.species != runs[0].dataset.species or run.part != runs[0].part for run in runs
    ):
        raise DataError(
            "The runs speak of different species or parts of the split; report them one by one."
        )
    path = Path(path)
    first = runs[0]
    protocol = _protocol(first)
    sections = [
        _top(first),
        _ladder(runs),
        _species(first),
        _maps(first, withheld),
        _calibration(first),
        _trust(first),
        _drivers(first),
        _odmap(protocol),
        _data(first),
        _definitions(),
    ]
    page = (
        files("butterfly_sdm.evaluation.report").joinpath("page.html").read_text(encoding="utf-8")
    )
    filled = {
        "title": escape(f"{first.name}: report"),
        "body": "\n".join(sections),
        "data": _data_of_maps(first, withheld),
    }
    for key, value in filled.items():
        page = page.replace("{{" + key + "}}", value, 1)
    write_text(path, page)
    write_text(path.with_suffix(".md"), to_markdown(runs))
    tables = {"species": species_table(first), "odmap": protocol.set_index("section")}
    for name, table in tables.items():
        with atomic_path(path.with_name(f"{path.stem}_{name}.csv")) as temporary:
            table.to_csv(temporary, float_format="%.6g")
    return path


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
        markdown_table(_protocol(first).set_index("section")),
        "## What the scores are",
        "\n".join(f"- **{name}**: {meaning}" for name, meaning in DEFINITIONS.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _protocol(findings: Findings) -> pd.DataFrame:
    uncertainty = None
    if findings.coverage is not None:
        held = findings.coverage.loc["all", "coverage"]
        uncertainty = (
            f"split-conformal 90 % intervals per species, covering {held:.1%} of held-out rates; "
            "block bootstrap of scores"
        )
    return odmap(
        findings.dataset,
        model=findings.model,
        split=findings.split,
        scores=findings.scores,
        config=findings.config,
        uncertainty=uncertainty,
    )


def _section(name: str, title: str, *content: str) -> str:
    return f'<section id="{name}"><h2>{escape(title)}</h2>{"".join(content)}</section>'


def _paragraph(content: str) -> str:
    return f"<p>{escape(content)}</p>"


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _top(findings: Findings) -> str:
    card = findings.dataset.card
    links = {
        "ladder": "Beside others",
        "species": "Species",
        "maps": "Maps",
        "calibration": "Calibration",
        "trust": "Where to trust it",
        "drivers": "What drives it",
        "odmap": "ODMAP",
        "data": "Data",
    }
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(meaning)}</span></div>'
        for value, meaning in headline(findings)
    )
    return (
        f"<header><h1>{escape(findings.name)}</h1><p>How well it predicts {len(card.species)} "
        "species of the data set "
        f"<b>{escape(card.name)}</b>, judged on the {escape(findings.part)} part.</p><nav>"
        + "".join(f'<a href="#{key}">{value}</a>' for key, value in links.items())
        + f'</nav></header><div class="cards">{cards}</div>'
        + "".join(map(_paragraph, sentences(findings)))
        + "".join(f'<div class="warn">{escape(warning)}</div>' for warning in warnings_of(findings))
    )


def _beside(runs: Sequence[Findings]) -> pd.DataFrame:
    columns = ["mse", "skill", "mae", "deviance", "top5", "top10", "auc", "tss", "boyce"]
    tables = [
        run.scores.beside if i == 0 else run.scores.beside.iloc[:1]
        for i, run in enumerate(runs)
        if run.scores.beside is not None
    ]
    table = pd.concat(tables)[columns]
    return table[~table.index.duplicated()].sort_values("mse")


def _ladder(runs: Sequence[Findings]) -> str:
    first = runs[0]
    ladder = first.ladder
    names = {run.name for run in runs}
    top = {f"top{k}": f"top {k}" for k in (first.scores.top_k,) if k}
    heads = {
        "mse": "MSE",
        "skill": "skill",
        "mae": "MAE",
        "deviance": "deviance",
        **top,
        "auc": "AUC",
        "tss": "TSS",
        "boyce": "Boyce",
    }
    rows = "".join(
        f'<tr class="{"self" if name in names else ""}"><td>{escape(_label(name))}</td>'
        + "".join(
            f'<td data-v="{row[key]:.8g}">{_shown(row[key], 5 if key in ("mse", "mae") else 3)}</td>'
            for key in heads
        )
        + "</tr>"
        for name, row in _beside(runs).iterrows()
    )
    table = f'<div class="scroll"><table class="sortable"><thead><tr><th>predictor</th>{"".join(f"<th>{head}</th>" for head in heads.values())}</tr></thead><tbody>{rows}</tbody></table></div>'
    verdicts = _verdicts(first)
    picture = ""
    if ladder is not None and len(ladder):
        kept = ladder[ladder["mse"].notna()]
        crossed = "cv_mse" in kept
        dots = [
            (
                _label(name),
                [(row["mse"], row["mse_low"], row["mse_high"], "")]
                + (
                    [(row["cv_mse"], row["cv_mse_low"], row["cv_mse_high"], "other")]
                    if crossed
                    else []
                ),
            )
            for name, row in kept.iterrows()
        ]
        legend = (
            '<div class="legend"><span><i style="background:var(--model)"></i>held-out part</span>'
            + (
                '<span><i style="background:var(--other)"></i>spatial cross-validation</span></div>'
                if crossed
                else "</div>"
            )
        )
        picture = (
            "<h3>The whole ladder</h3>"
            + legend
            + _figure(
                svg.intervals(
                    dots,
                    floor=first.scores["noise_floor"],
                    label="Mean squared error of every predictor with its interval",
                ),
                "Mean squared error with 95 % interval of the block bootstrap; left is better. "
                "Dotted: the noise floor.",
            )
        )
    return _section("ladder", "Beside other predictors", table, verdicts, picture)


def _verdicts(findings: Findings) -> str:
    rows = []
    for other, result in findings.comparisons.items():
        word = (
            "better"
            if result.difference.high < 0
            else "worse"
            if result.difference.low > 0
            else "not told apart"
        )
        kind = {"better": "good", "worse": "bad"}.get(word, "")
        ends = (
            f"{result.difference.estimate:+.5f} <span class='note'>({result.difference.low:+.5f} "
            f"to {result.difference.high:+.5f})</span>"
        )
        rows.append(
            f"<tr><td>{escape(_label(other))}</td><td "
            f'class="{kind}">{word}</td><td>{result.first_wins} of {len(result.per_species)}</td>'
            f"<td>{result.first_surely}</td><td>{result.second_surely}</td><td>{ends}</td></tr>"
        )
    heads = "".join(
        f"<th>{head}</th>"
        for head in (
            "against",
            "it is",
            "ahead on species",
            "surely",
            "surely behind",
            "difference in MSE",
        )
    )
    return (
        "<h3>One against one</h3>"
        + _paragraph(
            "The same sites, drawn again in whole blocks: surely means that the 95 % interval of "
            "the difference excludes 0."
        )
        + f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _species(findings: Findings) -> str:
    table = species_table(findings).sort_values("factor", ascending=False)
    heads = [
        ("factor", "times better", ""),
        ("rate", "seen %", ""),
        ("predicted", "said %", ""),
        ("recorded_at", "sites", "less"),
        ("mse", "MSE", "less"),
        ("auc", "AUC", ""),
        ("tss", "TSS", "less"),
        ("boyce", "Boyce", "less"),
        *([("coverage", "in interval %", "less")] if "coverage" in table else []),
    ]
    rows = []
    for name, row in table.iterrows():
        cells = [f'<td><i class="sp">{escape(str(name))}</i></td>']
        for key, _, kind in heads:
            value = float(row[key])
            percent = key in ("rate", "predicted", "coverage")
            digits = 1 if percent else {"recorded_at": 0, "factor": 2, "mse": 5}.get(key, 2)
            mark = (
                {"better": "good", "worse": "bad"}.get(row["surely"], "") if key == "factor" else ""
            )
            data = f' data-v="{value:.8g}"' if np.isfinite(value) else ' data-v=""'
            cells.append(
                f'<td class="{kind} '
                f'{mark}"{data}>{_shown(value * 100 if percent else value, digits)}</td>'
            )
        rows.append(f'<tr data-factor="{float(row["factor"]):.6g}">{"".join(cells)}</tr>')
    head = "<th>species</th>" + "".join(
        f'<th class="{kind}">{title}</th>' for _, title, kind in heads
    )
    controls = (
        '<div class="controls"><input id="filter" type="search" placeholder="Find a species" '
        'aria-label="Find a species">'
        '<select id="which" aria-label="Which species"><option value="all">all '
        'species</option><option value="better">better than the '
        'mean rate</option><option value="worse">not better</option></select><span id="shown" '
        'class="note"></span></div>'
    )
    points = [
        (
            float(row["rate"]),
            float(row["predicted"]),
            3.2,
            f"{name}: seen {row['rate']:.1%}, said {row['predicted']:.1%}",
        )
        for name, row in table.iterrows()
    ]
    picture = svg.scatter(
        points,
        xlabel="seen: mean detection rate",
        ylabel="said: mean prediction",
        label="Species: predicted against observed mean rate",
    )
    text = (
        "Times better: the mean squared error of the mean rate over that of the model; green where "
        "the interval of the difference "
        "excludes chance, brown where the model is surely worse. Seen and said: mean share of "
        "visits with a detection. "
        "Press a column's name to sort."
    )
    return _section(
        "species",
        "Species",
        _paragraph(text),
        controls,
        '<div class="scroll tall"><table class="sortable" '
        f'id="species-table"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>',
        _figure(
            picture, "Each dot is a species; on the line, what is said is what was seen on average."
        ),
    )


def _maps(findings: Findings, withheld: Sequence[str]) -> str:
    sites = findings.scores.per_site
    behind = findings.dataset.sites.loc[
        list(findings.split.train), ["easting", "northing"]
    ].to_numpy(dtype=float)
    if len(behind) > MOST_SITES:
        behind = behind[:: len(behind) // MOST_SITES + 1]
    sites = sites.iloc[:: max(1, -(-len(sites) // MOST_SITES))]
    east, north = sites["easting"].to_numpy(dtype=float), sites["northing"].to_numpy(dtype=float)
    factor = np.log2(sites["factor"].fillna(1.0).clip(1 / 16, 16).to_numpy(dtype=float))
    titles = [
        f"{site}: {row['factor']:.2f} times better, {row['species_recorded']:.0f} species, "
        f"{row['visits']:.0f} visits"
        for site, row in sites.iterrows()
    ]
    best = svg.site_map(
        east,
        north,
        [svg.diverging_colour(value) for value in factor],
        titles,
        behind=behind,
        label="Sites: where the model beats the mean rate",
    )
    keys = [
        (-2, "4 times worse"),
        (-1, "twice worse"),
        (0, "equal"),
        (1, "twice better"),
        (2, "4 times better"),
    ]
    legend = "".join(
        f'<span><i style="background:{svg.diverging_colour(value)}"></i>{word}</span>'
        for value, word in keys
    )
    richness = _richness(findings)
    content = [
        '<div class="pair"><div><h3>Better than the mean rate?</h3>',
        f'<div class="legend">{legend}</div>',
        _figure(
            best,
            "Held-out sites by mean squared error of the mean rate over that of the model; grey: "
            "training sites.",
        ),
        "</div><div><h3>Where many species fly</h3>",
        _figure(richness, "Each dot is a held-out site: species per visit, seen and said."),
        "</div></div>",
    ]
    if len(withheld) < len(findings.dataset.species):
        blank = ["#fff"] * len(east)
        maps = [
            f'<div id="{key}"><h3>{title}</h3>'
            + svg.site_map(east, north, blank, [""] * len(east), behind=behind, label=title)
            + "</div>"
            for key, title in (
                ("seen", "Seen: share of visits with a detection"),
                ("said", "Said: prediction"),
            )
        ]
        content += [
            '<h3>One species</h3><div class="controls"><label>Species <select '
            'id="pick"></select></label></div>',
            '<div class="legend" id="key"></div><p id="picked" class="note"></p>',
            f'<div class="pair">{"".join(maps)}</div>',
        ]
    if withheld:
        content.append(_paragraph(f"{len(withheld)} sensitive species have no map here."))
    return _section("maps", "Maps of the held-out sites", *content)


def _richness(findings: Findings) -> str:
    sites = findings.scores.per_site
    sites = sites.iloc[:: max(1, -(-len(sites) // MOST_SITES))]
    points = [
        (
            row["richness"],
            row["richness_predicted"],
            2.8,
            f"{site}: seen {row['richness']:.1f}, said {row['richness_predicted']:.1f}",
        )
        for site, row in sites.iterrows()
    ]
    return svg.scatter(
        points,
        xlabel="seen: species per visit",
        ylabel="said: expected species per visit",
        label="Richness: predicted against observed",
    )


def _data_of_maps(findings: Findings, withheld: Sequence[str]) -> str:
    sites = findings.scores.per_site.iloc[
        :: max(1, -(-len(findings.scores.per_site) // MOST_SITES))
    ].index
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
        "first": int(factor.to_numpy().argmax()) if species else 0,
        "rates": rates.to_numpy().T.round(3).tolist(),
        "predictions": findings.predictions.loc[sites, species].to_numpy().T.round(3).tolist(),
    }
    # A name must not be able to end the script element it stands in.
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def _calibration(findings: Findings) -> str:
    result = findings.reliability
    points = [
        (
            row["predicted"],
            row["observed"],
            2.6,
            f"said {row['predicted']:.1%}, seen {row['observed']:.1%} of {row['visits']:,.0f} "
            "visits",
        )
        for _, row in result.curve.iterrows()
    ]
    picture = svg.scatter(
        points,
        xlabel="said: prediction",
        ylabel="seen: share of visits",
        label="Reliability curve",
        line=True,
    )
    text = (
        f"Averaged over all visits, what was said is {100 * result.calibration_error:.1f} "
        "percentage points off what was seen. The mean "
        f"squared error per visit, {result.brier:.4f}, is {result.uncertainty:.4f} (how uncertain "
        "single visits are) less "
        f"{result.resolution:.4f} (what the model tells apart) plus {result.reliability:.4f} "
        "(miscalibration); "
        f"{abs(result.within_bins):.4f} is lost in the bins."
    )
    return _section(
        "calibration",
        "Is a predicted 30 % seen on 30 % of visits?",
        _paragraph(text),
        _figure(
            picture,
            "Each dot is a bin of predictions with the same number of visits, over all species.",
        ),
    )


def _trust(findings: Findings) -> str:
    content = []
    distance = findings.distance_m / 1000
    content.append(
        _paragraph(
            f"The held-out sites lie {distance.min():.1f} to {distance.max():.0f} km from the "
            f"nearest training site (median {distance.median():.1f} km). "
            "Farther from surveyed places than that, these scores promise nothing."
        )
    )
    if findings.coverage is not None:
        row = findings.coverage.loc["all"]
        content.append(
            _paragraph(
                "Intervals that should hold the rate of 90 % of sites hold it for "
                f"{row['coverage']:.1%} (mean over species), when they are learned on some of the "
                f"held-out sites and tried on others; they are {100 * row['width']:.0f} percentage "
                "points wide on average."
            )
        )
    if findings.dissimilarity is not None and findings.threshold is not None:
        inside = findings.dissimilarity <= findings.threshold
        error = findings.scores.per_site["mse"].reindex(inside.index)
        text = (
            f"{inside.mean():.0%} of the held-out sites are within the area of applicability: no "
            "more unlike the training sites than these are unlike each "
            f"other (dissimilarity up to {findings.threshold:.2f})."
        )
        if 0 < inside.sum() < len(inside):
            text += (
                f" The mean squared error is {error[inside].mean():.4f} inside and "
                f"{error[~inside].mean():.4f} outside."
            )
        content.append(_paragraph(text))
        thirds = pd.qcut(
            findings.dissimilarity.rank(method="first"),
            3,
            labels=["most like training", "in between", "most unlike"],
        )
        table = pd.DataFrame(
            {
                "sites": thirds.value_counts(),
                "mean squared error": error.groupby(thirds, observed=True).mean(),
            }
        ).sort_index()
        rows = "".join(
            f"<tr><td>{name}</td><td>{row['sites']:.0f}</td><td>{row['mean squared error']:.5f}</td></tr>"
            for name, row in table.iterrows()
        )
        content.append(
            '<div class="scroll" style="max-width:30rem"><table><thead><tr><th>held-out '
            f"sites</th><th>sites</th><th>MSE</th></tr></thead><tbody>{rows}</tbody></table></div>"
        )
    worst = findings.scores.per_site.sort_values("mse", ascending=False).head(5)
    rows = "".join(
        f"<tr><td>{escape(str(site))}</td><td>{row['visits']:.0f}</td><td>{row['species_recorded']:.0f}</td><td>{row['mse']:.4f}</td><td>{_shown(row['factor'], 2)}</td></tr>"
        for site, row in worst.iterrows()
    )
    content.append(
        "<h3>Sites it gets most wrong</h3>"
        '<div class="scroll" '
        f'style="max-width:36rem"><table><thead><tr><th>site</th><th>visits</th><th>species</th><th>MSE</th><th>times better</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return _section("trust", "Where to trust it", *content)


def _drivers(findings: Findings) -> str:
    if findings.importance is None or findings.importance.empty:
        return _section("drivers", "What drives it", _paragraph("Not measured for this report."))
    table = findings.importance.head(15)
    rows = [
        (
            _label(name),
            float(row["share"]),
            float(row["sd"] / row["importance"] * row["share"]) if row["importance"] else 0.0,
        )
        for name, row in table.iterrows()
    ]
    rows = [(name, share, abs(deviation)) for name, share, deviation in rows]
    text = (
        "How much the mean squared error grows when an input is shuffled between the held-out "
        "sites. Inputs that say the same (climate and position) "
        "stand in for each other, so that a small figure does not mean that an input does not "
        "matter."
    )
    return _section(
        "drivers",
        "What drives it",
        _paragraph(text),
        _figure(
            svg.bars(rows, label="Permutation importance of inputs"),
            "Growth of the error, ± standard deviation over shufflings.",
        ),
    )


def _odmap(protocol: pd.DataFrame) -> str:
    rows = "".join(
        f"<tr><td>{escape(row.section)}</td><td>{escape(row.element)}</td><td "
        f'class="{"open" if TO_FILL in row.content else ""}">{escape(row.content)}</td></tr>'
        for row in protocol.itertuples()
    )
    text = (
        "The standard protocol for species distribution models (Zurell et al. 2020), as far as "
        "data and settings tell; the rest is marked."
    )
    return _section(
        "odmap",
        "ODMAP protocol",
        _paragraph(text),
        '<div class="scroll"><table '
        f'class="prose"><thead><tr><th>section</th><th>element</th><th>content</th></tr></thead><tbody>{rows}</tbody></table></div>',
    )


def _data(findings: Findings) -> str:
    card = findings.dataset.card
    entries: list[tuple[str, str]] = [
        (
            source.role,
            f"{source.name}{'. ' + source.citation if source.citation else ''}{'. Licence: ' + source.licence if source.licence else ''}"
            f"{'. SHA-256 ' + source.sha256[:16] + '…' if source.sha256 else ''}",
        )
        for source in card.sources
    ]
    entries += [("data set", f"{card.name}, fingerprint {findings.dataset.fingerprint}")]
    entries += [("note", note) for note in card.notes] + [
        ("warning", warning) for warning in card.warnings
    ]
    if card.software:
        entries.append(
            ("software", ", ".join(f"{name} {version}" for name, version in card.software.items()))
        )
    body = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in entries)
    empty = (
        ""
        if card.sources
        else _paragraph(
            "The card of the data set names no sources; add citation and licence before publishing."
        )
    )
    return _section("data", "Data and citations", f"<dl>{body}</dl>", empty)


def _definitions() -> str:
    body = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>"
        for name, meaning in DEFINITIONS.items()
    )
    return _section("scores", "What the scores are", f"<dl>{body}</dl>")


def _shown(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if np.isfinite(value) else "–"


def _label(name: object) -> str:
    """Return the name of a predictor or input as words."""
    return str(name).replace("_", " ")
