"""Choose covariates by name or by group, without naming each."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from butterfly_sdm.errors import DataError, did_you_mean


def chosen_covariates(names: Sequence[str], only: str) -> tuple[str, ...]:
    """
    Return the covariates that a choice means, in the order of ``names``.

    Parameters
    ----------
    names
        Of all covariates of a data set.
    only
        Names separated by commas; one that ends with ``*`` means all that begin so, and the name of
        a group all that begin with it and ``_``. Empty: all.

    Raises
    ------
    DataError
        A part of the choice means no covariate.

    Examples
    --------
    >>> chosen_covariates(["alphaearth_e00_100m", "alphaearth_e01_100m", "rain"], "alphaearth")
    ('alphaearth_e00_100m', 'alphaearth_e01_100m')
    >>> chosen_covariates(["bio_1", "bio_2", "rain"], "rain, bio_1*")
    ('bio_1', 'rain')
    """
    wanted = [part.strip() for part in only.split(",") if part.strip()]
    if not wanted:
        return tuple(names)
    for part in wanted:
        if not any(_means(part, name) for name in names):
            some = ", ".join(list(names)[:4])
            raise DataError(
                f"only = {only!r}: no covariate is called {part!r} or begins with it. The data set "
                f"has {len(names)}{f', such as {some}' if some else ''}."
                f"{did_you_mean(part, names)}"
            )
    return tuple(name for name in names if any(_means(part, name) for part in wanted))


def _means(part: str, name: str) -> bool:
    return name == part or name.startswith(f"{part}_") or fnmatchcase(name, part)
