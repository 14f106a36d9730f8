"""Addresses on the network, as they may be told."""

from __future__ import annotations

import logging
import re
from urllib.parse import unquote, urlsplit, urlunsplit


def shown(url: str) -> str:
    """
    Return an address without what may be secret in it: user, password and query.

    >>> shown("https://user:secret@host:81/a/b.tif?sig=token#x")
    'https://host:81/a/b.tif'
    """
    try:
        parts = urlsplit(str(url))
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an address that is none"
    return urlunsplit((parts.scheme, (parts.hostname or "") + port, parts.path, "", ""))


_ADDRESS = re.compile(
    r"""(?:/vsi\w+(?:/|\?url=))?https?(?:://|%3A%2F%2F)[^\s'"<>]+""", re.IGNORECASE
)


def without_secrets(text: str) -> str:
    """
    Return a text with each address as it may be told.

    >>> without_secrets("'/vsicurl/https://me:pass@host/a.tif?sig=token' does not exist")
    "'https://host/a.tif' does not exist"
    """
    return _ADDRESS.sub(lambda found: shown(_plain(found.group())), text)


def _plain(address: str) -> str:
    """Return an address as GDAL names it without what GDAL puts before it."""
    return unquote(re.sub(r"^/vsi\w+(?:/|\?url=)", "", address))


class Discreet(logging.Filter):
    """Tells no user, password or query of the addresses in what a library logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, with its addresses as they may be told."""
        told = record.getMessage()
        clean = without_secrets(told)
        if clean != told:
            record.msg, record.args = clean, ()
        return True


_DISCREET = Discreet()


def log_discreetly(library: str) -> None:
    """Let all loggers of a library tell addresses as they may be told."""
    for name in list(logging.root.manager.loggerDict):
        if name == library or name.startswith(f"{library}."):
            logging.getLogger(name).addFilter(_DISCREET)
