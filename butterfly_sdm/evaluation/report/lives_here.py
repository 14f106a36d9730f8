"""What else lives at some of the held-out sites, given what was seen there: for a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from butterfly_sdm.community.given import Given
from butterfly_sdm.evaluation.report.findings import Findings

MOST = 6  # sites
LIKELY = 5  # species of each


@dataclass(frozen=True)
class LivesHere:
    """
    One site.

    Attributes
    ----------
    site
        Its id.
    visits, seen
        Visits, and species seen on them.
    expected, low, high
        Species that as many visits again would see, with the closed 90 % interval.
    likely
        Species not seen yet and the chance that as many visits again see each.
    alike
        Training sites with communities most like it, and how like.
    """

    site: str
    visits: int
    seen: int
    expected: float
    low: float
    high: float
    likely: tuple[tuple[str, float], ...]
    alike: tuple[tuple[str, float], ...]


def lives_here(findings: Findings, withheld: Sequence[str] = ()) -> list[LivesHere]:
    """
    Return what is likely there and not seen yet, at the scored sites where most of that is
    expected; empty without a community.

    Parameters
    ----------
    withheld
        Species whose places must not be shown.
    """
    community = findings.community
    if community is None or findings.part == "train":
        return []
    data = findings.dataset
    sites = [site for site in findings.predictions.index if data.visits[site] > 0]
    if not sites:
        return []
    k, n = data.detections.loc[sites], data.visits.loc[sites]
    given = Given.of_counts(k, n).without(withheld)
    belief = community.condition(
        findings.predictions.loc[sites], given, visits=n.to_numpy(dtype=float)
    )
    shown = [name for name in community.species if name not in set(withheld)]
    unseen = belief.found[shown].where(k[shown] == 0, 0.0)
    most = unseen.sum(axis=1).sort_values(ascending=False, kind="stable").index[:MOST]
    alike = community.alike(belief.probability.loc[most], count=3)
    found = []
    for site in most:
        likely = unseen.loc[site].sort_values(ascending=False, kind="stable").head(LIKELY)
        near = alike[alike["place"] == site]
        number = belief.richness.loc[site]
        found.append(
            LivesHere(
                str(site),
                int(n[site]),
                int((k.loc[site, shown] > 0).sum()),
                float(number["expected"]),
                float(number["low"]),
                float(number["high"]),
                tuple((str(name), float(chance)) for name, chance in likely.items() if chance > 0),
                tuple(zip(near["site_id"].astype(str), near["similarity"], strict=True)),
            )
        )
    return found
