"""What a report says first: findings in plain words."""

import numpy as np

from butterfly_sdm.evaluation.report.findings import Findings


def headline(findings: Findings) -> list[tuple[str, str]]:
    """Return figures and what each is, for the top of a report."""
    scores, factor = findings.scores, findings.scores.per_species["factor"].dropna()
    better = int((factor > 1).sum())
    rows = [
        (f"{scores['sites']:,.0f}", "held-out sites it was judged on"),
        (
            f"{scores['mse']:.4f}",
            f"mean squared error, 95 % interval {findings.interval.low:.4f} to "
            f"{findings.interval.high:.4f}",
        ),
        (f"{better} of {len(factor)}", "species predicted better than by their mean rate"),
    ]
    if np.isfinite(scores["skill"]):
        skill = f"{scores['skill']:.0%}"
        rows.insert(2, (skill, "of the way from the mean rate to a perfect model"))
    if scores.top_k:
        rows.append(
            (
                f"{scores[f'top{scores.top_k}']:.0%}",
                f"of the {scores.top_k} most frequent species of a site named right",
            )
        )
    if findings.coverage is not None:
        rows.append(
            (
                f"{findings.coverage.loc['all', 'coverage']:.0%}",
                "of held-out rates inside their 90 % interval",
            )
        )
    return rows


def sentences(findings: Findings) -> list[str]:
    """Return the summary, one paragraph per thought."""
    scores, name = findings.scores, findings.name
    beside = scores.beside
    assert beside is not None  # collect_findings always scores the mean rate beside
    mean = float(beside["mse"].iloc[1])
    comparison = next(iter(findings.comparisons.values()))
    floor = (
        f" No model can be expected to come below {scores['noise_floor']:.4f}, because each rate "
        "rests on a limited number of visits."
        if np.isfinite(scores["skill"])
        else " How near a perfect model would come cannot be told: the visits to each site are too "
        "few."
    )
    result = [
        f"On {scores['sites']:,.0f} sites it had not seen, {name} predicts how often each of "
        f"{len(findings.dataset.species)} species is detected with a mean squared error of "
        f"{scores['mse']:.4f}. Giving every site the mean rate of each species has {mean:.4f}."
        f"{floor} In short: {_in_short(scores['skill'], scores['mse'], mean)}."
    ]
    if comparison.difference.high < 0:
        sure = "That is no accident of these sites"
    elif comparison.difference.low > 0:
        sure = "That it is worse than the mean rate is no accident of these sites"
    else:
        sure = "With so few sites, that may be chance"
    worst = scores.per_species["factor"].dropna().nsmallest(3)
    result.append(
        f"{sure}: the difference to the mean rate is {comparison.difference} (95 % interval over "
        f"{comparison.blocks} blocks). It is ahead on {comparison.first_wins} of "
        f"{len(comparison.per_species)} species, surely on {comparison.first_surely}; surely worse "
        f"on {comparison.second_surely}. Least to be relied on: {', '.join(map(str, worst.index))}."
    )
    richness = scores["richness_bias"]
    sum_of_species = (
        f"{abs(richness):.1f} species {'more' if richness > 0 else 'fewer'} than"
        if abs(richness) >= 0.05
        else "as many species as"
    )
    result.append(
        f"Per visit it expects on average {sum_of_species} are seen, and is off by "
        f"{scores['richness_mae']:.1f} at a typical site. A prediction is the expected share of "
        "visits with a detection - not whether the species lives there."
    )
    return result


def _in_short(skill: float, error: float, mean: float) -> str:
    """Return the verdict, by the errors where no skill is stated."""
    if error >= mean:
        return (
            "it predicts worse than that simplest guess"
            if error > mean
            else "it predicts as that simplest guess does"
        )
    if np.isfinite(skill):
        return (
            f"of what the mean rate leaves open and a model could know, this one knows {skill:.0%}"
        )
    return f"its error is {1 - error / mean:.0%} smaller than that of the simplest guess"


def warnings_of(findings: Findings) -> list[str]:
    """Return what a reader must know before using the map."""
    scores, warnings = findings.scores, []
    beside = scores.beside
    if beside is not None and len(beside) > 1:
        own = float(beside["mse"].iloc[0])
        better = beside["mse"].iloc[1:][beside["mse"].iloc[1:] < own]
        if len(better):
            warnings.append(
                f"{str(better.idxmin()).replace('_', ' ').capitalize()} predicts these sites "
                f"better ({better.min():.4f} against {own:.4f}). Do not take the model's map to be "
                "worth its effort before it beats that."
            )
    if scores["sites"] < 50:
        warnings.append(
            f"Only {scores['sites']:.0f} sites were held out; all figures here are rough."
        )
    near = float((findings.distance_m < 2000).mean())
    if near > 0.1 and findings.part != "train":
        warnings.append(
            f"{near:.0%} of the held-out sites have a training site within 2 km; their tiles may "
            "show the same ground, and the scores flatter the model."
        )
    if findings.part == "train":
        warnings.append(
            "These are the sites the model was fitted to: the figures say nothing about new places."
        )
    if findings.reliability.calibration_error > 0.03:
        warnings.append(
            f"Predictions are {100 * findings.reliability.calibration_error:.0f} percentage points "
            "off on average; recalibrate before reading them as rates."
        )
    if findings.coverage is not None and abs(findings.coverage.loc["all", "coverage"] - 0.9) > 0.04:
        warnings.append(
            f"90 % intervals hold {findings.coverage.loc['all', 'coverage']:.0%} of the held-out "
            "rates; read them with care."
        )
    return warnings
