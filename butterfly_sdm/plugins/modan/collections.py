"""Collections of medical images as one table of path, attributes, label, patient and split."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from butterfly_sdm.core.settings import InputPath, Section
from butterfly_sdm.errors import DataError, MissingFileError
from butterfly_sdm.plugins.collection import existing_folder, npz_table, read_collection
from butterfly_sdm.plugins.images import SUFFIXES, is_dicom, read_dicom
from butterfly_sdm.plugins.options import later, setting
from butterfly_sdm.plugins.stages import seed_of

logger = logging.getLogger("butterfly_sdm.plugins")

# What a tag says, in capitals: our name of it.
SPELLINGS = (
    {"MRI": "MR", "ULTRASOUND": "US", "DX": "XR", "CR": "XR", "EXTREMITY KNEE": "knee"}
    | dict.fromkeys(("ANKLE/FOOT", "FOOT", "AF"), "ankle")
    | dict.fromkeys(("ABD", "ABD-PELV", "PELVIS"), "abdomen")
    | dict.fromkeys(("LSPINE", "CSPINE", "TSPINE"), "spine")
    | {"THORAX": "chest", "LUNG": "chest", "HEAD": "brain", "SKULL": "brain", "HAND": "wrist"}
)


class CollectionConfig(Section):
    """Where images come from."""

    layout: Literal["table", "radimagenet", "dicom", "mrnet", "medmnist"] = setting(
        "table", "table: a CSV, Parquet or npz; medmnist: its npz files"
    )
    path: InputPath = setting(..., "the table, or the root folder")
    images: InputPath | None = setting(None, "root of its paths; None: its own folder")
    cap: int | None = setting(None, "radimagenet: images per class", ge=1)
    cap_draw: Literal["first", "random"] = later("first", "radimagenet: by name; the paper drew")
    spellings: dict[str, str] = setting({}, "dicom: what a tag says: our name of it")
    require_all: bool = setting(True, "dicom: leave out files without modality or body part")
    plane: Literal["axial", "coronal", "sagittal"] = setting("sagittal", "mrnet")
    finding: Literal["acl", "meniscus", "abnormal"] = setting("acl", "mrnet: the label")


def read_layout(
    options: CollectionConfig, attributes: Sequence[str] = ()
) -> tuple[pd.DataFrame, dict[str, int]]:
    """
    Read a collection of any layout.

    Parameters
    ----------
    options
        The layout, and where it lies.
    attributes
        Columns that a table must have.

    Returns
    -------
    table, dropped
        One row per image, with ``path``, attributes, and optionally ``label``, ``patient`` and
        ``split``; number of files left out by reason.
    """
    path = options.path
    if options.layout == "dicom":
        return dicom_folder(path, options.spellings, require_all=options.require_all)
    if options.layout == "radimagenet":
        return radimagenet(path, options.cap, drawn=options.cap_draw == "random"), {}
    if options.layout == "mrnet":
        return mrnet(path, options.plane, options.finding), {}
    if options.layout == "medmnist":
        return medmnist(path), {}
    return read_collection(path, attributes, root=options.images), {}


# Modality and body region of the two-dimensional sets, as their publication names them.
MEDMNIST = {
    "pathmnist": ("pathology", "colon"),
    "chestmnist": ("XR", "chest"),
    "dermamnist": ("dermatoscope", "skin"),
    "octmnist": ("OCT", "retina"),
    "pneumoniamnist": ("XR", "chest"),
    "retinamnist": ("fundus camera", "retina"),
    "breastmnist": ("US", "breast"),
    "bloodmnist": ("microscope", "blood"),
    "tissuemnist": ("microscope", "kidney"),
    "organamnist": ("CT", "abdomen"),
    "organcmnist": ("CT", "abdomen"),
    "organsmnist": ("CT", "abdomen"),
}


def medmnist(place: Path) -> pd.DataFrame:
    """
    Read the files of MedMNIST, ``NAME.npz`` or ``NAME_SIZE.npz``: modality and anatomy follow from
    the name; a label is written ``NAME CLASS`` where several files are read.

    Parameters
    ----------
    place
        A file, or a folder of them.

    Raises
    ------
    DataError
        There is none, or one of another name.
    """
    files = [place] if place.is_file() else sorted(existing_folder(place).glob("*.npz"))
    if not files:
        raise DataError(f"{place} holds no .npz of MedMNIST.")
    tables = []
    for file in files:
        name = file.stem.partition("_")[0].lower()
        if name not in MEDMNIST:
            raise DataError(
                f"{file.name} is no two-dimensional set of MedMNIST; they are called "
                f"{', '.join(MEDMNIST)}. Read it as layout: table."
            )
        table = npz_table(file)
        table["modality"], table["anatomy"] = MEDMNIST[name]
        if "label" in table and len(files) > 1:
            table["label"] = name + " " + table["label"]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def radimagenet(root: Path, cap: int | None, *, drawn: bool = False) -> pd.DataFrame:
    """
    Read the folders ``<root>/{CT,MR,US}/<region>/<class>/*.png`` of RadImageNet.

    Parameters
    ----------
    root
        Of the data set.
    cap
        At most so many images per class; None: all.
    drawn
        Draw those at random, the same ones every time; else the first by name, which are of few
        patients.

    Raises
    ------
    DataError
        The folder is not laid out as RadImageNet is.
    """
    rows = []
    for folder in sorted(existing_folder(root).glob("*/*/*/")):
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        modality, region, name = place = folder.relative_to(root).parts
        if drawn:
            order = np.random.default_rng(seed_of(*place)).permutation(len(files))[:cap]
            files = [files[number] for number in sorted(order)]
        rows += [(str(path), modality, region, name) for path in files[:cap]]
    if not rows:
        raise DataError(
            f"{root} holds no images as {{CT,MR,US}}/REGION/CLASS/*.png, the layout of RadImageNet."
        )
    return pd.DataFrame(rows, columns=["path", "modality", "anatomy", "class"])


def mrnet(root: Path, plane: str, task: str) -> pd.DataFrame:
    """
    Read MRNet: ``{train,valid}/PLANE/NNNN.npy`` with ``{train,valid}-TASK.csv``; its validation
    part becomes the test part.

    Parameters
    ----------
    root
        Of the data set.
    plane
        axial, coronal or sagittal; the middle slice is used.
    task
        acl, meniscus or abnormal.

    Raises
    ------
    MissingFileError
        A table of labels is not there.
    """
    tables = []
    for part, split in (("train", "train"), ("valid", "test")):
        labels = existing_folder(root) / f"{part}-{task}.csv"
        if not labels.is_file():
            raise MissingFileError(
                f"There is no {labels.name} in {root}; MRNet lists the labels of {task} there."
            )
        table = pd.read_csv(labels, header=None, names=["number", "label"], dtype=str)
        table["path"] = [str(root / part / plane / f"{number}.npy") for number in table["number"]]
        tables.append(table.assign(patient=part + table.pop("number"), split=split))
    return pd.concat(tables, ignore_index=True).assign(modality="MR", anatomy="knee")


def dicom_folder(
    root: Path, spellings: Mapping[str, str], *, require_all: bool = True
) -> tuple[pd.DataFrame, dict[str, int]]:
    """
    Read the attributes of all DICOM files below a folder from their tags Modality and
    BodyPartExamined.

    Parameters
    ----------
    root
        Searched for DICOM files of any name.
    spellings
        What a tag says, in capitals: our name of it; added to the usual spellings.
    require_all
        Leave out files that lack one of the two.

    Returns
    -------
    table, dropped
        Number of files left out by reason.

    Raises
    ------
    DataError
        The folder holds no DICOM image with modality and anatomy.
    """
    known = SPELLINGS | {key.upper(): value for key, value in spellings.items()}
    read = [
        _read_tags(path, known, require_all)
        for path in sorted(existing_folder(root).rglob("*"))
        if path.is_file()
    ]
    rows = [row for row in read if isinstance(row, dict)]
    dropped = dict(Counter(reason for reason in read if isinstance(reason, str)))
    if not rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "it is empty"
        raise DataError(f"{root} holds no DICOM image with modality and anatomy ({reasons}).")
    if dropped:
        logger.info("%s: left out %s", root, dropped)
    return pd.DataFrame(rows).replace("", None), dropped


def _read_tags(path: Path, known: Mapping[str, str], require_all: bool) -> dict[str, str] | str:
    """Return path, patient, modality and anatomy of a file, or why it is left out."""
    if path.name.startswith("."):  # such as the ._ files of macOS
        return "hidden"
    if not is_dicom(path):
        return "no DICOM file"
    try:
        tags = read_dicom(path, pixels=False)
    except ImportError:
        raise
    except Exception as error:
        logger.warning("%s cannot be read: %s", path, error)
        return "unreadable"
    if "Rows" not in tags or "PhotometricInterpretation" not in tags:
        return "no image"
    row = {"path": str(path), "patient": str(tags.get("PatientID", "") or path)}
    for name, tag in (("modality", "Modality"), ("anatomy", "BodyPartExamined")):
        said = str(tags.get(tag, "") or "").strip().upper()
        row[name] = known.get(said, said if name == "modality" else said.lower())
    lacking = [name for name in ("modality", "anatomy") if not row[name]]
    if len(lacking) == 2 or (lacking and require_all):
        return f"no {lacking[0]}"
    return row
