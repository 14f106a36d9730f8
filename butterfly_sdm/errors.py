"""
The errors a user can act on.

Every error the package raises on purpose derives from :class:`ButterflySDMError` and from the
matching built-in. Its message says what came, what is needed and what to do. The command line
prints the message alone and ends with code 2.
"""

import difflib
import re
from collections.abc import Iterable


def counted(count: int, one: str, many: str) -> str:
    """
    Return a number with the words for one or for many.

    >>> counted(1, "site has", "sites have"), counted(1200, "site has", "sites have")
    ('1 site has', '1,200 sites have')
    """
    return f"{count:,} {one if count == 1 else many}"


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """
    Return the question that ends a message about an unknown name: empty where no known name is
    near.

    Examples
    --------
    >>> "There is no tree." + did_you_mean("tree", ["trees", "linear"])
    "There is no tree. Did you mean 'trees'?"
    """
    names = {str(one).casefold().replace("_", " "): str(one) for one in known}
    near = difflib.get_close_matches(str(name)[:80].casefold().replace("_", " "), names, n=1)
    return f" Did you mean {names[near[0]]!r}?" if near else ""


def how_to_install(extra: str) -> str:
    """
    Return the command that brings an optional part of the package, as it is installed here: from a
    clone or from an index.

    Examples
    --------
    >>> how_to_install("search")  # doctest: +SKIP
    'pip install -e "/home/ann/butterfly_sdm[search]"'
    """
    # Needed only when something is missing; every command would wait for them.
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        origin = json.loads(distribution("butterfly-sdm").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    folder = urlsplit(origin.get("url", ""))
    if folder.scheme == "file" and "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f'pip install {editable}"{url2pathname(folder.path)}[{extra}]"'
    return f'pip install "butterfly-sdm[{extra}]"'


def without_secrets(text: str) -> str:
    """
    Return a text whose addresses tell neither user, password nor query.

    >>> without_secrets("Is https://kim:secret@host/a.tif?sig=token, here, right?")
    'Is https://host/a.tif, here, right?'
    """
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))


_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@?#]+@")
_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s?#'\"<>]+)\?[^\s,;'\"<>)]+")


class ButterflySDMError(Exception):
    """Base of all errors a user can act on; no message tells what is secret in an address."""

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class ConfigError(ButterflySDMError, ValueError):
    """A config file or a setting is wrong: names the key, the value and the rule."""


class DataError(ButterflySDMError, ValueError):
    """Tables, labels or sites do not fit together."""


class RecordsError(ButterflySDMError, ValueError):
    """A file of species records cannot be read as one."""


class RasterError(ButterflySDMError, ValueError):
    """A raster lacks what is needed: bands, a CRS, overlap, readable blocks."""


class ArtefactError(ButterflySDMError, ValueError):
    """A data set, run or map folder is damaged, incomplete, of another version or in use."""


class ModelError(ButterflySDMError, ValueError):
    """A model cannot be built, loaded or used on this data."""


class PluginError(ButterflySDMError, ValueError):
    """A plugin is missing, broken or used wrongly."""


class MissingFileError(ButterflySDMError, FileNotFoundError):
    """A file or folder that was named does not exist."""


class MissingPackageError(ButterflySDMError, ImportError):
    """An optional dependency is needed: names the extra that brings it."""


class SourceError(ButterflySDMError, OSError):
    """A source on the network did not answer as it should."""


class WorkerError(ButterflySDMError, RuntimeError):
    """A worker process was killed from outside; what was done is kept."""
