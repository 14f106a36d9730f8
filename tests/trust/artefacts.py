"""
Make the artefacts of one release, small enough to be kept in the repository, for later releases to
read.

Run once per release, with that release: ``python -m tests.trust.artefacts``. The weights are
rounded before they are saved, so that they pack well.
"""

import json
import shutil
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import torch

from butterfly_sdm import pipeline
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.simulate import simulate_region

FOLDER = Path(__file__).with_name("artefacts")
SMALL = (
    "train.model.backbone=test_convnext",
    "train.model.width=null",
    "train.model.window_px=32",
    "train.model.margin_px=0",
    "train.model.embedding=8",
    "train.model.head_width=8",
    "train.fit.epochs=1",
    "train.fit.batch_size=8",
    "map.stride_px=32",
    "map.block_px=128",
    "map.beside=[stac]",
    "map.audit=10",
)


def make(folder: Path) -> None:
    """Make a data set, a run of a network, one of the mean rate, their predictions and a map."""
    region = simulate_region(
        folder / "region", size_px=512, n_sites=12, n_species=3, tile_px=32, window_px=32
    )
    dataset = pipeline.build(region.config, folder / "dataset", overrides=SMALL)
    save = NetworkPredictor.save

    def save_rounded(self: NetworkPredictor, at: Path) -> None:
        assert self.network is not None
        for weights in self.network.parameters():
            weights.data = torch.round(weights.data * 64) / 64
        save(self, at)

    NetworkPredictor.save = save_rounded  # type: ignore[method-assign]
    try:
        run = pipeline.train(
            region.config, folder / "run", dataset=folder / "dataset", overrides=SMALL
        )
    finally:
        NetworkPredictor.save = save  # type: ignore[method-assign]
    mean = pipeline.train(
        region.config,
        folder / "mean",
        dataset=folder / "dataset",
        overrides=[*SMALL, "train.model.kind=mean_rate"],
    )
    sites = dataset.sites_with_tiles
    expected = {}
    for one in (run, mean):
        told = one.predictor.predict(dataset, sites)
        expected[one.folder.name] = {
            species: dict(told[species].astype(float)) for species in told.columns
        }
    (folder / "predictions.json").write_text(json.dumps(expected, indent=1), encoding="utf-8")
    pipeline.predict_map(run, out=folder / "map.tif", overrides=SMALL)


def main(target: Path) -> None:
    """Write ``VERSION.zip``."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder)
        shutil.rmtree(folder / "region")
        target.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    info = zipfile.ZipInfo(
                        path.relative_to(folder).as_posix(), (2020, 1, 1, 0, 0, 0)
                    )
                    archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / f"{version('butterfly-sdm')}.zip")
