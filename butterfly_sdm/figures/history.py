"""Pictures of training: how fit and validation score went, epoch by epoch."""

from pathlib import Path

import pandas as pd
from matplotlib.ticker import MaxNLocator

from butterfly_sdm.errors import MissingFileError
from butterfly_sdm.figures.picture import INK, OTHER, PALETTE, Picture

# How fast it went, not how well.
SPEED = ("learning_rate", "seconds", "sites_per_second", "waiting")


def show_history(
    history: pd.DataFrame | str | Path, *, reference: float | None = None, speed: bool = False
) -> Picture:
    """
    Show how fit and validation scores went, epoch by epoch.

    Parameters
    ----------
    history
        A table with a column ``epoch``, or the ``history.csv`` or folder of a run.
    reference
        Validation error of something simpler, such as the mean rate: drawn as a line in the panels
        of mean squared error.
    speed
        Also show the learning rate, the seconds of each epoch, and sites per second.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.

    Raises
    ------
    MissingFileError
        There is no history there.
    """
    if not isinstance(history, pd.DataFrame):
        path = Path(history) / "history.csv" if Path(history).is_dir() else Path(history)
        if not path.is_file():
            raise MissingFileError(
                f"There is no history at {path}. Only networks that were trained leave one."
            )
        history = pd.read_csv(path)
    epochs = 1 + (history["epoch"] if "epoch" in history else pd.Series(range(len(history))))
    left_out = ["epoch", "step", *(() if speed else SPEED)]
    numbers = (
        history.drop(columns=left_out, errors="ignore")
        .select_dtypes("number")
        .dropna(axis=1, how="all")
    )
    panels: dict[str, list[str]] = {}
    for name in numbers:
        measure = name.removeprefix("validation_").removeprefix("train_").removeprefix("val_")
        panels.setdefault(measure, []).append(name)
    columns = min(3, len(panels))
    rows = -(-len(panels) // max(1, columns))
    picture = Picture(3.6 * columns, 2.7 * rows)
    for number, (measure, names) in enumerate(panels.items()):
        axes = picture.add_subplot(rows, columns, number + 1)
        for name in names:
            part = (
                "validation"
                if name.startswith("val")
                else "train"
                if name.startswith("train")
                else ""
            )
            known = numbers[name].notna()
            axes.plot(
                epochs[known],
                numbers[name][known],
                color=PALETTE.get(part, OTHER),
                marker=".",
                linewidth=1.5,
                label=part or name,
            )
        if reference is not None and measure == "mse":
            axes.axhline(reference, color=INK, linestyle=":", linewidth=1, label="reference")
        axes.set_title(
            {"mse": "mean squared error"}.get(measure, measure.replace("_", " ")), fontsize=9
        )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1 or (reference is not None and measure == "mse"):
            axes.legend(fontsize=7, frameon=False)
    return picture
