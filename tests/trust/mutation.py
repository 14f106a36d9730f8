"""
Change valid inputs: byte by byte, and by what a format is made of (fields, elements, cells, header
entries).

All functions take a ``random.Random``, so that a seed repeats a whole run.
"""

import copy
import io
import json
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any
from xml.etree import ElementTree

Mutator = Callable[[bytes, Random], bytes]

TOKENS = (
    *(
        b'"',
        b"'",
        b"{",
        b"}",
        b"[",
        b"]",
        b"(",
        b")",
        b",",
        b";",
        b":",
        b"\n",
        b"\r",
        b"\t",
        b"\r\n",
        b"\\",
        b"#",
        b"%",
        b"|",
    ),
    *(
        b"null",
        b"true",
        b"-1",
        b"0",
        b"1e999",
        b"-1e999",
        b"NaN",
        b"inf",
        b"9" * 25,
        b"0x7fffffff",
        b"1_000",
        b"- ",
        b"? ",
    ),
    *(
        b"\xff\xfe",
        b"\xfe\xff",
        b"\xef\xbb\xbf",
        b"\x00",
        b"\xc3\xa9",
        b"\xed\xa0\x80",
        b"\xf0\x9f\xa6\x8b",
        b"\xe2\x80\xae",
    ),
    *(
        b"<",
        b"/>",
        b"<!--",
        b"-->",
        b"<![CDATA[",
        b"]]>",
        b"&x;",
        b"&#0;",
        b"&#xd800;",
        b"<!DOCTYPE a [<!ENTITY x 'y'>]>",
    ),
    *(b"../", b"/etc/passwd", b"C:\\", b"a" * 300, b"(" * 200, b"[" * 200, b"{" * 200),
    *(
        b"!!python/object:os.system x ",
        b"&a ",
        b"*a ",
        b"<<: *a\n",
        b"!!binary x",
        b"!!set",
        b"%YAML 9.9\n---\n",
        b"...\n",
    ),
    *(
        b"<?xml version='1.0' encoding='utf-7'?>",
        b"EMPTY",
        b" Z ",
        b"POINT",
        b"SU",
        b"II",
        b"2018-13-45",
        b"1/2/3",
    ),
)

VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**31,
        2**63,
        -(2**63) - 1,
        10**40,
        10**400,
        0.5,
        -0.0,
        1e308,
        1e-320,
    ),
    *(float("nan"), float("inf"), -float("inf")),
    *(
        "",
        " ",
        "0",
        "-1",
        "nan",
        "../../x",
        "/dev/zero",
        "a\0b",
        "\ud800",
        "\u202e",
        "é",
        "🦋",
        "x" * 10_000,
    ),
    *("${HOME}", "{0}", "%s"),
    *([], {}, [[]], [None], {"": None}, [1, "1", None, 1.5, {}], {"a": {"a": {"a": {}}}}),
)


def flip(data: bytes, rng: Random) -> bytes:
    """Flip, cut, repeat, move and insert bytes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(out))
        kind = rng.randrange(8)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.randint(1, 20)]
        elif kind in (2, 3):
            out[at:at] = rng.choice(TOKENS)
        elif kind == 4:
            out[at:at] = out[at : at + rng.randint(1, 60)]
        elif kind == 5:
            piece = out[at : at + rng.randint(1, 60)]
            del out[at : at + len(piece)]
            to = rng.randint(0, len(out))
            out[to:to] = piece
        elif kind == 6 and out:
            out[min(at, len(out) - 1)] = rng.randrange(256)
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


NESTED = "a place for brackets in brackets"  # too deep for json.dumps, so put into the text


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += _places(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value[:6]):
            found += _places(item, (*path, number))
    return found


def change_value(value: Any, rng: Random) -> Any:
    """Replace, remove, rename, add, exchange and nest entries of JSON-like data."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = _places(value)
        if not places:
            return copy.deepcopy(rng.choice(VALUES))
        *to, last = rng.choice(places)
        parent = value
        for step in to:
            parent = parent[step]
        kind = rng.randrange(7)
        if kind in (0, 1):
            parent[last] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 2:
            parent[last] = NESTED
        elif kind == 3:
            del parent[last]
        elif kind == 4 and isinstance(parent, dict):
            parent[str(rng.choice(VALUES))[:20]] = parent.pop(last)
        elif kind == 5:
            other = value
            *steps, end = rng.choice(places)
            try:
                for step in steps:
                    other = other[step]
                parent[last], other[end] = copy.deepcopy(other[end]), copy.deepcopy(parent[last])
            except (KeyError, IndexError, TypeError):
                continue
        elif isinstance(parent[last], list):
            parent[last] = parent[last] * rng.choice((2, 50))
        else:
            parent[last] = [parent[last]] * 2
    return value


