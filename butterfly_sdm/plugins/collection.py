"""
Collections as tables: one row per image or video, with label, group and part of the split.
"""

import logging
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from butterfly_sdm.errors import DataError, MissingFileError
from butterfly_sdm.plugins.images import (
    SUFFIXES,
    Images,
    check_some_readable,
    is_dicom,
    read_arrays,
)
from butterfly_sdm.plugins.row_batches import balanced, shuffled

logger = logging.getLogger("butterfly_sdm.plugins")

PARTS = ("train", "validation", "test")
Fractions = tuple[float, float, float]
Names = Sequence[str]
_SPELLED = {"valid": "validation", "val": "validation", "training": "train"}


@dataclass(frozen=True)
class LabelledImages:
    """
    Images with their classes and parts of the split.

    Attributes
    ----------
    images
        One per row.
    table
        (n,) with the columns ``path`` and ``split``.
    label
        (n,) class numbers, -1 where unknown.
    facts
        What building and predicting need to know.
    """

    images: Images
    table: pd.DataFrame
    label: np.ndarray
    facts: dict[str, Any]

    def listed(self, part: str) -> np.ndarray:
        """Return the rows (m,) of one part of the split."""
        return np.flatnonzero((self.table["split"] == part).to_numpy())

    def rows(self, part: str) -> np.ndarray:
        """Return the rows (m,) of one part of the split whose images can be read."""
        return self.images.readable(self.listed(part))

    def usable(self, part: str | None = None) -> np.ndarray:
        """Return the rows (m,) whose images can be read, of one part of the split or of all."""
        return self.rows(part) if part else self.images.readable(self.images.rows)

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the paths of (m,) rows."""
        return list(self.table["path"].iloc[rows])

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return ``image`` (m, channels, h, w), ``label`` (m,) and ``row`` (m,) of (m,) rows."""
        return {
            "image": self.images.batch(rows),
            "label": torch.from_numpy(self.label[rows]),
            "row": torch.from_numpy(rows),
        }

    def batches(
        self, rows: np.ndarray, batch_size: int, classes: np.ndarray | None = None
    ) -> Callable[[Any, np.random.Generator], Iterator[dict[str, Tensor]]]:
        """
        Return the batches of a stage: all of (m,) rows in random order, or, given their (m,)
        classes, every class alike.
        """

        def drawn(model: Any, rng: np.random.Generator) -> Iterator[dict[str, Tensor]]:
            if classes is None:
                return map(self.batch, shuffled(rows, batch_size, rng))
            return map(self.batch, balanced(rows, classes, batch_size, rng))

        return drawn


def read_columns(path: Path, columns: Sequence[str], dtype: Any = str) -> pd.DataFrame:
    """
    Read a Parquet table, or a CSV as spreadsheets write it: commas, semicolons or tabs, UTF-8 or
    UTF-16.

    Parameters
    ----------
    path
        The table.
    columns
        That must be there.
    dtype
        Of the columns of a CSV, as pandas takes it; text by default, an empty value is missing.

    Raises
    ------
    MissingFileError, DataError
        The table is absent or unreadable, or lacks a column.
    """
    if not path.is_file():
        raise MissingFileError(
            f"There is no {path.name} in {path.parent}. Is that the folder you mean?"
        )
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            with path.open("rb") as file:
                head = file.read(1 << 16)
            encoding = "utf-16" if head[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"
            first = head.decode(encoding, errors="replace").partition("\n")[0]
            separator = max(",;\t", key=first.count)
            table = pd.read_csv(path, dtype=dtype, encoding=encoding, sep=separator)
    except UnicodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error}). Save it as CSV in UTF-8.") from error
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is no readable table: {reason}") from error
    check_columns(table, columns, path)
    return table


