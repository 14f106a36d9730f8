"""
Sign the addresses of files that are not open to everyone, anew for every request: signatures
expire.

A signer turns the address a catalogue names into the one that is asked. Other packages offer theirs
by the entry point group ``butterfly_sdm.signers``: a function without arguments that returns one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from urllib.parse import urlsplit

from butterfly_sdm.core.registry import Registry
from butterfly_sdm.errors import SourceError
from data_prep.sources.transfer import Service

Signer = Callable[[str], str]

SIGNERS = Registry(
    "butterfly_sdm.signers",
    "signer",
    {"planetary_computer": "data_prep.sources.signing:PlanetaryComputer"},
    unknown=SourceError,
)
TOKENS = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
STORAGE = ".blob.core.windows.net"
EARLY_S = 300.0  # a token is asked for anew so long before it ends


def signer_of(name: str | None) -> Signer:
    """
    Return the signer of a name; None: addresses are asked as they are.

    Raises
    ------
    SourceError
        There is none of that name.
    PluginError
        It cannot be loaded.
    """
    if name is None:
        return _as_it_is
    made: Signer = SIGNERS.load(name)()
    return made


def _as_it_is(url: str) -> str:
    return url


class PlanetaryComputer:
    """
    Appends the token of a container of Microsoft's Planetary Computer, kept until shortly before it
    ends; other hosts get none.

    Parameters
    ----------
    tokens
        Where tokens are given out.
    storage
        End of the names of hosts that get one.
    """

    def __init__(
        self, tokens: str = TOKENS, *, storage: str = STORAGE, service: Service | None = None
    ) -> None:
        self._tokens, self._storage, self._service = tokens, storage, service or Service()
        self._held: dict[tuple[str, str], tuple[str, float]] = {}
        self._lock = threading.Lock()

    def __call__(self, url: str) -> str:
        """
        Return the signed address.

        Raises
        ------
        SourceError
            No token is given out.
        """
        parts = urlsplit(url)
        host, container = parts.hostname or "", parts.path.lstrip("/").partition("/")[0]
        if parts.query or not host.endswith(self._storage) or not container:
            return url
        account = host.removesuffix(self._storage)
        with self._lock:
            token, until = self._held.get((account, container), ("", 0.0))
            if time.time() > until - EARLY_S:
                token, until = self._asked(account, container)
                self._held[account, container] = token, until
        return f"{url}?{token}"

    def _asked(self, account: str, container: str) -> tuple[str, float]:
        answer = self._service.ask("GET", f"{self._tokens}/{account}/{container}")
        try:
            told = answer.json()
            until = datetime.fromisoformat(str(told["msft:expiry"]).replace("Z", "+00:00"))
            return str(told["token"]), until.timestamp()
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"The answer about the container {container} is no token ({type(error).__name__}). "
                "Try again later."
            ) from error
