"""The command line: one command per verb, each a thin skin over the function of the same name."""

from __future__ import annotations

import errno
import logging
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import butterfly_sdm as sdm
from butterfly_sdm import terminal
from butterfly_sdm.errors import ButterflySDMError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from butterfly_sdm.mapping import MapResult
    from butterfly_sdm.planning import Plan
    from data_prep.look.look import Look


class _Commands(TyperGroup):
    """Turn a user's mistake into one sentence and exit code 2, an interruption into 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ButterflySDMError as error:
            _say(f"Error: {error}", "red")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            _say("Interrupted. Run the same command again: it continues where it was.", "yellow")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise typer.Exit(141) from None
        except OSError as error:  # a full disk, a folder without permission
            _say(f"Error: {_of_the_system(error)}", "red")
            raise typer.Exit(2) from None


def _of_the_system(error: OSError) -> str:
    """Say what the system refused, and of files that nothing half-written was left."""
    text = error.strerror or str(error)
    if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return f"{text}."  # no file is meant: a port, a process
    where = f" ({error.filename})" if error.filename else ""
    return f"{text}{where}. Nothing half-written was left."


def _say(text: str, style: str) -> None:
    terminal.err.print(text, style=style, markup=False, highlight=False)


app = typer.Typer(
    cls=_Commands,
    name="butterfly-sdm",
    help="Predict which species live where from satellite images, and map it.\n\nFour verbs: "
    "build, train, evaluate, map. "
    "Each takes one YAML; 'butterfly-sdm demo' walks the whole way on a simulated region.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SMALL_REGION: dict[str, Any] = {"size_px": 2048, "n_sites": 150, "n_species": 8}

ConfigArgument = Annotated[
    Path, typer.Argument(help="YAML file of the experiment.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting of the YAML: --set train.fit.epochs=3",
    ),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="OURS=YOURS", help="Name a column: --column eventDate='Seen on'"
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(help="Run folder, or the YAML it was made with.", show_default=False)
]
BandsOption = Annotated[
    str | None,
    typer.Option(
        help="Names of the scenes' bands in file order: red,green,blue,nir", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as JSON, for scripts.")]


@contextmanager
def _told_at_the_end(logger: str) -> Iterator[None]:
    """
    Keep warnings of a logger back: a command says them in its closing lines, finished before or
    not.
    """
    quiet = logging.getLogger(logger)

    def below_warning(record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING

    quiet.addFilter(below_warning)
    try:
        yield
    finally:
        quiet.removeFilter(below_warning)


def _command(
    verb: str, what: Path, *, dataset: Path | None = None, overrides: list[str] | None = None
) -> str:
    """Return the command that goes on from here, as it would be typed."""
    words = [
        "butterfly-sdm",
        verb,
        str(what),
        *(["--dataset", str(dataset)] if dataset is not None else []),
    ]
    for override in overrides or ():
        words += ["--set", override]
    return " ".join(shlex.quote(word) for word in words)


def _names(listed: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in listed.split(",")) if listed else None


def _example(*lines: str) -> str:
    return "[bold]Example[/bold]\n\n" + "\n\n".join(f"  {line}" for line in lines)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"butterfly-sdm {sdm.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more of what is done.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and end.",
            is_eager=True,
            callback=_say_version,
        ),
    ] = False,
) -> None:
    from rich.logging import RichHandler

    handler = RichHandler(console=terminal.err, show_time=False, show_path=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    if verbose:
        logging.getLogger("butterfly_sdm").setLevel(logging.INFO)
        logging.getLogger("data_prep").setLevel(logging.INFO)


@app.command(epilog=_example("butterfly-sdm demo --out butterfly_demo"))
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path(
        "butterfly_demo"
    ),
    seed: Annotated[int, typer.Option(help="Another seed makes another region.", min=0)] = 0,
    small: Annotated[
        bool, typer.Option("--small", help="A smaller region: quicker, and harder to learn from.")
    ] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Walk the whole way on a simulated region, from records and rasters to the map."""
    with terminal.progress_bars() as progress:
        region = sdm.simulate_region(
            out / "region", seed=seed, progress=progress, **(SMALL_REGION if small else {})
        )
        dataset = sdm.build(
            region.config, out / "dataset", overrides=overrides or (), progress=progress
        )
        run = sdm.train(
            region.config,
            out / "run",
            dataset=dataset,
            overrides=overrides or (),
            progress=progress,
        )
        scores = sdm.evaluate(run, progress=progress)
        result = sdm.predict_map(run, out=out / "map.tif", overwrite=True, progress=progress)
    terminal.summary(
        "The whole way, on a simulated region",
        {"region": region.folder, "data set": dataset.folder, "run": run.folder}
        | scores.summary()
        | {"scores": run.folder / "scores.csv"}
        | _map_rows(result),
        next_commands=[
            f"butterfly-sdm view {result.path}",
            f"butterfly-sdm report {run.folder}",
            "butterfly-sdm init my_region.yaml",
        ],
        as_json=as_json,
    )