def check_columns(table: pd.DataFrame, columns: Sequence[str], path: Path) -> None:
    """
    Refuse a table that lacks one of ``columns``; ``path`` is where it comes from.

    Raises
    ------
    DataError
        Names the column, and those there are.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        has = ", ".join(map(str, table.columns[:20])) or "none"
        raise DataError(f"{path} lacks the column {missing[0]!r}; it has {has}.")


def npz_table(path: Path) -> pd.DataFrame:
    """
    List the images of an ``.npz``, as MedMNIST [1]_ and others publish them.

    Parameters
    ----------
    path
        With ``PART_images`` (n, h, w), (n, h, w, 3) or (n, 3, h, w) and, where known,
        ``PART_labels`` (n,) or (n, 1) for the parts train, val (or valid, validation) and test; or
        ``images`` and ``labels`` (or ``image`` and ``label``) alone.

    Returns
    -------
    DataFrame
        ``path`` (``FILE::ARRAY::ROW``, which :func:`read_image` reads), ``label`` (text, where
        there is one per image) and ``split`` (where there are parts).

    Raises
    ------
    DataError
        It holds no such arrays.

    References
    ----------
    .. [1] J. Yang et al. (2023), MedMNIST v2. Scientific Data 10, 41.
    """
    arrays = read_arrays(path)
    tables = []
    for part in ("train", "val", "valid", "validation", "test", ""):
        for kind in ("images", "image"):
            name = f"{part}_{kind}" if part else kind
            if name not in arrays:
                continue
            pixels, labels = arrays[name], name.replace("image", "label")
            channels = {1, 3} & {pixels.shape[1], pixels.shape[-1]} if pixels.ndim == 4 else {1}
            if pixels.ndim not in (3, 4) or not channels or pixels.dtype.kind not in "iu":
                raise DataError(
                    f"{name} of {path} is {pixels.dtype} {pixels.shape}; images are whole "
                    "numbers (n, h, w), (n, h, w, 3) or (n, 3, h, w)."
                )
            table = pd.DataFrame({"path": [f"{path}::{name}::{row}" for row in range(len(pixels))]})
            known = arrays.get(labels, np.zeros((len(pixels), 0)))
            if len(known) != len(pixels):
                raise DataError(
                    f"{path} holds {len(pixels)} images, but {labels} of shape {known.shape};"
                    " one per image is needed."
                )
            if known.size == len(pixels):  # several at once are no class
                table["label"] = known.reshape(-1).astype(str)
            if part:
                table["split"] = _SPELLED.get(part, part)
            tables.append(table)
    if not tables:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; images are arrays called "
            "train_images, val_images and test_images, or images."
        )
    return pd.concat(tables, ignore_index=True)


def is_table(place: Path) -> bool:
    """Say whether a path is that of a table."""
    return place.suffix.lower() in (".csv", ".parquet")


def first_twice(names: Sequence[Any]) -> Any:
    """Return the first of ``names`` that is there already; None: each is there once."""
    twice = pd.Series(names, dtype=object)
    return next(iter(twice[twice.duplicated()]), None)


def existing_folder(path: Path) -> Path:
    """
    Return ``path`` if it is a folder.

    Raises
    ------
    MissingFileError
        It is none.
    """
    if not path.is_dir():
        raise MissingFileError(f"There is no folder {path}.")
    return path


def files_below(folder: Path, endings: Sequence[str] = SUFFIXES) -> list[Path]:
    """
    Return all files of a kind below a folder, in order: by their endings, or without one if images
    are asked for and they are DICOM.

    What begins with a dot, as the ``._`` files of macOS do, is none.
    """
    paths = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    mute = {p for p in paths if endings is SUFFIXES and not p.suffix and is_dicom(p)}
    return [path for path in paths if path.suffix.lower() in endings or path in mute]


def read_collection(
    place: Path, columns: Names = (), *, root: Path | None = None, endings: Names = SUFFIXES
) -> pd.DataFrame:
    """
    List images or videos, and what is known of them, from whatever names them.

    Parameters
    ----------
    place
        A CSV or Parquet table with the column ``path``; an ``.npz`` of images, see
        :func:`npz_table`; a single file; or a folder. Of a folder all files below it are taken,
        and its folders say what they are: one called train, val (valid, validation) or test is a
        part of the split, and the first of another name the label; ``train_real`` says both.
    columns
        That must be known, beside ``path``.
    root
        Of a table: folder that its paths are relative to; None: its own.
    endings
        Of the files of a folder.

    Returns
    -------
    DataFrame
        ``path``, and where known ``label``, ``split`` and the other columns of a table; all text.

    Raises
    ------
    MissingFileError, DataError
        It is absent or holds nothing, lacks a column or names a file twice.
    """
    place = Path(place)
    if place.is_dir():
        return _known(_folder_table(place, endings), columns, place)
    if not place.is_file():
        raise MissingFileError(f"There is no table, file or folder {place}.")
    if place.suffix == ".npz":
        return _known(npz_table(place), columns, place)
    if not is_table(place):
        return _known(pd.DataFrame({"path": [str(place)]}), columns, place)
    table = read_columns(place, ("path", *columns))
    if table.empty:
        raise DataError(f"{place} has no row.")
    if twice := first_twice(table["path"]):
        raise DataError(f"{place} names {twice} twice. Keep one row per image.")
    base = place.parent if root is None else root
    return table.assign(path=[str(base / str(name)) for name in table["path"]])


def _known(table: pd.DataFrame, columns: Sequence[str], place: Path) -> pd.DataFrame:
    missing = next((name for name in columns if name not in table.columns), None)
    if missing:
        has = ", ".join(name for name in table.columns if name != "path") or "the pixels alone"
        raise DataError(
            f"{place} gives of its images {has}; {missing!r} is needed too. Put them into folders "
            f"named by their label, or write a table of path and {missing}."
        )
    return table


def _folder_table(folder: Path, endings: Sequence[str]) -> pd.DataFrame:
    paths = files_below(folder, endings)
    if not paths:
        what = "image" if endings is SUFFIXES else "video"
        raise DataError(f"{folder} holds no {what}; known endings are {', '.join(endings)}.")
    inside = [path.relative_to(folder).parts[:-1] for path in paths]
    # "train_real" is train and real, where all folders are named so
    both = [row[0].partition("_") if row else ("", "", "") for row in inside]
    if all(sep and _part(first) in PARTS for first, sep, _ in both):
        inside = [(first, rest) for first, _, rest in both]
    table = pd.DataFrame({"path": [str(path) for path in paths]})
    for depth in (0, 1):
        names = [row[depth] if len(row) > depth else None for row in inside]
        if "split" not in table and all(name and _part(name) in PARTS for name in names):
            table["split"] = [_part(str(name)) for name in names]
        elif "label" not in table and any(names):
            table["label"] = names
    return table


def _part(name: str) -> str:
    return _SPELLED.get(name.lower(), name.lower())


def find_images(inputs: Path) -> list[Path]:
    """
    List the images that ``inputs`` names: see :func:`read_collection`.

    Raises
    ------
    DataError
        There are none.
    """
    return [Path(path) for path in read_collection(inputs)["path"]]


def unseen_images(inputs: Path, size_px: int, channels: int) -> tuple[Images, list[Path]]:
    """
    Return the images to predict for, and their paths; one that cannot be read stops nothing.

    Raises
    ------
    DataError
        There are none. See :func:`find_images`.
    """
    paths = find_images(inputs)
    return Images(paths, size_px, channels, tolerant=True), paths


def blanked(
    table: pd.DataFrame, unreadable: Mapping[int, str], what: str = "images"
) -> pd.DataFrame:
    """
    Blank the predictions of the rows that could not be read, and say why in a column ``error``.

    Raises
    ------
    DataError
        None of them could be read.
    """
    if not unreadable:
        return table
    reasons = dict(sorted(unreadable.items()))
    first = check_some_readable(reasons.values(), len(table), what)
    message = "%d of %d %s cannot be read and have no prediction; the column error says why. "
    logger.warning(message + "The first: %s", len(reasons), len(table), what, first)
    blank = table.astype({name: object for name in table if table[name].dtype.kind in "iub"})
    names = [name for name in blank.columns if name not in ("path", "video_id")]
    blank.loc[blank.index[list(reasons)], names] = None
    error = pd.Series(None, index=blank.index, dtype=object)
    error.iloc[list(reasons)] = list(reasons.values())
    return blank.assign(error=error)


def class_numbers(labels: pd.Series, what: str = "The labels") -> tuple[list[Any], np.ndarray]:
    """
    Number the classes of (n,) labels in order of their names; an error calls the labels ``what``.

    Returns
    -------
    classes, numbers
        ``numbers`` (n,) int64, -1 where the label is missing.

    Raises
    ------
    DataError
        There are fewer than two classes.
    """
    classes = sorted(set(labels.dropna()))
    if len(classes) < 2:
        held = repr(classes[0]) if classes else "missing"
        raise DataError(f"{what} are all {held}; two classes are needed to tell apart.")
    return classes, pd.Categorical(labels, categories=classes).codes.astype(np.int64)


def check_folds(
    label: np.ndarray, group: np.ndarray, classes: Names, folds: int, what: str
) -> None:
    """
    Refuse folds of which some would hold no group of a class.

    Parameters
    ----------
    label, group
        (n,) class numbers, and patient or person of each row.
    classes
        Their names.
    folds
        How many.
    what
        The groups in words.

    Raises
    ------
    DataError
        Names the class.
    """
    for number, name in enumerate(classes):
        count = len(set(group[label == number]))
        if count < folds:
            raise DataError(
                f"The class {name!r} has {count} {what}; {folds} folds need one each. Lower folds, "
                "or join classes."
            )


def with_split(
    table: pd.DataFrame, fractions: Fractions, seed: int, *, group: str, label: str | None = None
) -> pd.DataFrame:
    """
    Give a table the column ``split``: its own, checked, or one drawn by group.

    Raises
    ------
    DataError
        A value of ``split`` is unknown, or a group is in two parts.
    """
    groups = own_groups(table, group)
    if group in table.columns:
        table = table.assign(**{group: groups})
    if "split" in table.columns:
        split = table["split"].replace(_SPELLED)
        unknown = min(map(str, set(split) - set(PARTS)), default=None)
        if unknown is not None:
            raise DataError(f"The split {unknown!r} is unknown; the parts are {', '.join(PARTS)}.")
        check_groups(groups.tolist(), split.tolist(), group)
        return table.assign(split=split)
    labels = table[label].astype(str).tolist() if label in table.columns else None
    return table.assign(split=split_by_group(groups.tolist(), fractions, seed, labels))


def own_groups(table: pd.DataFrame, column: str) -> pd.Series:
    """
    Return the group (n,) of each row as text; a row that names none is a group of its own.

    Parameters
    ----------
    table
        (n,) rows, numbered by its index.
    column
        Patient, person or video; may be absent.
    """
    number = pd.Series(table.index.astype(str), index=table.index)
    if column not in table.columns:
        return number
    return table[column].where(table[column].notna(), "row " + number).astype(str)


def split_by_group(
    groups: Sequence[Any], fractions: Fractions, seed: int, labels: Sequence[Any] | None = None
) -> np.ndarray:
    """
    Divide rows into training, validation and test so that no group is in two parts.

    Parameters
    ----------
    groups
        (n,) patient, person or video of each row; rows without a group of their own are each a
        group.
    fractions
        Of the groups, per part.
    seed
        Of the draw.
    labels
        (n,) class of each row; the draw is made among groups of the same first label, so that
        classes keep their share.

    Returns
    -------
    ndarray of shape (n,)
        ``train``, ``validation`` or ``test``.

    Raises
    ------
    DataError
        The fractions do not sum to 1.
    """
    total = sum(fractions)
    if abs(total - 1) > 1e-6:
        raise DataError(f"The fractions of a split sum to 1; {fractions} sum to {total:g}.")
    names, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    strata = np.zeros(len(names), dtype=int)
    if labels is not None:
        strata[codes[::-1]] = np.unique(np.asarray(labels, dtype=str), return_inverse=True)[1][::-1]
    rng = np.random.default_rng(seed)
    part_of = np.empty(len(names), dtype="<U10")
    for stratum in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata == stratum))
        ends = np.round(np.cumsum(fractions) * len(members)).astype(int)
        for part, start, end in zip(PARTS, (0, *ends[:-1]), ends, strict=True):
            part_of[members[start:end]] = part
    return part_of[codes]


def check_groups(groups: Sequence[object], parts: Sequence[str], what: str) -> None:
    """
    Refuse a split in which one group is in two parts.

    Raises
    ------
    DataError
        Names the group.
    """
    seen: dict[object, str] = {}
    for group, part in zip(groups, parts, strict=True):
        if seen.setdefault(group, part) != part:
            raise DataError(
                f"The {what} {group} is in {seen[group]} and in {part}. Keep each {what} in one "
                "part of the split."
            )
