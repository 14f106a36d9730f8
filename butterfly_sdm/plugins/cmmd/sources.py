"""Collections of mammograms as one table of path, label, domain, patient and split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from butterfly_sdm.errors import ConfigError, DataError, MissingFileError
from butterfly_sdm.plugins.cmmd.phantoms import CLASSES, DOMAINS, phantoms
from butterfly_sdm.plugins.images import read_table

if TYPE_CHECKING:
    from butterfly_sdm.plugins.cmmd.method import SourceConfig

COLUMNS = ("path", "label", "domain", "patient", "split")


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
                "Synthetic mammograms stand alone: they bring both domains. Give a single source."
            )
        pixels, label, domain = phantoms(sources[0].count, size_px, seed)
        table = pd.DataFrame(
            {
                "path": [f"synthetic_{row:05d}" for row in range(len(label))],
                "label": np.asarray(CLASSES, dtype=object)[label],
                "domain": np.asarray(DOMAINS, dtype=object)[domain],
            }
        )
        return table, pixels
    tables = []
    for source in sources:
        if source.path is None:
            raise ConfigError(f"A source of layout {source.layout} needs its path.")
        if source.layout == "table":
            needed = ("label",) if source.domain else ("label", "domain")
            table = read_table(source.path, needed, source.images)
        else:
            if not source.path.is_dir():
                raise MissingFileError(
                    f"There is no folder {source.path}; the layout {source.layout} needs the root "
                    "of the data."
                )
            table = vindr(source.path) if source.layout == "vindr" else cbis(source.path)
        if source.domain is not None:
            table["domain"] = source.domain
        tables.append(table[[column for column in COLUMNS if column in table.columns]])
    if len({"split" in table.columns for table in tables}) > 1:
        raise DataError(
            "Some sources have a split and some have none. Give all a column split, or none."
        )
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
    annotations = _csv(
        root / "breast-level_annotations.csv", ("study_id", "image_id", "breast_birads", "split")
    )
    metadata = _csv(root / "metadata.csv", ("SOP Instance UID", "Manufacturer"))
    manufacturer = metadata.set_index("SOP Instance UID")["Manufacturer"]
    return pd.DataFrame(
        {
            "path": [
                str(root / "images" / s / f"{i}.dicom")
                for s, i in zip(annotations["study_id"], annotations["image_id"], strict=True)
            ],
            "label": annotations["breast_birads"],
            "domain": annotations["image_id"].map(manufacturer),
            "patient": annotations["study_id"],
        }
    )


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
    rows = pd.concat(
        [_csv(table, ("patient_id", "pathology", "image file path")) for table in tables],
        ignore_index=True,
    )
    rows["label"] = rows["pathology"].replace({"BENIGN_WITHOUT_CALLBACK": "BENIGN"}).str.lower()
    rows = (
        rows.sort_values("label", ascending=False).drop_duplicates("image file path").sort_index()
    )
    return pd.DataFrame(
        {
            "path": [str(root / str(name).strip()) for name in rows["image file path"]],
            "label": rows["label"],
            "domain": "CBIS-DDSM",
            "patient": rows["patient_id"],
        }
    ).reset_index(drop=True)


def _csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        raise MissingFileError(
            f"There is no {path.name} in {path.parent}. Is that the root of the data set?"
        )
    table = pd.read_csv(path, dtype=str)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise DataError(
            f"{path} lacks the column {missing[0]!r}; it has {', '.join(table.columns)}."
        )
    return table