def json_document(data: bytes, rng: Random) -> bytes:
    """Change fields of a JSON document, now and then name one twice; or its bytes."""
    if rng.random() < 0.35:
        return flip(data, rng)
    text = json.dumps(change_value(json.loads(data), rng), ensure_ascii=rng.random() < 0.5)
    if NESTED in text:
        depth, (left, right) = rng.choice((3, 100, 5000)), rng.choice((("[", "]"), ('{"a":', "}")))
        text = text.replace(f'"{NESTED}"', left * depth + "0" + right * depth)
    if rng.random() < 0.1 and text.startswith('{"'):
        text = "{" + text[1:].split(",", 1)[0] + "," + text[1:]  # the first key twice
    out = text.encode("utf-8", errors="surrogatepass")
    return flip(out, rng) if rng.random() < 0.1 else out


def xml_document(data: bytes, rng: Random) -> bytes:
    """Change elements and attributes of an XML document; or its bytes."""
    if rng.random() < 0.4:
        return flip(data, rng)
    root = ElementTree.fromstring(data)
    for _ in range(rng.randint(1, 3)):
        elements = list(root.iter())
        element, other = rng.choice(elements), rng.choice(elements)
        text = str(rng.choice(VALUES))[:200].replace("\0", "").replace("\ud800", "")
        kind = rng.randrange(7)
        if kind == 0:
            element.text = text
        elif kind in (1, 2) and element.attrib:
            element.set(rng.choice(list(element.attrib)), text)
        elif kind == 3 and element.attrib:
            del element.attrib[rng.choice(list(element.attrib))]
        elif kind == 4 and len(element):
            element.remove(element[0])
        elif kind == 5 and other not in element.iter() and element not in other.iter():
            element.append(copy.deepcopy(other))
        elif kind == 6:
            element.tag, other.tag = other.tag, element.tag
    return ElementTree.tostring(root)


CELLS = (
    *(
        "",
        " ",
        '"',
        '""',
        "'",
        ",",
        "\t",
        ";",
        "\n",
        "a\nb",
        "\r",
        "\0",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "-0",
    ),
    *("1.7976931348623159e308", "x" * 5000),
    *(
        "91",
        "-181",
        "51,2",
        "0x10",
        "١٢",
        "2018-02-30",
        "2018",
        "2018-06-03/2019-01-01",
        "03/06/2018",
        "31/12/9999",
    ),
    *(
        "SU12",
        "SU12A",
        "ZZ99",
        "POLYGON((0 0,0 1,1 1,1 0,0 0))",
        "POLYGON((0 0",
        "EPSG:0",
        "present",
        "ABSENT",
        "🦋",
    ),
)