@app.command(
    epilog=_example("butterfly-sdm look records.csv", "butterfly-sdm look scene.tif --out looked")
)
def look(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Records (archive, table, folder) and rasters; rasters are one scene.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for pictures and the YAML lines.")
    ] = None,
    columns: ColumnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what records or scenes hold, as they are understood, before anything is built."""
    named = dict(_ours_and_yours(text) for text in columns or ())
    with terminal.progress_bars() as progress:
        found = sdm.look(files, out, columns=named, progress=progress)
    if as_json:
        rows: dict[str, object] = {
            section.title: [" | ".join(row) for row in section.rows] for section in found.sections
        }
        terminal.summary("", rows | {"yaml": found.yaml}, as_json=True)
    else:
        _say_look(found)
        if out is not None:
            terminal.summary("Written", {"pictures and build.yaml": out})
    if not found.understood:
        raise typer.Exit(2)


def _ours_and_yours(text: str) -> tuple[str, str]:
    ours, found, yours = text.partition("=")
    if not found or not ours or not yours:
        raise ConfigError(f"--column {text!r} is not OURS=YOURS, such as eventDate='Seen on'.")
    return ours, yours


def _say_look(found: Look) -> None:
    """Print what was found, with a map where somebody looks at a terminal."""
    for section in found.sections:
        terminal.sections([(section.title, section.header, section.rows)])
        table = found.records.table if found.records is not None else None
        if section.title.startswith("Counted") and table is not None and terminal.out.is_terminal:
            lines = terminal.dot_map(
                table.sites["lon"].tolist(),
                table.sites["lat"].tolist(),
                width=min(terminal.out.width - 4, 72),
                height=20,
            )
            rows = [(line,) for line in lines]
            terminal.sections([("Where the sites lie (north is up)", (), rows)])
    if found.understood:
        title = "Lines for your config"
    else:
        title = "Lines for your config, as far as the files are understood"
    terminal.out.print(title, style="bold")
    terminal.out.print(found.yaml, markup=False, highlight=False)


@app.command(epilog=_example("butterfly-sdm build my_region.yaml --explain left_out.csv"))
def build(
    config: ConfigArgument,
    out: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    explain: Annotated[
        Path | None, typer.Option(help="CSV or Parquet: every record left out, with the reason.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn scenes and records into a data set."""

    with terminal.progress_bars() as progress, _told_at_the_end("data_prep.build"):
        dataset = sdm.build(
            config, out, explain=explain, overrides=overrides or (), progress=progress
        )
    card = dataset.card
    for text in card.warnings:
        _say(f"Warning: {text}", "yellow")
    for text in card.notes:
        _say(f"Note: {text}", "default")
    rows: dict[str, object] = {
        f"records {reason}": f"{count:,}" for reason, count in card.rows.items()
    }
    rows |= {
        "sites": f"{len(dataset.sites):,}",
        "species": len(dataset.species),
        "visits": f"{int(dataset.visits.sum()):,}",
    }
    if dataset.tiles_in_words:
        rows["tiles"] = dataset.tiles_in_words
    if dataset.split is not None:
        rows["split"] = dataset.split.in_words
    if explain is not None:
        rows["records left out"] = explain
    rows["data set"] = dataset.folder
    terminal.summary(
        "Data set built",
        rows,
        next_commands=[_command("train", config, dataset=out, overrides=overrides)],
        as_json=as_json,
    )


