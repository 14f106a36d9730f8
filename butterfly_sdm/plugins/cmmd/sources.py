"""Collections of mammograms as one table of path, label, domain, patient and split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from butterfly_sdm.core.settings import InputPath, Section
from butterfly_sdm.errors import ConfigError, DataError, MissingFileError
from butterfly_sdm.plugins.cmmd.phantoms import CLASSES, DOMAINS, phantoms
from butterfly_sdm.plugins.collection import existing_folder, read_collection, read_columns
from butterfly_sdm.plugins.options import setting

COLUMNS = ("path", "label", "domain", "patient", "split")


class SourceConfig(Section):
    """One collection of images."""

    layout: Literal["table", "vindr", "cbis", "synthetic"] = "table"
    path: InputPath | None = setting(None, "the table; of vindr and cbis the root folder")
    images: InputPath | None = setting(None, "root of its paths; None: its own folder")
    domain: str | None = setting(None, "of all rows, instead of the column domain")
    count: int = setting(100, "synthetic: images per class and domain", ge=4)


def read_sources(
    sources: Sequence[SourceConfig], size_px: int, seed: int
) -> tuple[pd.DataFrame, np.ndarray | None]:
    """
    Join the tables of all collections.

    Returns
    -------
    table, pixels
        ``pixels`` (n, 1, h, w) of synthetic images; None where the images are files.

    Raises
    ------
    ConfigError, MissingFileError, DataError
        A collection lacks a file or a column.
    """
    if any(source.layout == "synthetic" for source in sources):
        if len(sources) > 1:
            raise ConfigError(
                "Synthetic mammograms stand alone, with both domains. Give one source."
            )
        pixels, label, domain = phantoms(sources[0].count, size_px, seed)
        table = pd.DataFrame({"path": [f"synthetic_{row:05d}" for row in range(len(label))]})
        table["label"] = [CLASSES[number] for number in label]
        table["domain"] = [DOMAINS[number] for number in domain]
        return table, pixels
    tables = []
    for source in sources:
        if source.path is None:
            raise ConfigError(f"A source of layout {source.layout} needs its path.")
        if source.layout == "table":
            table = read_collection(source.path, ("label",), root=source.images)
            if source.domain is None and "domain" not in table.columns:
                raise DataError(
                    f"{source.path} does not say of which domain, such as the scanner, its images "
                    "are. State it beside the path, {path: ..., domain: NAME}, or give a table "
                    "with a column domain."
                )
        else:
            root = existing_folder(source.path)
            table = vindr(root) if source.layout == "vindr" else cbis(root)
        if source.domain is not None:
            table["domain"] = source.domain
        tables.append(table[[column for column in COLUMNS if column in table.columns]])
    if len({"split" in table.columns for table in tables}) > 1:
        raise DataError("Some sources have a split, some none. Give all a column split, or none.")
    joined = pd.concat(tables, ignore_index=True)
    if "patient" in joined.columns:
        own = pd.Series([f"row {row}" for row in joined.index], index=joined.index)
        joined["patient"] = joined["patient"].fillna(own)
    return joined, None


def vindr(root: Path) -> pd.DataFrame:
    """
    Read VinDr-Mammo: the domain is the manufacturer, the label ``BI-RADS 1`` to ``BI-RADS 5``.

    Parameters
    ----------
    root
        With ``breast-level_annotations.csv``, ``metadata.csv`` and ``images/STUDY/IMAGE.dicom``.
    """
    needed = ("study_id", "image_id", "breast_birads", "split")
    listed = read_columns(root / "breast-level_annotations.csv", needed)
    metadata = read_columns(root / "metadata.csv", ("SOP Instance UID", "Manufacturer"))
    manufacturer = metadata.set_index("SOP Instance UID")["Manufacturer"]
    study, image = listed["study_id"], listed["image_id"]
    listed["path"] = f"{root / 'images'}/" + study + "/" + image + ".dicom"
    listed["domain"] = image.map(manufacturer)
    return listed.rename(columns={"breast_birads": "label", "study_id": "patient"})


def cbis(root: Path) -> pd.DataFrame:
    """
    Read CBIS-DDSM: the label is the pathology, the domain the collection.

    Parameters
    ----------
    root
        With the tables ``*_case_description_*_set.csv`` and the images at the paths they give. An
        image with several findings counts once, as malignant if one of them is.

    Raises
    ------
    MissingFileError
        The folder does not hold the tables that list the images.
    """
    tables = sorted(root.glob("*_case_description_*_set.csv"))
    if not tables:
        raise MissingFileError(
            f"{root} holds no *_case_description_*_set.csv; that is where CBIS-DDSM lists its "
            "images."
        )
    needed = ("patient_id", "pathology", "image file path")
    rows = pd.concat([read_columns(table, needed) for table in tables], ignore_index=True)
    rows["label"] = rows["pathology"].replace({"BENIGN_WITHOUT_CALLBACK": "BENIGN"}).str.lower()
    rows = rows.sort_values("label", ascending=False).drop_duplicates("image file path")
    rows["path"] = [str(root / str(name).strip()) for name in rows["image file path"]]
    rows["domain"], rows["patient"] = "CBIS-DDSM", rows["patient_id"]
    return rows.sort_index().reset_index(drop=True)
