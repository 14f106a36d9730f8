"""
Print docs/licences.md: every package that butterfly_sdm brings along and its licence, from what is
installed.
"""

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

EXTRAS = (
    "torchgeo",
    "sources",
    "fast",
    "distributed",
    "search",
    "sdm",
    "xarray",
    "zarr",
    "medical",
    "video",
    "deepfake",
)
#: Families by what their metadata say; the first that fits counts. Copyleft comes first, so that no
#: other word hides it.
FAMILIES = {
    "GPL": r"\bA?GPL|GNU (Affero )?General Public",
    "LGPL": r"\bLGPL|GNU (Lesser|Library)",
    "NVIDIA": r"NVIDIA",
    "Apache": r"Apache",
    "BSD": r"\bBSD",
    "MIT": r"\bMIT\b|Expat",
    "MPL": r"\bMPL|Mozilla",
    "PSF": r"\bPSF|Python Software Foundation",
    "ISC": r"\bISC",
    "HPND": r"\bHPND|Historical Permission",
    "public domain": r"Unlicense|Public Domain|CC0|0BSD",
}
#: What lies in the package itself, with its licence beside it.
WITHIN = [
    "| what | licence |",
    "|---|---|",
    "| Leaflet 1.9.4, which moves the page of a map | BSD-2-Clause |",
    "| land of Natural Earth at 1:10 million, by way of world-atlas 2.0.2 | public domain; ISC |",
]
#: What packages that say nothing in their metadata say in their licence file.
BY_HAND = {"cuda-toolkit": "NVIDIA"}
#: Libraries that wheels carry in compiled form and whose licence their metadata do not tell.
COPYLEFT_WITHIN = {
    "x264": "GPL-2.0-or-later",
    "x265": "GPL-2.0-or-later",
    "xvidcore": "GPL-2.0-or-later",
    "postproc": "GPL-2.0-or-later",
    "rubberband": "GPL-2.0-or-later",
    "fftw3": "GPL-2.0-or-later",
    "gsl": "GPL-3.0-or-later",
    "readline": "GPL-3.0-or-later",
}


def name_of(text: str) -> str:
    """Return the normal form of the name of a package."""
    return re.sub(r"[-_.]+", "-", text).lower()


def brought_along(
    root: str = "butterfly-sdm", extras: tuple[str, ...] = ()
) -> dict[str, Distribution]:
    """Return all installed packages that a package needs, directly or not."""
    found: dict[str, Distribution] = {}

    def needs(of: Distribution, chosen: tuple[str, ...]) -> Iterator[Requirement]:
        for text in of.requires or ():
            need = Requirement(text)
            if need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in ("", *chosen)
            ):
                yield need

    def walk(of: Distribution, chosen: tuple[str, ...]) -> None:
        for need in needs(of, chosen):
            try:
                held = distribution(need.name)
            except PackageNotFoundError:
                continue
            name = name_of(need.name)
            if name not in found and name != name_of(root):
                found[name] = held
                walk(held, tuple(need.extras))

    walk(distribution(root), extras)
    return dict(sorted(found.items()))


def licence_of(package: Distribution) -> str:
    """Return what the metadata of a package say of its licence, in a line."""
    data = package.metadata
    classified = [
        line.rsplit("::", 1)[-1].strip()
        for line in data.get_all("Classifier") or ()
        if line.startswith("License")
    ]
    free = (data.get("License") or "").strip()
    if data.get("License-Expression"):
        return str(data["License-Expression"])
    if classified:
        return ", ".join(classified)
    if free:
        return free.splitlines()[0][:60]
    return BY_HAND.get(name_of(data["Name"]), "not stated")


def family_of(licence: str) -> str:
    """Return the family of a licence, ``other`` for none that is known."""
    return next(
        (
            family
            for family, pattern in FAMILIES.items()
            if re.search(pattern, licence, re.IGNORECASE)
        ),
        "other",
    )


def copyleft_within(names: list[str]) -> list[str]:
    """Return which of :data:`COPYLEFT_WITHIN` are among the files of a wheel."""
    stems = (re.match(r"(?:lib)?([a-z]+\d*)", name.rsplit("/", 1)[-1].lower()) for name in names)
    libraries = {
        stem[1]
        for stem, name in zip(stems, names, strict=True)
        if stem and re.search(r"\.(so|dylib|dll)\b", name)
    }
    return sorted(libraries & COPYLEFT_WITHIN.keys())


def page() -> str:
    """Return the page."""
    core = brought_along()
    every = brought_along(extras=EXTRAS)
    optional = {name: held for name, held in every.items() if name not in core}
    within = {
        name: copyleft_within([str(file) for file in held.files or ()])
        for name, held in every.items()
    }
    lines = [
        "# Licences",
        "",
        "butterfly_sdm itself is under the MIT licence. These packages come with it; the list is "
        "made from their metadata by",
        "`make licences`, and a test refuses a licence that would bind those who use or pass on "
        "the software (GPL, AGPL), or",
        "one that nobody has looked at. NVIDIA's packages come only with PyTorch for GPUs on Linux "
        "and are not open source;",
        "PyTorch for CPUs does without.",
    ]
    lines += ["", "## Within the package", "", *WITHIN]
    lines += [
        "",
        "## Within the wheels of others",
        "",
        "A wheel may carry compiled libraries under another licence than its own, of which its "
        "metadata say nothing. Those under",
        "the GPL, by the files installed here (other platforms may differ):",
        "",
        "| package | carries | licence |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {library} | {COPYLEFT_WITHIN[library]} |"
        for name, libraries in within.items()
        for library in libraries
    ]
    lines += [
        "",
        "`av` (PyAV, extra `video`) carries FFmpeg, which calls itself LGPL version 3 or later but "
        "is linked with the encoders x264",
        "and x265. Here it only decodes. To use it binds nobody; who passes the wheel on, in an "
        "image of a container for one,",
        "passes on GPL software with its terms. An `av` built without the two, or no extra "
        "`video`, does not: nothing but `implihate`",
        "asks for it.",
        "",
        "Not brought along, but asked for where DICOM pixels are compressed: `pylibjpeg` and "
        "`pylibjpeg-openjpeg` (MIT),",
        "`pylibjpeg-libjpeg` (GPL version 3).",
    ]
    for title, packages in (("Always", core), (f"With extras ({', '.join(EXTRAS)})", optional)):
        lines += ["", f"## {title}", "", "| package | licence |", "|---|---|"]
        lines += [f"| {name} | {licence_of(held)} |" for name, held in packages.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
