"""Collections of medical images as one table of path, attributes, label, patient and split."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from butterfly_sdm.errors import DataError, MissingFileError
from butterfly_sdm.plugins.images import SUFFIXES, is_dicom, read_dicom, read_table

logger = logging.getLogger("butterfly_sdm.plugins")

SPELLINGS = {
    "MRI": "MR",
    "ULTRASOUND": "US",
    "DX": "XR",
    "CR": "XR",
    "ANKLE/FOOT": "ankle",
    "FOOT": "ankle",
    "AF": "ankle",
    "ABD": "abdomen",
    "ABD-PELV": "abdomen",
    "PELVIS": "abdomen",
    "THORAX": "chest",
    "LUNG": "chest",
    "HEAD": "brain",
    "SKULL": "brain",
    "LSPINE": "spine",
    "CSPINE": "spine",
    "TSPINE": "spine",
    "HAND": "wrist",
    "EXTREMITY KNEE": "knee",
}


def radimagenet(root: Path, cap: int | None) -> pd.DataFrame:
    """
    Read the folders ``<root>/{CT,MR,US}/<region>/<class>/*.png`` of RadImageNet.

    Parameters
    ----------
    root
        Of the data set.
    cap
        At most so many images per class, the first by name; None: all.

    Raises
    ------
    DataError
        The folder is not laid out as RadImageNet is.
    """
    rows = []
    for folder in sorted(_folder(root).glob("*/*/*")):
        if not folder.is_dir():
            continue
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[:cap]
        modality, region, name = folder.relative_to(root).parts
        rows += [
            {"path": str(path), "modality": modality, "anatomy": region, "class": name}
            for path in files
        ]
    if not rows:
        raise DataError(
            f"{root} holds no images as {{CT,MR,US}}/REGION/CLASS/*.png, the layout of RadImageNet."
        )
    return pd.DataFrame(rows)


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
        labels = _folder(root) / f"{part}-{task}.csv"
        if not labels.is_file():
            raise MissingFileError(
                f"There is no {labels.name} in {root}; MRNet lists the labels of {task} there."
            )
        table = pd.read_csv(labels, header=None, names=["number", "label"], dtype=str)
        table["path"] = [str(root / part / plane / f"{number}.npy") for number in table["number"]]
        tables.append(
            table.assign(patient=part + table["number"], split=split, modality="MR", anatomy="knee")
        )
    return pd.concat(tables, ignore_index=True).drop(columns="number")


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
    dropped: Counter[str] = Counter()
    rows = []
    for path in sorted(path for path in _folder(root).rglob("*") if path.is_file()):
        if not is_dicom(path):
            dropped["no DICOM file"] += 1
            continue
        try:
            tags = read_dicom(path, pixels=False)
        except ImportError:
            raise
        except Exception as error:
            logger.warning("%s cannot be read: %s", path, error)
            dropped["unreadable"] += 1
            continue
        if "Rows" not in tags or "PhotometricInterpretation" not in tags:
            dropped["no image"] += 1
            continue
        row = {"path": str(path), "patient": str(tags.get("PatientID", "") or path)}
        for name, tag in (("modality", "Modality"), ("anatomy", "BodyPartExamined")):
            said = str(tags.get(tag, "") or "").strip().upper()
            row[name] = known.get(said, said if name == "modality" else said.lower())
        lacking = [name for name in ("modality", "anatomy") if not row[name]]
        if len(lacking) == 2 or (lacking and require_all):
            dropped[f"no {lacking[0]}"] += 1
            continue
        rows.append(row)
    if not rows:
        reasons = (
            ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it is empty"
        )
        raise DataError(f"{root} holds no DICOM image with modality and anatomy ({reasons}).")
    if dropped:
        logger.info("%s: left out %s", root, dict(dropped))
    return pd.DataFrame(rows).replace("", None), dict(dropped)


def table_of(path: Path, attributes: Sequence[str], images: Path | None) -> pd.DataFrame:
    """Read a table of ``path``, the attribute columns, and optionally label, patient and split."""
    return read_table(path, attributes, images)


def _folder(root: Path) -> Path:
    if not Path(root).is_dir():
        raise MissingFileError(f"There is no folder {root}.")
    return Path(root)