def table(separator: str) -> Mutator:
    """Return a mutator of delimited text: cells, rows, columns and line ends; or its bytes."""

    def change(data: bytes, rng: Random) -> bytes:
        if rng.random() < 0.4:
            return flip(data, rng)
        rows = [
            line.split(separator) for line in data.decode("utf-8", errors="replace").splitlines()
        ]
        for _ in range(rng.randint(1, 4)):
            row = rng.choice(rows)
            column = rng.randrange(len(row)) if row else 0
            kind = rng.randrange(8)
            if kind in (0, 1, 2) and row:
                row[column] = rng.choice(CELLS)
            elif kind == 3 and row:
                del row[column]
            elif kind == 4:
                row.insert(column, rng.choice(CELLS))
            elif kind == 5:
                rows.insert(rng.randrange(len(rows) + 1), list(rng.choice(rows)))
            elif kind == 6 and len(rows) > 1:
                del rows[rng.randrange(len(rows))]
            elif row:
                for each in rows:  # two columns exchanged, or one named like another
                    if len(each) > column:
                        each[column], each[0] = each[0], each[column]
        end = rng.choice(("\n", "\n", "\r\n", "\r"))
        encoding = rng.choice(("utf-8", "utf-8", "utf-16", "latin-1"))
        out = end.join(separator.join(row) for row in rows).encode(encoding, "replace")
        return out + end.encode() if rng.random() < 0.8 else out

    return change


def archive(of: dict[str, Mutator]) -> Mutator:
    """
    Return a mutator of zip archives: members (each by its own mutator), their names and attributes;
    or the bytes.
    """

    def change(data: bytes, rng: Random) -> bytes:
        if rng.random() < 0.4:
            return flip(data, rng)
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            members = {name: source.read(name) for name in source.namelist()}
        out = io.BytesIO()
        method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(out, "w", method) as target:
            for name, content in members.items():
                kind = rng.randrange(10)
                if kind == 0:
                    continue
                info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
                if kind == 1:
                    info.filename = rng.choice(
                        (
                            "../" + name,
                            "/" + name,
                            name.upper(),
                            "a/" + name,
                            "C:" + name,
                            name + "/",
                        )
                    )
                if kind == 2:
                    info.external_attr = 0o120777 << 16  # a symbolic link
                if kind in (3, 4, 5, 6):
                    content = of.get(name, flip)(content, rng)
                info.compress_type = method
                target.writestr(info, content)
        return flip(out.getvalue(), rng) if rng.random() < 0.2 else out.getvalue()

    return change


def text_of(alphabet: tuple[str, ...]) -> Mutator:
    """Return a mutator of short texts made of pieces of an alphabet; or their bytes."""

    def change(data: bytes, rng: Random) -> bytes:
        if rng.random() < 0.4:
            return flip(data, rng)
        return "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 14))).encode()

    return change


def safetensors(data: bytes, rng: Random) -> bytes:
    """Change the header of a safetensors file (8 bytes of length, then JSON) or its bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(5)
    if kind == 0:
        return flip(data, rng)
    if kind == 1:
        return (
            struct.pack("<Q", rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1)))
            + header
            + rest
        )
    header = json_document(header, rng)
    return struct.pack("<Q", len(header)) + header + rest


TAGS = (256, 257, 258, 259, 273, 277, 279, 322, 325, 33550, 33922, 34735, 65535)


def tiff(data: bytes, rng: Random) -> bytes:
    """
    Change entries (tag, type, count, value) of the first directory of a little-endian TIFF, or its
    bytes.
    """
    if rng.random() < 0.3:
        return flip(data, rng)
    out = bytearray(data)
    (start,) = struct.unpack_from("<I", out, 4)
    (entries,) = struct.unpack_from("<H", out, start)
    for _ in range(rng.randint(1, 3)):
        at = start + 2 + 12 * rng.randrange(entries)
        field = rng.randrange(4)
        if field == 0:
            struct.pack_into("<H", out, at, rng.choice(TAGS))
        elif field == 1:
            struct.pack_into("<H", out, at + 2, rng.randrange(20))
        else:
            number = rng.choice(
                (0, 1, 2, 7, 255, 65535, 2**20, 2**31, 2**32 - 1, rng.randrange(2**32))
            )
            struct.pack_into("<I", out, at + (4 if field == 2 else 8), number)
    return bytes(out[: rng.randint(8, len(out))]) if rng.random() < 0.1 else bytes(out)
