"""Parse the XML of an archive without following entities or other documents."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from xml.parsers import expat

from butterfly_sdm.errors import RecordsError


def parse_xml(data: bytes, where: str) -> ElementTree.Element:
    """
    Return the root element.

    Raises
    ------
    RecordsError
        It is not XML, or declares a document type: entities can be made to read files or to fill
        the memory.
    """
    guard = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise RecordsError(
            f"{where} declares a document type with entities, which is not accepted. Remove the "
            "DOCTYPE."
        )

    guard.StartDoctypeDeclHandler = refuse
    guard.EntityDeclHandler = refuse
    try:
        guard.Parse(data, True)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise RecordsError(f"{where} is not XML ({error}). Export the archive again.") from error


def local_name(tag: str) -> str:
    """Return a tag without its namespace."""
    return tag.rsplit("}", 1)[-1]


def children(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """Return the child elements of that local name."""
    return [child for child in element if local_name(child.tag) == name]


def first_text(root: ElementTree.Element, *path: str) -> str | None:
    """Return all text below the first element at ``path`` (local names), with single spaces."""
    found = [root]
    for name in path:
        found = [child for element in found for child in children(element, name)]
    for element in found:
        text = " ".join(" ".join(element.itertext()).split())
        if text:
            return text
    return None