@app.command(epilog=_example("butterfly-sdm train my_region.yaml --set train.fit.epochs=3"))
def train(
    config: ConfigArgument,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Data set folder, if not the one the config builds.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a model to the training part of a data set."""

    with terminal.progress_bars() as progress:
        run = sdm.train(config, out, dataset=dataset, overrides=overrides or (), progress=progress)
    what = config if out is None and not overrides else run.folder
    terminal.summary(
        "Model trained",
        {"kind": run.config.train.model.kind, "species": len(run.predictor.species)}
        | ({"epochs": run.epochs} if run.epochs else {})
        | {"run": run.folder},
        next_commands=[_command("evaluate", what), _command("map", what)],
        as_json=as_json,
    )


@app.command(
    epilog=_example(
        "butterfly-sdm evaluate my_region.yaml",
        "butterfly-sdm evaluate --ladder configs/s2bms_ladder.yaml",
    )
)
def evaluate(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option(help="Folder of tables and plots; the run's own if not given.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, if it has moved.")] = None,
    ladder: Annotated[
        bool,
        typer.Option("--ladder", help="Fit and score all of evaluate.ladder instead of a run."),
    ] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a run beside honest baselines on sites it has not seen."""

    if ladder:
        with terminal.progress_bars() as progress:
            found = sdm.ladder(
                run, out, dataset=dataset, overrides=overrides or (), progress=progress
            )
        terminal.summary(
            "Ladder, best first",
            found.summary() | {"tables and plots": found.folder},
            as_json=as_json,
        )
        return
    with terminal.progress_bars() as progress:
        scores = sdm.evaluate(
            run, out, dataset=dataset, overrides=overrides or (), progress=progress
        )
    terminal.summary(
        "Scores",
        scores.summary() | {"tables and plots": scores.folder},
        next_commands=[
            _command("report", scores.folder if out is None and scores.folder else run),
            _command("map", run),
        ],
        as_json=as_json,
    )


@app.command(
    "map",
    epilog=_example(
        "butterfly-sdm map my_region.yaml",
        "butterfly-sdm map runs/my_region/run scene.tif --out map.tif",
    ),
)
def map_(
    run: RunArgument,
    scenes: Annotated[
        list[Path] | None, typer.Argument(help="Rasters; together one mosaic.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The GeoTIFF to write.")] = None,
    bands: BandsOption = None,
    given: Annotated[
        Path | None, typer.Option(help="What was seen since: a CSV; it moves the map around it.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, if it has moved.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a finished map of other settings.")
    ] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Map every species of a run: a GeoTIFF with one band per species."""

    with terminal.progress_bars() as progress:
        result = sdm.predict_map(
            run,
            scenes,
            out,
            bands=_names(bands),
            given=given,
            dataset=dataset,
            overwrite=force,
            overrides=overrides or (),
            progress=progress,
        )
    terminal.summary(
        "Map written",
        _map_rows(result),
        next_commands=[f"butterfly-sdm view {result.path}"],
        as_json=as_json,
    )


@app.command(
    epilog=_example(
        "butterfly-sdm embed scene.tif --weights vit.pth --like SENTINEL2_ALL_DINO --out emb.tif"
    )
)
def embed(
    scenes: Annotated[
        list[Path], typer.Argument(help="Rasters; together one mosaic.", show_default=False)
    ],
    weights: Annotated[str, typer.Option(help="Local file, or the name of torchgeo's weights.")],
    out: Annotated[Path, typer.Option(help="The GeoTIFF to write, a pixel per patch.")],
    backbone: Annotated[
        str, typer.Option(help="Transformer or other trunk of timm or torchgeo.")
    ] = "vit_small_patch16_224",
    like: Annotated[
        str | None,
        typer.Option(
            help="Torchgeo's weights whose bands were standardised alike.", show_default=False
        ),
    ] = None,
    bands: BandsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed a scene with a frozen foundation model; build reads the result as embeddings."""

    with terminal.progress_bars() as progress:
        made = sdm.embed(
            scenes,
            out,
            weights=weights,
            backbone=backbone,
            like=like,
            bands=_names(bands),
            progress=progress,
        )
    terminal.summary(
        "Embeddings written",
        {"embeddings": made, "in a config": f"scenes: {{paths: [{made}], embeddings: {{}}}}"},
        as_json=as_json,
    )


@app.command(epilog=_example("butterfly-sdm community runs/my_region/run"))
def community(
    run: RunArgument,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, if it has moved.")] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn how the species of a run come and go together: fits its model once per fold."""

    with terminal.progress_bars() as progress:
        found = sdm.fit_community(
            run, dataset=dataset, overrides=overrides or (), progress=progress
        )
    near = f"share {found.share:.0%} of what the model misses, up to {found.reach_m / 1000:g} km"
    terminal.summary(
        "Community learned",
        {
            "training sites": f"{found.sites:,}",
            "species": len(found.species),
            "usual survey": f"{found.visits:g} visits",
            "neighbours": near if found.share else "tell nothing of each other",
        },
        next_commands=[f"{_command('predict', run)} PLACES.csv --given RECORDS.csv"],
        as_json=as_json,
    )


@app.command(
    epilog=_example(
        "butterfly-sdm predict runs/my_region/run places.csv",
        "butterfly-sdm predict runs/my_region/run places.csv --given records.csv",
    )
)
def predict(
    run: RunArgument,
    places: Annotated[
        Path,
        typer.Argument(
            help="CSV (place; lon and lat, grid_reference or footprint_wkt) or a vector file.",
            show_default=False,
        ),
    ],
    given: Annotated[
        Path | None,
        typer.Option(
            help="What was seen: a CSV with place, species and date, complete, visits and "
            "detections, or seen."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The CSV to write; beside PLACES if not given.")
    ] = None,
    visits: Annotated[
        float | None, typer.Option(help="Of the survey that richness speaks of.", min=1)
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, if it has moved.")] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what lives at places, given what was seen there or near."""

    target = out if out is not None else places.with_name(f"{places.stem}_predicted.csv")
    with terminal.progress_bars() as progress:
        found = sdm.predict(
            run,
            places,
            target,
            given=given,
            visits=visits,
            dataset=dataset,
            overrides=overrides or (),
            progress=progress,
        )
    for text in found.notes:
        _say(f"Note: {text}", "default")
    if not as_json:
        for title, header, rows in found.in_words():
            terminal.table(title, header, rows)
    terminal.summary(
        "Predicted",
        {"places": f"{len(found.places):,}", "table": target},
        as_json=as_json,
    )


@app.command(
    epilog=_example(
        "butterfly-sdm view my_region.yaml",
        "butterfly-sdm view runs/my_region/map.tif --export map.html",
    )
)
def view(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="MAP", help="A map, a run folder, or the YAML of both.", show_default=False
        ),
    ],
    export: Annotated[
        Path | None, typer.Option(help="Write a self-contained page instead of serving one.")
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port on this machine; 0: any that is free.", min=0, max=65535)
    ] = 0,
    limit: Annotated[
        float | None,
        typer.Option(
            help="Hatch places more dissimilar to the training sites than this; else as the map "
            "says."
        ),
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(help="Vector file drawn above the map, such as a plan.", show_default=False),
    ] = None,
    sites: Annotated[
        bool, typer.Option(help="Show the sites of the run beside the map and what was seen there.")
    ] = True,
    dataset: Annotated[
        Path | None, typer.Option(help="Data set folder of the run, if it has moved.")
    ] = None,
) -> None:
    """Look at a map in the browser: species, how good each is, where not to trust it."""
    from butterfly_sdm.mapping.viewer import export_page, make_server
    from butterfly_sdm.pipeline import map_to_view

    path, seen = map_to_view(what, dataset)
    shown: dict[str, Any] = {
        "limit": limit,
        "sites": seen if sites else None,
        "shapes": overlay,
    }
    if export is not None:
        terminal.summary("Page written", {"page": export_page(path, export, **shown)})
        return
    try:
        server = make_server(path, port=port, **shown)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise ConfigError(
            f"Port {port} of this machine cannot be used ({error.strerror}). Leave --port out: "
            "then a free one is taken."
        ) from error
    terminal.out.print(
        f"{path} is shown at http://127.0.0.1:{server.server_address[1]}/ - end with Ctrl-C",
        highlight=False,
    )
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        terminal.out.print("Ended.")
    finally:
        server.server_close()


@app.command(
    epilog=_example(
        "butterfly-sdm plan runs/my_region/run --sites 20 --visits 8",
        "butterfly-sdm plan my_region.yaml --candidates squares.gpkg --places park.gpkg",
        "butterfly-sdm plan runs/my_region/run --replay",
    )
)
def plan(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|DATASET", help="Run or data set folder, or the YAML.", show_default=False
        ),
    ],
    candidates: Annotated[
        str | None,
        typer.Option(help="File of squares or points, or unvisited; else a grid.", metavar="FILE"),
    ] = None,
    places: Annotated[
        str | None,
        typer.Option(help="Where the map is judged: a file, sites, validation ...", metavar="FILE"),
    ] = None,
    sites: Annotated[int | None, typer.Option(help="Sites to choose.", min=1)] = None,
    visits: Annotated[int | None, typer.Option(help="Visits to each.", min=1)] = None,
    species: Annotated[
        list[str] | None, typer.Option(help="Plan for this species; several: once each.")
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Try the methods on your own sites instead.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the files.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Data set folder of the run, if it has moved.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say where to survey next: ranked sites for phone, QGIS and spreadsheet."""

    where: dict[str, Any] = {"dataset": dataset, "overrides": overrides or ()}
    given = {"sites": sites, "visits": visits, "species": species or None, "places": places}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    with terminal.progress_bars() as progress:
        if replay:
            extra = sorted({*settings, *({"candidates"} if candidates else ())} - {"species"})
            if extra:
                raise ConfigError(
                    f"--replay chooses among the sites of the data set; leave out --{extra[0]}."
                )
            found = sdm.replay_plan(what, out, **where, progress=progress, **settings)
        else:
            made = sdm.plan(what, candidates, out, **where, progress=progress, **settings)
    if replay:
        terminal.summary("Replay of a survey", found.rows(), as_json=as_json)
    else:
        _say_plan(made, as_json=as_json)


def _say_plan(made: Plan, *, as_json: bool) -> None:
    """Print the paragraph of a plan and where its files lie."""
    folder = made.folder
    assert folder is not None
    for text in made.notes:
        _say(f"Note: {text}", "default")
    rows: dict[str, object] = {
        "sites": f"{len(made.sites)}, the first {', '.join(map(str, made.sites.index[:3]))}",
        "promised": f"{made.promise['gain']:.1f} % of the expected error"
        f" (at random {made.promise['gain_random']:.1f} %)",
        "for a phone": folder / "plan.gpx",
        "for QGIS": folder / "plan.gpkg",
        "as a table": folder / "plan.csv",
        "picture": folder / "plan.png",
    }
    terminal.summary("Where to look next", rows | {"in words": made.words}, as_json=as_json)


@app.command(epilog=_example("butterfly-sdm report my_region.yaml"))
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, or the YAML of one; the first is described.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The HTML page; report.html in the first run if not given.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, if it has moved.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one page about runs: how good, beside what, and where to trust it."""

    with terminal.progress_bars() as progress:
        page = sdm.report(runs, out, dataset=dataset, progress=progress)
    rows = {
        "page": page,
        "as Markdown": page.with_suffix(".md"),
        "tables": page.with_name(f"{page.stem}_species.csv"),
    }
    terminal.summary("Report written", rows, as_json=as_json)


@app.command(
    epilog=_example(
        "butterfly-sdm compare runs/a/run runs/b/run",
        "butterfly-sdm compare my_region.yaml --change train.fit.regulariser.form=soft --seeds 5",
    )
)
def compare(
    what: Annotated[
        list[Path], typer.Argument(help="Two runs, or one YAML with --change.", show_default=False)
    ],
    change: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="What the other experiment changes."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many, with --change.", min=1)] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder of the tables, with --change.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, if it has moved.")] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs, or an experiment with and without a change, site by site."""
    if change:
        if len(what) != 1:
            raise ConfigError(f"With --change, compare takes one YAML; {len(what)} were given.")
        with terminal.progress_bars() as progress:
            ablation = sdm.compare_change(
                what[0],
                change,
                out,
                seeds=seeds,
                dataset=dataset,
                overrides=overrides or (),
                progress=progress,
            )
        table = ablation.folder / "comparison.csv"
        rows: dict[str, object] = {**ablation.summary(), "change": ", ".join(change)}
        rows |= {"table": table, "picture": table.with_suffix(".png")}
        terminal.summary("Changed beside as it is", rows, as_json=as_json)
        return
    if len(what) != 2:
        raise ConfigError(
            f"compare takes two runs, or one YAML with --change; {len(what)} were given."
        )
    result = sdm.compare_runs(what[0], what[1], dataset=dataset)
    terminal.summary(
        "Two runs on the same held-out sites", {"verdict": result.verdict}, as_json=as_json
    )


@app.command(
    epilog=_example(
        "butterfly-sdm search configs/s2bms_published.yaml --trials 50",
        "butterfly-sdm search my_region.yaml --trials 9 --set "
        "'search.space={train.fit.learning_rate: [0.0001, 0.001]}'",
    )
)
def search(
    config: ConfigArgument,
    out: Annotated[Path | None, typer.Option(help="Folder of the trials and of best.yaml.")] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Settings tried in all, those of earlier calls included.", min=1),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Data set folder, if not the one the config builds.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search settings of a network: try what search.space allows, judged on the validation part."""

    changes = [*(overrides or ()), *([f"search.trials={trials}"] if trials is not None else [])]
    with terminal.progress_bars() as progress:
        found = sdm.search(config, out, dataset=dataset, overrides=changes, progress=progress)
    score = found.table["score"]
    terminal.summary(
        "Search ended",
        {"trials": f"{len(found.table)}, {int(score.isna().sum())} of them could not be fitted"}
        | {
            "best score": f"{score.iloc[0]:.5f} on the validation part, which chose it: judge it "
            "on other sites"
        }
        | dict(entry.split("=", 1) for entry in found.best)
        | {"table": found.config.with_name("trials.csv"), "config": found.config},
        next_commands=[f"butterfly-sdm train {found.config}"],
        as_json=as_json,
    )


@app.command(
    epilog=_example(
        "butterfly-sdm check runs/my_region/dataset runs/my_region/run runs/my_region/map.tif"
    )
)
def check(
    artefacts: Annotated[
        list[Path], typer.Argument(help="Data set folders, run folders, maps.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Verify artefacts byte by byte; say what is wrong."""

    found: dict[str, list[str]] = {}
    for path in artefacts:  # all of them, also where one cannot be looked at
        try:
            found[str(path)] = sdm.check(path)
        except ButterflySDMError as error:
            found[str(path)] = [str(error)]
    for problem in (problem for problems in found.values() for problem in problems):
        _say(problem, "red")
    rows = {
        path: f"problems: {len(problems)}" if problems else "as it was written"
        for path, problems in found.items()
    }
    terminal.summary("Checked", found if as_json else rows, as_json=as_json)
    if any(found.values()):
        raise typer.Exit(2)


@app.command(epilog=_example("butterfly-sdm plugins"))
def plugins(as_json: JsonOption = False) -> None:
    """List the methods of other domains that are installed."""
    from butterfly_sdm.plugins.plugin import list_plugins

    found = list_plugins()
    if as_json:
        values = {
            info.name: {"summary": info.summary, "from": info.distribution, "error": info.error}
            for info in found
        }
        terminal.summary("", values, as_json=True)
        return
    rows = [
        (
            i.name,
            i.summary if i.error is None else f"cannot be used: {i.error}",
            f"{i.distribution} {i.version}",
        )
        for i in found
    ]
    terminal.table("Plugins", ("name", "what it does", "from"), rows)


@app.command(
    epilog=_example(
        "butterfly-sdm plugin cmmd init",
        "butterfly-sdm plugin cmmd train --config cmmd.yaml",
        "butterfly-sdm plugin cmmd evaluate --config cmmd.yaml",
    )
)
def plugin(
    name: Annotated[
        str,
        typer.Argument(help="Name of the plugin, see: butterfly-sdm plugins", show_default=False),
    ],
    verb: Annotated[
        str,
        typer.Argument(
            help="init, extract, train, evaluate, predict or check.", show_default=False
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML with the settings of the plugin; init writes it."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a setting of the plugin: --set seed=1"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """
    Use a method of another domain.

    init writes a YAML of all its settings.

    extract makes features of raw files, such as videos.

    check lets it show, on few steps, that it keeps what plugins promise.
    """
    from butterfly_sdm.core.files import read_json
    from butterfly_sdm.plugins import plugin as door

    verbs = ("init", "extract", "train", "evaluate", "predict", "check")
    if verb not in verbs:
        raise ConfigError(
            f"{verb!r} is no verb of a plugin; the verbs are init, extract, train, evaluate, "
            f"predict and check.{did_you_mean(verb, verbs)}"
        )
    place = config if config is not None else Path(f"{name}.yaml")
    if verb == "init":
        door.write_starter(name, place)
        terminal.summary(
            "Settings written",
            {"config": place},
            next_commands=[f"butterfly-sdm plugin {name} train --config {place}"],
            as_json=as_json,
        )
        return
    if config is None:
        raise ConfigError(
            f"{verb} needs the settings: --config FILE. butterfly-sdm plugin {name} init writes "
            "one to fill in."
        )
    if verb == "check":
        door.check_installed(name, config, overrides or ())
        terminal.summary(f"{name} check", {"contract": "kept"}, as_json=as_json)
        return
    began, sets = time.time(), [word for pair in overrides or () for word in ("--set", pair)]
    alike = shlex.join(["--config", str(config), *(["--out", str(out)] if out else []), *sets])
    follows = {
        "extract": [f"butterfly-sdm plugin {name} train {alike}"],
        "train": [f"butterfly-sdm plugin {name} evaluate {alike}"],
        "evaluate": [f"butterfly-sdm plugin {name} predict {alike} --set inputs=FILES"],
    }.get(verb, [])
    with terminal.progress_bars() as progress:
        if verb == "extract":
            told = door.extract_features(name, config, overrides or (), progress)
            terminal.summary(f"{name} extract", told, next_commands=follows, as_json=as_json)
            return
        result = door.run_plugin(name, verb, config, out, overrides or (), progress)  # type: ignore[arg-type]
    rows: dict[str, object] = {"written": result}
    if verb == "train" and (result / "model.json").stat().st_mtime < began:
        rows = {"trained before": result}
    if verb == "evaluate":
        rows |= {key: f"{value:.4g}" for key, value in read_json(result / "metrics.json").items()}
    terminal.summary(f"{name} {verb}", rows, next_commands=follows, as_json=as_json)


@app.command(
    epilog=_example(
        "butterfly-sdm init my_region.yaml",
        "butterfly-sdm init my_region.yaml --records records.csv --scene scene.tif",
    )
)
def init(
    path: Annotated[Path, typer.Argument(help="The YAML to write.")] = Path("my_region.yaml"),
    records: Annotated[
        list[Path] | None,
        typer.Option(help="Records to look at and to fill in; several: once each."),
    ] = None,
    scene: Annotated[
        list[Path] | None,
        typer.Option(help="Rasters to look at and to fill in; several: once each."),
    ] = None,
    columns: ColumnOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every setting with its default and meaning.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented starter YAML for your own records and rasters."""
    from butterfly_sdm.config import starter_yaml
    from butterfly_sdm.core.files import write_text

    if path.exists() and not force:
        raise ConfigError(
            f"{path} exists already. Choose another name, or replace it with --force."
        )
    if everything and (records or scene):
        raise ConfigError(
            "--all lists defaults, and --records and --scene fill the short starter. Use one."
        )
    if not records and not scene:
        text = starter_yaml(path.stem, everything=everything)
    else:
        named = dict(_ours_and_yours(text) for text in columns or ())
        with terminal.progress_bars() as progress:
            found = sdm.look([*(records or ()), *(scene or ())], columns=named, progress=progress)
        text = starter_yaml(
            path.stem,
            records=found.lines("records", beside=path),
            scenes=found.lines("scenes", beside=path),
        )
        if found.records is not None and found.records.suggested:
            told = ", ".join(f"{ours}: {yours}" for ours, yours in found.records.suggested.items())
            _say(f"Columns recognised by their values alone, check them: {told}.", "yellow")
        if not found.understood:
            _say_look(found)
            _say(f"{path} holds what is known so far; complete it as said above.", "yellow")
    write_text(path, text)
    rows: dict[str, object] = {"config": path}
    if marked := text.count(" # <--"):
        rows["before you build"] = f"change the {marked} lines marked <--"
    terminal.summary("Starter config written", rows, next_commands=[f"butterfly-sdm build {path}"])


@app.command(epilog=_example("butterfly-sdm doctor"))
def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine has: cores, memory, GPU, PROJ grids, optional packages."""
    from butterfly_sdm.doctor import examine

    terminal.summary("This machine", examine(), as_json=as_json)


def _map_rows(result: MapResult) -> dict[str, object]:
    rows: dict[str, object] = {
        "map": result.path,
        "species": f"{len(result.species)} bands, {result.crs}, {result.mode}",
        "positions": f"{result.counts['predicted']:,} of {result.counts['positions']:,} predicted",
    }
    if "mean_abs" in result.audit:
        rows["audit"] = (
            f"differs from window by window by {result.audit['mean_abs']:.4f} on average, "
            f"{result.audit['max_abs']:.4f} at most"
        )
    return rows | {name: path for name, path in result.files.items() if isinstance(path, Path)}


def main() -> None:
    """Run the command line."""
    warnings.filterwarnings("ignore", message=".*treespec.*", category=FutureWarning)
    # threads of libraries that silence warnings of their own let this one through
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")
    app()


if __name__ == "__main__":
    main()
