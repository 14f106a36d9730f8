"""Addresses on the network, as they may be told."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


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
