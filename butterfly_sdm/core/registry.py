"""Kinds of a thing by name: built in, or offered by other packages as entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from butterfly_sdm.errors import ButterflySDMError, ModelError, PluginError, did_you_mean

OWN = "butterfly-sdm"


@dataclass(frozen=True)
class Offer:
    """
    One kind, not yet imported.

    Attributes
    ----------
    name
        By which it is asked for.
    value
        Where it lies: ``module:attribute``.
    distribution, version
        The installed package that offers it.
    needs
        Names that it must have.
    """

    name: str
    value: str
    distribution: str = OWN
    version: str = ""
    needs: tuple[str, ...] = ()

    def load(self) -> Any:
        """
        Import it.

        Raises
        ------
        PluginError
            It cannot be imported, whatever another package does while it is, or lacks what it
            needs.
        """
        module, _, attribute = self.value.partition(":")
        try:
            made = getattr(import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.name!r} of {self.distribution} ({self.value}) cannot be loaded: "
                f"{type(error).__name__}: {error}. Update or remove that package."
            ) from error
        if lacking := [name for name in self.needs if not hasattr(made, name)]:
            raise PluginError(
                f"{self.name!r} of {self.distribution} ({self.value}) has no "
                f"{' and no '.join(lacking)}; what is offered under such a name has "
                f"{', '.join(self.needs)}. Add what is missing to that package, or remove it."
            )
        return made


@dataclass(frozen=True)
class Registry:
    """
    All kinds of one thing.

    Attributes
    ----------
    group
        Entry-point group through which other packages offer theirs.
    what
        A word for one of them in messages, such as ``predictor``.
    built_in
        Name to ``module:attribute`` of those that come with this package.
    unknown
        The error of a name that nobody offers.
    needs
        Names that each of them must have, such as methods.
    """

    group: str
    what: str
    built_in: Mapping[str, str] = field(default_factory=dict)
    unknown: type[ButterflySDMError] = ModelError
    needs: tuple[str, ...] = ()

    def offers(self) -> dict[str, Offer]:
        """
        Return what there is, built-in kinds first.

        Raises
        ------
        PluginError
            Two packages offer the same name.
        """
        found = {
            name: Offer(name, value, needs=self.needs) for name, value in self.built_in.items()
        }
        for point in entry_points(group=self.group):
            if self.built_in.get(point.name) == point.value:
                continue  # declared by the same door
            owner = (point.dist.name, point.dist.version) if point.dist is not None else ("", "")
            offer = Offer(point.name, point.value, *owner, needs=self.needs)
            first = found.setdefault(point.name, offer)
            # One package may be seen twice on the path (an editable install beside its metadata).
            if first.value != offer.value:
                raise PluginError(
                    f"Two packages offer a {self.what} {point.name!r}: {first.distribution} "
                    f"({first.value}) and {offer.distribution} ({offer.value}). Remove one of them."
                )
        return found

    def offer(self, name: str) -> Offer:
        """
        Return the kind of that name, not yet imported.

        Raises
        ------
        ButterflySDMError
            Nobody offers it; of the class ``unknown``.
        """
        found = self.offers()
        if name not in found:
            raise self.unknown(
                f"There is no {self.what} {name!r}. Known: {', '.join(sorted(found)) or 'none'}."
                f"{did_you_mean(name, found)}"
            )
        return found[name]

    def load(self, name: str) -> Any:
        """
        Import the kind of that name.

        Raises
        ------
        ButterflySDMError
            Nobody offers it (of the class ``unknown``), or it is broken (:class:`PluginError`).
        """
        return self.offer(name).load()
